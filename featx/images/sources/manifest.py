"""A table of images: CSV or TSV with the columns ``path,label[,split]``.

Paths are relative to the table's folder. An empty label means unlabelled, an empty split means
train. Other columns are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featx.errors import SourceError
from featx.images.decode import read_image_file
from featx.images.sources.sample import SPLIT_ALIASES, Sample


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
        return read_image_file(self.path.parent / sample_id, sample_id=sample_id)


def open_manifest(path: Path) -> ManifestSource:
    """Return the samples of a table, in its order.

    Raises:
        SourceError: The table cannot be read, lacks a column, is empty, or lists a path twice;
            the message names the line.
    """
    path = path.resolve()
    rows = list(_rows(path))
    if not rows:
        raise SourceError(f"The manifest '{path}' lists no images.")
    names = sorted({label for _, row in rows if (label := row["label"].strip())})
    index = {name: position for position, name in enumerate(names)}
    samples: dict[str, Sample] = {}
    for line, row in rows:
        sample = _sample(path, line, row, index)
        if sample.sample_id in samples:
            raise SourceError(f"'{path}', line {line}: '{sample.sample_id}' is listed twice.")
        samples[sample.sample_id] = sample
    return ManifestSource(path, tuple(names), tuple(samples.values()))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield each row and its line number."""
    line = 0
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            columns = next(reader, [])
            _require_columns(path, columns)
            for row in reader:
                line = reader.line_num
                if row and len(row) != len(columns):
                    raise SourceError(
                        f"'{path}', line {line}: expected {len(columns)} fields as in the first "
                        f"line, found {len(row)}. Put a field with a delimiter in double quotes."
                    )
                if row:
                    yield line, dict(zip(columns, row, strict=True))
    except (OSError, csv.Error, UnicodeDecodeError) as err:
        raise SourceError(f"Cannot read '{path}' after line {line}: {err}.") from err


def _require_columns(path: Path, found: list[str]) -> None:
    if any(found.count(name) != 1 for name in ("path", "label")) or found.count("split") > 1:
        raise SourceError(
            f"The manifest '{path}' needs the columns path and label, once, in its first line; "
            f"found {', '.join(map(repr, found)) or 'nothing'}."
        )


def _sample(path: Path, line: int, row: dict[str, str], index: dict[str, int]) -> Sample:
    image = row["path"].strip()
    if not image:
        raise SourceError(f"'{path}', line {line}: the path is empty.")
    split = row.get("split", "").strip().lower() or "train"
    if split not in SPLIT_ALIASES:
        raise SourceError(
            f"'{path}', line {line}: split must be train, val or test; got '{split}'."
        )
    label = row["label"].strip()
    sample_id = str(PurePosixPath(image))  # ./a.jpg is a.jpg
    return Sample(sample_id, index[label] if label else -1, SPLIT_ALIASES[split])
