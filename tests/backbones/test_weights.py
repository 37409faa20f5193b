from __future__ import annotations

import gc
import hashlib
import logging
import os
import pickle
import socketserver
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torchvision import models

from featx.artifact import file_sha256
from featx.backbones import tiny
from featx.backbones import weights as weights_module
from featx.backbones.catalog import build_model, default_preprocess
from featx.backbones.network import build_network
from featx.backbones.weights import (
    Weights,
    open_origin,
    open_weights,
    require_sha256,
    weights_url,
)
from featx.errors import BackboneError

State = dict[str, Tensor]
Writer = Callable[[object], Path]


@pytest.fixture(scope="module")
def state() -> State:
    """The state of a tiny network with random weights."""
    torch.manual_seed(7)
    return tiny.Tiny().state_dict()


@pytest.fixture
def written(tmp_path: Path) -> Writer:
    """Return a function that saves an object as a ``.pth`` file."""

    def write(content: object) -> Path:
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return path

    return write


def _fit(weights: Weights, backbone: str = "tiny") -> State:
    """Build the network and return its trunk's state."""
    network, _ = build_network(backbone, weights, default_preprocess(backbone))
    return network.trunk.state_dict()


def _check_same(weights: Weights, state: State) -> None:
    assert weights.state.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(weights.state[name], tensor, rtol=0, atol=0)


# Forms of a file


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_in_its_usual_wrappings(wrapper, prefix, state, written):
    content: Any = {prefix + name: tensor for name, tensor in state.items()}
    if wrapper:
        content = {wrapper: content, "epoch": 3, "best": 0.9}
    path = written(content)
    weights = open_weights("tiny", str(path))
    assert weights.origin == f"file:{path}"
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    _check_same(weights, state)
    _fit(weights)


def test_a_wrapper_within_a_wrapper(state, written):
    _check_same(open_weights("tiny", str(written({"state_dict": {"model": state}}))), state)


def test_the_old_torch_format(state, tmp_path):
    path = tmp_path / "old.pth"
    torch.save(state, path, _use_new_zipfile_serialization=False)
    _check_same(open_weights("tiny", str(path)), state)


def test_safetensors(state, tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    weights = open_weights("tiny", str(path))
    _check_same(weights, state)
    _fit(weights)


def test_a_file_with_another_suffix_is_taken_if_it_exists(state, tmp_path):
    path = tmp_path / "checkpoint.tar"
    torch.save(state, path)
    _check_same(open_weights("tiny", str(path)), state)


def test_a_relative_path_is_recorded_as_an_absolute_one(state, written, monkeypatch):
    path = written(state)
    monkeypatch.chdir(path.parent)
    assert open_weights("tiny", path.name).origin == f"file:{path}"


def test_a_recorded_origin_opens_the_same_weights(state, written):
    first = open_weights("tiny", str(written(state)))
    again = open_origin("tiny", first.origin)
    assert (again.origin, again.sha256) == (first.origin, first.sha256)


def test_float16_weights_become_float32_parameters(state, written):
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    fitted = _fit(open_weights("tiny", str(written(half))))
    for name, tensor in fitted.items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, half[name].float(), rtol=0, atol=0)


def test_old_densenet_names(written):
    state = build_model("densenet121").state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv1.", ".conv.1.")
        .replace(".conv2.", ".conv.2."): tensor
        for name, tensor in state.items()
    }
    assert old.keys() != state.keys()
    _check_same(open_weights("densenet121", str(written(old))), state)


# What does not fit


@pytest.mark.parametrize("classes", [2, 7])
def test_a_head_of_other_classes_is_left_out_and_named(classes, written, caplog):
    path = written(tiny.Tiny(num_classes=classes).state_dict())
    with caplog.at_level(logging.INFO, logger="featx"):
        _fit(open_weights("tiny", str(path)))
    assert "Left out a head of other classes: head.weight, head.bias." in caplog.text


def test_a_head_of_other_layers_is_left_out_and_named(state, written, caplog):
    content = {n: t for n, t in state.items() if not n.startswith("head")}
    content |= {"head.0.weight": torch.zeros(5, 192), "head.2.bias": torch.zeros(2)}
    with caplog.at_level(logging.INFO, logger="featx"):
        _fit(open_weights("tiny", str(written(content))))
    assert "head.0.weight, head.2.bias" in caplog.text


