"""Features that are read block by block, where not all of them fit into memory.

Who has them in a file serves them as ``Rows``; nothing here knows of files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featx.heads.samples.moments import Moments

_PIECE_BYTES = 2**20
MOST_CORRELATED = 2048
"""Features between which correlations are looked at; of more it would cost more than it saves."""
_ROWS_AT_LEAST, _ROWS_PER_FEATURE = 2**14, 8
"""How many samples their correlation is seen on."""


class Rows(Protocol):
    """Raw features of samples, ``(N, num_features)``."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples, and features of each."""

    @property
    def num_pieces(self) -> int:
        """Parts that can be read in any order."""

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which samples these are, and their features ``(n, num_features)`` float32.

        Features may be changed in place, and hold until the next block is asked for.

        Args:
            order: Numbers of pieces; None for all from the first on, in blocks of several.
        """


class ArrayRows:
    """Features in memory, served like those of a file.

    Args:
        features: ``(N, num_features)``.
        piece_rows: Samples of a piece; None for about 1 MiB.
    """

    def __init__(self, features: np.ndarray, piece_rows: int | None = None) -> None:
        self._features = features
        self._step = piece_rows or max(1, _PIECE_BYTES // (4 * features.shape[1]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples, and features of each."""
        return len(self._features), self._features.shape[1]

    @property
    def num_pieces(self) -> int:
        """Parts that can be read in any order."""
        return -(-len(self._features) // self._step)

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which samples these are, and a copy of their features ``(n, num_features)``."""
        for piece in range(self.num_pieces) if order is None else order.tolist():
            start = piece * self._step
            stop = min(start + self._step, len(self._features))
            yield slice(start, stop), self._features[start:stop].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Survey:
    """What one pass over the features says of them.

    Attributes:
        mean: Of each feature, ``(num_features,)`` float64.
        scale: Its standard deviation, 1 where it is constant; ``(num_features,)`` float64.
        kept: Numbers of the samples that are kept in memory, ascending, ``(n,)``.
        features: Theirs, raw, ``(n, num_features)`` float32.
        correlation: Between features, seen on enough of the samples; ``(num_features,
            num_features)`` float64, or empty where there are too many features, or none were asked
            for.
    """

    mean: np.ndarray
    scale: np.ndarray
    kept: np.ndarray
    features: np.ndarray
    correlation: np.ndarray


def survey(
    rows: Rows, trained: np.ndarray, kept: np.ndarray, *, correlate: bool = True
) -> tuple[Survey, np.ndarray]:
    """Return what one pass says of training samples, and which of all samples are not finite.

    Args:
        rows: All samples, those that judge the head among them.
        trained: Numbers of those that train it, ascending, ``(N,)``.
        kept: Which of the training samples to keep, ascending: their places in ``trained``.
        correlate: Look at correlations too.
    """
    moments, bad = Moments(rows.shape[1]), []
    products = _Products(rows.shape[1] if correlate else 0, len(trained))
    features = np.empty((len(kept), rows.shape[1]), np.float32)
    wanted = trained[kept]
    for where, values in rows.blocks():
        finite = np.isfinite(values).all(axis=1)
        bad.append(where.start + np.flatnonzero(~finite))
        own = _inside(trained, where)
        if len(own):
            some = values if len(own) == len(values) else values[own]
            with np.errstate(invalid="ignore"):  # the caller hears of what is not finite
                moments.add(some)
                products.add(some)
        low, high = np.searchsorted(wanted, [where.start, where.stop])
        features[low:high] = values[wanted[low:high] - where.start]
    with np.errstate(invalid="ignore"):
        mean, scale = moments.standardisation()
        correlation = products.covariance()
        if correlation.size:
            correlation /= scale[:, None] * scale
    return Survey(mean, scale, kept, features, correlation), np.concatenate(bad)


class _Products:
    """Covariance of features, from every so-many-th sample.

    Args:
        num_features: Above 2,048 nothing is summed up.
        num_samples: That will come.
    """

    def __init__(self, num_features: int, num_samples: int) -> None:
        width = num_features if num_features <= MOST_CORRELATED else 0
        self._squares, self._sum = np.zeros((width, width)), np.zeros(width)
        enough = max(_ROWS_AT_LEAST, _ROWS_PER_FEATURE * num_features)
        self._step = max(1, -(-num_samples // enough))
        self._seen, self._count = 0, 0
        self._shift: np.ndarray | None = None

    def add(self, block: np.ndarray) -> None:
        """Take in the next samples, ``(n, num_features)``."""
        some = block[-self._seen % self._step :: self._step]
        self._seen += len(block)
        if not (len(some) and len(self._sum)):
            return
        if self._shift is None:  # about where the mean is, so that little cancels
            self._shift = some.mean(axis=0)
        some = some - self._shift
        self._squares += some.T @ some
        self._sum += some.sum(axis=0)
        self._count += len(some)

    def covariance(self) -> np.ndarray:
        """Return it, ``(num_features, num_features)``, or empty."""
        mean = self._sum / self._count if len(self._sum) else self._sum
        covariance: np.ndarray = self._squares / max(1, self._count) - np.outer(mean, mean)
        return covariance


def _inside(numbers: np.ndarray, where: slice) -> np.ndarray:
    """Return those of ascending numbers that are in a range, counted from its start."""
    low, high = np.searchsorted(numbers, [where.start, where.stop])
    inside: np.ndarray = numbers[low:high] - where.start
    return inside
