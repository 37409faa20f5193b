"""Mean and standard deviation of each feature, from blocks of samples."""

from __future__ import annotations

import numpy as np


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

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of each feature, ``(num_features,)``; 1 where it is constant."""
        scale = np.sqrt(self._squares / self._count)
        constant = scale <= 1e-7 * np.abs(self._mean) + 1e-30  # rounding of its value, or nothing
        return self._mean, np.where(constant, 1.0, scale)
