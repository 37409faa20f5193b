"""Batches of activations: each image once, blocks in one version, shuffled, within the memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from featx.training.finetune.data import CachedData, num_steps, order_of, versions_of


class Versions:
    """Activations that say their row and version; remembers what was read."""

    def __init__(self, num_rows: int, num_views: int, block_rows: int) -> None:
        rows, views = np.meshgrid(np.arange(num_rows), np.arange(1 + num_views))
        self.values = np.stack([rows, views], axis=2).astype(np.float16)  # (1 + V, N, 2)
        self.block_rows = block_rows
        self.reads: list[tuple[list[int], int]] = []

    def read(self, rows: np.ndarray, view: int) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        self.reads.append((rows.tolist(), view))
        return np.asarray(self.values[view, rows])


def data_of(count: int = 100, num_views: int = 3, **options: Any) -> CachedData:
    """Return training images in every second row of a file, of which every tenth is held out."""
    rows = 2 * np.arange(count)
    given = {"memory": 2**20, "block_rows": 8} | options
    return CachedData(
        source=Versions(2 * count, num_views, given["block_rows"]),
        rows=rows,
        positions=np.arange(count),
        targets=torch.arange(count),
        weights=torch.ones(count),
        is_held_out=np.arange(count) % 10 == 3,
        names=[str(row) for row in rows],
        num_views=num_views,
        row_bytes=4,
        memory=given["memory"],
        device=torch.device("cpu"),
    )


def epoch_of(data: CachedData, epoch: int, batch_size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and versions of an epoch in order; check that they belong together."""
    samples, versions = [], []
    for batch in data.batches(epoch=epoch, batch_size=batch_size, seed=0):
        rows, views = batch.activations.numpy().T
        assert rows.tolist() == (2 * batch.numbers).tolist()
        assert batch.targets.tolist() == batch.numbers.tolist()
        samples.append(batch.numbers)
        versions.append(views)
    return np.concatenate(samples), np.concatenate(versions)


@pytest.mark.parametrize("memory", [2**20, 64])
def test_each_image_comes_once_an_epoch_and_in_all_versions_before_one_repeats(memory: int):
    data = data_of(memory=memory)
    assert data.fits_into_memory == (memory > 64)
    trained = np.flatnonzero(~data.is_held_out)
    seen = np.empty((8, 100))
    for epoch in range(1, 9):
        samples, versions = epoch_of(data, epoch)
        assert sorted(samples) == trained.tolist()
        seen[epoch - 1, samples] = versions
    for start in (0, 4):
        assert (np.sort(seen[start : start + 4, trained], axis=0) == np.arange(4)[:, None]).all()
    assert len({tuple(row) for row in seen[:, trained]}) == 8


def test_images_of_a_block_have_the_same_version():
    data = data_of()
    samples, versions = epoch_of(data, 1)
    of_sample = dict(zip(samples.tolist(), versions.tolist(), strict=True))
    blocks: dict[int, set[float]] = {}
    for sample, version in of_sample.items():
        blocks.setdefault(sample // 8, set()).add(version)
    assert all(len(each) == 1 for each in blocks.values())
    assert len(set(of_sample.values())) == 4


def test_the_order_does_not_depend_on_whether_activations_are_kept(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("featx.training.finetune.data._POOL_BYTES", 128)
    kept, read = data_of(memory=3_000), data_of(memory=1_300)
    assert kept.fits_into_memory
    assert not read.fits_into_memory
    for epoch in (1, 2, 5):
        for ours, theirs in zip(epoch_of(kept, epoch), epoch_of(read, epoch), strict=True):
            assert ours.tolist() == theirs.tolist()


def test_orders_and_versions_are_those_of_the_seed_and_the_epoch():
    first = [epoch_of(data_of(), epoch)[0].tolist() for epoch in (1, 2)]
    again = [epoch_of(data_of(), epoch)[0].tolist() for epoch in (1, 2)]
    assert first == again
    assert first[0] != first[1]
    assert (
        versions_of(50, 4, epoch=1, seed=0).tolist() != versions_of(50, 4, epoch=1, seed=1).tolist()
    )


def test_what_fits_is_read_once_and_what_does_not_is_read_as_it_is_needed():
    kept, read = data_of(), data_of(memory=64)
    for data in (kept, read):
        for epoch in range(1, 9):
            epoch_of(data, epoch)
    count = [sum(len(rows) for rows, _ in data.source.reads) for data in (kept, read)]  # type: ignore[attr-defined]
    assert count == [4 * 90, 8 * 90]


def test_held_out_images_are_never_views_and_stay_in_memory():
    data = data_of()
    for _ in range(2):
        batches = list(data.held_out(batch_size=4))
        rows, views = torch.cat([batch.activations for batch in batches]).numpy().T
        assert rows.tolist() == [2 * sample for sample in range(100) if sample % 10 == 3]
        assert not views.any()
    assert len(data.source.reads) == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(33, 32, [33]), (32, 32, [32]), (65, 32, [32, 33]), (66, 32, [32, 32, 2]), (1, 32, [1])],
)
def test_one_image_left_over_joins_the_batch_before(count: int, size: int, expected: list[int]):
    data = data_of(count)
    data = CachedData(
        *(data.source, data.rows, data.positions, data.targets, data.weights),
        *(np.zeros(count, bool), data.names, data.num_views, 4, 64, data.device),
    )
    sizes = [len(batch.numbers) for batch in data.batches(epoch=1, batch_size=size, seed=0)]
    assert sizes == expected
    assert num_steps(count, size) == len(expected)


@pytest.mark.parametrize(("count", "block", "at_once"), [(100, 8, 32), (97, 10, 97), (5, 8, 2)])
def test_an_order_has_each_sample_once(count: int, block: int, at_once: int):
    bounds = np.append(np.arange(0, count, block), count)
    pieces = list(order_of(bounds, epoch=1, seed=0, at_once=at_once))
    assert sorted(np.concatenate(pieces).tolist()) == list(range(count))
    assert all(len(piece) <= max(block, at_once) for piece in pieces)
    other = list(order_of(bounds, epoch=2, seed=0, at_once=at_once))
    assert np.concatenate(other).tolist() != np.concatenate(pieces).tolist()


def test_batches_of_a_file_sorted_by_class_hold_most_classes():
    labels, bounds = np.repeat(np.arange(10), 200), np.arange(0, 2001, 16)
    found = []
    for piece in order_of(bounds, epoch=1, seed=0, at_once=500):
        for start in range(0, len(piece) - 63, 64):
            found.append(len(set(labels[piece[start : start + 64]])))
    assert np.mean(found) >= 0.8 * 10
