"""Small feature files, whole and crafted."""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featx.artifact import Header
from featx.features.journal import Journal
from featx.features.publish import publish_features

NUM_ROWS, NUM_FEATURES = 60, 8
CLASSES = ("ant", "bee", "wasp")


def columns_of(num_rows: int, *, num_classes: int = len(CLASSES), seed: int = 0) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {
        "labels": generator.integers(-1, num_classes, num_rows),
        "splits": generator.integers(0, 3, num_rows).astype(np.uint8),
        "sample_ids": [f"train/ant/{row:04d}.jpg" for row in range(num_rows)],
        "digests": generator.integers(0, 256, (num_rows, 16)).astype(np.uint8),
    }


def header_of(num_features: int, classes: tuple[str, ...] = CLASSES, **details: Any) -> Header:
    return Header(
        kind="features",
        spec={"backbone": "tiny", "num_features": num_features, "preprocess": {"resize": 32}},
        classes=classes,
        details={"source": "/photos", "skipped": [], **details},
        environment={"python": "3"},
    )


def write(
    path: Path, features: np.ndarray, *, header: Header | None = None, **options: Any
) -> Header:
    """Publish a file; columns that are not given are made up."""
    options = columns_of(len(features)) | options
    with Journal(path, num_features=features.shape[1]) as journal:
        journal.append(features)
        return publish_features(path, header or header_of(features.shape[1]), journal, **options)


@pytest.fixture
def write_features() -> Callable[..., Header]:
    return write


@pytest.fixture
def make_columns() -> Callable[..., dict[str, Any]]:
    return columns_of


@pytest.fixture
def make_header() -> Callable[..., Header]:
    return header_of


@pytest.fixture
def values() -> np.ndarray:
    """The features of ``published``, (60, 8) float32."""
    rows = np.random.default_rng(1).normal(size=(NUM_ROWS, NUM_FEATURES))
    return rows.astype(np.float32)


@pytest.fixture
def published(tmp_path: Path, values: np.ndarray) -> Path:
    """A whole feature file, alone in its folder."""
    path = tmp_path / "whole" / "features.h5"
    path.parent.mkdir()
    write(path, values)
    return path


@pytest.fixture
def set_header() -> Callable[[Path, Header], None]:
    """Give a file another header with a right checksum, as an attacker would."""

    def set_(path: Path, header: Header) -> None:
        with h5py.File(path, "r+") as file:
            del file.attrs["header"]
            file.attrs["header"] = np.bytes_(header.to_json().encode())

    return set_


@pytest.fixture
def with_details() -> Callable[..., Header]:
    def with_(header: Header, **details: Any) -> Header:
        return replace(header, details=dict(header.details) | details)

    return with_


@pytest.fixture
def file_size_limit() -> Callable[[int], Any]:
    """A disk that refuses bytes beyond a limit: writes fail with EFBIG, as they do when full."""

    @contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def watch() -> Iterator[Callable[[Path], Callable[[], bool]]]:
    """Watch a file through the kernel; the function that comes back says if anyone opened it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptors: list[int] = []

    def start(path: Path) -> Callable[[], bool]:
        descriptor = libc.inotify_init1(os.O_NONBLOCK)
        if descriptor < 0:
            pytest.skip("no inotify here")
        descriptors.append(descriptor)
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), 0x1 | 0x20) >= 0

        def was_opened() -> bool:
            try:
                return bool(os.read(descriptor, 4096))
            except BlockingIOError:
                return False

        return was_opened

    yield start
    for descriptor in descriptors:
        os.close(descriptor)
