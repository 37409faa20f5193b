"""Complete a folder of parts, and make one feature file of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import Header, require_apart, require_no_links, require_replaceable
from featx.artifact.parts import is_parts, part_path
from featx.artifact.shown import Shown
from featx.errors import ArtifactExists, ArtifactInvalid, ConfigError, counted
from featx.features.blocks import Activations, reading_activations
from featx.features.columns import Column, block_sizes, schema_of
from featx.features.file import TRAIN, FeatureFile, open_features
from featx.features.lock import locked
from featx.features.parts import read_index
from featx.features.publish import publish_blocks, start_verifier
from featx.features.records import RowLayout
from featx.features.settle import complete_index

_WHOLE = ("features", "views")


@dataclass(frozen=True, repr=False)
class MergeReport(Shown):
    """The result of a merge.

    Attributes:
        parts: The folder, which has its index now.
        num_parts: Parts in it.
        num_images: Rows of all parts.
        num_copies: Rows whose content an earlier part has.
        path: The feature file; None where only the index was written.
        is_unchanged: The file was there already, made from these parts.
    """

    parts: Path
    num_parts: int
    num_images: int
    num_copies: int
    path: Path | None = None
    is_unchanged: bool = False

    def _lines(self) -> Iterator[str]:
        yield f"MergeReport: {self.parts}, {counted(self.num_parts, 'part')}"
        copies = counted(self.num_copies, "has", "have")
        yield f"{counted(self.num_images, 'image')}; {copies} the content of one in another part"
        if self.path:
            yield f"{'up to date' if self.is_unchanged else 'written'}: {self.path}"


def merge_parts(
    parts: str | Path, output: str | Path | None = None, *, overwrite: bool = False
) -> MergeReport:
    """Complete a folder of parts, and write all of them as one feature file.

    That file has the bytes of one extraction of the whole source. Without an output, only the
    index of the folder is written, from which readers take splits and duplicates across parts; the
    part that is finished last does the same.

    Args:
        parts: The folder, ``NAME.parts``.
        output: The feature file; None writes none.
        overwrite: Replace a feature file that is there.

    Raises:
        ArtifactMissing: There are no parts.
        ArtifactIncomplete: Parts are missing; the message names them.
        ArtifactMismatch: A part is of another plan, or has other settings.
        ArtifactInvalid: A part is damaged.
        ArtifactExists: The output exists, and is not what would be written.
        ConfigError: The output is a folder of parts by its name.
    """
    folder = Path(parts)
    index = complete_index(folder)
    report = MergeReport(folder, len(index.parts), index.num_rows, index.num_copies)
    if output is None:
        return report
    path = Path(output)
    if is_parts(path):
        raise ConfigError(f"parts are merged into one file, such as features.h5; got '{path}'.")
    own = {f"part {n}": part_path(folder, n) for n in range(1, len(index.parts) + 1)}
    require_no_links(path)
    require_apart({"the output": path}, own)
    with locked(path):
        exists = require_replaceable(path, "features")
        if exists and _is_made_of(path, index.header):
            return replace(report, path=path, is_unchanged=True)
        if exists and not overwrite:
            raise ArtifactExists(
                path, f"'{path}' exists. Use overwrite=True to replace it, or another output."
            )
        _publish(open_features(folder), path)
    return replace(report, path=path)


def _is_made_of(path: Path, header: Header) -> bool:
    """Return whether a feature file has the rows of parts, by all but its features."""
    try:
        found = open_features(path).header
    except ArtifactInvalid:
        return False
    return _identity(found) == _identity(header)


def _identity(header: Header) -> tuple[Any, ...]:
    digests: Mapping[str, str] = header.details["sha256"]
    small = {name: own for name, own in digests.items() if name not in _WHOLE}
    return header.spec, header.classes, {**header.details, "sha256": small}


def _publish(cache: FeatureFile, output: Path) -> None:
    """Write opened parts as one file, in place of the output, whose lock is held.

    Copies of an image get the row of the first, as in one extraction. Memory does not grow with
    the number of rows.
    """
    _, _, copies = read_index(cache.path).read_settled(cache.path)
    layout = RowLayout(cache.row_shape, cache.dtype, cache.num_views)
    width = max(_id_bytes(cache))
    num_train = len(cache.rows("train"))
    schema = schema_of(layout, len(cache), num_train, width)
    num_bytes = sum(column.stored_bytes for column in schema.values())

    @contextmanager
    def blocks() -> Iterator[Iterator[dict[str, np.ndarray]]]:
        with reading_activations(cache) as stored:
            yield _blocks(cache, stored, copies, layout, schema)

    with start_verifier(num_bytes) as verifier:
        publish_blocks(*(output, cache.header, schema, blocks()), verifier=verifier, overwrite=True)


def _id_bytes(cache: FeatureFile) -> Iterator[int]:
    for part in cache.parts:
        with part.opened() as file:
            yield file["sample_ids"].dtype.itemsize


def _blocks(
    cache: FeatureFile,
    stored: Activations,
    copies: np.ndarray,
    layout: RowLayout,
    schema: dict[str, Column],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield all columns, so many rows at a time."""
    is_train, names = cache.splits == TRAIN, iter(cache.sample_ids)
    start = 0
    for size in block_sizes(is_train, layout, schema):
        rows = np.arange(start, start + size)
        chosen = slice(start, start + size)
        ids = [name.encode("utf-8", "surrogateescape") for name in islice(names, size)]
        block = {
            "features": _read(stored, rows, copies, 0),
            "labels": cache.labels[chosen],
            "splits": cache.splits[chosen],
            "sample_ids": np.array(ids, schema["sample_ids"].dtype),
            "digests": cache.digests[chosen],
            "stamps": cache.stamps[chosen],
            "groups": cache.groups[chosen],
        }
        if "views" in schema:
            trained = rows[is_train[rows]]
            pairs = copies[is_train[copies].all(axis=1)]
            versions = [_read(stored, trained, pairs, v) for v in range(1, layout.num_views + 1)]
            block["views"] = np.stack(versions, axis=1)
        yield {
            name: values.astype(schema[name].dtype, copy=False) for name, values in block.items()
        }
        start += size


def _read(stored: Activations, rows: np.ndarray, copies: np.ndarray, view: int) -> np.ndarray:
    """Return ascending rows; those that are copies as their originals, ``(n, *shape)``."""
    values = stored.read(rows, view)
    if len(rows) and len(copies):
        low, high = np.searchsorted(copies[:, 0], [rows[0], rows[-1] + 1])
        own = copies[low:high]
        own = own[np.isin(own[:, 0], rows)]
        if len(own):
            firsts, places = np.unique(own[:, 1], return_inverse=True)
            values[np.searchsorted(rows, own[:, 0])] = stored.read(firsts, view)[places]
    return values
