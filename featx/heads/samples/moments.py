"""Mean and standard deviation of each feature, from blocks of samples."""

from __future__ import annotations

import numpy as np

_PRIOR_SAMPLES = 5
_LEAST_VARIATION = 1e-3
"""Of the usual feature, relative to its mean: where samples differ by less, they hardly differ."""


class Moments:
    """Mean and standard deviation of each feature, block by block.

    Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance" (1983).
    """

    def __init__(self, num_features: int) -> None:
        self._mean, self._squares = np.zeros((2, num_features))  # squares: of differences to it
        self._count = 0

    def add(self, block: np.ndarray) -> None:
        """Take in ``(n, num_features)`` more samples."""
        wide = block.astype(np.float64)
        self._count += len(block)
        here = wide.mean(axis=0)
        wide -= here
        share, before = len(block) / self._count, self._count - len(block)
        between = (here - self._mean) ** 2 * before * share
        self._squares += np.einsum("nd,nd->d", wide, wide) + between
        self._mean += (here - self._mean) * share

    def deviation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation, ``(num_features,)``; 1 where it is constant."""
        deviation = np.sqrt(self._squares / self._count)
        return self._mean, np.where(self._constant(deviation), 1.0, deviation)

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of each feature, ``(num_features,)``.

        The scale is the standard deviation as if five more samples had varied as the usual feature
        does, and that of the usual feature where it is constant. This hardly changes it where
        samples are many, and keeps a feature from counting for much because few samples happen to
        agree in it.

        Source: Smyth, "Linear Models and Empirical Bayes Methods for Assessing Differential
        Expression" (2004), which shrinks variances to a common one like this.
        """
        deviation = np.sqrt(self._squares / self._count)
        varies = ~self._constant(deviation)
        if not varies.any():
            return self._mean, np.ones_like(deviation)
        usual = max(_middle(deviation[varies]), _LEAST_VARIATION * _middle(np.abs(self._mean)))
        variance = (self._squares + _PRIOR_SAMPLES * usual**2) / (self._count + _PRIOR_SAMPLES)
        return self._mean, np.where(varies, np.sqrt(variance), usual)

    def _constant(self, deviation: np.ndarray) -> np.ndarray:
        """Return which features are constant but for rounding, ``(num_features,)`` bool."""
        constant: np.ndarray = deviation <= 1e-7 * np.abs(self._mean) + 1e-30
        return constant


def _middle(values: np.ndarray) -> float:
    """Return the median of ``(n,)`` values, of two in the middle the lower one."""
    return float(np.sort(values)[(len(values) - 1) // 2])
