"""Representations of objects: lines in a terminal, HTML in a notebook, a frame of pandas."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from featx.artifact.frames import frame_of
from featx.errors import counted, printable

if TYPE_CHECKING:
    import pandas as pd

_MOST_LINES, _WIDTH = 6, 80
_MOST_ROWS = 20
_SIDE = 96
_BOX = f"width:{_SIDE}px;margin:2px;display:inline-block;vertical-align:top;font-size:11px"
_NO_PICTURE = f"height:{_SIDE}px;line-height:{_SIDE}px;text-align:center;border:1px dashed #999"

Cells = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Titles of the columns, and the rows."""


class Picture(NamedTuple):
    """A thumbnail in a notebook; without ``jpeg`` a placeholder."""

    name: str
    caption: str
    jpeg: bytes | None


class Shown:
    """Base of what shows itself in a few lines, and in a notebook."""

    _lines_are_rows = False
    """Whether the table has all that the lines have but the first."""

    def _lines(self) -> Iterable[str]:
        """Return what it is, then what is in it, a line each."""
        return (type(self).__name__,)

    def _cells(self) -> Cells | None:
        """Return the table that notebooks show."""
        return None

    def _pictures(self) -> Iterable[Picture]:
        """Return the thumbnails that notebooks show, each by the time it is wanted."""
        return ()

    def __repr__(self) -> str:
        first, *rest = islice(self._lines(), _MOST_LINES)
        return "\n".join([_cut(first), *(_cut(f"  {line}") for line in rest)])

    def _repr_html_(self) -> str:
        first, *rest = (printable(line) for line in islice(self._lines(), _MOST_LINES))
        rest = [] if self._lines_are_rows else rest
        parts = [f"<div>{line}</div>" for line in (f"<b>{escape(first)}</b>", *map(escape, rest))]
        if cells := self._cells():
            parts.append(_html_table(*cells))
        parts += map(_html_picture, self._pictures())
        return f"<div>{''.join(parts)}</div>"


class Framed(Shown):
    """Base of what can be a frame of pandas, too."""

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """Return the columns of the frame."""
        raise NotImplementedError

    def _cells(self) -> Cells | None:
        columns = self._columns()
        rows = zip(*(values[: _MOST_ROWS + 1] for values in columns.values()), strict=True)
        return list(columns), [[_text(value) for value in row] for row in rows]

    def to_frame(self) -> pd.DataFrame:
        """Return a frame of pandas.

        Raises:
            FeatxError: pandas is not installed.
        """
        return frame_of(self._columns())


class FramedList(list[Any], Framed):
    """Base of lists that show their first items, and can be a frame."""

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = [_cut(repr(each).replace("\n", " ")) for each in self[: _MOST_LINES - 1]]
        more = len(self) - len(shown)
        return "\n".join([*shown, *([f"… and {more:,} more"] if more > 0 else [])]) or "[]"

    def _lines(self) -> Iterable[str]:
        return (f"{type(self).__name__}: {counted(len(self), 'row')}",)


def _cut(line: str) -> str:
    line = printable(line)
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _html_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    kept = [i for i in range(len(titles)) if not i or any(row[i] not in ("", "–") for row in rows)]
    lines = ["".join(f"<th>{escape(_short(titles[i]))}</th>" for i in kept)]
    for row in rows[:_MOST_ROWS]:
        lines.append("".join(f"<td>{escape(_short(row[i]))}</td>" for i in kept))
    more = "<div>…</div>" if len(rows) > _MOST_ROWS else ""
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>{more}"


def _html_picture(picture: Picture) -> str:
    name, caption = escape(_short(picture.name)), escape(_short(picture.caption))
    if picture.jpeg is None:
        shown = f'<div style="{_NO_PICTURE}">no picture</div>'
    else:
        data = base64.b64encode(picture.jpeg).decode("ascii")
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{name}">'
    return f'<div style="{_BOX}" title="{name}">{shown}<div>{caption}</div></div>'


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 60 else f"…{text[-59:]}"
