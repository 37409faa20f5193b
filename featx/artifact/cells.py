"""Cells of a CSV that no spreadsheet takes for a formula, and that read back as they were."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?", re.ASCII)
_STARTS = (*"=+-@＝＋－＠", "\t", "\r", "\n")
"""First characters of formulas in spreadsheets, see https://owasp.org/www-community/attacks/CSV_Injection."""


def to_cell(text: str) -> str:
    """Return a text with an apostrophe before it where a spreadsheet would calculate it.

    Plain numbers stay.

    >>> to_cell("=1+1.jpg"), to_cell("'quoted'"), to_cell("a.jpg"), to_cell("-3.5e-2")
    ("'=1+1.jpg", "''quoted'", 'a.jpg', '-3.5e-2')
    """
    if _NUMBER.fullmatch(text):
        return text
    return f"'{text}" if text.startswith((*_STARTS, "'")) else text


def from_cell(text: str) -> str:
    """Return the text of which ``to_cell`` made a cell; others are as they stand.

    >>> from_cell("'=1+1.jpg"), from_cell("''quoted'"), from_cell("-3.5")
    ('=1+1.jpg', "'quoted'", '-3.5')
    """
    return text[1:] if text.startswith("'") and text[1:2] in (*_STARTS, "'") else text


def table_bytes(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Return a CSV of texts, safe for spreadsheets; bytes of names that are not UTF-8 stay."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(columns)
    table.writerows([to_cell(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def table_rows(text: str) -> tuple[list[str], Iterator[dict[str, str]]]:
    """Return the columns of a CSV, and its rows; after a spreadsheet ``;`` or tabs may separate.

    Cells are as they stand; one that a row lacks is empty.
    """
    first = text.partition("\n")[0]
    delimiter = next((each for each in (",", ";", "\t") if each in first), ",")
    table = csv.DictReader(io.StringIO(text, newline=""), restval="", delimiter=delimiter)
    return list(table.fieldnames or ()), iter(table)
