"""What a command prints reaches any stream, and nothing of a file or folder acts on a terminal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import featx
from featx.cli import main
from featx.cli.output import print_fields, print_json, print_skipped, print_table
from featx.cli.streams import safe_streams
from featx.errors import BadImages, printable

HOSTILE = (
    "=1+1\x1b]0;PWNED\x07\x1b[2J",
    "b\nforged: line\r\u202eevil\u2028\x9b31m",
    os.fsdecode(b"caf\xe9"),
)


@contextlib.contextmanager
def streams(encoding: str) -> Iterator[tuple[io.BytesIO, io.BytesIO]]:
    """Give the bytes of stdout and stderr of an encoding, while something prints."""
    before = sys.stdout, sys.stderr
    out, err = io.BytesIO(), io.BytesIO()
    sys.stdout = io.TextIOWrapper(out, encoding)
    sys.stderr = io.TextIOWrapper(err, encoding)
    try:
        with safe_streams():
            yield out, err
        sys.stdout.detach()
        sys.stderr.detach()
    finally:
        sys.stdout, sys.stderr = before


def cli(*arguments: object) -> tuple[bytes, int]:
    """Run a command; return all that it printed, and its exit code."""
    result = CliRunner().invoke(main, [os.fsencode(str(part)).decode(errors="surrogateescape")
                                       for part in arguments])  # fmt: skip
    assert not result.exception or isinstance(result.exception, SystemExit), result.exception
    return result.stdout_bytes + result.stderr_bytes, result.exit_code


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that ``featx info`` tells of."""
    root = tmp_path_factory.mktemp("head")
    for number in range(6):
        path = root / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 40 * number).save(path)
    featx.extract(root / "photos", root / "f.h5", featx.ExtractOptions(backbone="tiny"))
    featx.train_head(root / "f.h5", root / "h", featx.TrainOptions(solver="centroid"))
    return root / "h"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose source has hostile names of classes and files."""
    root = tmp_path_factory.mktemp("hostile")
    for index, name in enumerate(HOSTILE):
        for number in range(6):
            pixels = np.full((8, 8, 3), 80 * index + number, np.uint8)
            path = root / "photos" / name / f"{number}{HOSTILE[number % 3]}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    (root / "photos" / HOSTILE[1] / f"{HOSTILE[0]}.png").write_bytes(b"")
    return root


class TestEncodings:
    @pytest.mark.parametrize(
        ("encoding", "shown"),
        [
            ("utf-8", "─ → … × é 火 ±"),
            ("cp1252", r"- -> … × é \u706b ±"),
            ("latin-1", r"- -> ... × é \u706b ±"),
            ("ascii", r"- -> ... x \xe9 \u706b +-"),
            ("cp437", r"─ -> ... x é \u706b ±"),
            ("shift_jis", r"─ → … × \xe9 火 ±"),
            ("utf-16", "─ → … × é 火 ±"),
        ],
    )
    def test_what_an_encoding_lacks_is_written_in_ascii(self, encoding, shown):
        import click

        with streams(encoding) as (out, err):
            print_fields({"a": "─ → … × é 火 ±"})
            click.echo("─ → … × é 火 ±", err=True)
        assert out.getvalue().decode(encoding) == f"a  {shown}\n"
        assert err.getvalue().decode(encoding) == f"{shown}\n"

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "euc_kr", "utf-16"])
    @pytest.mark.parametrize("arguments", [["--help"], ["train-head", "--help"]])
    def test_commands_print_in_any_encoding(self, encoding, arguments):
        with streams(encoding) as (out, _), pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
        assert len(out.getvalue().decode(encoding)) > 200

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
    def test_json_is_utf8_whatever_the_encoding(self, encoding):
        value = {"é火": [*HOSTILE, 1.5, None]}
        with streams(encoding) as (out, _):
            print_json(value)
        assert json.loads(out.getvalue().decode("utf-8")) == value

    def test_json_has_null_where_a_number_is_not_finite(self):
        with streams("utf-8") as (out, _):
            print_json({"a": [float("nan"), (float("inf"), 1.0)]}, indent=None)
        assert out.getvalue() == b'{"a": [null, [null, 1.0]]}\n'

    def test_a_progress_bar_draws_on_a_terminal_of_another_encoding(self, monkeypatch):
        from featx.cli.output import progress_bars, step_status

        with streams("latin-1") as (_, err):
            monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True)
            with progress_bars(quiet=False) as bar:
                bar("Extracting")(1, 2)
            with step_status(quiet=False) as step:
                assert step
                step("Reading [/b] a\x1b]0;PWNED\n→")
        assert b"Extracting" in err.getvalue()
        assert b"\x1b]" not in err.getvalue()


class TestStreamsThatRefuse:
    def run(self, arguments: str, shell: str, head: Path) -> subprocess.CompletedProcess[str]:
        command = f"{sys.executable} -m featx {arguments} {shell}"
        return subprocess.run(  # noqa: PLW1510 the exit code is what is tested
            ["bash", "-o", "pipefail", "-c", command],
            env=os.environ | {"HEAD": str(head)},
            capture_output=True,
            text=True,
        )

    @pytest.mark.parametrize("arguments", ["info $HEAD", "info $HEAD --json", "--help"])
    def test_a_full_disk_is_told_in_a_sentence(self, arguments, head):
        result = self.run(arguments, "> /dev/full", head)
        assert result.stderr == (
            "Error: Standard output cannot be written: No space left on device.\n"
        )
        assert result.returncode == 1

    def test_a_closed_output_is_told_in_a_sentence(self, head):
        result = self.run("info $HEAD", ">&-", head)
        assert result.stderr == "Error: Standard output cannot be written: it is closed.\n"
        assert result.returncode == 1

    def test_a_reader_that_has_left_ends_a_command_quietly(self, head):
        result = self.run("info $HEAD --json", "| true", head)
        assert (result.stderr, result.returncode) == ("", 141)

    @pytest.mark.parametrize("shell", ["2>&-", "2> /dev/full", "<&-"])
    def test_what_the_result_does_not_need_may_be_missing(self, shell, head):
        result = self.run("info $HEAD", shell, head)
        assert result.returncode == 0
        assert "fingerprint" in result.stdout

    @pytest.mark.parametrize("shell", ["2>&-", "2> /dev/full", ">&- 2>&-"])
    def test_an_error_keeps_its_exit_code_without_stderr(self, shell, head):
        assert self.run("info gone.h5", shell, head).returncode == 1


class TestNames:
    @settings(max_examples=40)
    @given(st.text(), st.text())
    def test_a_printed_value_is_on_one_line(self, name, value):
        with streams("utf-8") as (out, _):
            print_fields({"field": value})
            print_skipped([(name, value)], rest="--json")
            print_table([name, "b"], [[value, name]])
        text = out.getvalue().decode()
        assert text.count("\n") == 5
        assert text.replace("\n", "").isprintable()

    def test_a_list_of_bad_images_has_a_line_for_each(self):
        error = BadImages([(name, "bad\nreason") for name in HOSTILE], 9, "Repair them.")
        lines = str(error).split("\n")
        assert lines[1:-1] == [printable(f"  {name}: bad\nreason") for name in HOSTILE]

    def test_no_command_prints_what_acts_on_a_terminal(self, hostile):
        f, h, m, photos = (hostile / x for x in ("f.h5", "h.safetensors", "m.onnx", "photos"))
        odd = hostile / f"{HOSTILE[1]}.h5"
        skip = ("--on-error", "skip")
        commands = [
            ("extract", photos, "-o", f, "-b", "tiny"),
            ("extract", photos, "-o", odd, "-b", "tiny", *skip),
            ("extract", photos, "-o", f, "-b", "tiny", *skip),
            ("extract", photos, "-o", f, "-b", HOSTILE[1], *skip),
            ("extract", photos, "-o", f, "-b", "tiny", "-w", HOSTILE[1], *skip),
            ("check", f),
            ("info", f),
            ("info", f, "--json"),
            ("info", odd),
            ("info", hostile / HOSTILE[1]),
            ("compare", f, odd),
            ("train-head", f, "-o", h, "-C", "1", "--per-class"),
            ("info", h),
            ("export", h, "--onnx", m, "--card", hostile / "card.md"),
            ("info", m),
            ("check", m, photos),
            ("evaluate", m, photos, "--per-class", *skip),
            ("evaluate", m, photos, "--json", *skip),
            *(("predict", m, photos, "--format", x) for x in ("table", "json", "jsonl", "csv")),
            ("report", h, "-o", hostile / "r.html"),
            ("report", h, "-o", hostile / f"{HOSTILE[2]}.html"),
            ("run", photos, "-o", hostile / HOSTILE[1], "-b", "tiny", *skip),
            ("status", hostile / HOSTILE[1]),
            ("backbones", HOSTILE[0]),
            ("predict", m, f"--{HOSTILE[0]}"),
            (HOSTILE[1],),
        ]
        codes = {}
        for command in commands:
            printed, codes[command] = cli(*command)
            text = printed.decode("utf-8")
            assert text.replace("\r\n", "").replace("\n", "").isprintable(), (command, text)
            assert "\nforged" not in text, command
            assert "Traceback" not in text, command
        assert codes[commands[2]] == codes[commands[11]] == codes[commands[14]] == 0, codes

        card, page = (hostile / "card.md").read_text("utf-8"), (hostile / "r.html").read_text()
        assert card.replace("\n", "").isprintable()
        assert "caf\\udce9" in page
        assert "\x1b" not in page

    def test_json_keeps_names_and_csv_shows_their_escapes(self, hostile):
        image = hostile / "photos" / HOSTILE[1] / f"1{HOSTILE[1]}.png"
        text, _ = cli("predict", hostile / "m.onnx", image, "--format", "jsonl", "-k", "1")
        parsed = json.loads(text)
        assert parsed["image"] == str(image)
        assert parsed["top"][0]["label"] in HOSTILE
        text, _ = cli("predict", hostile / "m.onnx", image, "--format", "csv", "-k", "3")
        rows = list(csv.DictReader(io.StringIO(text.decode("utf-8"))))
        assert {row["label"] for row in rows} == {
            f"'{printable(HOSTILE[0])}",
            printable(HOSTILE[1]),
            r"caf\udce9",
        }
