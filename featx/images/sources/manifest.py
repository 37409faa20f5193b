"""A table of images: CSV or TSV with the columns ``path,label[,split][,group]``.

Paths are relative to the table's folder, or absolute. An empty label means unlabelled, an empty
split means train, an empty group an image by itself. Other columns are ignored. Fields may be
separated by semicolons, as spreadsheets do where the comma is the decimal sign, and the columns'
names are in upper or lower case.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path, PurePosixPath

from featx.errors import SourceError
from featx.images.decode import read_image_file
from featx.images.sources.sample import SPLIT_ALIASES, Sample, Stamp, stamp_of


@dataclass(frozen=True)
class ManifestSource:
    """Images that a table lists."""

    path: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    num_ignored: int = 0

    @property
    def uri(self) -> str:
        """The table's absolute path."""
        return str(self.path)

    def read(self, index: int) -> bytes:
        """Return a sample's encoded image.

        Raises:
            ImageError: The file cannot be read.
        """
        sample_id = self.samples[index].sample_id
        return read_image_file(self._file(sample_id), sample_id=sample_id)

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a sample's file, ``NO_FILE`` where it cannot be looked up."""
        return stamp_of(self._file(self.samples[index].sample_id))

    def _file(self, sample_id: str) -> str:
        return sample_id if sample_id.startswith("/") else f"{self._folder}/{sample_id}"

    @cached_property
    def _folder(self) -> str:
        return str(self.path.parent)


def open_manifest(path: Path) -> ManifestSource:
    """Return the samples of a table, in its order.

    The images are not looked for: one that is missing is found when it is read, or by its stamp.

    Raises:
        SourceError: The table cannot be read, lacks a column, is empty, or lists a path twice;
            the message names the line.
    """
    path = path.resolve()
    rows: dict[str, tuple[str, str, str]] = {}  # sample id → label, split, group
    for line, row in _rows(path):
        sample_id, label, split = _checked(path, line, row)
        if sample_id in rows:
            raise SourceError(f"'{path}', line {line}: '{sample_id}' is listed twice.")
        rows[sample_id] = sys.intern(label), split, sys.intern(row.get("group", "").strip())
    if not rows:
        raise SourceError(f"The manifest '{path}' lists no images.")
    names = sorted({label for label, _, _ in rows.values() if label})
    index = {name: position for position, name in enumerate(names)} | {"": -1}
    samples = tuple(
        Sample(sample_id, index[label], split, group)
        for sample_id, (label, split, group) in rows.items()
    )
    return ManifestSource(path, tuple(names), samples)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row and its line number."""
    line = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            lines = chain([first], file)
            reader = csv.reader(lines, delimiter=_delimiter(path, first), strict=True)
            columns = _column_names(path, next(reader, []))
            for row in reader:
                line = reader.line_num
                if row and len(row) != len(columns):
                    raise SourceError(
                        f"'{path}', line {line}: expected {len(columns)} fields as in the first "
                        f"line, found {len(row)}. Put a field with a delimiter in double quotes."
                    )
                if row:
                    yield line, dict(zip(columns, row, strict=True))
    except UnicodeDecodeError as err:
        raise SourceError(
            f"Cannot read '{path}' after line {line}: it is not UTF-8 ({err.reason}). Save it as "
            "UTF-8."
        ) from err
    except (OSError, csv.Error) as err:
        raise SourceError(f"Cannot read '{path}' after line {line}: {err}.") from err


def _delimiter(path: Path, header: str) -> str:
    """Return what the name promises, or else the first of comma, tab, semicolon in the header."""
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


def _checked(path: Path, line: int, row: dict[str, str]) -> tuple[str, str, str]:
    """Return a row's sample id, label and split."""
    image = row["path"].strip()
    if not image:
        raise SourceError(f"'{path}', line {line}: the path is empty.")
    split = row.get("split", "").strip().lower() or "train"
    if split not in SPLIT_ALIASES:
        raise SourceError(
            f"'{path}', line {line}: split must be train, val or test; got '{split}'."
        )
    sample_id = str(PurePosixPath(image))  # ./a.jpg is a.jpg; .. stays, it may follow a link
    return sample_id, row["label"].strip(), SPLIT_ALIASES[split]
