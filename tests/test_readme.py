"""The README's commands and code run as they stand.

Official weights cannot be downloaded in a test, so a local server stands in for torchvision's: it
serves random weights under names that carry their sha256, as the official ones do.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import featx_cli
from model_zoo import at_home, draw_photos, serving_weights

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str = README) -> list[tuple[str, str]]:
    """Return (language, code) of each block of code."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[list[str]]:
    """Return the arguments of each line of a block, or after a ``$``, that calls ``program``."""
    text = "".join(code for name, code in blocks() if name == "text")
    lines = [line for name, code in blocks() if name == "sh" for line in code.splitlines()]
    lines = [*re.findall(r"^\$ (.+)$", text, re.MULTILINE), *lines]
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line and line[0] == program]


@pytest.fixture(scope="module")
def model_zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of random weights for the README's backbones, on a local server."""
    backbones = (("resnet18", ""), ("vgg16", "features."))
    with serving_weights(tmp_path_factory.mktemp("zoo"), backbones) as urls:
        yield urls


@pytest.fixture
def home(
    tmp_path: Path, model_zoo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder as the README assumes it: ``photos/`` with splits, ``holiday.jpg``, weights."""
    draw_photos(tmp_path / "photos", {"train": 6, "val": 2, "test": 2})
    with at_home(tmp_path, model_zoo, monkeypatch) as folder:
        yield folder


_QUICKLY = {"finetune": ("--epochs", "1"), "compare": ("--epochs", "1", "--no-onnx")}


def test_the_commands_for_your_own_images(home):
    ran = commands("featx")
    assert len(ran) >= 8
    for arguments in ran:
        result = featx_cli(*arguments, *_QUICKLY.get(arguments[0], ()))
        assert result.exit_code == 0, (arguments, result.output)
    assert (home / "artifacts" / "model.onnx").is_file()


def test_the_python_code(home, capsys):
    (code,) = (code for name, code in blocks() if name == "python")
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "holiday.jpg" in printed
    assert "('ants', 'bees')" in printed
    assert "(20, 512)" in printed


def test_both_languages_show_the_same_code():
    assert blocks() == blocks((ROOT / "README.zh.md").read_text(encoding="utf-8"))


def test_make_targets_named_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {word for line in commands("make") for word in line if "=" not in word}
    targets |= set(re.findall(r"`make ([a-z-]+)`", README))
    assert targets >= {"demo", "test", "features", "head", "onnx"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
