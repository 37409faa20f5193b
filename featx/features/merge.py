"""One feature file made of parts, the bytes of one extraction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np

from featx.artifact import Header
from featx.features.blocks import Activations, reading_activations
from featx.features.columns import Column, block_sizes, schema_of
from featx.features.file import TRAIN, FeatureFile
from featx.features.parts import read_index
from featx.features.publish import publish_blocks, start_verifier
from featx.features.records import RowLayout


def publish_merged(cache: FeatureFile, output: Path, *, overwrite: bool) -> Header:
    """Write opened parts as one file, and return its header; the output's lock is held.

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
        return publish_blocks(
            *(output, cache.header, schema, blocks()), verifier=verifier, overwrite=overwrite
        )


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
