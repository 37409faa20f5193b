"""A table of images: CSV or TSV with the columns ``path,label[,split][,group]``.

Other common names of columns are recognised, and any can be said. Paths are relative to the
table's folder, or absolute. An empty label means unlabelled, an empty split train, an empty group
an image by itself. Fields may be separated by semicolons, as spreadsheets do where the comma is the
decimal sign. UTF-16 is recognised by the first bytes.
"""

from __future__ import annotations

import codecs
import csv
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from featx.errors import SourceError, counted
from featx.images.sources.address import NO_OPTIONS, SourceOptions
from featx.images.sources.labels import LABEL_NAMES, has_tags
from featx.images.sources.sample import SPLIT_ALIASES, FileSource, Sample

log = logging.getLogger(__name__)

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_PATHS = (
    *("path", "filename", "file_name", "file", "filepath", "file_path", "image", "image_path"),
    *("image_file", "image_name", "img", "img_path", "image_id"),
)
_COLUMNS = {"path": _PATHS, "label": LABEL_NAMES, "split": ("split",), "group": ("group",)}
"""What each column of featx may be called, in lower case and with underscores."""
_MAX_FIELD = 2**26
"""Characters, as of masks beside the labels; Python's own limit is 2**17."""
_SEPARATORS = re.compile(r"[\s-]+")


class _Row(NamedTuple):
    label: str
    split: str
    group: str
    line: int


def open_manifest(
    path: Path,
    options: SourceOptions = NO_OPTIONS,
    *,
    sample_id: Callable[[str], str] | None = None,
) -> FileSource:
    """Return the samples of a table, in its order.

    The images are not looked for: one that is missing is found when it is read, or by its stamp.
    ``sample_id`` makes ids from the paths in a table of a store.

    Raises:
        SourceError: It is damaged, empty, or its columns are not told.
    """
    path = path.resolve()
    folder = options.root or str(path.parent)
    rows: dict[str, _Row] = {}
    repeated: list[int] = []
    names = _Names(path, folder, options.suffix, sample_id)
    for line, fields in _rows(path, options):
        name, row = _checked(path, line, fields, names)
        if first := rows.get(name):
            _require_same(path, name, first, row)
            repeated.append(line)
        else:
            rows[name] = row
    if not rows:
        raise SourceError(f"The manifest '{path}' lists no images.")
    if repeated:
        log.warning(
            "'%s' lists %s again, with the same label (line %d first): used once.",
            *(path, counted(len(repeated), "image"), repeated[0]),
        )
    classes = sorted({row.label for row in rows.values() if row.label})
    index = {name: position for position, name in enumerate(classes)} | {"": -1}
    samples = tuple(
        Sample(name, index[row.label], row.split, row.group) for name, row in rows.items()
    )
    uri, are_tags = options.address(path), has_tags(classes)
    return FileSource(uri, folder, tuple(classes), samples, has_tags=are_tags)


def first_path(path: Path, options: SourceOptions) -> str:
    """Return the first path that a table lists; empty where it lists none."""
    return next((fields["path"].strip() for _, fields in _rows(path, options)), "")


class _Names:
    """Sample ids from the paths in a table."""

    def __init__(
        self, path: Path, folder: str, suffix: str, make: Callable[[str], str] | None
    ) -> None:
        self._make = make
        self._path, self._folder, self._suffix = path, folder, suffix
        self._has_backslashes: bool | None = None  # decided by the first path that has one

    def sample_id(self, image: str) -> str:
        if self._suffix and not image.lower().endswith(self._suffix.lower()):
            image += self._suffix
        if self._make:
            return self._make(image)
        if "\\" in image:
            if self._has_backslashes is None:
                self._has_backslashes = os.path.lexists(os.path.join(self._folder, image))
                if not self._has_backslashes:
                    log.info("'%s': the backslashes in its paths are read as slashes.", self._path)
            image = image if self._has_backslashes else image.replace("\\", "/")
        return str(PurePosixPath(image))  # ./a.jpg is a.jpg; .. stays, it may follow a link


