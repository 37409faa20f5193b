"""A backbone of timm through every command, with the same options as any other."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import draw_tinted, featx_cli

from featx.backbones.cuts import list_cuts, main_cuts
from featx.features.file import open_features

timm = pytest.importorskip("timm")

VIT = "timm/test_vit"
SIZE = ("--image-size", 32)
RANDOM = ("-w", "none", *SIZE)
QUICK = ("--lr", "0.001", "--epochs", "1")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_tinted(tmp_path_factory.mktemp("photos") / "photos")


@pytest.fixture(scope="module")
def made(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features at a cut, a tuned head and its model file."""
    out = tmp_path_factory.mktemp("made")
    cut = ("-b", VIT, *RANDOM, "--cut", "blocks.4")
    for command in (
        ("finetune", photos, *cut, "-o", out / "tuned.safetensors", *QUICK),
        ("export", out / "tuned.safetensors", "--onnx", out / "model.onnx"),
    ):
        done(*command)
    return out


def done(*command: object) -> Any:
    result = featx_cli(*command)
    assert result.exit_code == 0, result.output
    return result


def predicted(model: Path, images: Path) -> list[tuple[str, float]]:
    result = done("predict", model, images, "--format", "csv", "-k", 1)
    rows = csv.DictReader(io.StringIO(result.stdout))
    return [(row["label"], float(row["probability"])) for row in rows]


def test_a_cut_is_tuned_and_exported(made, photos):
    cache = open_features(made / "features-blocks.4.h5")
    assert cache.row_shape == (5, 64)  # 4 patches of 16 px and the class token
    assert len(predicted(made / "model.onnx", photos)) == 40
    assert "intact" in done("check", made / "model.onnx").stdout


def test_a_model_predicts_without_torch_and_timm(made, photos):
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "from featx.cli import main\n"
        f"main(['predict', {str(made / 'model.onnx')!r}, {str(photos)!r}, '--format', 'csv'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("petals/") >= 20


def test_a_tuned_head_is_written_as_timms_own_state_dict(made, photos, tmp_path):
    file = tmp_path / "whole.pth"
    result = done("export", made / "tuned.safetensors", "--state-dict", file)
    assert 'timm.create_model("test_vit.r160_in1k", num_classes=2, img_size=32)' in result.output
    model = timm.create_model("test_vit.r160_in1k", num_classes=2, img_size=32)
    assert model.load_state_dict(torch.load(file), strict=True)


@pytest.mark.parametrize(
    ("options", "precision"),
    [(("--precision", "int8"), "int8"), (("--precision", "bf16", "--engine", "torch"), "bf16")],
)
def test_other_precisions_have_their_features_and_heads(options, precision, photos, tmp_path):
    features, plain = tmp_path / "features.h5", tmp_path / "plain.h5"
    done("extract", photos, "-b", "timm/test_resnet", *RANDOM, *options, "-o", features)
    done("extract", photos, "-b", "timm/test_resnet", *RANDOM, "-o", plain)
    found, exact = open_features(features), open_features(plain)
    assert found.header.spec["precision"] == precision
    angles = cosines(found.features, exact.features)
    assert 0.98 < angles.min() <= angles.max() < 1 - 1e-9
    done("train-head", features, "-o", tmp_path / "head.safetensors")
    done("export", tmp_path / "head.safetensors", "--onnx", tmp_path / "model.onnx")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a.astype(np.float64) * b).sum(axis=1) / lengths


@pytest.mark.parametrize("backbone", [VIT, "timm/test_convnext"])
def test_several_layers_are_extracted_at_once_as_alone(backbone, photos, tmp_path):
    layers = {VIT: ("blocks.2", "blocks.5"), "timm/test_convnext": ("stages.1", "stages.3")}
    source = (photos, "-b", backbone, *RANDOM)
    both = [each for layer in layers[backbone] for each in ("--layer", layer)]
    done("extract", *source, *both, "-o", tmp_path / "f.h5")
    for layer in layers[backbone]:
        done("extract", *source, "--layer", layer, "-o", tmp_path / "alone.h5", "--overwrite")
        together = open_features(tmp_path / f"f-{layer}.h5")
        assert np.array_equal(together.features, open_features(tmp_path / "alone.h5").features)


BLOCKS = {
    "timm/vit_small_patch16_dinov3": [f"blocks.{number}" for number in (1, 6, 11)],
    "timm/eva02_tiny_patch14_224": [f"blocks.{number}" for number in (1, 6, 11)],
    "timm/vit_small_patch14_reg4_dinov2": [f"blocks.{number}" for number in (1, 6, 11)],
    "timm/swin_tiny_patch4_window7_224": ["layers.1", "layers.2", "layers.3"],
    "timm/swinv2_tiny_window8_256": ["layers.1", "layers.2", "layers.3"],
    "timm/convnext_atto": ["stages.1", "stages.2", "stages.3"],
    "timm/mobilenetv4_conv_small": ["blocks.1", "blocks.3"],
    "timm/eca_nfnet_l0": ["stages.1", "stages.3"],
    "timm/regnety_002": ["s2", "s4"],
}


def test_the_default_layer_is_listed_with_its_width():
    text = done("backbones", VIT, "--image-size", 32).stdout
    assert ["pre_logits", "*", "64"] in [line.split() for line in text.splitlines()]


@pytest.mark.parametrize("backbone", BLOCKS)
def test_the_blocks_of_a_model_are_its_cuts(backbone):
    from featx.backbones.catalog import default_preprocess
    from featx.backbones.table import require_backbone

    name = require_backbone(backbone)
    cuts = list_cuts(name, default_preprocess(name).image_size)
    assert set(BLOCKS[backbone]) <= {cut.name for cut in cuts}
    shown = [cut.name for cut in main_cuts(cuts)]
    assert set(BLOCKS[backbone]) <= set(shown), shown
    if "layers.2" in shown:  # stages in the list, their blocks with --all
        assert {f"layers.2.blocks.{number}" for number in range(1, 6)} <= {c.name for c in cuts}
    assert len(shown) < 40
    assert cuts[0].share == 1 > cuts[-1].share


def test_the_licence_stays_with_a_tuned_head_and_its_exports(photos, tmp_path, monkeypatch):
    from featx.extraction import resume

    terms = "dinov3-license, https://example.org/terms"
    monkeypatch.setattr(resume, "licence_of", lambda *_: terms)
    tuned, model, card = (tmp_path / name for name in ("t.safetensors", "m.onnx", "card.md"))
    done("finetune", photos, "-b", VIT, *RANDOM, "--cut", "blocks.4", "-o", tuned, *QUICK)
    exported = done("export", tuned, "--onnx", model, "--card", card)
    assert "terms of its owner" in " ".join(exported.stderr.split())
    for path in (tmp_path / "features-blocks.4.h5", tuned, model):
        assert json.loads(done("info", path, "--json").stdout)["details"]["licence"] == terms
    assert "dinov3-license" in card.read_text("utf-8")
