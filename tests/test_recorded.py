"""What pages record of commands is what the commands print today, but for times, sizes and rates.

``python tools/transcripts.py --data ../shared/data`` records README and tutorials again.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("[0-9]*.md"))
BLOCK = re.compile(r"^\*\*What you see:\*\*\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"[\d.,]+(?:e[+-]\d+)?(?= ?(?:min|s|ms|MB|GB|images/s)\b)")
ROUNDED = re.compile(r"\b[\d.]+e-\d+")
WORST = re.compile(r"(at most [\d.e-]+\s+)\([\w-]+\)")


def _transcripts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("transcripts", ROOT / "tools" / "transcripts.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


transcripts = _transcripts()
RECORDED = [
    page
    for page in TUTORIALS
    if page.suffixes == [".md"] and transcripts.BLOCK.search(page.read_text("utf-8"))
]


def masked(text: str, *, numbers: bool = False) -> list[str]:
    """Return lines without what a machine decides; with ``numbers`` without decimals at all.

    Columns are as wide as what is in them, so spaces and rules count as one.
    """
    text = re.sub(r"\d+ min \d+ s", "0 s", text)
    text = WORST.sub(r"\1(case)", text)
    text = ROUNDED.sub("0e-0", MEASURED.sub("0", text))
    if numbers:
        text = re.sub(r"(?<![\w-])[-+]?\d[\d.,]*%?", "0", text)
        text = re.sub(
            r"\b(?:alike|better|worse)$|\b(?:alike|better|worse)(?=  )", "alike", text, flags=re.M
        )
    return [re.sub(r"  +|─+", " ", line).rstrip() for line in text.splitlines()]


def test_only_times_sizes_rates_and_rounding_are_masked():
    line = "time   1 min 5 s (1,111 images/s, cpu)  13.4 MB  difference 1.3e-03  top-1 0.9477"
    assert masked(line) == ["time 0 s (0 images/s, cpu) 0 MB difference 0e-0 top-1 0.9477"]
    assert masked(line) == masked(line.replace("1 min 5", "0.3").replace("1,111", "9"))
    assert masked(line) != masked(line.replace("0.9477", "0.9478"))
    assert masked(line, numbers=True) == masked(line.replace("0.9477", "0.5"), numbers=True)
    assert masked(line, numbers=True) != masked(line.replace("top-1", "top-5"), numbers=True)


@pytest.mark.real_data
def test_the_readme_shows_what_its_commands_print(data, tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    transcripts.link_data(data, tmp_path)
    (printed,) = transcripts.recorded(text, tmp_path)
    (block,) = transcripts.BLOCK.findall(text)
    assert masked(printed) == masked(block)


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("page", RECORDED, ids=lambda page: page.stem)
def test_the_tutorials_show_what_their_commands_print(page, data, tmp_path):
    text = page.read_text("utf-8")
    transcripts.link_data(data, tmp_path)
    printed = list(transcripts.recorded(text, tmp_path))
    blocks = transcripts.BLOCK.findall(text)
    numbers = "finetune" in text  # rounding grows over epochs
    assert [masked(each, numbers=numbers) for each in printed] == [
        masked(each, numbers=numbers) for each in blocks
    ]


def test_the_guides_show_what_commands_print_of_the_digits(tmp_path):
    commands = {
        "heads.md": "featx train-head f.h5 -o artifacts/head.safetensors",
        "export.md": "featx export artifacts/head.safetensors --onnx artifacts/model.onnx",
    }
    transcripts.record(["featx extract digits: -b tiny -o f.h5"], tmp_path)
    for name, command in commands.items():
        (block,) = BLOCK.findall((ROOT / "docs" / "guides" / name).read_text("utf-8"))
        _, _, printed = transcripts.record([command], tmp_path).partition("\n")
        lines = [line for line in masked(printed) if not line.startswith("time ")]
        assert lines == masked(block), name
