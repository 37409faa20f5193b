"""A table of images: CSV or TSV with the columns ``path,label[,split][,group]``.

Paths are relative to the table's folder, or absolute. An empty label means unlabelled, an empty
split train, an empty group an image by itself. Fields may be separated by semicolons, as
spreadsheets do where the comma is the decimal sign. UTF-16 is told by the first bytes.
"""

from __future__ import annotations

import codecs
import csv
import logging
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from featx.errors import SourceError, counted
from featx.images.sources.labels import has_tags
from featx.images.sources.sample import SPLIT_ALIASES, FileSource, Sample

log = logging.getLogger(__name__)

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class _Row(NamedTuple):
    label: str
    split: str
    group: str
    line: int


def open_manifest(path: Path) -> FileSource:
    """Return the samples of a table, in its order.

    The images are not looked for: one that is missing is found when it is read, or by its stamp.
    """
    path = path.resolve()
    rows: dict[str, _Row] = {}
    repeated: list[int] = []
    for line, fields in _rows(path):
        sample_id, row = _checked(path, line, fields)
        if first := rows.get(sample_id):
            _require_same(path, sample_id, first, row)
            repeated.append(line)
        else:
            rows[sample_id] = row
    if not rows:
        raise SourceError(f"The manifest '{path}' lists no images.")
    if repeated:
        log.warning(
            "'%s' lists %s again, with the same label (line %d first): used once.",
            *(path, counted(len(repeated), "image"), repeated[0]),
        )
    names = sorted({row.label for row in rows.values() if row.label})
    index = {name: position for position, name in enumerate(names)} | {"": -1}
    samples = tuple(
        Sample(sample_id, index[row.label], row.split, row.group) for sample_id, row in rows.items()
    )
    folder, are_tags = str(path.parent), has_tags(names)
    return FileSource(str(path), folder, tuple(names), samples, has_tags=are_tags)


def _require_same(path: Path, sample_id: str, first: _Row, row: _Row) -> None:
    for name in ("label", "split", "group"):
        one, other = getattr(first, name), getattr(row, name)
        if one != other:
            raise SourceError(
                f"'{path}', lines {first.line} and {row.line}: '{sample_id}' is listed twice, with "
                f"{name} {one!r} and {name} {other!r}. Keep the right one."
            )


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row and the number of the line that it begins in."""
    begin, reader = 1, None
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            first = file.readline()
            reader = csv.reader(
                chain([first], file), delimiter=_delimiter(path, first), strict=True
            )
            columns = _column_names(path, next(reader, []))
            begin = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(columns):
                    raise SourceError(
                        f"'{path}', {_lines(begin, reader.line_num)}: expected {len(columns)} "
                        f"fields as in the first line, found {len(row)}. Put a field with a "
                        "delimiter in double quotes."
                    )
                if row:
                    yield begin, dict(zip(columns, row, strict=True))
                begin = reader.line_num + 1
    except UnicodeDecodeError as err:
        raise SourceError(_not_text(path, err)) from err
    except csv.Error as err:
        last = reader.line_num if reader else begin
        raise SourceError(
            f"'{path}', {_lines(begin, last)}: {err}. Double quotes belong around a whole field, "
            "in pairs; inside one they are doubled."
        ) from err
    except OSError as err:
        raise SourceError(f"Cannot read '{path}': {err.strerror or err}.") from err


def _encoding(path: Path) -> str:
    """Return the encoding that a table's first bytes show."""
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(_UTF16):
        return "utf-16"
    if len(start) > 1 and 0 in start[:2]:  # "p", "a" of path in two bytes each
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    return "utf-8-sig"


def _lines(first: int, last: int) -> str:
    return f"line {first}" if last <= first else f"lines {first} to {last}"


def _not_text(path: Path, err: UnicodeDecodeError) -> str:
    """Return the message for a table that is not in its encoding; the line is looked for."""
    content = path.read_bytes()
    encoding = _encoding(path)
    name = "UTF-16" if encoding.startswith("utf-16") else "UTF-8"
    try:
        content.decode(encoding)
    except UnicodeDecodeError as whole:  # ``err`` knows only the place in a block
        before = whole.object[: whole.start].decode(encoding, "ignore")
        line = len(re.findall("\r\n|\r|\n", before)) + 1
        return (
            f"'{path}', line {line}: byte 0x{whole.object[whole.start]:02x} is not {name} "
            f"({whole.reason}). Save the table as UTF-8."
        )
    return f"Cannot read '{path}': it is not {name} ({err.reason}). Save it as UTF-8."


def _delimiter(path: Path, header: str) -> str:
    """Return the delimiter of the extension if the header has it, else comma, tab or semicolon."""
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    return next((delimiter for delimiter in (own, ",", "\t", ";") if delimiter in header), own)


def _column_names(path: Path, found: list[str]) -> list[str]:
    names = [name.strip().lower() for name in found]
    if any(names.count(name) != 1 for name in ("path", "label")):
        raise SourceError(
            f"The manifest '{path}' needs the columns path and label, once, in its first line; "
            f"found {', '.join(map(repr, found)) or 'nothing'}."
        )
    if twice := [name for name in ("split", "group") if names.count(name) > 1]:
        raise SourceError(f"The manifest '{path}' has two columns called {twice[0]}.")
    return names


def _checked(path: Path, line: int, fields: dict[str, str]) -> tuple[str, _Row]:
    """Return a row's sample id and the row."""
    image = fields["path"].strip()
    if not image:
        raise SourceError(f"'{path}', line {line}: the path is empty.")
    split = fields.get("split", "").strip().lower() or "train"
    if split not in SPLIT_ALIASES:
        raise SourceError(
            f"'{path}', line {line}: split must be train, val or test; got '{split}'."
        )
    sample_id = str(PurePosixPath(image))  # ./a.jpg is a.jpg; .. stays, it may follow a link
    label, group = (sys.intern(fields.get(name, "").strip()) for name in ("label", "group"))
    return sample_id, _Row(label, SPLIT_ALIASES[split], group, line)
