"""Fixtures of the backbone tests: pixels, and a weights server on this machine."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from featx.backbones import weights as weights_module


@pytest.fixture
def pixels() -> Callable[..., np.ndarray]:
    """Return a maker of random pixels ``(N, size, size, 3)`` uint8."""

    def make(count: int, size: int, *, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    return make


@dataclass
class WeightsServer:
    """Serves one weights file under the name it would have at torchvision's.

    Attributes:
        url: Of the file.
        destination: Where featx keeps the download.
        content: What is served; None answers 404.
        requests: Paths asked for so far.
    """

    url: str
    destination: Path
    content: bytes | None
    requests: list[str] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    """A weights file of resnet18 on an HTTP server here; torch's cache is a fresh folder."""
    file = tmp_path / "served.pth"
    torch.save({"conv1.weight": torch.arange(6.0).reshape(2, 3)}, file)
    content = file.read_bytes()
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.requests.append(self.path)
            if state.content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.content)))
            self.end_headers()
            self.wfile.write(state.content)

        def log_message(self, *args: object) -> None:
            pass

    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()

    def stop() -> None:
        listener.shutdown()
        listener.server_close()
        thread.join()

    hub = tmp_path / "hub"
    url = f"http://127.0.0.1:{listener.server_port}/{name}"
    state = WeightsServer(url, hub / "checkpoints" / name, content, stop=stop)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub))
    monkeypatch.setattr(weights_module, "weights_url", lambda backbone, name: url)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield state
    if thread.is_alive():
        stop()