def _require_same(path: Path, sample_id: str, first: _Row, row: _Row) -> None:
    for name in ("label", "split", "group"):
        one, other = getattr(first, name), getattr(row, name)
        if one != other:
            raise SourceError(
                f"'{path}', lines {first.line} and {row.line}: '{sample_id}' is listed twice, with "
                f"{name} {one!r} and {name} {other!r}. Keep the right one."
            )


def _rows(path: Path, options: SourceOptions) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row and the number of the line that it begins in."""
    begin, reader = 1, None
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD))
    try:
        with path.open(newline="", encoding=_encoding(path)) as file:
            first = file.readline()
            reader = csv.reader(
                chain([first], file), delimiter=_delimiter(path, first), strict=True
            )
            columns = _column_names(path, next(reader, []), options)
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


def _column_names(path: Path, found: list[str], options: SourceOptions) -> list[str]:
    """Return featx's name of each column; empty for those that it does not read."""
    names = [_SEPARATORS.sub("_", name.strip().lower()) for name in found]
    asked = {name: getattr(options, f"{name}_column") for name in _COLUMNS}
    chosen = {
        name: _said(path, found, name, wanted) if wanted else _recognised(path, found, names, name)
        for name, wanted in asked.items()
    }
    if any(chosen[name] is None for name in ("path", "label")):
        raise SourceError(
            f"The manifest '{path}' needs a column of paths (path, filename, image, …) and one of "
            f"labels (label, class, …) in its first line; found "
            f"{', '.join(map(repr, found)) or 'nothing'}. Say which they are: path_column=…, "
            "label_column=…."
        )
    numbers = {name: number for name, number in chosen.items() if number is not None}
    if len(set(numbers.values())) < len(numbers):
        raise SourceError(f"'{path}': two of {', '.join(numbers)} are said to be one column.")
    others = [f"{name} from '{found[i]}'" for name, i in numbers.items() if names[i] != name]
    if others:
        log.info("'%s': read %s.", path, ", ".join(others))
    by_number = {number: name for name, number in numbers.items()}
    return [by_number.get(number, "") for number in range(len(found))]


def _said(path: Path, found: list[str], name: str, wanted: str) -> int:
    """Return the number of a column that was asked for."""
    numbers = [number for number, each in enumerate(found) if each.strip() == wanted.strip()]
    if len(numbers) != 1:
        count = "two columns" if numbers else "no column"
        raise SourceError(
            f"The manifest '{path}' has {count} called '{wanted}' ({name}_column); found "
            f"{', '.join(map(repr, found)) or 'nothing'}."
        )
    return numbers[0]


def _recognised(path: Path, found: list[str], names: list[str], name: str) -> int | None:
    """Return the number of the column with one of a few names; None where there is none."""
    numbers = [number for number, each in enumerate(names) if each in _COLUMNS[name]]
    if name == "path":  # an id beside a path is none, and "path" says what it is
        certain = [number for number in numbers if names[number] == "path"]
        paths = [number for number in numbers if names[number] != "image_id"]
        numbers = certain or paths or numbers
    if len(numbers) > 1 and len({names[number] for number in numbers}) == 1:
        raise SourceError(f"The manifest '{path}' has two columns called {names[numbers[0]]}.")
    if len(numbers) > 1:
        raise SourceError(
            f"The manifest '{path}' has the columns "
            f"{' and '.join(repr(found[number]) for number in numbers)}, and each may be the "
            f"{name}. Say which: {name}_column='{found[numbers[0]].strip()}'."
        )
    return numbers[0] if numbers else None


def _checked(path: Path, line: int, fields: dict[str, str], names: _Names) -> tuple[str, _Row]:
    """Return a row's sample id and the row."""
    image = fields["path"].strip()
    if not image:
        raise SourceError(f"'{path}', line {line}: the path is empty.")
    split = fields.get("split", "").strip().lower() or "train"
    if split not in SPLIT_ALIASES:
        raise SourceError(
            f"'{path}', line {line}: split must be train, val or test; got '{split}'."
        )
    label, group = (sys.intern(fields.get(name, "").strip()) for name in ("label", "group"))
    return names.sample_id(image), _Row(label, SPLIT_ALIASES[split], group, line)
