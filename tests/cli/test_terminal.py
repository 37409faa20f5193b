"""What commands look like in a terminal: width, colours, numbers, and streams that fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from terminal import CODE, in_terminal, lines_of

from featx.cli import main
from featx.cli.layout import cells, folded, table_lines, wrapped

CLASSES = ("ants", "bees", "crickets", "dragonflies", "earwigs", "火の鳥と水の魚")
LONG = "a-folder-with-a-long-name/" * 5
MANY = "many/artifacts"
MADE = [
    *([["extract", "two", "-b", "tiny"], ["train-head"], ["export", "--card", "card.md"]]),
    ["extract", "many", "-b", "tiny", "-o", f"{MANY}/features.h5"],
    ["train-head", f"{MANY}/features.h5", "-o", f"{MANY}/head.safetensors"],
    ["train-head", f"{MANY}/features.h5", "-o", f"{MANY}/mlp.safetensors", "--head", "mlp"],
    ["export", f"{MANY}/head.safetensors", "--onnx", f"{MANY}/model.onnx"],
]
AFTER = [
    *(["info", f"artifacts/{name}"] for name in ("features.h5", "head.safetensors", "model.onnx")),
    *(["info", f"{MANY}/{name}"] for name in ("head.safetensors", "mlp.safetensors", "model.onnx")),
    *(["check", f"artifacts/{name}"] for name in ("features.h5", "head.safetensors")),
    ["check", f"{MANY}/model.onnx", "many"],
    ["evaluate", f"{MANY}/model.onnx", "many", "--per-class"],
    ["predict", f"{MANY}/model.onnx", "many", "-k", "6"],
    *([["predict", f"{MANY}/model.onnx", "many"], ["predict", "two/ants/0.png"]]),
    ["audit", f"{MANY}/features.h5"],
    ["similar", "two/ants/0.png", "--features", "artifacts/features.h5"],
    ["compare", f"{MANY}/head.safetensors", f"{MANY}/mlp.safetensors"],
    ["report", "-o", "report.html", "--map", "none"],
    ["run", "many", "-o", f"{MANY}/run", "-b", "tiny"],
    ["compare", f"{MANY}/features.h5", f"{MANY}/run/features.h5"],
    *([["status"], ["status", MANY], ["backbones"], ["backbones", "tiny"], ["backbones", "vit"]]),
]
WRONG = [
    ["info", f"{LONG}head.safetensors"],
    ["extract", LONG, "-b", "tiny"],
    ["train-head", f"{LONG}features.h5", "-o", f"{LONG}head.safetensors"],
    ["export", f"{LONG}head.safetensors"],
    ["predict", f"{LONG}model.onnx", f"{LONG}0.png"],
    ["extract", "two", "-b", "tiny", "--pool", LONG],
    ["train-head", f"--{LONG}"],
    ["backbones", "no-such-backbone-as-this"],
]
HELP = [[], ["--help"], *([name, "--help"] for name in main.commands)]


def draw(folder: Path, names: Sequence[str], count: int) -> None:
    generator = np.random.default_rng(0)
    for index, name in enumerate(names):
        for number in range(count):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 120, (32, 32, 3)) + 20 * index
            Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images of two and of six classes, and what the commands make of them."""
    root = tmp_path_factory.mktemp("terminal")
    draw(root / "two", CLASSES[:2], 8)
    draw(root / "many", CLASSES, 7)
    return root


@pytest.fixture(scope="module")
def shown(folder: Path) -> dict[tuple[int, str], tuple[str, int]]:
    """What each command wrote and its exit code, by columns and arguments."""
    found = {}
    for columns in (80, 120):
        commands = [*(MADE if columns == 80 else []), *AFTER, *WRONG, *HELP]
        results = in_terminal(commands, columns, folder)
        for command, result in zip(commands, results, strict=True):
            found[columns, " ".join(command)] = result
    return found


def test_every_command_works(shown):
    wrong = {" ".join(command) for command in WRONG}
    failed = {key: out for key, out in shown.items() if out[1] and key[1] not in wrong}
    stale = {(columns, f"status {MANY}") for columns in (80, 120)}  # it has other files, too
    assert not {key: out for key, out in failed.items() if key not in stale and key[1]}
    assert not [key for key, out in shown.items() if key[1] in wrong and not out[1]]
    assert not [out for out, _ in shown.values() if "Traceback" in out]


