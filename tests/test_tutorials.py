"""The tutorials' commands run as they stand, and their two languages show the same code.

Official weights cannot be downloaded in a test: a local server has random ones. Few images, one
epoch; what the pages say of accuracy is recorded by tools/transcripts.py.
"""

from __future__ import annotations

import pickle
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import featx_cli
from model_zoo import at_home, draw_photos, random_weights, serving_weights

TUTORIALS = Path(__file__).parent.parent / "docs" / "tutorials"
PAGES = [page for page in sorted(TUTORIALS.glob("*.md")) if page.suffixes == [".md"]]
LESSONS = [page for page in PAGES if page.name[0].isdigit()]
BACKBONES = (("resnet18", ""), ("vgg16", "features."), ("densenet121", ""))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return (language, code) of each block of code."""
    text = page.read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for name, code in blocks(page) if name == "sh" for line in code.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.fixture(scope="module")
def model_zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with serving_weights(tmp_path_factory.mktemp("zoo"), BACKBONES) as urls:
        yield urls


@pytest.fixture
def home(
    tmp_path: Path, model_zoo: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder with the names that the pages use, and few images in it."""
    generator = np.random.default_rng(0)
    draw_photos(tmp_path / "hymenoptera_data", {"train": 6, "val": 2})
    cifar10 = tmp_path / "cifar-10-batches-py"
    cifar10.mkdir()
    labels = [i % 3 for i in range(30)]
    for name in ("data_batch_1", "test_batch"):
        data = generator.integers(0, 100, (30, 3072)) + 70 * np.array(labels)[:, None]
        batch = {"data": data.astype(np.uint8), "labels": labels}
        (cifar10 / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", "automobile", "bird"]
    (cifar10 / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    (tmp_path / "my-resnet18.pth").write_bytes(random_weights("resnet18", ""))
    with at_home(tmp_path, model_zoo, monkeypatch) as folder:
        yield folder


def quickly(arguments: list[str]) -> tuple[str, ...]:
    """Return options that let a command take seconds."""
    if arguments[0] == "finetune":
        return ("--epochs", "1")
    if arguments[0] == "compare" and "--cut" in arguments:
        return ("--epochs", "1", "--no-onnx")
    if arguments[0] == "compare":
        return ("--no-onnx",)
    if arguments[0] == "extract" and "--image-size" not in arguments:
        return ("--image-size", "32")
    return ()


@pytest.mark.parametrize("page", LESSONS, ids=lambda page: page.stem)
def test_the_commands_of_a_lesson(home, page):
    ran = commands(page)
    assert ran
    for arguments in ran:
        smaller = ["32" if word == "96" else word for word in arguments]
        result = featx_cli(*smaller, *quickly(arguments))
        assert result.exit_code == 0, (arguments, result.output)
    for code in (code for name, code in blocks(page) if name == "python"):
        exec(compile(code, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_languages_show_the_same_code_and_lead_to_each_other(page):
    translation = page.with_suffix(".zh.md")
    assert blocks(page) == blocks(translation)
    assert f"]({translation.name})" in page.read_text(encoding="utf-8")
    assert f"]({page.name})" in translation.read_text(encoding="utf-8")


def test_every_lesson_is_listed():
    for index, suffix in ((TUTORIALS / "README.md", ".md"), (TUTORIALS / "README.zh.md", ".zh.md")):
        text = index.read_text(encoding="utf-8")
        assert [page.name for page in LESSONS if f"]({page.with_suffix(suffix).name})" in text] == [
            page.name for page in LESSONS
        ]