def test_a_fitting_or_absent_head_needs_no_word(state, written, caplog):
    with caplog.at_level(logging.INFO, logger="featx"):
        _fit(open_weights("tiny", str(written(state))))
        headless = {n: t for n, t in state.items() if not n.startswith("head")}
        _fit(open_weights("tiny", str(written(headless))))
    assert "Left out" not in caplog.text


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(state, written):
    content = dict(state)
    del content["stem.0.weight"]
    content["stage9.weight"] = torch.zeros(1)
    content["stem.1.bias"] = torch.zeros(33)
    path = written(content)
    with pytest.raises(BackboneError) as caught:
        _fit(open_weights("tiny", str(path)))
    text = str(caught.value)
    assert str(path) in text
    assert "do not fit tiny" in text
    assert "missing: stem.0.weight" in text
    assert "unexpected: stage9.weight" in text
    assert "shape of stem.1.bias: expected (32,), found (33,)" in text


def test_a_long_list_is_cut_and_counted(written):
    state = build_model("resnet18").state_dict()
    path = written({"conv1.weight": state["conv1.weight"]})
    needed = [n for n in state if not n.startswith("fc.") and "num_batches" not in n]
    with pytest.raises(
        BackboneError, match=rf"; and {len(needed) - 1 - 12} more\. The file has 1 tensor: "
    ):
        _fit(open_weights("resnet18", str(path)), "resnet18")


def test_another_networks_weights_are_refused(written):
    path = written(build_model("squeezenet1_1").state_dict())
    with pytest.raises(BackboneError, match=r"do not fit resnet18: missing: conv1\.weight"):
        _fit(open_weights("resnet18", str(path)), "resnet18")


def test_weights_of_a_deeper_sister_are_refused(written):
    path = written(build_model("resnet34").state_dict())
    with pytest.raises(BackboneError, match=r"unexpected: layer1\.2\.conv1\.weight"):
        _fit(open_weights("resnet18", str(path)), "resnet18")


def test_counters_of_batches_may_be_missing(state, written):
    content = {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")}
    assert len(content) < len(state)
    _fit(open_weights("tiny", str(written(content))))


def test_running_statistics_may_not_be_missing(state, written):
    content = {n: t for n, t in state.items() if not n.endswith("running_var")}
    with pytest.raises(BackboneError, match=r"missing: stem\.1\.running_var"):
        _fit(open_weights("tiny", str(written(content))))


def test_an_early_layer_does_not_need_what_lies_behind_it(state, written):
    content = {n: t for n, t in state.items() if n.startswith("stem")}
    weights = open_weights("tiny", str(written(content)))
    _, spec = build_network("tiny", weights, default_preprocess("tiny"), layer="stem")
    assert spec.num_features == 32


def test_googlenet_does_without_auxiliary_heads(written):
    state = open_weights("googlenet", "none").state
    lean = {n: t for n, t in state.items() if not n.startswith("aux")}
    assert len(lean) < len(state)
    assert len(_fit(open_weights("googlenet", str(written(lean))), "googlenet")) > 100


# Hostile and damaged files


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["torch", "pickle", "beside tensors"])
def test_code_in_a_pickle_is_refused_and_not_run(how, state, tmp_path):
    path, marker = tmp_path / "evil.pth", tmp_path / "executed"
    if how == "pickle":
        path.write_bytes(pickle.dumps(_Attack(marker)))
    else:
        attack = _Attack(marker)
        torch.save(attack if how == "torch" else {"state_dict": state, "args": attack}, path)
    with pytest.raises(BackboneError, match="runs no code from weights"):
        open_weights("tiny", str(path))
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused_with_advice(written):
    path = written(tiny.Tiny())
    with pytest.raises(BackboneError, match=r"state_dict\(\)"):
        open_weights("tiny", str(path))


@pytest.mark.parametrize(
    "content",
    [torch.zeros(3), [torch.zeros(3)], {}, {"epoch": 3}, {"state_dict": {}}, "text", None],
)
def test_a_file_without_a_state_dict(content, written):
    with pytest.raises(BackboneError, match="holds no state dict"):
        open_weights("tiny", str(written(content)))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"<!DOCTYPE html>\n<html>", b"hello\n" * 100, b"PK\x03\x04", b"\x80\x02"],
)
def test_a_file_that_is_something_else(suffix, content, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=rf"weights{suffix}"):
        open_weights("tiny", str(path))


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_no_damage_escapes_as_another_error(form, state, tmp_path):
    small = {name: state[name] for name in ("stem.0.weight", "stem.1.bias", "head.bias")}
    good, bad = tmp_path / "good", tmp_path / f"bad.{'safetensors' if form[0] == 's' else 'pth'}"
    if form == "safetensors":
        safetensors.torch.save_file(small, good)
    else:
        torch.save(small, good, _use_new_zipfile_serialization=form == "zip")
    content, rng, refused = good.read_bytes(), np.random.default_rng(0), 0
    for trial in range(300):
        damaged = bytearray(content)
        if trial % 3 == 0:
            del damaged[rng.integers(len(damaged)) :]
        else:
            for place in rng.integers(len(damaged), size=rng.integers(1, 5)):
                damaged[place] ^= 1 << int(rng.integers(8))
        bad.write_bytes(damaged)
        try:
            open_weights("tiny", str(bad))
        except BackboneError:
            refused += 1
    assert refused >= 100  # every truncation at least


