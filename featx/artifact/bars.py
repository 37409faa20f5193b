"""Progress, for terminals and notebooks: one line that is drawn again.

Functions draw by themselves, but not in commands, which say where and when; nor in threads and
worker processes, nor what takes less than half a second.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from html import escape
from typing import Any, TextIO

from featx.errors import printable

Counted = Callable[[int, int], None]
"""Called with the number that is done and the number of all."""
Told = Callable[[str], None]
"""Called with the step under way."""

_FIRST_SECONDS, _EVERY_SECONDS = 0.5, 0.1
_CELLS = 24


@contextlib.contextmanager
def drawing(wanted: object) -> Iterator[Drawing]:
    """Yield what makes callbacks that draw, where ``wanted`` is None or True.

    They draw in a terminal and in a notebook; elsewhere, and where it is False, they do nothing.
    """
    line: Terminal | _Notebook | None = None
    if wanted in (None, True) and _is_alone():
        line = _Notebook() if _display() else Terminal() if _can_draw() else None
    is_done = False
    try:
        yield Drawing(line)
        is_done = True
    finally:
        if line:
            line.end(is_done=is_done)


class Drawing:
    """Makes callbacks, all of which draw on one line; None draws nothing."""

    def __init__(self, line: Terminal | _Notebook | None) -> None:
        self._line = line

    def bar(
        self, given: Counted | bool | None, title: str, *, unit: str = "images", scale: float = 1
    ) -> Counted | None:
        """Return the callback that was given, else one that draws a bar; None where none is.

        Its ``note`` puts other words in the place of the title.
        """
        if callable(given):
            return given
        line = self._line
        if line is None or given is False:
            return None
        begun: list[tuple[float, int]] = []
        last, titles = [0, 0], [title]

        def tell(done: int, total: int) -> None:
            last[:] = done, total
            now = time.monotonic()
            begun.append((now, done)) if not begun else None
            speed = (done - begun[0][1]) / max(now - begun[0][0], 1e-6)
            text = f"{done * scale:,.0f}/{total * scale:,.0f}"
            if speed and done < total:
                left = _clock((total - done) / speed)
                text += f"  {speed * scale:,.0f} {unit}/s  {left} left"
            line.show(titles[-1], done / max(total, 1), text)

        def note(text: str) -> None:
            titles.append(text)
            del titles[0]
            if last[1]:
                tell(last[0], last[1])
            else:
                line.show(text, None, "")

        tell.note = note  # type: ignore[attr-defined]
        return tell

    def steps(self, given: Told | bool | None, title: str) -> Told:
        """Return the callback that was given, else one that shows the step, or does nothing."""
        if callable(given):
            return given
        line = self._line
        if line is None or given is False:
            return lambda _: None
        return lambda step: line.show(title, None, step)


class _Line:
    """Decides when to draw."""

    def __init__(self) -> None:
        self._begun = self._drawn = time.monotonic()
        self._last: tuple[str, float | None, str] | None = None
        self.is_drawn = False

    def show(self, title: str, share: float | None, text: str) -> None:
        now, self._last = time.monotonic(), (title, share, text)
        is_due = share is None or now - self._drawn >= _EVERY_SECONDS  # steps may last
        if now - self._begun >= _FIRST_SECONDS and is_due:
            self._drawn, self.is_drawn = now, True
            self._draw(*self._last)

    def end(self, *, is_done: bool = False) -> None:
        """Draw the last line; of steps that are done, the time they took in the place of theirs."""
        if not (self.is_drawn and self._last):
            return
        title, share, text = self._last
        if is_done and share is None and title:
            text = f"done in {time.monotonic() - self._begun:.1f} s"
        self._draw(title, share, text)

    def _draw(self, title: str, share: float | None, text: str) -> None:
        raise NotImplementedError


class Terminal(_Line):
    """A line on stderr; on a stream that is given, drawn at once, and gone in the end."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream, self._writing = stream, threading.RLock()
        if stream is not None:
            self._begun = self._drawn = -math.inf

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Erase the line while others are printed, then draw it again."""
        with self._writing:
            if self.is_drawn:
                self._write("")
            yield
            super().end()

    def _draw(self, title: str, share: float | None, text: str) -> None:
        encoding = getattr(self._stream or sys.stderr, "encoding", None) or "ascii"
        full, empty = ("━", "─") if "utf" in encoding.lower() else ("#", "-")
        filled = 0 if share is None else round(_CELLS * min(1.0, share))
        bar = "" if share is None else f"{full * filled}{empty * (_CELLS - filled)}"
        self._write("  ".join(filter(None, map(printable, (title, bar, text)))))

    def _write(self, text: str) -> None:
        stream, width = self._stream or sys.stderr, shutil.get_terminal_size().columns - 1
        encoding = getattr(stream, "encoding", None) or "ascii"
        errors = getattr(stream, "errors", None) or "replace"
        line = _fitting(text.encode(encoding, errors).decode(encoding), width)
        with self._writing, contextlib.suppress(OSError, ValueError):  # it was closed
            stream.write(f"\r{line}\r")
            stream.flush()

    def end(self, *, is_done: bool = False) -> None:
        if self.is_drawn and self._stream is not None:
            self._write("")
        elif self.is_drawn:
            super().end(is_done=is_done)
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write("\n")
                sys.stderr.flush()


def _fitting(text: str, width: int) -> str:
    """Return as much of a text as fits into so many columns, filled up with spaces."""
    shown = ""
    for character in text:
        width -= 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width < 0:
            return shown
        shown += character
    return shown + " " * width


class _Notebook(_Line):
    """One output of a cell, which is replaced."""

    _handle: Any = None

    def _draw(self, title: str, share: float | None, text: str) -> None:
        bar = "" if share is None else f'<progress value="{share:.4f}" max="1"></progress> '
        shown = {
            "text/plain": f"{title}  {text}",
            "text/html": f"<div>{escape(title)} {bar}{escape(text)}</div>",
        }
        display = _display()
        if self._handle is not None:
            self._handle.update(shown, raw=True)
        elif display:
            self._handle = display(shown, raw=True, display_id=True)


def _is_alone() -> bool:
    """Return whether nothing else draws: not in a command, a worker process, or another thread."""
    if threading.current_thread() is not threading.main_thread():
        return False
    draws_itself = getattr(sys.stderr, "draws_progress", False)  # that of commands
    return not draws_itself and multiprocessing.parent_process() is None


def _can_draw() -> bool:
    try:
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _display() -> Callable[..., Any] | None:
    """Return what shows an output in a notebook; None outside of one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from importlib import import_module

    display: Callable[..., Any] = import_module("IPython.display").display
    return display


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
