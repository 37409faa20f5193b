"""Feature files of activations at a cut, with and without views, made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from feature_files import InThisProcess, make_columns, make_samples
from headers import complete_header

from featx.artifact import Header
from featx.features.journal import Journal
from featx.features.publish import ExistingRows, publish_features
from featx.features.records import Batch, RowLayout
from featx.images.views import ViewsSpec

TRAIN = 0


def cut_header(layout: RowLayout, *, dtype: str = "float32", **details: Any) -> Header:
    """Return a header for rows of a layout; two values and more to a row's shape are a cut."""
    spec: dict[str, Any] = {"num_features": layout.size}
    if layout.dtype == "uint8":
        geometry = {"image_size": layout.shape[0], "resize": layout.shape[0]}
        spec = {"cut": "input", "shape": list(layout.shape), "preprocess": geometry}
    elif len(layout.shape) > 1:
        spec = {"cut": "layer4", "shape": list(layout.shape)}
    dtype = layout.dtype if "cut" in spec else dtype
    if layout.num_views:
        details = {"views": ViewsSpec(layout.num_views).to_dict()} | details
    classes = ("ant", "bee", "wasp")
    return complete_header("features", spec, classes, {"dtype": dtype} | details)


def values_of(
    layout: RowLayout, num_rows: int, seed: int = 0, views_seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return features ``(n, size)`` and views ``(n, num_views, size)`` of made-up images."""

    def drawn(generator: np.random.Generator, *shape: int) -> np.ndarray:
        if layout.dtype == "uint8":
            return generator.integers(0, 256, shape).astype(np.uint8)
        return generator.normal(size=shape).astype(layout.dtype)

    features = drawn(np.random.default_rng(seed), num_rows, layout.size)
    of_views = np.random.default_rng([seed, 1 + views_seed])
    return features, drawn(of_views, num_rows, layout.num_views, layout.size)


def append_batches(
    journal: Journal,
    features: np.ndarray,
    views: np.ndarray,
    columns: dict[str, Any],
    step: int,
) -> None:
    """Append rows in batches, where all training rows have views, and the others have none."""
    is_train = np.asarray(columns["splits"]) == TRAIN
    start = 0
    while start < len(features):
        stop = start + 1
        while stop < min(len(features), start + step) and is_train[stop] == is_train[start]:
            stop += 1
        part = slice(start, stop)
        has_views = journal.layout.num_views and is_train[start]
        journal.append(
            Batch(
                sample_ids=tuple(columns["sample_ids"][part]),
                stamps=columns["stamps"][part],
                digests=columns["digests"][part],
                reasons=("",) * (stop - start),
                features=features[part],
                views=views[part] if has_views else None,
            )
        )
        start = stop


def write_activations(
    path: Path,
    layout: RowLayout,
    num_rows: int = 30,
    *,
    seed: int = 0,
    views_seed: int = 0,
    step: int = 4,
    dtype: str = "float32",
    header: Header | None = None,
    **columns: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Publish a file; return its features and the views of its training rows, as in the file."""
    features, views = values_of(layout, num_rows, seed, views_seed)
    columns = make_columns(num_rows, seed=seed) | columns
    with Journal(path, layout=layout) as journal:
        journal.begin({"made": "up"})
        append_batches(journal, features, views, columns, step)
        publish_features(
            path,
            header or cut_header(layout, dtype=dtype),
            ExistingRows(None, journal),
            samples=make_samples(columns),
            rows=np.arange(num_rows),
            verifier=InThisProcess(),
            dtype=dtype,
            overwrite=True,
        )
        journal.remove()
    viewed = views[np.asarray(columns["splits"]) == TRAIN]
    shape = (len(viewed), layout.num_views, *layout.shape)
    return features.reshape(-1, *layout.shape), viewed.reshape(shape)
