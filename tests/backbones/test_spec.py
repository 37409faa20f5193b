"""The spec and the request: one identity each, and no answer taken for another's."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.artifact import file_sha256
from featx.backbones import spec as spec_module
from featx.backbones.catalog import backbone_names, default_preprocess
from featx.backbones.spec import (
    BUNDLED_WEIGHTS,
    BackboneRequest,
    BackboneSpec,
    Calibration,
    weights_file,
)
from featx.errors import BackboneError, ConfigError
from featx.images.preprocess import PreprocessSpec


def _spec(**changes: Any) -> BackboneSpec:
    spec = BackboneSpec(
        backbone="resnet18",
        weights_sha256="0" * 64,
        layer="flatten",
        pool="none",
        num_features=512,
        preprocess=default_preprocess("resnet18"),
    )
    return dataclasses.replace(spec, **changes)


TRIPLES = st.tuples(*[st.floats(1e-3, 10)] * 3)
SPECS = st.builds(
    BackboneSpec,
    backbone=st.sampled_from(backbone_names()),
    weights_sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    layer=st.text(max_size=20),
    pool=st.sampled_from(["none", "avg", "max", "cls", "flatten"]),
    num_features=st.integers(1, 10**6),
    preprocess=st.integers(1, 4096).flatmap(
        lambda size: st.builds(
            PreprocessSpec,
            image_size=st.just(size),
            resize=st.integers(size, 4 * 4096),
            mean=TRIPLES,
            std=TRIPLES,
            interpolation=st.sampled_from(["bilinear", "bicubic"]),
        )
    ),
)


@given(SPECS)
def test_a_spec_survives_json(spec):
    restored = BackboneSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert restored == spec
    assert restored.fingerprint == spec.fingerprint


CHANGES: dict[str, Any] = {
    "backbone": "resnet34",
    "weights_sha256": "1" * 64,
    "layer": "avgpool",
    "pool": "avg",
    "num_features": 511,
    "preprocess": None,
    "precision": "bf16",
    "calibration": Calibration((("relu", 0.0, 6.0),)),
    "cut": "layer4",
    "shape": (256, 14, 14),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BackboneSpec)])
def test_every_field_shows_in_the_fingerprint(field):
    value = CHANGES[field] or default_preprocess("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert _spec(**{field: value}).fingerprint != _spec().fingerprint


PREPROCESS_CHANGES: dict[str, Any] = {
    "image_size": 225,
    "resize": 257,
    "mean": (0.485, 0.456, 0.4060001),
    "std": (0.229, 0.224, 0.2250001),
    "interpolation": "bicubic",
}


@pytest.mark.parametrize("field", PREPROCESS_CHANGES)
def test_every_preprocessing_field_shows_in_the_fingerprint(field):
    spec = _spec()
    other = dataclasses.replace(spec.preprocess, **{field: PREPROCESS_CHANGES[field]})
    assert _spec(preprocess=other).fingerprint != spec.fingerprint


def test_the_crop_shows_in_the_fingerprint():
    square = dataclasses.replace(_spec().preprocess, resize=224)
    squeezed = dataclasses.replace(square, crop="none")
    assert _spec(preprocess=square).fingerprint != _spec(preprocess=squeezed).fingerprint


@pytest.mark.parametrize(
    "values",
    [
        {},
        [],
        {"preprocess": None},
        {"preprocess": "abc"},
        _spec().to_dict() | {"extra": 1},
        {k: v for k, v in _spec().to_dict().items() if k != "layer"},
    ],
)
def test_what_is_no_spec_is_refused(values):
    with pytest.raises((BackboneError, ConfigError), match=r"(?i)not (the spec|a preprocessing)"):
        BackboneSpec.from_dict(values)


# --- what a choice of weights stands for --------------------------------------------------------


@pytest.mark.parametrize("choice", ["default", "none", "IMAGENET1K_V1"])
def test_a_name_is_no_file(choice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights_file(choice) is None


@pytest.mark.parametrize("choice", ["default", "none"])
def test_a_file_does_not_take_the_place_of_a_word(choice, tmp_path, monkeypatch):
    (tmp_path / choice).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert weights_file(choice) is None


def test_a_path_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert weights_file("missing.pth") == tmp_path / "missing.pth"
    assert weights_file("~/w.pt") == tmp_path / "home" / "w.pt"
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "plain")
    assert weights_file("plain") == tmp_path / "plain"
    assert weights_file("link.safetensors") == tmp_path / "plain"


# --- requests -----------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("featx", "torch", "torchvision")}


def resolves_to(
    request: BackboneRequest,
    sha256: str = "0" * 64,
    *,
    earlier: object = None,
    origin: str = "torchvision:IMAGENET1K_V1",
    versions: dict[str, str] | None = None,
) -> bool:
    return request.resolves_to(
        sha256,
        request=request.to_dict() if earlier is None else earlier,
        origin=origin,
        environment=environment() if versions is None else versions,
    )


REQUEST = BackboneRequest("resnet18")
CHANGED_REQUESTS: dict[str, Any] = {
    "backbone": "resnet34",
    "weights": "none",
    "layer": "avgpool",
    "pool": "avg",
    "cut": "layer4",
    "image_size": 225,
    "resize": 257,
    "crop": "none",
    "decode": "scaled",
    "seed": 1,
    "precision": "int8",
}


def test_a_request_survives_json():
    assert json.loads(json.dumps(REQUEST.to_dict())) == REQUEST.to_dict()
    assert resolves_to(REQUEST, earlier=json.loads(json.dumps(REQUEST.to_dict())))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BackboneRequest)])
def test_another_request_comes_to_something_else(field):
    other = dataclasses.replace(REQUEST, **{field: CHANGED_REQUESTS[field]})
    assert not resolves_to(REQUEST, earlier=other.to_dict())


@pytest.mark.parametrize("earlier", [{}, [], "x", 0, {"backbone": "resnet18"}])
def test_what_is_no_request_comes_to_nothing(earlier):
    assert not resolves_to(REQUEST, earlier=earlier)


@pytest.mark.parametrize("package", ["featx", "torch", "torchvision"])
def test_another_version_works_it_out_again(package):
    assert not resolves_to(REQUEST, versions=environment() | {package: "0.0"})
    assert not resolves_to(REQUEST, versions={})


def test_a_weights_file_is_known_by_its_content(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(b"one")
    request, sha256 = BackboneRequest("tiny", str(path)), file_sha256(path)
    assert resolves_to(request, sha256, origin=f"file:{path}")
    path.write_bytes(b"two")
    assert not resolves_to(request, sha256, origin=f"file:{path}")
    path.unlink()
    assert not resolves_to(request, sha256, origin=f"file:{path}")


def test_the_bundled_weights_are_looked_at_too(tmp_path, monkeypatch):
    request, sha256 = BackboneRequest("tiny"), file_sha256(BUNDLED_WEIGHTS)
    assert resolves_to(request, sha256, origin="bundled")
    (tmp_path / "w").write_bytes(b"a later release's")
    monkeypatch.setattr(spec_module, "BUNDLED_WEIGHTS", tmp_path / "w")
    assert not resolves_to(request, sha256, origin="bundled")


def test_names_and_seeds_need_no_file():
    assert resolves_to(REQUEST, origin="torchvision:IMAGENET1K_V1")
    assert resolves_to(dataclasses.replace(REQUEST, weights="none", seed=3), origin="random:3")
