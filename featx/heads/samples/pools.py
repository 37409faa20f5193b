"""Samples in random order, of features that are read block by block.

Pieces come in random order, as many as fit into memory form a pool, and each pool is shuffled. So a
sample meets others from all over the file, whatever their order there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featx.heads.solvers.mlp import Batch, shares_of


class Blocks(Protocol):
    """Features in pieces, raw or standardised."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples, and features of each."""

    @property
    def num_pieces(self) -> int:
        """Parts that can be read in any order."""

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which samples these are, and their features ``(n, num_features)``."""


def pools_of(
    rows: Blocks, num_rows: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers ``(n,)`` and features ``(n, num_features)`` of samples, each once.

    Features hold until the next pool is asked for.

    Args:
        rows: All samples.
        num_rows: Of a pool; the last has what is left.
        random: Decides the order.
    """
    num_rows = min(num_rows, rows.shape[0])
    numbers = np.empty(num_rows, np.int64)
    features = np.empty((num_rows, rows.shape[1]), np.float32)
    filled = 0
    for where, values in rows.blocks(random.permutation(rows.num_pieces)):
        taken = 0
        while taken < len(values):
            count = min(len(values) - taken, num_rows - filled)
            features[filled : filled + count] = values[taken : taken + count]
            first = where.start + taken
            numbers[filled : filled + count] = np.arange(first, first + count)
            filled, taken = filled + count, taken + count
            if filled == num_rows:
                yield numbers, features
                filled = 0
    if filled:
        yield numbers[:filled], features[:filled]


@dataclass(frozen=True, eq=False)
class PooledRows:
    """Samples that train networks, from pools.

    Attributes:
        rows: Standardised.
        labels: ``(N,)``; tags or numbers ``(N, num_outputs)``.
        weights: What each counts, ``(N,)``.
        pool_bytes: Of features in a pool.
    """

    rows: Blocks
    labels: np.ndarray
    weights: np.ndarray
    pool_bytes: int

    def batches(self, size: int, random: np.random.Generator) -> Iterator[Batch]:
        """Yield all samples in random order, ``size`` at a time."""
        for rows, x in self.raw_batches(size, random):
            yield x, self.labels[rows], shares_of(self.weights[rows])

    def raw_batches(
        self, size: int, random: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield numbers ``(n,)`` and features ``(n, num_features)`` of all, ``size`` at a time."""
        fitting = self.pool_bytes // (4 * self.rows.shape[1] * size)  # whole batches
        for numbers, features in pools_of(self.rows, max(1, fitting) * size, random):
            order = random.permutation(len(numbers))
            for start in range(0, len(order), size):
                rows = order[start : start + size]
                yield numbers[rows], features[rows]
