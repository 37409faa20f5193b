"""Graphs and requests kept for the next run: whole or not used, and never the wrong one."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest

from featx.artifact import canonical_json
from featx.backbones.catalog import default_preprocess
from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import (
    BUNDLED,
    OPSET,
    Found,
    bundled_graph_path,
    cache_folder,
    graph_path,
    keep_graph,
    read_graph,
    recall,
    remember,
    sealed,
)
from featx.backbones.network import build_network
from featx.backbones.onnx_graph import build_graph
from featx.backbones.spec import BackboneRequest, BackboneSpec
from featx.backbones.weights import open_weights

SPEC = BackboneSpec("resnet18", "ab" * 32, "flatten", "none", 512, default_preprocess("resnet18"))
REQUEST = BackboneRequest("resnet18")
GRAPH = b"some graph" * 100


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "featx"


def _age(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look like another version."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == package else real(name))


def test_the_folder_is_the_users(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    for unset in ("", "relative/path"):  # the XDG standard ignores relative ones
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == Path.home() / ".cache" / "featx"


def test_a_kept_graph_comes_back(folder: Path) -> None:
    assert read_graph(SPEC) is None
    keep_graph(SPEC, GRAPH)
    assert read_graph(SPEC) == sealed(GRAPH)
    assert [path.parent for path in folder.rglob("*.onnx")] == [folder / "graphs"]
    assert graph_path(SPEC).name.startswith(f"{SPEC.fingerprint}-{OPSET}-")


def test_another_spec_has_another_graph() -> None:
    keep_graph(SPEC, GRAPH)
    assert read_graph(replace(SPEC, layer="layer3")) is None


@pytest.mark.parametrize("package", ["featx", "torch", "torchvision", "onnxscript"])
def test_another_version_has_another_graph(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_graph(SPEC, GRAPH)
    _age(monkeypatch, package)
    assert read_graph(SPEC) is None


def _damages() -> list[bytes]:
    whole = sealed(GRAPH)
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 500, 999, 1003, -1)
    ]
    return [*flipped, whole[:-1], whole[:500], whole + b"\0", GRAPH, b""]


@pytest.mark.parametrize("content", _damages(), ids=range(len(_damages())))
def test_a_damaged_graph_is_not_used(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    keep_graph(SPEC, GRAPH)
    graph_path(SPEC).write_bytes(content)
    assert read_graph(SPEC) is None
    assert f"'{graph_path(SPEC)}' is damaged" in caplog.text
    keep_graph(SPEC, GRAPH)
    assert read_graph(SPEC) == sealed(GRAPH)


def test_a_seal_is_an_entry_of_the_metadata() -> None:
    model = onnx.ModelProto(ir_version=10, producer_name="somebody")
    model.metadata_props.add(key="own", value="1")
    again = onnx.ModelProto.FromString(sealed(model.SerializeToString()))
    own, seal = again.metadata_props
    assert (own.key, seal.key, len(seal.value)) == ("own", "featx.sha256", 64)
    del again.metadata_props[1]
    assert again == model


def test_no_cache_folder_no_harm(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        keep_graph(SPEC, GRAPH)
        remember(REQUEST, Found(SPEC, "torchvision:IMAGENET1K_V1"))
    assert caplog.text.count("Nothing is kept for the next run.") == 2
    assert read_graph(SPEC) is None
    assert recall(REQUEST) is None


def test_a_request_is_known_again() -> None:
    found = Found(SPEC, "torchvision:IMAGENET1K_V1")
    assert recall(REQUEST) is None
    remember(REQUEST, found)
    assert recall(REQUEST) == found
    assert recall(replace(REQUEST, image_size=64)) is None
    assert recall(replace(REQUEST, backbone="resnet34")) is None


@pytest.mark.parametrize("package", ["featx", "torch", "torchvision"])
def test_versions_make_a_request_unknown(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(REQUEST, Found(SPEC, "torchvision:IMAGENET1K_V1"))
    _age(monkeypatch, package)
    assert recall(REQUEST) is None


def test_a_changed_weights_file_makes_a_request_unknown(tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"weights")
    request = BackboneRequest("resnet18", weights=str(weights))
    spec = replace(SPEC, weights_sha256=hashlib.sha256(b"weights").hexdigest())
    remember(request, Found(spec, f"file:{weights}"))
    assert recall(request) is not None
    weights.write_bytes(b"others")
    assert recall(request) is None
    weights.unlink()
    assert recall(request) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"spec": 1}', "[" * 100_000, "\udcff"]
)
def test_a_damaged_request_is_not_known(content: str, folder: Path) -> None:
    remember(REQUEST, Found(SPEC, "random:0"))
    (path,) = (folder / "requests").iterdir()
    path.write_text(content, errors="surrogateescape")
    assert recall(REQUEST) is None


def test_an_altered_request_is_not_known(folder: Path) -> None:
    remember(REQUEST, Found(SPEC, "random:0"))
    (path,) = (folder / "requests").iterdir()
    values = json.loads(path.read_text())
    values["spec"]["layer"] = "layer1"
    path.write_text(canonical_json(values))
    assert recall(REQUEST) is None


class TestBundled:
    """What comes with the bundled backbone; ``tools/bundle_tiny.py`` makes it."""

    request = BackboneRequest("tiny")

    def test_it_is_what_the_request_comes_to(self) -> None:
        found = recall(self.request)
        assert found is not None
        weights = open_weights("tiny")
        _, spec = build_network("tiny", weights, default_preprocess("tiny"))
        assert (found.spec, found.origin) == (spec, weights.origin)
        assert len(list(BUNDLED.iterdir())) == 2

    def test_it_is_todays_graph(self) -> None:
        network, spec = build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))
        kept = read_graph(spec)
        assert kept == bundled_graph_path(spec).read_bytes()
        built = build_graph(network, image_size=32)
        pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
        found, expected = OnnxEngine(kept).features(pixels), OnnxEngine(built).features(pixels)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_other_requests_do_not_get_it(self) -> None:
        assert recall(replace(self.request, image_size=64)) is None
        assert recall(replace(self.request, weights="none")) is None
