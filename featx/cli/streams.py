"""Standard output and error that take any text, whatever their encoding and state.

All output of commands, click and libraries goes through them. Characters that the encoding lacks
are written in ASCII, control characters as escapes.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO

from featx.errors import escaped, printable

_ERRORS = "featx.ascii"
_IN_ASCII = {
    **{"─": "-", "–": "-", "—": "-", "…": "...", "→": "->", "←": "<-", "×": "x", "·": "."},
    **{"±": "+-", "²": "^2", "≤": "<=", "≥": ">=", "‘": "'", "’": "'", "“": '"', "”": '"'},
    **{"•": "*", "\N{NO-BREAK SPACE}": " "},
}
_BROKEN_PIPE = 141  # what a shell reports of a program that SIGPIPE ended


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

    def __init__(self, sink: _Sink, encoding: str, *, is_raw: bool = False) -> None:
        # click takes an ASCII stream for one that is not set up and would write UTF-8 to it.
        self._is_ascii = codecs.lookup(encoding).name == "ascii"
        self._is_raw = is_raw
        self._sink = sink
        encoding = "latin-1" if self._is_ascii else encoding
        super().__init__(sink, encoding, _ERRORS, newline="", write_through=True)  # type: ignore[arg-type]

    def write(self, text: str) -> int:
        shown = text if self._is_raw else printable(text, keep="\n\t")
        if self._is_ascii:
            shown = shown.encode("ascii", _ERRORS).decode("ascii")
        super().write(shown)
        return len(text)

    def raw(self) -> _Stream:
        """Return the same stream for what draws on a terminal with control characters."""
        encoding = "ascii" if self._is_ascii else self.encoding
        return _Stream(self._sink, encoding, is_raw=True)


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


def drawing_stream() -> TextIO:
    """Return stderr for progress bars, whose control characters are their own."""
    return sys.stderr.raw() if isinstance(sys.stderr, _Stream) else sys.stderr


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
