"""Nearest neighbours among features: exact, in blocks, or by faiss where there are very many.

Rows with NaN or infinite values, or without a direction, have no neighbours and are none. Equal
rows have similarity 1, exactly. What is found depends neither on the size of the blocks nor on the
number of threads: blocks choose in float32, with some to spare, and float64 has the last word.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

EXACT_UP_TO = 200_000
"""Rows above which faiss is used where it is installed."""
_BLOCK = 2048
_SPARE = 4
"""Neighbours more than asked for, among which rounding in float32 may have mixed up the order."""
_MOST_DIMENSIONS = 2048
"""Above, features are divided by their own deviations alone: an eigenbasis would cost too much."""
_RECALL, _CHECKED = 0.99, 20_000
_NONE = -2.0

Progress = Callable[[float], None]
"""Called with the share that is done."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest rows of each row, itself left out.

    Attributes:
        rows: The nearest first, of equally near ones the lowest row; -1 where there are no more;
            ``(N, k)`` int64.
        cosines: Of the angle between the features less their mean, ``(N, k)`` in [-1, 1]; NaN where
            there are no more.
    """

    rows: np.ndarray
    cosines: np.ndarray

    def pairs(self, least: float = -1.0) -> np.ndarray:
        """Return the pairs with at least this cosine, lower row first, each once; ``(M, 2)``."""
        number, place = np.nonzero((self.rows >= 0) & (self.cosines >= least))
        ends = np.stack([number, self.rows[number, place]], axis=1)
        ends.sort(axis=1)
        return np.unique(ends, axis=0)


def usable_rows(features: np.ndarray) -> np.ndarray:
    """Return the rows without NaN and infinite values that aren't all zero, ascending, ``(n,)``."""
    usable = np.empty(len(features), bool)
    for start in range(0, len(features), _BLOCK):
        block = features[start : start + _BLOCK]
        usable[start : start + _BLOCK] = np.isfinite(block).all(axis=1) & block.any(axis=1)
    return np.flatnonzero(usable)


def whitened(features: np.ndarray) -> np.ndarray:
    """Return features less their mean in a basis where all directions vary alike, float32.

    What many images share then counts no more than what few do. Variances are drawn to their mean
    by as much as the number of rows calls for (Chen et al. 2010, oracle approximating shrinkage).

    Args:
        features: ``(N, num_features)``, finite.

    Returns:
        ``(N, rank)``, of length 1 each; a row at the mean is zeros.
    """
    count, width = features.shape
    if not count:
        return np.empty((0, width), np.float32)
    mean = features.mean(axis=0, dtype=np.float64)
    if min(count, width) > _MOST_DIMENSIONS:
        basis = np.diag(1 / np.maximum(features.std(axis=0, dtype=np.float64), 1e-12))
    elif count <= width:
        centred = features - mean
        variances, vectors = np.linalg.eigh(centred @ centred.T / max(count, 1))
        keep = variances > 1e-10 * max(float(variances[-1]), 1e-300)
        variances, vectors = variances[keep], vectors[:, keep]
        directions = centred.T @ vectors / np.sqrt(variances * count)
        basis = directions / np.sqrt(_shrunk(variances, count, width))
    else:
        variances, directions = np.linalg.eigh(_covariance(features, mean))
        basis = directions / np.sqrt(_shrunk(variances, count, width))
    basis, shift = basis.astype(np.float32), mean.astype(np.float32)
    units = np.empty((count, basis.shape[1]), np.float32)
    for start in range(0, count, _BLOCK):
        block = slice(start, start + _BLOCK)
        units[block] = (features[block] - shift) @ basis
        lengths = np.linalg.norm(units[block], axis=1, keepdims=True)
        units[block] /= np.maximum(lengths, np.float32(1e-20))
    return units


