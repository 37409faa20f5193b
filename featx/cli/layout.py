"""Lines and tables of text in a number of columns."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

_FIELD = re.compile(r" *\S(?:\S| (?! ))*  +(?=\S)")  # a name, and the space before its value
_LONGEST_NAME = 24
_EMPTY = ("", "–")
_NARROWEST = 8
_GAP = "  "


def cells(text: str) -> int:
    """Return the columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) == "Cf":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int, *, right: bool = False) -> str:
    """Return the text with spaces up to a width, before it with ``right``."""
    space = " " * (width - cells(text))
    return space + text if right else text + space


def folded(text: str, width: int | None) -> str:
    """Return the text with lines of at most ``width`` columns; None leaves it as it is.

    A further line of a ``name  value`` is indented like the value, others like the first.

    >>> print(folded("made with  featx 0.1.0, numpy 2.4.6", 28))
    made with  featx 0.1.0,
               numpy 2.4.6
    """
    if width is None or cells(text) <= width:
        return text
    return "\n".join(line for own in text.split("\n") for line in _fold(own, width))


def _fold(line: str, width: int) -> list[str]:
    if cells(line) <= width:
        return [line]
    field = _FIELD.match(line)
    indent = len(line) - len(line.lstrip(" "))
    if field and field.end() <= min(_LONGEST_NAME, 2 * width // 3):
        indent = field.end()
    first, *others = wrapped(line[indent:], max(1, width - indent))
    return [line[:indent] + first, *(" " * indent + other for other in others)]


def wrapped(text: str, width: int) -> list[str]:
    """Return the text in lines, broken at words; words longer than a line after a slash.

    >>> wrapped("see /data/photos/ants/1.jpg there", 16)
    ['see /data/', 'photos/ants/', '1.jpg there']
    """
    if cells(text) <= width:
        return [text]
    lines, line = [], ""
    for word in re.findall(r" *[^ ]+", text):
        if line and cells(line + word) > width >= cells(word.lstrip(" ")):
            lines.append(line)
            line = ""
        line += word if line else word.lstrip(" ") if lines else word
        while cells(line) > width:
            end = _fitting(line, width)
            lines.append(line[:end])
            line = line[end:]
    return [*lines, line] if line else lines


def _fitting(text: str, width: int) -> int:
    """Return how many characters of a long word go on a line of their own."""
    end, used = 0, 0
    for character in text:
        used += _width(character)
        if used > width:
            break
        end += 1
    return text.rfind("/", width // 2, end) + 1 or max(1, end)


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None
) -> Iterator[tuple[str, int | None]]:
    """Yield the lines of a table, each with the number of its row; None for titles.

    The first column is text, the others are numbers, right-aligned. Columns without content are
    left out. Where the table is wider than ``width``, cells get more lines, then the columns go
    into several tables.
    """
    kept = [i for i in range(len(columns)) if not i or any(row[i] not in _EMPTY for row in rows)]
    table = [[row[i] for i in kept] for row in (columns, *rows)]
    for number, part in enumerate(_parts(table, width)):
        if number:
            yield "", None
        yield from _lines(part, width)


def fits(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> bool:
    """Return whether a table has a line for each row in this width."""
    return width is None or _total(_widths([list(row) for row in (columns, *rows)]), _GAP) <= width


def _parts(table: list[list[str]], width: int | None) -> Iterator[list[list[str]]]:
    """Yield the columns that fit side by side, with the first one in each part."""
    least = [min(_NARROWEST, own) for own in _widths(table)]
    start, count = 1, len(least)
    while start < count or start == 1:
        end = count
        while width and end > start + 1 and least[0] + sum(least[start:end]) + end - start > width:
            end -= 1
        yield [[row[0], *row[start:end]] for row in table]
        start = max(end, start + 1)


def _total(widths: Sequence[int], gap: str) -> int:
    return sum(widths) + len(gap) * (len(widths) - 1)


def _widths(table: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cells, column)) for column in zip(*table, strict=True)]


def _lines(table: list[list[str]], width: int | None) -> Iterator[tuple[str, int | None]]:
    widths, gap = _widths(table), _GAP
    if width and _total(widths, gap) > width:
        titles = [max(map(cells, title.split() or [""])) for title in table[0]]
        widths = list(map(max, titles, _widths(table[1:] or table)))
        if _total(widths, gap) > width:
            gap = " "
        while _total(widths, gap) > width and max(widths) > _NARROWEST:
            widths[widths.index(max(widths))] -= 1
    rules = ["─" * each for each in widths]
    for number, row in ((None, table[0]), (None, rules), *enumerate(table[1:])):
        parts = [wrapped(cell, each) for cell, each in zip(row, widths, strict=True)]
        for i in range(max(map(len, parts))):
            own = [part[i] if i < len(part) else "" for part in parts]
            line = [
                padded(cell, each, right=j > 0)
                for j, (cell, each) in enumerate(zip(own, widths, strict=True))
            ]
            yield gap.join(line).rstrip(), number
