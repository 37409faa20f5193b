"""Standard output and error that take any text, whatever their encoding and state.

All output of commands, click and libraries goes through them. Characters that the encoding lacks
are written in ASCII, control characters as escapes. Lines are broken to fit a terminal, or the
number of columns that COLUMNS says; bytes are written as they are.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO

import click

from featx.cli.layout import folded
from featx.errors import escaped, printable

if TYPE_CHECKING:
    from featx.artifact.bars import Drawing, Terminal

_ERRORS = "featx.ascii"
_IN_ASCII = {
    **{"─": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "×": "x", "·": "."},
    **{"±": "+-", "²": "^2", "≤": "<=", "≥": ">=", "‘": "'", "’": "'", "“": '"', "”": '"'},
    **{"•": "*", "\N{NO-BREAK SPACE}": " "},
}
_BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended
_COLOURS = {"error": "1;31", "warning": "33", "good": "32", "chosen": "1;32", "strong": "1"}
_PREFIX = re.compile(r"^(?:(Error)|Warning):", re.MULTILINE)
_DEFAULT_COLUMNS = 80
_drawn: Terminal | None = None


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks, as an error handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(c) or escaped(c) for c in lacking), error.end


codecs.register_error(_ERRORS, _in_ascii)


class _Sink(io.RawIOBase):
    """A target of bytes that drops them once it has refused some."""

    def __init__(self, target: IO[bytes] | None, refused: Callable[[OSError], None]) -> None:
        self._target = target
        self._refused = refused
        self._works = True

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._target is not None and self._target.isatty()

    def fileno(self) -> int:
        if self._target is None:
            raise io.UnsupportedOperation("fileno")
        return self._target.fileno()

    def write(self, data: Any) -> int:
        if self._works:
            try:
                if self._target is None:
                    raise OSError(errno.EBADF, "it is closed")
                self._target.write(data)
                self._target.flush()
            except OSError as err:
                self._works = False
                # The interpreter flushes the rest when it ends: to the null device.
                with contextlib.suppress(OSError, ValueError):
                    null = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(null, self.fileno())
                    os.close(null)
                self._refused(err)
        return memoryview(data).nbytes


class _Stream(io.TextIOWrapper):
    """A text stream that takes any text."""

    draws_progress = True  # by ``drawing``: functions of the library draw none here

    def __init__(self, sink: _Sink, encoding: str, *, is_raw: bool = False) -> None:
        # click takes an ASCII stream for one that is not set up and would write UTF-8 to it.
        self._is_ascii = codecs.lookup(encoding).name == "ascii"
        self._is_raw = is_raw
        self._sink = sink
        self._of_drawing: _Stream | None = None
        encoding = "latin-1" if self._is_ascii else encoding
        super().__init__(sink, encoding, _ERRORS, newline="", write_through=True)  # type: ignore[arg-type]

    def write(self, text: str) -> int:
        shown = text if self._is_raw else self._shown(text)
        if not self._is_raw and _PREFIX.search(shown) and has_colour(self):
            shown = _PREFIX.sub(_coloured_prefix, shown)
        self._write(shown)
        return len(text)

    def _write(self, shown: str) -> None:
        """Write text that has been prepared; what is drawn makes room for it."""
        if self._is_raw or _drawn is None or not self.isatty():
            super().write(shown)
            return
        with _drawn.away():
            super().write(shown)

    def _shown(self, text: str) -> str:
        shown = printable(text, keep="\n\t")
        if not shown.isascii():  # what replaces a character may be longer
            encoding = "ascii" if self._is_ascii else self.encoding
            shown = shown.encode(encoding, _ERRORS).decode(encoding)
        return folded(shown, columns(self))

    def write_line(self, text: str, colour: str) -> None:
        """Write a line of a colour, as far as the stream takes colours."""
        lines = self._shown(text).split("\n")
        if has_colour(self):
            lines = [coloured(line, colour) for line in lines]
        self._write("\n".join([*lines, ""]))

    def raw(self) -> _Stream:
        """Return the same stream for what draws on a terminal with control characters."""
        if (
            self._of_drawing is None
        ):  # one for all: with a wrapper that is dropped, the sink is closed
            encoding = "ascii" if self._is_ascii else self.encoding
            self._of_drawing = _Stream(self._sink, encoding, is_raw=True)
        return self._of_drawing


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` take any text while a command runs.

    A result that cannot be written ends the command: with an error and exit code 1, or silently
    with 141 where the reader of a pipe has left. Notes that cannot be written are dropped.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = _safe(sys.stdout, refused=_end)
    sys.stderr = _safe(sys.stderr, refused=lambda _: None)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def columns(stream: TextIO | None = None) -> int | None:
    """Return how wide lines of a stream may be, by default of stdout; None where it doesn't matter.

    COLUMNS counts before the terminal's own size, for pipes too.
    """
    stream = stream or sys.stdout
    if (given := os.environ.get("COLUMNS", "")).isdecimal() and int(given) > 0:
        return int(given)
    if not stream.isatty():
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_COLUMNS
    except (OSError, ValueError):
        return _DEFAULT_COLUMNS


def has_colour(stream: TextIO) -> bool:
    """Return whether a stream takes colours: a terminal does, unless the environment says no."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return os.environ.get("FORCE_COLOR", "0").lower() not in ("", "0", "false") or stream.isatty()


def can_draw() -> bool:
    """Return whether stderr is a terminal on which a line can be drawn again."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if text else text


def _coloured_prefix(match: re.Match[str]) -> str:
    return coloured(match[0], "error" if match[1] else "warning")


def print_line(text: str, colour: str = "") -> None:
    """Print a line on stdout, in a colour where it takes any: see ``_COLOURS``."""
    if colour and isinstance(sys.stdout, _Stream):
        sys.stdout.write_line(text, colour)
    else:
        click.echo(text)


@contextlib.contextmanager
def drawing(*, quiet: bool) -> Iterator[Drawing | None]:
    """Draw on a line of stderr, above which others may be printed meanwhile; None for nowhere."""
    global _drawn  # noqa: PLW0603 both standard streams must know of it
    if quiet or not can_draw():
        yield None
        return
    from featx.artifact.bars import Drawing, Terminal

    _drawn = Terminal(sys.stderr.raw() if isinstance(sys.stderr, _Stream) else sys.stderr)
    line = _drawn
    try:
        yield Drawing(line)
    finally:
        _drawn = None
        line.end()


def _safe(stream: TextIO | None, *, refused: Callable[[OSError], None]) -> TextIO:
    """Return a stream around another one, which is None where the descriptor was closed."""
    if stream is None:
        return _Stream(_Sink(None, refused), "utf-8")
    if not hasattr(stream, "buffer"):
        return stream
    stream.flush()
    return _Stream(_Sink(stream.buffer, refused), stream.encoding)


def _end(error: OSError) -> None:
    if error.errno == errno.EPIPE:
        raise SystemExit(_BROKEN_PIPE)
    sys.stderr.write(f"Error: Standard output cannot be written: {error.strerror}.\n")
    raise SystemExit(1)