def test_a_missing_file(tmp_path):
    path = tmp_path / "gone.pth"
    with pytest.raises(BackboneError, match=r"gone\.pth' does not exist"):
        open_weights("tiny", str(path))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(BackboneError, match="does not exist"):
        open_weights("tiny", str(tmp_path / "folder.pth"))


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.pth").write_text("hi\n")
    with pytest.raises(BackboneError, match=r"is not a file of weights, or is damaged"):
        open_weights("tiny", str(tmp_path / "notes.pth"))


def test_a_file_that_may_not_be_read(state, written, monkeypatch):
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    path = written(state)
    monkeypatch.setattr(weights_module, "file_sha256", refuse)
    with pytest.raises(BackboneError, match=r"Cannot read the weights .*Permission denied"):
        open_weights("tiny", str(path))


# Names, origins and sums


def test_unknown_backbones_and_weights():
    with pytest.raises(BackboneError, match="Unknown backbone 'resnet19'"):
        open_weights("resnet19")
    with pytest.raises(BackboneError, match=r"resnet18 has no weights 'V7'; it has IMAGENET1K_V1"):
        open_weights("resnet18", "V7")
    with pytest.raises(BackboneError, match=r"tiny has no weights 'IMAGENET1K_V1'"):
        open_weights("tiny", "IMAGENET1K_V1")


@pytest.mark.parametrize(
    "origin", ["", "ftp:x", "random:", "random:abc", "random:-1", "file:", "file:/no/where.pth",
               "torchvision:V7"],
)  # fmt: skip
@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_an_origin_that_makes_no_sense(backbone, origin):
    with pytest.raises(BackboneError):
        open_origin(backbone, origin)


def test_bundled_weights():
    by_default, by_name = open_weights("tiny"), open_weights("tiny", "CIFAR10_V1")
    assert by_default.origin == by_name.origin == "bundled"
    assert by_default.sha256 == file_sha256(tiny.WEIGHTS_FILE)


def test_random_weights_follow_the_seed():
    first, again = open_weights("tiny", "none"), open_weights("tiny", "none", seed=0)
    other = open_weights("tiny", "none", seed=1)
    assert (first.origin, other.origin) == ("random:0", "random:1")
    assert first.sha256 == again.sha256 != other.sha256
    _check_same(again, dict(first.state))
    assert not torch.equal(first.state["stem.0.weight"], other.state["stem.0.weight"])
    assert open_origin("tiny", "random:1").sha256 == other.sha256


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    open_weights("tiny", "none", seed=9)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    first = open_weights("tiny", "none").sha256
    torch.rand(7)
    assert open_weights("tiny", "none").sha256 == first


def test_the_sum_of_random_weights_sees_every_value():
    weights = open_weights("tiny", "none")
    for name in ("stem.0.weight", "head.bias"):
        state = dict(weights.state)
        state[name] = state[name].clone()
        state[name].view(-1)[-1] += 1e-3
        assert weights_module._state_sha256(state) != weights.sha256


def test_another_sum_is_refused():
    weights = Weights("file:/x.pth", "a" * 64, {})
    require_sha256(weights, "a" * 64)
    with pytest.raises(BackboneError, match=r"(?s)/x\.pth.*a{16}….*b{16}….*weights=…"):
        require_sha256(weights, "b" * 64)


@pytest.mark.real_data
def test_fine_tuned_weights_from_elsewhere(data, caplog):
    path = data / "weights" / "squeezenet1_1-mango-c10.pth"
    with caplog.at_level(logging.INFO, logger="featx"):
        weights = open_weights("squeezenet1_1", str(path))
        fitted = _fit(weights, "squeezenet1_1")
    assert weights.sha256 == "398f7f4cb22c881e68be22d0d4c3d19fdfa4b3bd3588989cce8c72884f13e97e"
    assert "classifier.1.weight, classifier.1.bias" in caplog.text
    plain = torch.load(path, map_location="cpu", weights_only=True)
    for name, tensor in fitted.items():
        torch.testing.assert_close(tensor, plain[name], rtol=0, atol=0)


# Download


def _open() -> Weights:
    return open_weights("resnet18")