def _covariance(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    sums = np.zeros((features.shape[1],) * 2)
    for start in range(0, len(features), _BLOCK):
        block = (features[start : start + _BLOCK] - mean).astype(np.float32)
        sums += block.T @ block
    return sums / len(features)


def _shrunk(variances: np.ndarray, count: int, width: int) -> np.ndarray:
    """Return variances drawn to their mean; ``width`` of them, those that are missing are 0."""
    variances = np.maximum(variances, 0)
    total, squares = float(variances.sum()), float(np.square(variances).sum())
    spread = (count + 1 - 2 / width) * (squares - total**2 / width)
    weight = ((1 - 2 / width) * squares + total**2) / spread if spread > 0 else 1.0
    weight = min(1.0, weight)
    return np.asarray((1 - weight) * variances + weight * total / width + 1e-20)


def nearest_neighbours(
    units: np.ndarray, k: int, *, progress: Progress | None = None, block: int = _BLOCK
) -> Neighbours:
    """Return the nearest rows of each row.

    Args:
        units: Finite, of length 1 or zeros, which have no neighbours; ``(N, width)`` float32.
        k: Neighbours of each, at least 1.
        progress: Called after each block.
        block: Rows whose products are in memory at once.
    """
    if not units.shape[1]:  # all rows are the same
        units = np.zeros((len(units), 1), np.float32)
    first, of_row = _distinct(units)
    there = np.flatnonzero(units[first].any(axis=1))
    some = units[first[there]]
    wanted = min(k + _SPARE, max(len(there) - 1, 0))
    if len(some) > EXACT_UP_TO and (faiss := _faiss()) is not None:
        chosen = _by_faiss(faiss, some, wanted)
    else:
        chosen = _in_blocks(some, wanted, progress or (lambda _: None), block)
    cosines = _cosines(some, chosen)
    order = np.lexsort((chosen, -cosines), axis=1)
    chosen, cosines = (np.take_along_axis(each, order, axis=1) for each in (chosen, cosines))
    return _with_copies((first, of_row), there, Neighbours(chosen, cosines), k)


def _distinct(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each content, ascending, and the position of each row's there."""
    content = np.ascontiguousarray(units + np.float32(0))  # one zero
    keys = content.view(f"V{content.dtype.itemsize * content.shape[1]}")[:, 0]
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return first[order], places[inverse]


def _with_copies(
    distinct: tuple[np.ndarray, np.ndarray], there: np.ndarray, found: Neighbours, k: int
) -> Neighbours:
    """Return neighbours of all rows: copies first, then those of the content's first row."""
    first, of_row = distinct
    rows, values = np.full((len(of_row), k), -1), np.full((len(of_row), k), np.nan)
    if len(first) == len(of_row):
        width = min(k, found.rows.shape[1])
        rows[there, :width] = there[found.rows[:, :width]]
        values[there, :width] = found.cosines[:, :width]
        return Neighbours(rows, values)
    place = np.full(len(first), -1)
    place[there] = np.arange(len(there))
    members = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row))[:-1])
    for row in np.flatnonzero(place[of_row] >= 0).tolist():
        own = members[of_row[row]]
        names, similarities = list(own[own != row][:k]), [1.0] * min(len(own) - 1, k)
        number = place[of_row[row]]
        for other, cosine in zip(found.rows[number], found.cosines[number], strict=True):
            copies = members[there[other]][: k - len(names)]
            names += list(copies)
            similarities += [float(cosine)] * len(copies)
        rows[row, : len(names)], values[row, : len(names)] = names, similarities
    return Neighbours(rows, values)


