"""Vectors by content: several writers, damage, and disks that refuse."""

from __future__ import annotations

import logging
import os
import threading

import numpy as np
import pytest

from featx.errors import ArtifactBusy
from featx.features import vectors
from featx.features.lock import locked
from featx.features.vectors import VectorStore

SIZE = 5


def digests_of(numbers):
    return [int(number).to_bytes(16, "big") for number in numbers]


def rows_of(numbers):
    return np.array([np.full(SIZE, number, np.float32) for number in numbers])


def fill(store, numbers):
    with store.writing():
        store.add(digests_of(numbers), rows_of(numbers))


@pytest.fixture(params=[True, False], ids=["on disk", "in memory"])
def store(request, tmp_path):
    return VectorStore(tmp_path / "store" if request.param else None, SIZE)


def test_what_was_added_is_read_in_any_order(store):
    fill(store, range(4))
    fill(store, [9])
    np.testing.assert_array_equal(store.read(digests_of([9, 0, 3, 9])), rows_of([9, 0, 3, 9]))
    assert store.missing(digests_of([3, 5, 5])) == digests_of([5])
    assert store.read(digests_of([0, 5])) is None


def test_another_store_of_the_folder_sees_what_is_added(tmp_path):
    one, other = VectorStore(tmp_path, SIZE), VectorStore(tmp_path, SIZE)
    fill(one, [1])
    assert other.missing(digests_of([1, 2])) == digests_of([2])
    fill(one, [2])
    assert not other.missing(digests_of([1, 2]))
    np.testing.assert_array_equal(other.read(digests_of([2, 1])), rows_of([2, 1]))


@pytest.mark.parametrize("torn", [{"keys": 7}, {"vectors": 3}, {"keys": 20, "vectors": 9}])
def test_what_a_killed_writer_left_is_cut_off(tmp_path, torn):
    fill(VectorStore(tmp_path, SIZE), [1, 2])
    for name, count in torn.items():
        with (tmp_path / name).open("ab") as file:
            file.write(b"x" * count)
    store = VectorStore(tmp_path, SIZE)
    fill(store, [3])
    np.testing.assert_array_equal(store.read(digests_of([1, 2, 3])), rows_of([1, 2, 3]))
    assert (tmp_path / "keys").stat().st_size == 3 * 20
    assert (tmp_path / "vectors").stat().st_size == 3 * 4 * SIZE


def test_a_damaged_vector_is_missing_until_it_is_added_again(tmp_path):
    fill(VectorStore(tmp_path, SIZE), [1, 2])
    with (tmp_path / "vectors").open("r+b") as file:
        file.seek(4 * SIZE + 1)
        file.write(b"!")
    store = VectorStore(tmp_path, SIZE)
    assert store.read(digests_of([1, 2])) is None
    assert store.missing(digests_of([1, 2])) == digests_of([2])
    fill(store, [2])
    for each in (store, VectorStore(tmp_path, SIZE)):
        assert not each.missing(digests_of([1, 2]))
        np.testing.assert_array_equal(each.read(digests_of([1, 2])), rows_of([1, 2]))


def test_an_emptied_folder_is_an_empty_store(tmp_path):
    store = VectorStore(tmp_path, SIZE)
    fill(store, [1])
    assert not store.missing(digests_of([1]))
    for name in ("keys", "vectors"):
        (tmp_path / name).unlink()
    assert store.missing(digests_of([1])) == digests_of([1])
    fill(store, [1])
    np.testing.assert_array_equal(store.read(digests_of([1])), rows_of([1]))


def test_a_writer_waits_for_another(tmp_path):
    store, order = VectorStore(tmp_path, SIZE), []
    begun = threading.Event()

    def later():
        begun.set()
        with store.writing():
            order.append("second")

    worker = threading.Thread(target=later)
    with locked(tmp_path / "keys"):
        worker.start()
        begun.wait(10)
        order.append("first")
    worker.join(10)
    assert order == ["first", "second"]


def test_a_writer_that_does_nothing_is_not_waited_for_without_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(vectors, "_STALLED_SECONDS", 0.0)
    store = VectorStore(tmp_path, SIZE)
    fill(VectorStore(tmp_path, SIZE), [1])
    with locked(tmp_path / "keys"), caplog.at_level(logging.WARNING):
        with pytest.raises(ArtifactBusy), locked(tmp_path / "keys"):
            pass
        fill(store, [2])
    assert "not cached" in caplog.text
    np.testing.assert_array_equal(store.read(digests_of([1, 2])), rows_of([1, 2]))
    assert VectorStore(tmp_path, SIZE).missing(digests_of([2]))


def test_a_full_disk_keeps_vectors_in_memory(tmp_path, monkeypatch, caplog):
    store = VectorStore(tmp_path, SIZE)
    fill(store, [1])

    def refuse(descriptor, content):
        os.write(descriptor, content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vectors, "_write_all", refuse)
    with caplog.at_level(logging.WARNING):
        fill(store, [2])
    assert "No space left" in caplog.text
    np.testing.assert_array_equal(store.read(digests_of([1, 2])), rows_of([1, 2]))
    monkeypatch.undo()
    fill(VectorStore(tmp_path, SIZE), [3])
    other = VectorStore(tmp_path, SIZE)
    assert other.missing(digests_of([1, 2, 3])) == digests_of([2])
    np.testing.assert_array_equal(other.read(digests_of([1, 3])), rows_of([1, 3]))


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    store = VectorStore(tmp_path / "file" / "store", SIZE)
    with caplog.at_level(logging.WARNING):
        fill(store, [1])
        np.testing.assert_array_equal(store.read(digests_of([1])), rows_of([1]))