def test_a_download_is_kept_and_not_repeated(server):
    weights = _open()
    assert weights.origin == "torchvision:IMAGENET1K_V1"
    assert weights.sha256 == hashlib.sha256(server.content).hexdigest()
    assert server.destination.read_bytes() == server.content
    assert len(server.requests) == 1
    server.stop()  # the second time works without the network
    assert _open().sha256 == weights.sha256
    assert len(server.requests) == 1


def test_progress_of_a_download_is_told(server):
    told: list[tuple[int, int]] = []
    open_weights("resnet18", progress=lambda done, total: told.append((done, total)))
    size = len(server.content)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    open_weights("resnet18", progress=lambda *numbers: pytest.fail("nothing is downloaded"))


def test_nothing_but_the_file_is_left_in_the_cache(server):
    _open()
    assert [p.name for p in server.destination.parent.iterdir()] == [server.destination.name]


@pytest.mark.parametrize("damage", ["altered", "cut"])
def test_a_download_with_another_sum_is_refused_and_not_kept(damage, server):
    content = server.content
    server.content = content[:-1] + b"!" if damage == "altered" else content[:-1]
    with pytest.raises(BackboneError, match=r"damaged or altered.*Nothing was kept") as caught:
        _open()
    assert server.url in str(caught.value)
    assert list(server.destination.parent.iterdir()) == []
    server.content = content
    _open()  # and a second try is possible


def test_a_damaged_file_in_the_cache_is_refused(server):
    server.destination.parent.mkdir(parents=True)
    server.destination.write_bytes(server.content[:-1] + b"!")
    with pytest.raises(BackboneError, match=r"damaged or altered.*Delete it") as caught:
        _open()
    assert str(server.destination) in str(caught.value)
    assert server.requests == []


def _check_says_how_to_get_it(error: BackboneError, server: Any) -> None:
    assert f"Download '{server.url}'" in str(error)
    assert f"put it at '{server.destination}'" in str(error)
    folder = server.destination.parent
    assert not folder.is_dir() or list(folder.iterdir()) == []


def test_without_a_network_the_message_says_what_to_put_where(server):
    server.stop()
    with pytest.raises(BackboneError, match="Cannot download the weights of resnet18") as caught:
        _open()
    _check_says_how_to_get_it(caught.value, server)


def test_a_file_that_is_gone_from_the_server(server):
    server.content = None
    with pytest.raises(BackboneError, match="Not Found") as caught:
        _open()
    _check_says_how_to_get_it(caught.value, server)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_server_that_does_not_speak_http(server, monkeypatch):
    class Garbage(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"\x00\x01 not http\r\n\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Garbage) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{listener.server_address[1]}/{server.destination.name}"
        monkeypatch.setattr(weights_module, "weights_url", lambda backbone, name: server.url)
        with pytest.raises(BackboneError, match="Cannot download") as caught:
            _open()
        listener.shutdown()
    gc.collect()  # urllib leaves the socket of such a reply to the garbage collector
    _check_says_how_to_get_it(caught.value, server)


def test_a_cache_folder_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "file"))
    with pytest.raises(
        BackboneError, match=r"Cannot keep the weights.*Not a directory.*TORCH_HOME"
    ):
        _open()
    assert server.requests == []


def test_a_disk_that_fills_up(server, monkeypatch):
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("featx.artifact.files.sync", full)
    with pytest.raises(BackboneError, match=r"Cannot keep the weights.*No space left on device"):
        _open()
    assert list(server.destination.parent.iterdir()) == []


@pytest.mark.parametrize("does", ["ends", "is silent"])
def test_an_answer_that_breaks_off_is_a_fault_of_the_network(server, monkeypatch, does):
    monkeypatch.setattr(weights_module, "_TIMEOUT_S", 0.3)

    class Broken(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\nab")
            if does == "is silent":
                threading.Event().wait(1)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Broken) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        server.url = f"http://127.0.0.1:{listener.server_address[1]}/{server.destination.name}"
        monkeypatch.setattr(weights_module, "weights_url", lambda backbone, name: server.url)
        with pytest.raises(
            BackboneError, match="Cannot download the weights of resnet18"
        ) as caught:
            _open()
        listener.shutdown()
    _check_says_how_to_get_it(caught.value, server)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "squeezenet1_1", "convnext_tiny"])
def test_official_files_carry_their_sum_in_their_names(name):
    url = weights_url(name, "DEFAULT")
    assert url == models.get_model_weights(name).DEFAULT.url
    assert len(url.rpartition("-")[2].partition(".")[0]) >= 8


def test_every_official_file_can_be_checked():
    pattern = weights_module.re.compile(r"-[0-9a-f]{8,}\.pth$")
    urls = {
        entry.url
        for name in models.list_models(module=models)
        for entry in models.get_model_weights(name)
    }
    assert [url for url in urls if not pattern.search(url)] == []