def _cosines(units: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the cosines of chosen rows ``(n, k)`` in float64, never above 1."""
    cosines = np.empty(chosen.shape)
    for start in range(0, len(chosen), _BLOCK // 8):
        block = slice(start, start + _BLOCK // 8)
        own = units[block].astype(np.float64)
        others = units[chosen[block]].astype(np.float64)
        products = np.einsum("nd,nkd->nk", own, others)
        lengths = np.linalg.norm(own, axis=1)[:, None] * np.linalg.norm(others, axis=2)
        cosines[block] = np.clip(products / lengths, -1, 1)
    return cosines


def _in_blocks(units: np.ndarray, k: int, progress: Progress, size: int) -> np.ndarray:
    """Return the ``k`` nearest rows of each, ``(n, k)``, by float32, in no order."""
    count = len(units)
    best = _Best(np.full((count, k), _NONE, np.float32), np.zeros((count, k), np.int64))
    if not k:
        return best.rows
    starts = range(0, count, size)
    total = len(starts) * (len(starts) + 1) // 2
    for done, (first, second) in enumerate(
        ((first, second) for first in starts for second in starts if second >= first), 1
    ):
        cosines = units[first : first + size] @ units[second : second + size].T
        if first == second:
            np.fill_diagonal(cosines, _NONE)
        best.update(first, second, cosines)
        if first != second:
            best.update(second, first, np.ascontiguousarray(cosines.T))
        progress(done / total)
    return best.rows


@dataclass(frozen=True, eq=False)
class _Best:
    """The best so far of each row, ``(n, k)``, in no order."""

    cosines: np.ndarray
    rows: np.ndarray

    def update(self, start: int, other: int, cosines: np.ndarray) -> None:
        """Take what is better from the cosines of rows from ``start`` with those from ``other``."""
        own = slice(start, start + len(cosines))
        k = self.rows.shape[1]
        if self.cosines[own].min() == _NONE:  # almost all would be better
            place = np.argpartition(-cosines, min(k, cosines.shape[1]) - 1, axis=1)[:, :k]
            number = np.repeat(np.arange(len(cosines)), place.shape[1])
            place = place.reshape(-1)
        else:
            better = cosines > self.cosines[own].min(axis=1, keepdims=True)
            number, place = np.nonzero(better)
        if not len(number):
            return
        changed = np.unique(number)
        values = np.concatenate([self.cosines[start + changed].reshape(-1), cosines[number, place]])
        rows = np.concatenate([self.rows[start + changed].reshape(-1), other + place])
        owners = np.concatenate([np.repeat(changed, k), number])
        order = np.lexsort((rows, -values, owners))
        owners = owners[order]
        rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
        kept = order[rank < k]
        self.cosines[start + changed] = values[kept].reshape(-1, k)
        self.rows[start + changed] = rows[kept].reshape(-1, k)


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError:
        log.warning(
            "More than %s rows are compared each with each, which takes long. faiss is faster: "
            "pip install 'featx[search]'.",
            f"{EXACT_UP_TO:,}",
        )
        return None


def _by_faiss(faiss: Any, units: np.ndarray, k: int) -> np.ndarray:
    """Return about the ``k`` nearest rows of each by an index whose recall is measured first."""
    count, width = units.shape
    num_lists = round(4 * count**0.5)
    index = faiss.index_factory(width, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(units[:: max(1, count // (64 * num_lists))])
    index.add(units)
    some = units[:: max(1, count // _CHECKED)][:_CHECKED]
    asked = some[:: max(1, len(some) // 200)]
    expected = _found_by_hand(units, asked, min(10, k))
    for probes in (2**power for power in range(4, 31)):
        index.nprobe = min(probes, num_lists)
        _, found = index.search(asked, expected.shape[1])
        hits = [len(np.intersect1d(*each)) for each in zip(found, expected, strict=True)]
        recall = float(np.mean(hits)) / expected.shape[1]
        if recall >= _RECALL or probes >= num_lists:
            break
    log.info("faiss finds %.1f %% of the nearest with %d probes.", 100 * recall, index.nprobe)
    _, found = index.search(units, k + 1)
    return np.stack([_without(row, own, k) for own, row in enumerate(found)])


def _found_by_hand(units: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k`` nearest rows of each query, itself included, in float64."""
    cosines = np.concatenate(
        [
            asked.astype(np.float64) @ units[start : start + _BLOCK].T.astype(np.float64)
            for start in range(0, len(units), _BLOCK)
        ],
        axis=1,
    )
    return np.argpartition(-cosines, k - 1, axis=1)[:, :k]


def _without(found: np.ndarray, own: int, k: int) -> np.ndarray:
    """Return ``k`` of the found rows, without their own; -1, which faiss gives for none, last."""
    others = found[(found != own) & (found >= 0)][:k]
    return np.pad(others, (0, k - len(others)), mode="edge") if len(others) else np.full(k, own)
