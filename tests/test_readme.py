"""The README's commands and code run as they stand.

Official weights cannot be downloaded in a test, so a local server stands in for torchvision's: it
serves random weights under names that carry their sha256, as the official ones do.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import re
import shlex
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import featx_cli
from PIL import Image

from featx.backbones.catalog import build_skeleton

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of each line of a shell block that calls ``program``."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == program]


@pytest.fixture(scope="module")
def model_zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of random weights for the README's backbones, on a local server."""
    folder = tmp_path_factory.mktemp("zoo")
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    urls = {}
    for backbone, prefix in (("resnet18", ""), ("vgg16", "features.")):
        content = _random_weights(backbone, prefix)
        name = f"{backbone}-{hashlib.sha256(content).hexdigest()[:8]}.pth"
        (folder / name).write_bytes(content)
        urls[backbone] = f"http://127.0.0.1:{server.server_address[1]}/{name}"
    yield urls
    server.shutdown()
    server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _random_weights(backbone: str, prefix: str) -> bytes:
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


@pytest.fixture
def home(
    tmp_path: Path, model_zoo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder as the README assumes it: ``photos/`` with splits, ``holiday.jpg``, weights."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        for number, name in enumerate(("ants", "bees")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(0, 120, (48, 64, 3)) + 100 * number
                Image.fromarray(noise.astype(np.uint8)).save(folder / f"{i}.jpg")
    Image.new("RGB", (80, 60), (30, 60, 90)).save(tmp_path / "holiday.jpg")
    monkeypatch.setattr(
        "featx.backbones.weights.weights_url", lambda backbone, _name: model_zoo[backbone]
    )
    previous = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.hub.set_dir(previous)


_QUICKLY = {"finetune": ("--epochs", "1"), "compare": ("--epochs", "1", "--no-onnx")}


def test_the_commands_for_your_own_images(home):
    ran = commands("featx")
    assert len(ran) >= 8
    for arguments in ran:
        result = featx_cli(*arguments, *_QUICKLY.get(arguments[0], ()))
        assert result.exit_code == 0, (arguments, result.output)
    assert (home / "artifacts" / "model.onnx").is_file()


def test_the_python_code(home, capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "holiday.jpg" in printed
    assert "('ants', 'bees')" in printed
    assert "(20, 512)" in printed


def test_the_demo_shown_is_the_demo_that_runs():
    script = (
        (ROOT / "tools" / "demo.sh").read_text(encoding="utf-8").replace("$out", "artifacts/demo")
    )
    shown = re.findall(r"^\$ (.+)$", blocks("text")[0], re.MULTILINE)
    assert len(shown) >= 4
    for command in shown:
        assert f"run {command}" in script


def test_make_targets_named_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for line in commands("make") for word in line if "=" not in word}
    targets |= set(re.findall(r"`make ([a-z-]+)`", README))
    assert targets >= {"demo", "test", "features", "head", "onnx"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
