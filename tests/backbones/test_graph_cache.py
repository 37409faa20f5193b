"""Graphs and requests kept for the next run: whole or not used, and never the wrong one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import featx
from featx.artifact import canonical_json, fingerprint_of
from featx.backbones.catalog import default_preprocess
from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_cache import (
    BUNDLED,
    OPSET,
    ResolvedRequest,
    bundled_graph_path,
    cache_folder,
    cache_graph,
    graph_path,
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
VALUE = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
GRAPH = helper.make_model(
    helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "graph",
        [VALUE],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(500, np.float32), "w")],
    )
).SerializeToString()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "featx"


def _age(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Make a package look like another version."""
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == package else real(name))
    if package == "featx":
        monkeypatch.setattr(featx, "__version__", "9.9")


def _uninstall(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look absent."""
    real = metadata.version

    def version(name):
        if name in packages:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_the_folder_is_the_users(folder, monkeypatch):
    assert cache_folder() == folder
    for unset in ("", "relative/path"):  # the XDG standard ignores relative ones
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert cache_folder() == Path.home() / ".cache" / "featx"


def test_a_user_without_a_home_has_a_folder(monkeypatch):
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert str(os.geteuid()) in cache_folder().parent.name


def test_a_folder_in_a_graphs_place_is_not_used(caplog):
    graph_path(SPEC).mkdir(parents=True)
    graph_path(SPEC).parent.chmod(0o700)
    assert read_graph(SPEC) is None
    assert "it is no file" in caplog.text


def test_a_kept_graph_comes_back(folder):
    assert read_graph(SPEC) is None
    cache_graph(SPEC, GRAPH)
    kept = read_graph(SPEC)
    assert kept is not None
    assert onnx.load_from_string(kept).graph == onnx.load_from_string(GRAPH).graph
    assert [path.parent for path in folder.rglob("*.onnx")] == [folder / "graphs"]
    assert graph_path(SPEC).name.startswith(f"{SPEC.fingerprint}-{OPSET}-")


def test_another_spec_has_another_graph():
    cache_graph(SPEC, GRAPH)
    assert read_graph(replace(SPEC, layer="layer3")) is None


@pytest.mark.parametrize("package", ["featx", "torch", "torchvision", "onnxscript"])
def test_another_version_has_another_graph(package, monkeypatch):
    cache_graph(SPEC, GRAPH)
    _age(monkeypatch, package)
    assert read_graph(SPEC) is None


def test_without_torch_what_another_environment_of_the_user_cached_is_used(monkeypatch):
    cache_graph(SPEC, GRAPH)
    remember(REQUEST, found := ResolvedRequest(SPEC, "torchvision:IMAGENET1K_V1"))
    name, kept = graph_path(SPEC).name, read_graph(SPEC)
    _uninstall(monkeypatch, "torch", "torchvision", "onnxscript")
    assert graph_path(SPEC).name == name
    assert read_graph(SPEC) == kept
    assert recall(REQUEST) == found
    _age(monkeypatch, "featx")
    assert read_graph(SPEC) is None
    assert recall(REQUEST) is None


def test_without_torch_a_graph_that_needs_none_is_cached(monkeypatch):
    _uninstall(monkeypatch, "torch", "torchvision", "onnxscript")
    cache_graph(SPEC, GRAPH)
    assert read_graph(SPEC).startswith(GRAPH)
    assert "none" in graph_path(SPEC).name


def test_a_damaged_graph_is_not_used(caplog):
    cache_graph(SPEC, GRAPH)
    path = graph_path(SPEC)
    whole = path.read_bytes()
    flipped = [
        whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 500, 999, -70, -1)
    ]
    for content in (*flipped, whole[:-1], whole[:500], whole + b"\0", GRAPH, sealed(GRAPH), b""):
        caplog.clear()
        path.write_bytes(content)
        assert read_graph(SPEC) is None
        assert f"'{path}' is not used and made again: it is damaged" in caplog.text
        cache_graph(SPEC, GRAPH)
        assert path.read_bytes() == whole


def test_a_graph_of_another_spec_is_not_used_under_this_ones_name():
    other = replace(SPEC, layer="layer3")
    cache_graph(other, GRAPH)
    graph_path(other).rename(graph_path(SPEC))
    assert read_graph(SPEC) is None


def _external(model: onnx.ModelProto) -> None:
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="foreign.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external, "weights in another file"),
        (lambda m: setattr(m.graph.node[0], "domain", "evil"), "operators of the domain 'evil'"),
        (lambda m: m.ClearField("graph"), "not an ONNX model"),
    ],
)
def test_a_graph_that_reaches_beyond_itself_is_not_used(change, message, caplog):
    model = onnx.load_from_string(GRAPH)
    change(model)
    cache_graph(SPEC, model.SerializeToString())
    assert read_graph(SPEC) is None
    assert message in caplog.text


def _behind_a_link(path: Path) -> None:
    real = path.with_name("real")
    path.rename(real)
    path.symlink_to(real)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("can be written by other users", lambda path, folder: path.chmod(0o666)),
        ("can be written by other users", lambda path, folder: path.chmod(0o620)),
        ("can be written by other users", lambda path, folder: path.parent.chmod(0o777)),
        ("can be written by other users", lambda path, folder: folder.chmod(0o770)),
        ("is a link", lambda path, folder: _behind_a_link(path.parent)),
        ("cannot be opened", lambda path, folder: _behind_a_link(path)),
    ],
)
def test_what_others_can_write_is_not_used_and_made_the_users_own(message, change, folder, caplog):
    cache_graph(SPEC, GRAPH)
    change(graph_path(SPEC), folder)
    assert read_graph(SPEC) is None
    assert "is not used and made again" in caplog.text
    assert message in caplog.text
    cache_graph(SPEC, GRAPH)
    assert not graph_path(SPEC).is_symlink()
    if not graph_path(SPEC).parent.is_symlink():  # nothing is written behind such a link
        assert read_graph(SPEC) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("what", ["file", "folder", "key"])
def test_what_belongs_to_others_is_not_used(what, folder):
    cache_graph(SPEC, GRAPH)
    path = graph_path(SPEC)
    os.chown({"file": path, "folder": path.parent, "key": folder / "key"}[what], 1234, -1)
    assert read_graph(SPEC) is None


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_whatever_the_umask_only_the_user_can_write(umask, folder):
    before = os.umask(umask)
    try:
        cache_graph(SPEC, GRAPH)
        remember(REQUEST, ResolvedRequest(SPEC, "random:0"))
    finally:
        os.umask(before)
    assert read_graph(SPEC) is not None
    assert recall(REQUEST) is not None
    for path in (folder, *folder.rglob("*")):
        assert not path.stat().st_mode & 0o077, path


def test_without_its_key_nothing_is_used_and_with_a_new_one_all_is_made_again(folder):
    cache_graph(SPEC, GRAPH)
    remember(REQUEST, ResolvedRequest(SPEC, "random:0"))
    for content in (None, b"", b"short", b"x" * 32):
        key = folder / "key"
        key.unlink()
        if content is not None:
            key.write_bytes(content)
            key.chmod(0o600)
        assert read_graph(SPEC) is None
        assert recall(REQUEST) is None
        cache_graph(SPEC, GRAPH)
        remember(REQUEST, ResolvedRequest(SPEC, "random:0"))
        assert read_graph(SPEC) is not None
        assert recall(REQUEST) is not None


def test_a_seal_is_an_entry_of_the_metadata():
    model = onnx.ModelProto(ir_version=10, producer_name="somebody")
    model.metadata_props.add(key="own", value="1")
    again = onnx.ModelProto.FromString(sealed(model.SerializeToString()))
    own, seal = again.metadata_props
    assert (own.key, seal.key, len(seal.value)) == ("own", "featx.sha256", 64)
    del again.metadata_props[1]
    assert again == model


def test_no_cache_folder_no_harm(folder, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.INFO):
        cache_graph(SPEC, GRAPH)
        remember(REQUEST, ResolvedRequest(SPEC, "torchvision:IMAGENET1K_V1"))
    assert caplog.text.count("Nothing is cached for the next run.") == 2
    assert read_graph(SPEC) is None
    assert recall(REQUEST) is None


def test_a_request_is_known_again():
    found = ResolvedRequest(SPEC, "torchvision:IMAGENET1K_V1")
    assert recall(REQUEST) is None
    remember(REQUEST, found)
    assert recall(REQUEST) == found
    assert recall(replace(REQUEST, image_size=64)) is None
    assert recall(replace(REQUEST, backbone="resnet34")) is None


@pytest.mark.parametrize("package", ["featx", "torch", "torchvision"])
def test_versions_make_a_request_unknown(package, monkeypatch):
    remember(REQUEST, ResolvedRequest(SPEC, "torchvision:IMAGENET1K_V1"))
    _age(monkeypatch, package)
    assert recall(REQUEST) is None


def test_a_changed_weights_file_makes_a_request_unknown(tmp_path):
    weights = tmp_path / "w.pth"
    weights.write_bytes(b"weights")
    request = BackboneRequest("resnet18", weights=str(weights))
    spec = replace(SPEC, weights_sha256=hashlib.sha256(b"weights").hexdigest())
    remember(request, ResolvedRequest(spec, f"file:{weights}"))
    assert recall(request) is not None
    weights.write_bytes(b"others")
    assert recall(request) is None
    weights.unlink()
    assert recall(request) is None


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "{}", '{"spec": 1}', "[" * 100_000, "\udcff"]
)
def test_a_damaged_request_is_not_known(content, folder):
    remember(REQUEST, ResolvedRequest(SPEC, "random:0"))
    (path,) = (folder / "requests").iterdir()
    path.write_text(content, errors="surrogateescape")
    assert recall(REQUEST) is None


def test_an_altered_request_is_not_known(folder):
    remember(REQUEST, ResolvedRequest(SPEC, "random:0"))
    (path,) = (folder / "requests").iterdir()
    text = path.read_text()
    values, code = json.loads(text[:-64]), text[-64:]
    values["spec"]["layer"] = "layer1"
    values["checksum"] = fingerprint_of({n: v for n, v in values.items() if n != "checksum"})
    path.write_text(canonical_json(values) + code)
    assert recall(REQUEST) is None


class TestBundled:
    """What comes with the bundled backbone; ``tools/bundle_tiny.py`` makes it."""

    request = BackboneRequest("tiny")

    def test_it_is_what_the_request_comes_to(self):
        found = recall(self.request)
        assert found is not None
        weights = open_weights("tiny")
        _, spec = build_network("tiny", weights, default_preprocess("tiny"))
        assert (found.spec, found.origin) == (spec, weights.origin)
        assert len(list(BUNDLED.iterdir())) == 2

    def test_it_is_todays_graph(self):
        network, spec = build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))
        kept = read_graph(spec)
        assert kept == bundled_graph_path(spec).read_bytes()
        built = build_graph(network, image_size=32)
        pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
        found, expected = OnnxEngine(kept).features(pixels), OnnxEngine(built).features(pixels)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)

    def test_other_requests_do_not_get_it(self):
        assert recall(replace(self.request, image_size=64)) is None
        assert recall(replace(self.request, weights="none")) is None
