"""Rows found by content are those that a dict finds, in a part of its memory."""

from __future__ import annotations

import random

import numpy as np
import pytest

from featx.features import contents
from featx.features.contents import RowsByContent


def digests_of(names: list[int]) -> np.ndarray:
    return (
        np.array([name.to_bytes(16, "big") for name in names], "V16").view(np.uint8).reshape(-1, 16)
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mix", [int(contents._MIX), 0])  # with 0 all are looked for in one place
def test_rows_are_those_that_a_dict_has(seed, mix, monkeypatch):
    monkeypatch.setattr(contents, "_FEWEST_SLOTS", 4)
    monkeypatch.setattr(contents, "_AT_ONCE", 8)
    monkeypatch.setattr(contents, "_MIX", np.uint64(mix))
    rng = random.Random(seed)
    names = [
        rng.choice([rng.getrandbits(128), rng.getrandbits(6), rng.getrandbits(6) << 64])
        for _ in range(300)
    ]
    found, expected, count = RowsByContent(), dict[int, int](), 0
    for _ in range(120):
        batch = rng.choices(names, k=rng.randrange(12))
        asked = rng.choices(names, k=rng.randrange(12))
        assert found.find(digests_of(asked)).tolist() == [expected.get(name, -1) for name in asked]
        which = [rng.random() < 0.8 for _ in batch]
        found.add(digests_of(batch), np.array(which, bool))
        expected |= {name: count + i for i, name in enumerate(batch) if which[i]}
        count += len(batch)
    assert len(found) == count
    assert found.find(digests_of(names)).tolist() == [expected.get(name, -1) for name in names]


def test_numbers_beyond_what_the_slots_hold_widen_them(monkeypatch):
    monkeypatch.setattr(contents, "_NARROW_ROWS", 100)
    found, rows = RowsByContent(), list(range(150))
    for number in rows:
        found.add(digests_of([number]), np.ones(1, bool))
        assert found._table.dtype == (np.int32 if number < 100 else np.int64)
    assert found.find(digests_of(rows)).tolist() == rows


def test_a_row_takes_less_than_a_quarter_of_what_a_dict_takes():
    rng, found = np.random.default_rng(0), RowsByContent()
    for _ in range(60):
        found.add(rng.integers(0, 256, (5000, 16), np.uint8), np.ones(5000, bool))
        assert found._words.nbytes + found._table.nbytes < 34 * len(found) + 2**15
