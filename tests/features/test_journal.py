"""The journal: rows come back as they went in, in bounded memory, and nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ArtifactError
from featx.features.journal import BLOCK_ROWS, Journal


def rows_of(num_rows: int, num_features: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num_rows, num_features))
    return rows.astype(np.float32)


def read(journal: Journal) -> np.ndarray:
    return np.concatenate(list(journal.blocks()))


def open_descriptors_in(folder: Path) -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = str(Path(f"/proc/self/fd/{name}").readlink())
        except OSError:
            continue
        if target.startswith(str(folder)):
            found.append(target)
    return found


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(
        lambda sizes: sum(sizes) > 0
    ),
    num_features=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_rows_come_back_in_order_whatever_the_batches(
    sizes: list[int], num_features: int, seed: int
) -> None:
    rows = rows_of(sum(sizes), num_features, seed)
    with (
        tempfile.TemporaryDirectory() as folder,
        Journal(Path(folder) / "features.h5", num_features=num_features) as journal,
    ):
        for batch in np.split(rows, np.cumsum(sizes)[:-1]):
            journal.append(batch)
        assert journal.num_rows == sum(sizes)
        assert read(journal).tobytes() == rows.tobytes()


def test_every_bit_pattern_survives(tmp_path: Path) -> None:
    odd = np.array(
        [[0x7FC00001, 0xFFC12345, 0x7F800000, 0xFF800000], [0x80000000, 1, 0x007FFFFF, 0x7F7FFFFF]],
        dtype=np.uint32,
    ).view(np.float32)  # NaNs with payload, infinities, -0.0, denormals, the largest
    with Journal(tmp_path / "f.h5", num_features=4) as journal:
        journal.append(odd)
        assert read(journal).tobytes() == odd.tobytes()


def test_other_layouts_and_types_become_float32_rows(tmp_path: Path) -> None:
    wide = np.arange(24, dtype=np.float64).reshape(4, 6)
    with Journal(tmp_path / "f.h5", num_features=3) as journal:
        journal.append(wide[:, ::2])
        journal.append(np.asfortranarray(wide[:, :3]))
        assert np.array_equal(read(journal), np.concatenate([wide[:, ::2], wide[:, :3]]))
        assert all(block.dtype == np.float32 for block in journal.blocks())


def test_blocks_are_bounded_and_can_be_read_again(tmp_path: Path) -> None:
    rows = rows_of(2 * BLOCK_ROWS + 7, 3)
    with Journal(tmp_path / "f.h5", num_features=3) as journal:
        for batch in np.array_split(rows, 50):
            journal.append(batch)
        assert [len(block) for block in journal.blocks()] == [BLOCK_ROWS, BLOCK_ROWS, 7]
        assert np.array_equal(read(journal), rows)
        assert np.array_equal(read(journal), rows)


def test_exactly_full_blocks_leave_no_empty_one(tmp_path: Path) -> None:
    with Journal(tmp_path / "f.h5", num_features=1) as journal:
        assert list(journal.blocks()) == []
        journal.append(rows_of(BLOCK_ROWS, 1))
        assert [len(block) for block in journal.blocks()] == [BLOCK_ROWS]


def test_reading_does_not_disturb_appending_nor_another_reader(tmp_path: Path) -> None:
    rows = rows_of(2 * BLOCK_ROWS + 20, 2)
    with Journal(tmp_path / "f.h5", num_features=2) as journal:
        journal.append(rows[:-20])
        next(journal.blocks())  # a reader that stops half-way
        journal.append(rows[-20:])
        first, second = journal.blocks(), journal.blocks()
        pairs = list(zip(first, second, strict=True))
        assert np.array_equal(np.concatenate([a for a, _ in pairs]), rows)
        assert np.array_equal(np.concatenate([b for _, b in pairs]), rows)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    block = rows_of(BLOCK_ROWS, 64)
    with Journal(tmp_path / "f.h5", num_features=64) as journal:
        tracemalloc.start()
        try:
            for _ in range(12):
                journal.append(block)
            for _ in journal.blocks():
                pass
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 3.5 * block.nbytes


def test_nothing_is_visible_in_the_folder_and_closing_gives_the_space_back(tmp_path: Path) -> None:
    with Journal(tmp_path / "f.h5", num_features=4) as journal:
        journal.append(rows_of(100, 4))
        assert os.listdir(tmp_path) == []
        assert len(open_descriptors_in(tmp_path)) == 1
    assert open_descriptors_in(tmp_path) == []
    assert os.listdir(tmp_path) == []


def test_an_error_in_the_run_closes_it_too(tmp_path: Path) -> None:
    def run() -> None:
        with Journal(tmp_path / "f.h5", num_features=4) as journal:
            journal.append(rows_of(100, 4))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert open_descriptors_in(tmp_path) == []


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "f.h5"
    with pytest.raises(ArtifactError, match=r"Cannot write features beside '.*missing/f\.h5'") as e:
        Journal(path, num_features=4)
    assert e.value.path == path


@pytest.mark.parametrize("batch_rows", [1, 50, 5000], ids=lambda rows: f"{rows}-row batches")
def test_a_full_disk_is_an_artifact_error_and_stays_one(
    tmp_path: Path, file_size_limit, batch_rows: int
) -> None:
    """Small batches wait in Python's buffer: closing must not fail on them once more."""
    batch = rows_of(batch_rows, 16)

    def fill() -> None:
        with Journal(tmp_path / "f.h5", num_features=16) as journal:
            for _ in range(10_000 // batch_rows):
                journal.append(batch)

    with file_size_limit(100_000), pytest.raises(ArtifactError, match="File too large"):
        fill()
    assert os.listdir(tmp_path) == []
    assert open_descriptors_in(tmp_path) == []
