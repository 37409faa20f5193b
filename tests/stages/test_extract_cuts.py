"""Extraction at a cut: activations, pixels, their type, and what is refused."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from featx.backbones.catalog import build_model, penultimate_layer
from featx.backbones.cuts import split_model
from featx.backbones.network import Network
from featx.backbones.torch_engine import TorchEngine
from featx.backbones.weights import open_weights
from featx.errors import (
    ArtifactError,
    ArtifactMismatch,
    BackboneError,
    ConfigError,
)
from featx.extraction import space
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.images.decode import decode_image
from featx.images.preprocess import preprocess
from featx.stages.check import check
from featx.stages.extract import extract

CUT = ExtractOptions(backbone="tiny", cut="stage3", engine="torch", workers=1)


def rows_of(path: Path, name: str = "features") -> np.ndarray:
    with h5py.File(path) as file:
        values: np.ndarray = file[name][:]
    return values


def crops_of(source: Path, path: Path) -> np.ndarray:
    """Return what the network sees of each image of a file, ``(N, size, size, 3)``."""
    file = open_features(path)
    spec = space.BackboneSpec.from_dict(file.header.spec).preprocess
    return np.stack(
        [
            preprocess(decode_image((source / name).read_bytes(), sample_id=name), spec)
            for name in file.sample_ids
        ]
    )


def captured(model: nn.Module, cut: str, crops: np.ndarray, spec: Any) -> np.ndarray:
    """Return what enters a module, copied at once, of one image after the other."""
    found: list[np.ndarray] = []
    module = model.get_submodule(cut)
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].clone().numpy()))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    with torch.inference_mode():
        for crop in crops:
            images = torch.from_numpy(crop[None]).permute(0, 3, 1, 2).float() / 255
            model.eval()((images - mean) / std)
    handle.remove()
    return np.concatenate(found)


@pytest.mark.parametrize(
    ("backbone", "cut", "engine"),
    [
        ("tiny", "stage2", "onnxruntime"),
        ("resnet18", "layer4", "torch"),
        ("resnet18", "layer3.1", "torch"),
        ("squeezenet1_1", "features.4.squeeze_activation", "onnxruntime"),
        ("squeezenet1_1", "features.4.squeeze_activation", "torch"),
        ("squeezenet1_1", "features.7", "torch"),
    ],
)
def test_activations_are_those_that_enter_the_module(backbone, cut, engine, photos, tmp_path):
    source, path = photos({"ants": 3, "bees": 2}), tmp_path / "maps.h5"
    options = ExtractOptions(
        backbone=backbone, cut=cut, weights="none", image_size=32, engine=engine, batch_size=2
    )
    report = extract(source, path, options)
    file = open_features(path)
    weights = open_weights(backbone, "none", seed=0)
    model = build_model(backbone, 32)
    model.load_state_dict(weights.state, strict=False)
    expected = captured(model, cut, crops_of(source, path), report.spec.preprocess)
    stored = rows_of(path)
    assert stored.shape == expected.shape == (5, *report.spec.shape)
    assert (report.spec.cut, stored.dtype, file.header.details["dtype"]) == (cut, "<f2", "float16")
    largest = np.abs(expected).max()
    np.testing.assert_allclose(stored, expected, rtol=2**-10, atol=1e-5 * largest)
    assert report.engine == engine


@pytest.mark.parametrize("cut", ["features.1", "features.4", "features.10"])
def test_vgg_overwrites_nothing_that_is_kept(cut):
    """Its activations work in place; only the maps before the classifier are needed here."""
    with torch.device("meta"):
        model = build_model("vgg11", 32)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for parameter in model.features.parameters():
        nn.init.normal_(parameter, std=0.05)
    stem, _ = split_model(model, cut, layer=penultimate_layer(model))
    crops = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    spec = SimpleNamespace(mean=(0.5,) * 3, std=(0.5,) * 3)
    network = Network(stem, pool="none", preprocess=spec)  # type: ignore
    found = TorchEngine(network.eval(), device="cpu").features(crops)
    np.testing.assert_allclose(found, captured(model, cut, crops, spec), rtol=1e-4, atol=1e-5)


def test_pixels_are_kept_without_a_network(photos, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    source, path = photos({"ants": 3, "bees": 2}), tmp_path / "pixels.h5"
    monkeypatch.setattr(TorchEngine, "__init__", refuse)
    monkeypatch.setattr("featx.backbones.engines.OnnxEngine.__init__", refuse)
    report = extract(source, path, replace(CUT, cut="input", engine="auto"))
    stored = rows_of(path)
    assert (stored.dtype, report.engine, report.dtype) == (np.uint8, "none", "uint8")
    assert (stored == crops_of(source, path)).all()
    assert extract(source, path).is_unchanged


def test_one_cut_more_is_no_cut(photos, tmp_path):
    source = photos()
    plain = replace(CUT, cut=None)
    first = extract(source, tmp_path / "plain.h5", plain)
    second = extract(source, tmp_path / "named.h5", replace(plain, cut="penultimate"))
    assert first.spec == second.spec
    assert (tmp_path / "plain.h5").read_bytes() == (tmp_path / "named.h5").read_bytes()
    assert extract(source, tmp_path / "plain.h5", ExtractOptions(cut="penultimate")).is_unchanged


def test_float32_may_be_asked_for_and_stays(photos, tmp_path):
    source, path = photos(), tmp_path / "maps.h5"
    extract(source, path, replace(CUT, dtype="float32"))
    assert rows_of(path).dtype == np.float32
    assert extract(source, path).is_unchanged
    (source / "ants" / "000.jpg").unlink()
    report = extract(source, path)
    assert (report.num_extracted, report.num_removed, report.dtype) == (0, 1, "float32")
    assert rows_of(path).dtype == np.float32


def test_a_file_of_another_cut_is_refused(photos, tmp_path):
    source, path = photos(), tmp_path / "maps.h5"
    extract(source, path, CUT)
    for options, expected, found in (
        (replace(CUT, cut="stage2"), "'stage2'", "'stage3'"),
        (replace(CUT, cut="input"), "'input'", "'stage3'"),
        (replace(CUT, cut="penultimate"), "nothing|None|null", "'stage3'"),
        (ExtractOptions(layer="stage2"), "nothing|None|null", "'stage3'"),
    ):
        with pytest.raises(ArtifactMismatch, match=f"cut: expected ({expected}), found {found}"):
            extract(source, path, options)
    replaced = extract(source, path, replace(CUT, cut="input", overwrite=True))
    assert (replaced.spec.cut, replaced.dtype) == ("input", "uint8")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cut": "stage33"}, BackboneError, "no module 'stage33'. Did you mean stage3"),
        ({"cut": "stem.0"}, BackboneError, "is the image itself; choose 'input'"),
        ({"cut": "stage3", "layer": "stage2"}, ConfigError, "cut=… and layer=… exclude each other"),
        ({"cut": "stage3", "precision": "int8"}, ConfigError, "not calculated in int8"),
        ({"cut": "input", "dtype": "float32"}, ConfigError, r"no network runs.*dtype=…"),
        ({"cut": "input", "precision": "bf16"}, ConfigError, r"no network runs.*precision=…"),
        ({"cut": "stage3", "dtype": "uint8"}, ConfigError, "dtype"),
    ],
)
def test_what_does_not_go_with_a_cut_is_said(options, error, words, photos, tmp_path):
    with pytest.raises(error, match=words):
        extract(photos(), tmp_path / "maps.h5", ExtractOptions(backbone="tiny", **options))
    assert not list(tmp_path.glob("*.h5*"))


def test_overflow_in_float16_names_image_cut_and_the_way_out(photos, tmp_path, monkeypatch):
    source, path = photos(), tmp_path / "maps.h5"
    features = TorchEngine.features  # the first image of the first batch

    def grown(self: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        maps = features(self, pixels)
        maps[0, 0, 0, 0] = 65_520
        return maps

    monkeypatch.setattr(TorchEngine, "features", grown)
    with pytest.raises(ConfigError) as caught:
        extract(source, path, CUT)
    for words in ("'ants/000.jpg'", "cut 'stage3'", "65520", "dtype='float32'"):
        assert words in str(caught.value)
    assert extract(source, path, replace(CUT, dtype="float32")).num_extracted == 12
    assert np.isfinite(rows_of(path)).all()


def test_the_size_is_told_first(photos, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="featx")
    source = photos()
    extract(source, tmp_path / "maps.h5", CUT)
    assert "At stage3: 128×8×8 float16, 16.4 kB an image, 12 images: 197 kB." in caplog.text
    caplog.clear()
    extract(source, tmp_path / "maps.h5", CUT)
    assert "At stage3" not in caplog.text


@pytest.mark.parametrize(
    ("free", "fitting"),
    [
        (250_000, r"These would fit: cut='penultimate' \(.*\)\."),
        (2_200_000, r"fit: cut='stage2.1' \(.*\), cut='stage3' \(.*\), .*, no views\."),
        (1_000, r"or fewer views\.$"),
    ],
)
def test_too_little_disk_stops_it_before_the_first_image(
    free, fitting, photos, tmp_path, monkeypatch
):
    source, path = photos(), tmp_path / "maps.h5"
    monkeypatch.setattr(space, "free_bytes", lambda _: free)
    monkeypatch.setattr(TorchEngine, "features", None)
    words = rf"needs [\d.]+ MB .* has {space.readable(free)} free\..*{fitting}"
    with pytest.raises(ArtifactError, match=words):
        extract(source, path, replace(CUT, cut="stage1", views=2))
    assert not list(tmp_path.glob("*.h5*"))


def test_a_file_at_a_cut_is_checked_and_updated_as_any(photos, tmp_path):
    source, path = photos(), tmp_path / "maps.h5"
    first = extract(source, path, CUT)
    assert check(path).is_fresh
    assert extract(source, path).is_unchanged
    before = rows_of(path)
    (source / "ants" / "copy.jpg").write_bytes((source / "ants" / "000.jpg").read_bytes())
    (source / "ants" / "003.jpg").touch()
    (source / "bees" / "001.jpg").write_bytes((source / "bees" / "001.jpg").read_bytes() + b" ")
    assert not check(path).is_fresh
    report = extract(source, path)
    assert (report.num_new, report.num_changed, report.num_extracted) == (1, 1, 1)
    assert report.spec == first.spec
    after = dict(zip(open_features(path).sample_ids, rows_of(path), strict=True))
    assert (after["ants/copy.jpg"] == before[0]).all()
    assert (after["ants/003.jpg"] == before[3]).all()
    assert check(path).is_fresh


def test_an_interrupted_run_resumes_to_the_same_bytes(photos, tmp_path):
    source = photos({"ants": 5, "bees": 4})
    (source / "ants" / "003.jpg").write_bytes(b"broken")
    options = replace(CUT, batch_size=2, on_error="skip")
    extract(source, tmp_path / "whole.h5", options)
    for stop in range(1, 5):
        path = tmp_path / f"{stop}.h5"
        interrupt(source, path, options, after=stop)
        report = extract(source, path, options)
        assert report.num_resumed > 0
        assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def interrupt(source: Path, path: Path, options: ExtractOptions, *, after: int) -> None:
    """Extract until so many batches are kept."""
    calls = iter(range(1, 1000))

    def stop(_done: int, _all: int) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(source, path, options, progress=stop)


def test_an_unfinished_run_of_another_cut_is_named(photos, tmp_path):
    source, path = photos(), tmp_path / "maps.h5"
    interrupt(source, path, replace(CUT, batch_size=4), after=1)
    with pytest.raises(ArtifactMismatch, match=r"keeps 4 images .* cut: expected 'stage2'"):
        extract(source, path, replace(CUT, cut="stage2"))
    with pytest.raises(ArtifactMismatch, match=r"dtype: expected 'float32', found 'float16'"):
        extract(source, path, replace(CUT, dtype="float32"))
    assert extract(source, path, replace(CUT, dtype="float32", restart=True)).num_extracted == 12
