"""A local server in place of the one that has torchvision's weights, and a folder to work in."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


def draw_photos(folder: Path, counts: Mapping[str, int]) -> None:
    """Write so many photos of ants and of bees for each split, and ``holiday.jpg`` beside them."""
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for number, name in enumerate(("ants", "bees")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(0, 120, (48, 64, 3)) + 100 * number
                Image.fromarray(noise.astype(np.uint8)).save(folder / split / name / f"{i}.jpg")
    Image.new("RGB", (80, 60), (30, 60, 90)).save(folder.parent / "holiday.jpg")


@contextlib.contextmanager
def at_home(folder: Path, zoo: Mapping[str, str], patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in a folder, with weights from the local server."""
    patch.setattr("featx.backbones.weights.weights_url", lambda backbone, _name: zoo[backbone])
    previous = torch.hub.get_dir()
    torch.hub.set_dir(str(folder / "hub"))
    patch.chdir(folder)
    yield folder
    torch.hub.set_dir(previous)


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
