"""A table that gives the images of another source other labels: what ``featx relabel`` writes.

Its columns are ``path,label,split,group`` as of any manifest, with the sample ids of the other
source as paths, and ``featx_source``, that source's address. Cells that a spreadsheet would
calculate have an apostrophe before them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featx.artifact.cells import from_cell, table_bytes, table_rows
from featx.errors import ImageError, SourceError
from featx.images.sources.labels import has_tags
from featx.images.sources.sample import NO_FILE, SPLITS, ImageSource, Sample, Stamp

COLUMNS = ("path", "label", "split", "group", "featx_source")
_ORIGIN = COLUMNS[-1]


@dataclass(frozen=True)
class RelabelledSource:
    """The images of another source, with labels, splits and groups of a table."""

    uri: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    origin: ImageSource
    positions: tuple[int, ...]  # of the samples in the origin; -1 where it has none
    has_tags: bool = False
    ignored: Mapping[str, int] = field(default_factory=dict)

    @property
    def parallel_reads(self) -> int | None:
        """How many images are best read at once; None where cores decide."""
        return getattr(self.origin, "parallel_reads", None)

    def read(self, index: int) -> bytes | np.ndarray:
        if self.positions[index] < 0:
            name = self.samples[index].sample_id
            raise ImageError(name, f"it is not in '{self.origin.uri}' any more")
        return self.origin.read(self.positions[index])

    def stamp(self, index: int) -> Stamp:
        position = self.positions[index]
        return self.origin.stamp(position) if position >= 0 else NO_FILE


def origin_of(uri: str) -> str:
    """Return the address of the source whose images a table relabels; of others the address."""
    path = Path(uri)
    if path.suffix.lower() != ".csv":
        return uri
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            if _ORIGIN not in file.readline():
                return uri
        columns, rows = table_rows(_text(path))
        first = next(rows, {})
    except OSError:
        return uri
    return from_cell(first.get(_ORIGIN, "")) or uri if tuple(columns) == COLUMNS else uri


def relabels(uri: str, other: str) -> bool:
    """Return whether a table gives the images of another source, or of its origin, new labels."""
    origin = origin_of(uri)
    return origin != uri and origin in (other, origin_of(other))


def open_relabelled(path: Path, origin: ImageSource) -> RelabelledSource:
    """Return the samples of a table, in its order; the origin's order of classes is kept.

    Raises:
        SourceError: A row is incomplete, or an image is listed twice.
    """
    _, rows = table_rows(_text(path))
    found = [tuple(from_cell(row.get(name) or "") for name in COLUMNS[:-1]) for row in rows]
    for number, (name, _, split, _) in enumerate(found):
        if not name or split not in SPLITS:
            raise SourceError(
                f"'{path}', row {number + 1}: expected a path, and train, val or test; got "
                f"'{name}' and '{split}'."
            )
    names = [name for name, *_ in found]
    if len(set(names)) < len(names):
        ((twice, _),) = Counter(names).most_common(1)
        raise SourceError(f"'{path}' lists '{twice}' twice. Keep the right row.")
    used = {label for _, label, *_ in found} - {""}
    known = [name for name in origin.classes if name in used]
    classes = (*known, *sorted(used.difference(known)))
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    samples = tuple(Sample(name, index[label], *rest) for name, label, *rest in found)
    there = {sample.sample_id: number for number, sample in enumerate(origin.samples)}
    positions = tuple(there.get(name, -1) for name in names)
    return RelabelledSource(
        str(path), classes, samples, origin, positions, has_tags=has_tags(classes)
    )


def relabelled_table(samples: Iterable[Sequence[str]], origin: str) -> bytes:
    """Return the table of samples, each of id, label, split and group as texts."""
    return table_bytes(COLUMNS, ((*sample, origin) for sample in samples))


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", "surrogateescape")
