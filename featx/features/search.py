"""Nearest neighbours among features: exact, in blocks, or by faiss where there are very many.

Rows with NaN or infinite values, or without a direction, have no neighbours and are none. Equal
rows have similarity 1, exactly. What is found depends neither on the size of the blocks nor on the
number of threads: blocks choose in float32, with some to spare, and float64 has the last word.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from featx.images.reading import map_ahead

log = logging.getLogger(__name__)

EXACT_UP_TO = 200_000
"""Rows above which faiss is used where it is installed."""
_BLOCK = 2048
_SPARE = 4
"""Neighbours more than asked for, among which rounding in float32 may have mixed up the order."""
_MOST_DIMENSIONS = 2048
"""Above, features are divided by their own deviations alone: an eigenbasis would cost too much."""
_RECALL, _CHECKED = 0.99, 200
_NONE = -2.0
_ROUNDING = np.float32(1e-5)
"""By which a product of two units differs at most between shapes of matrices and processors."""
_SOME, _MERGED = 1024, 2**18

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
        note: How many of the nearest an index finds, in a sentence; empty after exact search.
    """

    rows: np.ndarray
    cosines: np.ndarray
    note: str = ""

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
    some = units if len(there) == len(units) else units[first[there]]
    wanted = min(k + _SPARE, max(len(there) - 1, 0))
    chosen, note = None, ""
    if len(some) > EXACT_UP_TO and (faiss := _faiss()) is not None:
        chosen, note = _by_faiss(faiss, some, wanted)
    if chosen is None:
        chosen = _in_blocks(some, wanted, progress or (lambda _: None), block)
    cosines = np.where(chosen < 0, np.nan, _cosines(some, chosen))
    order = np.lexsort((chosen, -cosines), axis=1)
    chosen, cosines = (np.take_along_axis(each, order, axis=1) for each in (chosen, cosines))
    return _with_copies((first, of_row), there, Neighbours(chosen, cosines, note), k)


def _distinct(units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first row of each content, ascending, and the position of each row's there."""
    count, width = units.shape
    factors = np.random.default_rng(0).integers(2**63, size=width, dtype=np.uint64) * 2 + 1
    sums = np.empty(count, np.uint64)
    for start in range(0, count, _BLOCK):
        block = units[start : start + _BLOCK] + np.float32(0)  # one zero
        sums[start : start + _BLOCK] = block.view(np.uint32).astype(np.uint64) @ factors
    _, first, inverse = np.unique(sums, return_index=True, return_inverse=True)
    like = first[inverse]
    others = np.flatnonzero(like != np.arange(count))
    for start in range(0, len(others), _BLOCK):
        some = others[start : start + _BLOCK]
        differs = (units[some] != units[like[some]]).any(axis=1)
        like[some[differs]] = some[differs]  # of equal sums by chance
    first = np.flatnonzero(like == np.arange(count))
    return first, np.searchsorted(first, like)


def _with_copies(
    distinct: tuple[np.ndarray, np.ndarray], there: np.ndarray, found: Neighbours, k: int
) -> Neighbours:
    """Return neighbours of all rows: copies first, then those of the content's first row."""
    first, of_row = distinct
    rows, values = np.full((len(of_row), k), -1), np.full((len(of_row), k), np.nan)
    if len(first) == len(of_row):
        width = min(k, found.rows.shape[1])
        near = found.rows[:, :width]
        rows[there, :width] = np.where(near < 0, -1, there[near])
        values[there, :width] = found.cosines[:, :width]
        return Neighbours(rows, values, found.note)
    place = np.full(len(first), -1)
    place[there] = np.arange(len(there))
    members = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row))[:-1])
    for row in np.flatnonzero(place[of_row] >= 0).tolist():
        own = members[of_row[row]]
        names, similarities = list(own[own != row][:k]), [1.0] * min(len(own) - 1, k)
        number = place[of_row[row]]
        for other, cosine in zip(found.rows[number], found.cosines[number], strict=True):
            copies = members[there[other]][: k - len(names)] if other >= 0 else []
            names += list(copies)
            similarities += [float(cosine)] * len(copies)
        rows[row, : len(names)], values[row, : len(names)] = names, similarities
    return Neighbours(rows, values, found.note)


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
    """Return the ``k`` nearest rows of each, ``(n, k)``, by float32, in no order; or -1.

    Blocks are multiplied in threads. What is no better than the least of the best so far is left
    out at once; that is known to begin with from some of the rows.
    """
    count = len(units)
    best = _Best(np.full((count, k), _NONE, np.float32), np.full((count, k), -1))
    if not k:
        return best.rows
    least = _least_of_some(units, k)
    starts = range(0, count, size)

    def better(pair: tuple[int, int]) -> list[_Hits]:
        first, second = pair
        cosines = units[first : first + size] @ units[second : second + size].T
        if first == second:
            np.fill_diagonal(cosines, _NONE)
        own = _places(cosines > least[first : first + size, None])
        found = [_Hits(first + own[0], second + own[1], cosines[own])]
        if first != second:
            number, place = _places(cosines > least[second : second + size])
            found.append(_Hits(second + place, first + number, cosines[number, place]))
        return found

    pairs = [(first, second) for first in starts for second in starts if second >= first]
    waiting = list[_Hits]()
    with closing(map_ahead(better, pairs, window=2)) as parts:
        for done, found in enumerate(parts, 1):
            waiting += found
            if sum(len(each.rows) for each in waiting) >= _MERGED or done == len(pairs):
                best.take(_Hits(*map(np.concatenate, zip(*waiting, strict=True))))
                np.maximum(least, best.cosines.min(axis=1), out=least)
                waiting = []
            progress(done / len(pairs))
    return best.rows


