"""A local server in place of the one that has torchvision's weights."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from featx.backbones.catalog import build_skeleton


@contextlib.contextmanager
def serving_weights(folder: Path, backbones: Sequence[tuple[str, str]]) -> Iterator[dict[str, str]]:
    """Serve random weights of (backbone, prefix of the names needed); yield their addresses."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = {}
    for backbone, prefix in backbones:
        content = random_weights(backbone, prefix)
        name = f"{backbone}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        (folder / name).write_bytes(content)
        urls[backbone] = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    yield urls
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def random_weights(backbone: str, prefix: str) -> bytes:
    generator = torch.Generator().manual_seed(0)
    state = {
        name: _random(name, tensor, generator)
        for name, tensor in build_skeleton(backbone).state_dict().items()
        if name.startswith(prefix)
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _random(name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return values with which activations keep their size from layer to layer."""
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    if name.endswith("running_var"):
        return torch.ones(tensor.shape)
    fan_in = tensor[0].numel() if tensor.ndim > 1 else 1
    return torch.randn(tensor.shape, generator=generator) * (1 / fan_in) ** 0.5
