"""Statistics of features, updated block by block or part by part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MOST_CORRELATED = 2048
"""Features above which correlations cost more than they save."""
_ROWS_AT_LEAST, _ROWS_PER_FEATURE = 2**14, 8
"""Samples from which correlations are estimated."""
_PRIOR_SAMPLES = 5
_LEAST_VARIATION = 1e-3
"""Deviation of the usual feature, relative to its mean, below which samples hardly differ."""
_BLOCK_ROWS = 1024


def standardisation(
    features: np.ndarray, *, num_versions: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and scale of each feature, ``(num_features,)`` float64 each; see ``Moments``."""
    moments = Moments(features.shape[1])
    for start in range(0, len(features), _BLOCK_ROWS):
        moments.add(features[start : start + _BLOCK_ROWS])
    return moments.standardisation(num_versions=num_versions)


class Moments:
    """Mean and standard deviation of each feature, updated block by block.

    Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance" (1983).
    """

    def __init__(self, num_features: int) -> None:
        self._mean, self._squares = np.zeros((2, num_features))  # squares: of differences to it
        self._count = 0

    def add(self, block: np.ndarray) -> None:
        """Add samples, ``(n, num_features)``."""
        wide = block.astype(np.float64)
        here = wide.mean(axis=0)
        wide -= here
        self._add(len(block), here, np.einsum("nd,nd->d", wide, wide))

    def merge(self, other: Moments) -> None:
        """Add the samples of another."""
        if other._count:
            self._add(other._count, other._mean, other._squares)

    def _add(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        self._count += count
        share, before = count / self._count, self._count - count
        between = (mean - self._mean) ** 2 * before * share
        self._squares += squares + between
        self._mean += (mean - self._mean) * share

    def deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, ``(num_features,)``; 1 where it is constant."""
        deviation = np.sqrt(self._squares / self._count)
        return self._mean, np.where(self._constant(deviation), 1.0, deviation)

    def standardisation(self, *, num_versions: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of each feature, ``(num_features,)``.

        The scale is the standard deviation as if five more samples had varied as the usual feature
        does, and that of the usual feature where it is constant. This hardly changes it where
        samples are many, and keeps a feature from counting for much because few samples happen to
        agree in it. Several versions of a sample count as one.

        Source: Smyth, "Linear Models and Empirical Bayes Methods for Assessing Differential
        Expression" (2004), which shrinks variances to a common one like this.
        """
        deviation = np.sqrt(self._squares / self._count)
        varies = ~self._constant(deviation)
        if not varies.any():
            return self._mean, np.ones_like(deviation)
        usual = max(
            _lower_median(deviation[varies]), _LEAST_VARIATION * _lower_median(np.abs(self._mean))
        )
        squares, count = self._squares / num_versions, self._count / num_versions
        variance = (squares + _PRIOR_SAMPLES * usual**2) / (count + _PRIOR_SAMPLES)
        return self._mean, np.where(varies, np.sqrt(variance), usual)

    def _constant(self, deviation: np.ndarray) -> np.ndarray:
        """Return which features are constant but for rounding, ``(num_features,)`` bool."""
        return np.asarray(deviation <= 1e-7 * np.abs(self._mean) + 1e-30)


def _lower_median(values: np.ndarray) -> float:
    """Return the median of ``(n,)`` values, of two in the middle the lower one."""
    return float(np.sort(values)[(len(values) - 1) // 2])


class Covariance:
    """Covariance of features, estimated from every so-many-th sample."""

    def __init__(self, num_features: int, num_samples: int) -> None:
        width = num_features if num_features <= MOST_CORRELATED else 0
        self._squares, self._sum = np.zeros((width, width)), np.zeros(width)
        enough = max(_ROWS_AT_LEAST, _ROWS_PER_FEATURE * num_features)
        self._step = max(1, -(-num_samples // enough))
        self._seen, self._count = 0, 0
        self._shift: np.ndarray | None = None

    def add(self, block: np.ndarray) -> None:
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

    @staticmethod
    def of_all(parts: Sequence[Covariance]) -> np.ndarray:
        """Return that of the samples of all, ``(num_features, num_features)``, or empty."""
        parts = [part for part in parts if part._count] or list(parts[:1])
        total = max(1, sum(part._count for part in parts))
        means = [part._sum / max(1, part._count) for part in parts]  # less what was shifted
        places = [
            0 if p._shift is None else p._shift + m for p, m in zip(parts, means, strict=True)
        ]
        centre = sum(p._count / total * place for p, place in zip(parts, places, strict=True))
        found = np.zeros_like(parts[0]._squares)
        for part, mean, place in zip(parts, means, places, strict=True):
            own = part._squares / max(1, part._count) - np.outer(mean, mean)
            away = place - centre
            found += part._count / total * (own + np.outer(away, away))
        return found