def _least_of_some(units: np.ndarray, k: int) -> np.ndarray:
    """Return a value below the ``k`` best cosines of each row, known from some of the rows."""
    some = units[:: max(1, len(units) // _SOME)][:_SOME].T
    least = np.full(len(units), _NONE, np.float32)
    if some.shape[1] > k:  # one of them may be the row itself
        for start in range(0, len(units), _BLOCK):
            cosines = units[start : start + _BLOCK] @ some
            place = some.shape[1] - k - 1
            least[start : start + _BLOCK] = np.partition(cosines, place, axis=1)[:, place]
    return least - _ROUNDING


def _places(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of what is true in a matrix where little is, as ``nonzero``."""
    flat = mask.reshape(-1)
    whole = len(flat) // 8 * 8
    words = np.flatnonzero(flat[:whole].view(np.uint64))
    word, bit = np.nonzero(flat[:whole].reshape(-1, 8)[words])
    rest = whole + np.flatnonzero(flat[whole:])
    row, column = np.divmod(np.concatenate([8 * words[word] + bit, rest]), mask.shape[1])
    return row, column


class _Hits(NamedTuple):
    """Rows that are near others, ``(n,)`` each."""

    owners: np.ndarray
    rows: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True, eq=False)
class _Best:
    """The best so far of each row, ``(n, k)``, in no order."""

    cosines: np.ndarray
    rows: np.ndarray

    def take(self, hits: _Hits) -> None:
        """Take what is better of some hits."""
        changed = np.unique(hits.owners)
        k = self.rows.shape[1]
        owners = np.concatenate([np.repeat(changed, k), hits.owners])
        values = np.concatenate([self.cosines[changed].reshape(-1), hits.cosines])
        rows = np.concatenate([self.rows[changed].reshape(-1), hits.rows])
        order = np.lexsort((rows, -values, owners))
        owners = owners[order]
        rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
        kept = order[rank < k]
        self.cosines[changed] = values[kept].reshape(-1, k)
        self.rows[changed] = rows[kept].reshape(-1, k)


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


def _by_faiss(faiss: Any, units: np.ndarray, k: int) -> tuple[np.ndarray | None, str]:
    """Return about the ``k`` nearest rows of each, and how many of them an index finds.

    That is measured beforehand, beside exact search in float64. An index that has to look at more
    than a quarter of the rows to find 99 % is no faster than comparing all: None then.
    """
    count, width = units.shape
    num_lists = max(1, min(round(4 * count**0.5), count // 40))
    index = faiss.index_factory(width, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(units[:: max(1, count // (64 * num_lists))])
    index.add(units)
    asked = np.linspace(0, count - 1, min(count, _CHECKED)).astype(np.int64)
    most = min(10, count - 1)
    expected = _found_by_hand(units, asked, most)
    probes, recall = 8, 0.0
    while recall < _RECALL and 2 * probes <= max(16, num_lists // 4):
        index.nprobe = probes = 2 * probes
        found = _without_own(index.search(units[asked], most + 1)[1], asked, most)
        hits = [len(np.intersect1d(*each)) for each in zip(found, expected, strict=True)]
        recall = float(np.mean(hits)) / most
    note = f"{recall:.1%} of the {most} nearest, by exact search for {len(asked):,} images"
    if recall < _RECALL:
        return None, f"Every two images were compared: faiss finds only {note}."
    found = np.empty((count, k), np.int64)
    for start in range(0, count, _BLOCK):
        numbers = np.arange(start, min(start + _BLOCK, count))
        _, some = index.search(units[numbers], k + 1)
        found[numbers] = _without_own(some, numbers, k)
    return found, f"The nearest images were searched by faiss, which finds {note}."


def _found_by_hand(units: np.ndarray, asked: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k`` nearest rows of some, themselves left out, in float64."""
    queries = units[asked].astype(np.float64)
    cosines = np.concatenate(
        [
            queries @ units[start : start + _BLOCK].T.astype(np.float64)
            for start in range(0, len(units), _BLOCK)
        ],
        axis=1,
    )
    cosines[np.arange(len(asked)), asked] = -np.inf
    return np.argpartition(-cosines, k - 1, axis=1)[:, :k]


def _without_own(found: np.ndarray, numbers: np.ndarray, k: int) -> np.ndarray:
    """Return ``k`` found rows of each, without itself; -1 where there are fewer."""
    others = np.where(found == numbers[:, None], -1, found)
    place = np.argsort(others < 0, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(others, place, axis=1)