@pytest.mark.parametrize("columns", [80, 120])
def test_no_line_is_wider_than_the_terminal(shown, columns):
    wide = {
        key: [line for line in lines_of(out) if cells(line) > columns]
        for key, (out, _) in shown.items()
        if key[0] == columns
    }
    assert not {key: lines for key, lines in wide.items() if lines}


def test_numbers_agree_with_what_they_count(shown):
    wrong = re.compile(r"\b1 (\w+s)\b(?<!class)")
    every = "\n".join(out for out, _ in shown.values())
    assert not [
        match[0] for match in wrong.finditer(every) if match[1] not in ("is", "has", "was", "ms")
    ]


def test_top_5_is_shown_where_there_are_more_than_five_classes(shown):
    assert "top-5" not in shown[80, "info artifacts/head.safetensors"][0]
    assert "top-5" in shown[80, f"info {MANY}/head.safetensors"][0]


def test_next_best_classes_that_would_break_names_of_images_are_left_out(shown):
    names = {f"many/{name}/{number}.png" for name in CLASSES for number in range(7)}
    narrow, wide = (shown[columns, f"predict {MANY}/model.onnx many"][0] for columns in (80, 120))
    assert all(name in narrow for name in names)
    assert "3rd" not in narrow
    assert "3rd" in wide
    assert "6th" in shown[80, f"predict {MANY}/model.onnx many -k 6"][0]  # where they are asked for


def test_colours_mark_results_warnings_and_errors(shown):
    assert CODE.search(shown[80, "train-head"][0])
    assert "\x1b[1;31mError:\x1b[0m" in shown[80, WRONG[0][0] + " " + WRONG[0][1]][0]


def test_no_colours_where_they_are_not_wanted(folder):
    commands = [["info", "artifacts/head.safetensors"], ["train-head"], ["info", "missing"]]
    for own in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        text = "".join(out for out, _ in in_terminal(commands, 80, folder, own))
        assert not CODE.search(text)
        assert "TERM" not in own or "\x1b" not in text  # nothing is drawn there either


def run(folder: Path, line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m featx"
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line.replace('featx', command)}"],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("shown")
def test_a_pipe_has_colours_only_where_they_are_forced(folder):
    line = "featx train-head"
    assert "\x1b" not in run(folder, line).stdout
    assert CODE.search(run(folder, line, FORCE_COLOR="1").stdout)


def test_columns_counts_for_a_pipe_too(folder):
    done = run(folder, "featx info " + LONG, COLUMNS="40")
    assert done.returncode == 1
    assert max(map(cells, done.stderr.splitlines())) <= 40


def test_a_reader_that_stops_after_a_line_ends_the_command_quietly(folder):
    done = run(folder, "featx backbones | head -1")
    assert done.returncode in (0, 141)
    assert done.stderr == ""
    assert done.stdout.startswith("backbone")


def test_a_full_device_is_told_in_a_sentence(folder):
    done = run(folder, "featx backbones > /dev/full")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: Standard output cannot be written")


class TestLayout:
    def test_a_further_line_of_a_field_is_below_its_value(self):
        assert folded("name   one two three", 12).split("\n") == [
            "name   one", "       two", "       three"
        ]  # fmt: skip

    @pytest.mark.parametrize("text", ["a b", "x" * 90, "火" * 50, "/long" * 30, "a " * 60])
    @pytest.mark.parametrize("width", [2, 10, 40])
    def test_lines_fit_and_nothing_is_lost(self, text, width):
        lines = wrapped(text, width)
        assert max(map(cells, lines)) <= width
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")

    def test_a_table_that_is_too_wide_has_all_its_cells_in_several_parts(self):
        rows = [[f"row{i}", *(f"{i}.{j:06}" for j in range(12))] for i in range(3)]
        titles = ["name", *(f"column{j}" for j in range(12))]
        lines = [line for line, _ in table_lines(titles, rows, 40)]
        assert max(map(cells, lines)) <= 40
        words = set(" ".join(lines).split())
        assert set(titles).union(*rows) <= words

    def test_columns_without_content_are_left_out(self):
        lines = [line for line, _ in table_lines(["a", "b", "c"], [["x", "–", "1"]], None)]
        assert lines == ["a  c", "─  ─", "x  1"]

    def test_the_first_column_stays_even_when_it_is_empty(self):
        assert next(table_lines(["a", "b"], [["", "1"]], None))[0] == "a  b"
