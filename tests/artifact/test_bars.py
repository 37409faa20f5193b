"""Progress that functions draw by themselves, in terminals and notebooks."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import sys
import threading
import types
from collections.abc import Iterator

import pytest

import featx
from featx.artifact import bars
from featx.cli import main


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(bars, "_EVERY_SECONDS", 0.0)


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> _Terminal:
    stream = _Terminal()
    streams = types.SimpleNamespace(stderr=stream, modules=sys.modules)
    monkeypatch.setattr(bars, "sys", streams)  # pytest sets sys.stderr anew for each phase
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return stream


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """The outputs of a cell of a notebook, as they are at last."""
    shown: list[dict[str, str]] = []

    class Handle:
        def __init__(self, place):
            self._place = place

        def update(self, data, *, raw):
            assert raw
            shown[self._place] = data

    def display(data, *, raw, display_id):
        assert raw
        assert display_id
        shown.append(data)
        return Handle(len(shown) - 1)

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    inner = types.ModuleType("IPython.display")
    inner.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    return shown


def count(progress, total=10, title="Extracting"):
    with bars.drawing(progress) as draw:
        tell = draw.bar(progress, title)
        for done in range(1, total + 1) if tell else ():
            tell(done, total)


@pytest.mark.parametrize("force", ["", "1"])
def test_a_notebook_shows_one_bar_whatever_colours_are_forced(outputs, monkeypatch, force):
    monkeypatch.setenv("FORCE_COLOR", force)
    count(None)
    (shown,) = outputs
    assert shown["text/plain"] == "Extracting  10/10"
    assert 'value="1.0000"' in shown["text/html"]


def test_steps_that_are_done_are_not_left_as_under_way(outputs):
    with bars.drawing(None) as draw:
        draw.steps(None, "Export")("Comparing 14 images")
    with contextlib.suppress(KeyboardInterrupt), bars.drawing(None) as draw:
        draw.steps(None, "Audit")("Learning curve")
        raise KeyboardInterrupt
    done, stopped = outputs
    assert re.fullmatch(r"Export  done in \d+\.\d s", done["text/plain"])
    assert stopped["text/plain"] == "Audit  Learning curve"


def test_names_are_escaped_in_notebooks(outputs):
    count(True, title="<script>")
    assert "<script>" not in outputs[0]["text/html"]


def test_a_terminal_has_one_line_that_fits(terminal):
    count(None, 100)
    drawn = terminal.getvalue()
    assert drawn.endswith("\n")
    assert drawn.count("\n") == 1
    assert "100/100" in drawn
    assert max(map(len, drawn.rstrip("\n").split("\r"))) == 79


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_gets_ascii(terminal, encoding, monkeypatch):
    monkeypatch.setattr(_Terminal, "encoding", encoding)
    count(None)
    assert terminal.getvalue().isascii()


def test_false_draws_nothing(terminal):
    count(False)
    assert terminal.getvalue() == ""


def test_a_callback_is_called_and_nothing_drawn(terminal):
    calls = []
    count(lambda *pair: calls.append(pair), 3)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert terminal.getvalue() == ""


def test_nothing_is_drawn_into_a_file_a_dumb_terminal_a_thread_or_by_a_command(
    terminal, monkeypatch, capsys
):
    monkeypatch.setattr(_Terminal, "draws_progress", True, raising=False)
    count(None)
    monkeypatch.delattr(_Terminal, "draws_progress")
    worker = threading.Thread(target=count, args=(None,))
    worker.start()
    worker.join()
    monkeypatch.setenv("TERM", "dumb")
    count(None)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(bars.multiprocessing, "parent_process", object)
    count(None)
    assert terminal.getvalue() == ""
    monkeypatch.undo()
    count(None)
    assert capsys.readouterr().err == ""


def test_short_work_is_not_drawn(terminal, monkeypatch):
    monkeypatch.setattr(bars, "_FIRST_SECONDS", 60.0)
    count(None)
    assert terminal.getvalue() == ""


def test_a_closed_stream_is_no_error(terminal):
    with bars.drawing(None) as draw:
        tell = draw.bar(None, "x")
        terminal.close()
        tell(1, 2)


def test_the_functions_draw_and_progress_false_turns_it_off(photos, tmp_path, terminal):
    root = photos({"ants": 5, "bees": 5})
    features, head, model = (tmp_path / name for name in ("f.h5", "h.safetensors", "m.onnx"))
    for progress, expected in ((False, False), (None, True)):
        terminal.seek(0)
        terminal.truncate(0)
        featx.extract(
            root, features, backbone="tiny", overwrite=True, restart=True, progress=progress
        )
        featx.train_head(
            features, head, progress=progress, strengths=0.1 if progress is None else 1.0
        )
        featx.export_onnx(head, model, progress=progress, atol=1.0 if progress is None else 2.0)
        featx.evaluate(model, root, progress=progress)
        featx.audit(features, progress=progress)
        drawn = terminal.getvalue()
        for title in ("Extracting", "Train head", "Export", "Evaluating", "Audit"):
            assert (title in drawn) is expected, (title, progress)


def test_commands_draw_by_themselves(photos, tmp_path, monkeypatch):
    root = photos({"ants": 5, "bees": 5})
    drawn = []
    monkeypatch.setattr(bars.Terminal, "_draw", lambda *shown: drawn.append(shown))
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        arguments = ["extract", str(root), "-b", "tiny", "-o", str(tmp_path / "f.h5"), "-q"]
        main(arguments, standalone_mode=False)
        assert not drawn
        count(None)
        assert drawn
    os.close(ours)


def test_a_pseudo_terminal_shows_the_bar(monkeypatch):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        count(None)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other side is closed
        while chunk := os.read(ours, 10_000):
            shown += chunk
    assert b"10/10" in shown
    os.close(ours)


def test_a_line_makes_room_for_others_and_is_gone_in_the_end():
    stream = _Terminal()
    line = bars.Terminal(stream)
    line.show("Extracting", None, "a 火\x1b[2J")
    assert stream.getvalue().startswith("\rExtracting  a 火\\x1b[2J ")
    drawn = stream.getvalue()
    with line.away():
        stream.write("another\n")
    erased, again = stream.getvalue().removeprefix(drawn).split("another\n")
    assert (erased.strip(), again) == ("", drawn)
    line.end()
    assert stream.getvalue().rpartition(drawn)[2].strip() == ""


@pytest.mark.parametrize("width", [5, 6, 7])
def test_a_line_of_wide_characters_fits(width):
    assert bars._fitting("abc火火火", width) == {5: "abc火", 6: "abc火", 7: "abc火火"}[width]


def test_a_note_stands_in_the_place_of_the_title(terminal):
    with bars.drawing(True) as draw:
        bar = draw.bar(None, "Extracting")
        bar.note("waiting for workers")
        assert terminal.getvalue().strip() == "waiting for workers"
        bar(5, 10)
        bar.note("4 workers, 31.0/s each")
    lines = [line.split("  ")[0] for line in terminal.getvalue().split("\r") if line.strip()]
    assert lines[1] == "waiting for workers"
    assert lines[-1] == "4 workers, 31.0/s each"
    assert "5/10" in terminal.getvalue()
