"""The rows of a feature file that are nearest to some vectors: those of brute force in float64.

Blocks of rows are screened in float32, as they come from the file. What the screen says of a cosine
is wrong by no more than a bound that holds for any order of additions (Higham 2002, section 3.1),
so that every row that may be among the nearest is known; float64 decides among these few.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_BLOCK = 1024
_ROUNDING = 2.0**-24  # of float32, relative
_SHORTEST = 1e-10
"""Length below which squares of float32 may be lost, and the screen says nothing."""


class Rows(Protocol):
    """Vectors that are read block by block, as ``features.blocks`` does."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows, and their length."""

    def only(self, rows: np.ndarray) -> Rows:
        """Return those at some positions, ascending, ``(n,)``."""

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield positions and values ``(n, num_features)`` float32."""


@dataclass(frozen=True, eq=False)
class RowsInMemory:
    """Rows of an array ``(N, num_features)`` float32."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.values), self.values.shape[1]

    def only(self, rows: np.ndarray) -> RowsInMemory:
        return RowsInMemory(self.values[rows])

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        for start in range(0, len(self.values), _BLOCK):
            block = self.values[start : start + _BLOCK]
            yield slice(start, start + len(block)), block


def nearest_rows(features: Rows, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and cosines of the features nearest to each query, calculated in float64.

    The mean of the features is taken from both: what all images share tells none from another.
    Rows with NaN or infinite values are left out. Neither the size of the blocks nor the number of
    threads changes a bit of what is found.

    Args:
        features: ``(N, num_features)``.
        queries: Finite, ``(n, num_features)``.
        k: At most so many of each.

    Returns:
        Rows ``(n, min(k, N))`` int64, the nearest first, of equally near ones the lowest row; and
        cosines of the same shape, 1 of equal vectors and never more.
    """
    mean, usable = _mean_of(features)
    k = min(k, int(usable.sum()))
    queries = queries.astype(np.float64) - mean
    if not k or not len(queries):
        return np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    of_query, rows = _candidates(features, queries, mean, usable, k)
    cosines = _cosines(features, queries, mean, (of_query, rows))
    order = np.lexsort((rows, -cosines, of_query))
    starts = np.searchsorted(of_query[order], np.arange(len(queries)))
    best = order[starts[:, None] + np.arange(k)]
    return rows[best], cosines[best]


def _mean_of(features: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the rows, added one after the other, and which of them are finite."""
    sums, usable = np.zeros(features.shape[1]), np.ones(features.shape[0], bool)
    for at, block in features.blocks():
        for start in range(0, len(block), _BLOCK):
            part = block[start : start + _BLOCK]
            if not np.isfinite(part.sum(dtype=np.float64)):
                finite = np.isfinite(part).all(axis=1)
                usable[at.start + start : at.start + start + len(part)] = finite
                part = part[finite]
            sums = np.concatenate([sums[None], part], dtype=np.float64).sum(axis=0)
    return sums / max(int(usable.sum()), 1), usable


def _candidates(
    features: Rows, queries: np.ndarray, mean: np.ndarray, usable: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return queries and rows that may be among the nearest ``k``, all that are included."""
    width = features.shape[1]
    directions = (queries / np.maximum(_lengths(queries), 1e-300)[:, None]).astype(np.float32)
    shift, length = mean.astype(np.float32), float(np.linalg.norm(mean))
    least = np.full((len(queries), k), -np.inf)  # the best lower bounds so far
    found = []
    for at, block in features.blocks():
        with np.errstate(over="ignore", invalid="ignore"):
            centred = block - shift
            lengths = np.sqrt(np.einsum("nd,nd->n", centred, centred))
            cosines = ((directions @ centred.T) / np.maximum(lengths, np.float32(1e-30))).astype(
                np.float64
            )
            slack = _ROUNDING * (3 * width + 32 + 4 * length / np.maximum(lengths, 1e-30))
        unsure = ~(np.isfinite(lengths) & (lengths > _SHORTEST))
        cosines[:, unsure], slack[unsure] = 0, 2
        there = usable[at]
        lower = np.where(there, cosines - slack, -np.inf)
        least = -np.partition(-np.concatenate([least, lower], axis=1), k - 1, axis=1)[:, :k]
        upper = np.where(there, cosines + slack, -np.inf)
        number, place = np.nonzero(there & (upper >= least.min(axis=1, keepdims=True)))
        found.append((number, at.start + place, upper[number, place]))
    number, rows, upper = map(np.concatenate, zip(*found, strict=True))
    kept = upper >= least.min(axis=1)[number]
    return number[kept], rows[kept]


def _cosines(
    features: Rows, queries: np.ndarray, mean: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return the cosines of pairs of a query and a row, ``(M,)``."""
    of_query, rows = pairs
    cosines = np.empty(len(rows))
    wanted, place = np.unique(rows, return_inverse=True)
    own = _lengths(queries)
    for at, block in features.only(wanted).blocks():
        centred = block.astype(np.float64) - mean
        lengths = _lengths(centred)
        here = np.flatnonzero((place >= at.start) & (place < at.stop))
        for query in np.unique(of_query[here]).tolist():
            some = here[of_query[here] == query]
            chosen = place[some] - at.start
            products = np.einsum("nd,d->n", centred[chosen], queries[query])
            sizes = np.maximum(lengths[chosen] * own[query], 1e-300)
            cosines[some] = np.clip(products / sizes, -1, 1)
            is_equal = (centred[chosen] == queries[query]).all(axis=1)
            cosines[some[is_equal & (own[query] > 0)]] = 1.0
    return cosines


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", vectors, vectors)))
