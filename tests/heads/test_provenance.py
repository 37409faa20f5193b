"""Rows are told by content, label and features: changes are found and counted, order is not one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.heads import provenance
from featx.heads.provenance import (
    Provenance,
    RowSet,
    changes_since,
    digest_labels,
    digest_rows,
    outdated_splits,
)
from featx.heads.tasks import TASKS


@dataclass
class Rows:
    contents: np.ndarray
    labels: np.ndarray
    features: np.ndarray

    @classmethod
    def random(cls, count: int, seed: int = 0) -> Rows:
        rng = np.random.default_rng(seed)
        return cls(
            rng.integers(0, 256, (count, 16), np.uint8),
            rng.integers(0, 3, count),
            rng.normal(size=(count, 5)).astype(np.float32),
        )

    def take(self, rows: np.ndarray | slice) -> Rows:
        return Rows(self.contents[rows], self.labels[rows], self.features[rows])

    def digests(self, block: int = 3) -> np.ndarray:
        def blocks() -> Iterator[tuple[slice, np.ndarray]]:
            for start in range(0, len(self.labels), block):
                where = slice(start, start + block)
                yield where, self.features[where]

        labels = digest_labels(["ant", "bee", "wasp"], TASKS["single-label"])[self.labels]
        return digest_rows(self.contents, labels, blocks())


def provenance_of(rows: Rows) -> Provenance:
    """As a head keeps it: written and read."""
    return Provenance.from_dict(Provenance.of({"train": rows.digests()}).to_dict())


def counts(head: Provenance, rows: Rows) -> tuple[int, int, int, int] | None:
    changes = changes_since(head, {"train": rows.digests()})
    if changes is None:
        return None
    return changes.new, changes.gone, changes.relabelled, changes.recomputed


@given(st.integers(1, 40), st.integers(1, 50))
def test_neither_order_nor_blocks_change_a_digest(count, block):
    rows = Rows.random(count)
    order = np.random.default_rng(count).permutation(count)
    expected = RowSet.of(rows.digests())
    assert RowSet.of(rows.take(order).digests(block)) == expected
    assert counts(provenance_of(rows), rows.take(order)) is None


@given(st.data())
def test_every_change_is_found_and_counted(data):
    rows = Rows.random(20)
    head = provenance_of(rows)
    gone, relabelled, recomputed = (
        data.draw(st.sets(st.integers(*limits), max_size=5))
        for limits in ((0, 6), (7, 13), (14, 19))
    )
    new = data.draw(st.integers(0, 4))
    rows.labels[list(relabelled)] = (rows.labels[list(relabelled)] + 1) % 3
    rows.features[list(recomputed), 2] += 1
    left, more = rows.take(np.delete(np.arange(20), list(gone))), Rows.random(new, seed=1)
    now = Rows(
        np.concatenate([left.contents, more.contents]),
        np.concatenate([left.labels, more.labels]),
        np.concatenate([left.features, more.features]),
    )
    expected = new, len(gone), len(relabelled), len(recomputed)
    assert counts(head, now) == (expected if any(expected) else None)


def test_the_last_bit_of_a_feature_is_a_change():
    rows = Rows.random(4)
    head = provenance_of(rows)
    rows.features[2, 4] = np.nextafter(rows.features[2, 4], np.float32(9))
    assert counts(head, rows) == (0, 0, 0, 1)


def test_copies_count_one_by_one():
    rows = Rows.random(3).take(np.array([0, 0, 0, 1, 2]))
    head = provenance_of(rows)
    assert counts(head, rows.take(slice(1, None))) == (0, 1, 0, 0)
    rows.labels[0] = (rows.labels[0] + 1) % 3
    assert counts(head, rows) == (0, 0, 1, 0)


def test_many_rows_are_counted_on_a_sample(monkeypatch):
    monkeypatch.setattr(provenance, "SAMPLE_ROWS", 400)
    rows = Rows.random(4000)
    head = provenance_of(rows)
    assert len(head.sample) == 400
    rows.labels[::4] = (rows.labels[::4] + 1) % 3
    changes = changes_since(head, {"train": rows.digests()})
    assert changes is not None
    assert changes.estimated
    assert 700 < changes.relabelled < 1300
    assert (changes.new, changes.gone, changes.recomputed) == (0, 0, 0)
    assert "about" in str(changes)


def test_a_change_outside_the_sample_is_a_change(monkeypatch):
    monkeypatch.setattr(provenance, "SAMPLE_ROWS", 4)
    rows = Rows.random(40)
    head = provenance_of(rows)
    last = int(np.argmax(rows.contents[:, 0]))
    rows.features[last] += 1
    changes = changes_since(head, {"train": rows.digests()})
    assert str(changes) == "trained on 40 rows; since then a few differ"


def test_a_draw_holds_as_long_as_its_rows_do():
    rows = Rows.random(30)
    drawn = np.array([3, 7, 20])
    digests = rows.digests()
    made = Provenance.of({"train": digests}, digests[drawn])
    head = Provenance.from_dict(made.to_dict())
    assert head.drawn
    rows.labels[5] = (rows.labels[5] + 1) % 3
    assert counts(head, rows) is None
    assert outdated_splits(head, {"train": rows.digests()}) == ("train",)
    assert counts(head, rows.take(np.delete(np.arange(30), 7))) == (0, 1, 0, 0)
    rows.labels[20] = (rows.labels[20] + 1) % 3
    assert counts(head, rows) == (0, 0, 1, 0)


def test_splits_that_changed_are_outdated():
    train, val, other = (Rows.random(6, seed).digests() for seed in range(3))
    head = Provenance.of({"train": train, "val": val})
    assert outdated_splits(head, {"train": train, "val": val[::-1]}) == ()
    assert outdated_splits(head, {"train": train, "val": other}) == ("val",)
    assert outdated_splits(head, {"train": train}) == ("val",)
    assert outdated_splits(head, {"train": train, "val": val, "test": other}) == ("test",)


def test_labels_that_mean_the_same_are_the_same():
    one, other, last = digest_labels(["red|big", "big | red"], TASKS["multi-label"])
    assert (one == other).all()
    assert not last.any()
    one, other, third, _ = digest_labels(["1.50|2", "1.5|2.0", "1.5|3"], TASKS["regression"])
    assert (one == other).all()
    assert (one != third).any()
    one, other, _ = digest_labels(["red|big", "big|red"], TASKS["single-label"])
    assert (one != other).any()


@pytest.mark.parametrize(
    "change",
    [
        {"sample": "no base64!"},
        {"sample": "AAAA"},
        {"trained": {"num_rows": "4"}},
        {"trained": None},
        {"scored": []},
    ],
)
def test_a_damaged_record_is_refused(change):
    values = Provenance.of({"train": Rows.random(4).digests()}).to_dict()
    with pytest.raises(ValueError, match="which rows trained it"):
        Provenance.from_dict(values | change)
    with pytest.raises(ValueError, match="which rows trained it"):
        Provenance.from_dict({name: values[name] for name in values if name not in change})


def test_text_of_changes_has_its_numbers():
    changes = provenance.Changes(num_rows=1, new=1200, relabelled=1)
    assert str(changes) == "trained on 1 row; since then 1,200 new, 1 relabelled"
    assert "about 1,200 new" in str(replace(changes, estimated=True))
