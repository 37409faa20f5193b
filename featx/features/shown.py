"""Representations of a feature file: lines, a table of classes, thumbnails, a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

import numpy as np

from featx.artifact import Header
from featx.artifact.shown import Cells, Framed, Picture
from featx.errors import counted, listed
from featx.images.sources import SPLITS
from featx.images.sources.address import local_file
from featx.images.thumbnails import small_pictures

NUM_PICTURES = 12


class _File(Protocol):
    @property
    def header(self) -> Header: ...
    @property
    def path(self) -> Any: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def splits(self) -> np.ndarray: ...
    @property
    def groups(self) -> np.ndarray: ...
    @property
    def digests(self) -> np.ndarray: ...
    @property
    def sample_ids(self) -> Sequence[str]: ...


class ShownFile(Framed):
    """Base of a feature file."""

    def _lines(self) -> Iterator[str]:
        return _lines(cast("_File", self))

    def _cells(self) -> Cells:
        return _cells(cast("_File", self))

    def _pictures(self) -> Iterator[Picture]:
        return _pictures(cast("_File", self))

    def _columns(self) -> dict[str, Sequence[Any]]:
        return _columns(cast("_File", self))


def _lines(file: _File) -> Iterator[str]:
    """Yield what a file is and what is in it."""
    spec, details, classes = file.header.spec, file.header.details, file.header.classes
    yield f"FeatureFile: {file.path}"
    names = listed(list(classes), 5) if classes else "no labels"
    kinds = counted(len(classes), "class", "classes")
    yield f"{counted(len(file.labels), 'image')} of {kinds}: {names}"
    sizes = np.bincount(file.splits, minlength=len(SPLITS)).tolist()
    yield ", ".join(f"{name} {size:,}" for name, size in zip(SPLITS, sizes, strict=True) if size)
    kept = "×".join(map(str, spec["shape"])) if "shape" in spec else f"{spec['num_features']:,}"
    what = f"activations at {spec['cut']}" if spec.get("cut") else f"features of {spec['layer']}"
    yield f"{spec['backbone']}, {kept} {what}, {details['dtype']}, {spec['precision']}"
    yield f"source: {details['source']}"


def _cells(file: _File) -> Cells:
    """Return the number of images of each class and split, the classes of most images first."""
    classes, num_splits = file.header.classes, len(SPLITS)
    pairs = (np.maximum(file.labels, -1) + 1) * num_splits + file.splits
    counts = np.bincount(pairs, minlength=(len(classes) + 1) * num_splits).reshape(-1, num_splits)
    order = (1 + np.argsort(-counts[1:].sum(axis=1), kind="stable")[:21]).tolist()
    order = [0, *order] if counts[0].any() else order
    used = np.flatnonzero(counts.sum(axis=0)).tolist()
    names = ("(no label)", *classes)
    rows = [[names[i], *(f"{counts[i, j]:,}" for j in used)] for i in order]
    return ["class", *(SPLITS[j] for j in used)], rows


def _pictures(file: _File) -> Iterator[Picture]:
    """Yield thumbnails of a few images; none where the source has no files."""
    count = len(file.labels)
    rows = np.unique(np.linspace(0, max(count - 1, 0), NUM_PICTURES).astype(int))[:count].tolist()
    return pictures_of(file, [(row, label_of(file, row)) for row in rows])


def pictures_of(file: _File, rows: Sequence[tuple[int, str]]) -> Iterator[Picture]:
    """Yield thumbnails of rows with their captions; none where the source has no files."""
    source = str(file.header.details["source"])
    paths = [local_file(source, file.sample_ids[row]) for row, _ in rows]
    if not any(paths):
        return
    known = [
        (path, file.digests[row].tobytes()) for path, (row, _) in zip(paths, rows, strict=True)
    ]
    for (row, caption), jpeg in zip(rows, small_pictures(known), strict=True):
        yield Picture(file.sample_ids[row], caption, jpeg)


def label_of(file: _File, row: int) -> str:
    """Return the label of a row as the source has it; empty where it has none."""
    label = int(file.labels[row])
    return file.header.classes[label] if label >= 0 else ""


def _columns(file: _File) -> dict[str, Sequence[Any]]:
    """Return name, label, split and group of each image; None where it has no label or group."""
    names = np.array([*file.header.classes, None], object)
    split_names = np.array(SPLITS, object)
    columns: dict[str, Any] = {
        "image": list(file.sample_ids),
        "label": names[np.where(file.labels < 0, len(names) - 1, file.labels)],
        "split": split_names[file.splits],
    }
    if (file.groups >= 0).any():
        columns["group"] = file.groups
    return columns
