"""Standardised features and the eigenbasis of their covariance, where solvers work.

A penalty on the squared weights does not see a rotation, and in this basis the Hessian of a linear
model is nearly diagonal. Directions without variance carry no weight at the optimum and are left
out, so 4,096 features of 245 images cost no more than 245.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from featx.heads.head import Layer, fold_standardisation, standardisation
from featx.heads.samples.rows import MOST_CORRELATED, Rows, Survey

_LITTLE_CANCELS = 4
"""Deviations that a mean may be away from 0, for products of raw features to be precise enough."""
_DOUBLE_UP_TO = 2**22
"""Values in the features: as many are kept in float64; of more, float32 is precise enough."""
_ROWS_FOR_COVARIANCE = 2**14
_ROUNDING = 1e-7
"""Smallest share of the largest variance that is told from none."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Standardised samples, and a basis in which their coordinates are uncorrelated.

    Attributes:
        samples: ``(N, width)`` float32 or float64, C-contiguous: the standardised features, or,
            where these are wider than samples are many, their coordinates in the basis. Those that
            do not fit into memory come block by block.
        directions: The basis in the space of standardised features, ``(num_features, rank)``
            float64, orthonormal columns.
        variances: Of the samples along each direction, ``(rank,)`` float64.
        rotated: The samples are coordinates already.
        mean: Of the raw features, ``(num_features,)``.
        scale: Of the raw features, ``(num_features,)``.
    """

    samples: np.ndarray | StandardisedRows
    directions: np.ndarray
    variances: np.ndarray
    rotated: bool
    mean: np.ndarray
    scale: np.ndarray

    def to_samples(self, weight: np.ndarray) -> np.ndarray:
        """Return weights ``(*, rank)`` of the basis as weights ``(*, width)`` of the samples."""
        return weight if self.rotated else weight @ self.directions.T

    def from_samples(self, gradient: np.ndarray) -> np.ndarray:
        """Return a gradient ``(*, width)`` by sample weights as one by the basis, ``(*, rank)``."""
        return gradient if self.rotated else gradient @ self.directions

    def samples_at(self, rows: np.ndarray) -> np.ndarray:
        """Return some samples ``(n, width)`` of those in memory.

        Raises:
            TypeError: The samples are not in memory.
        """
        if isinstance(self.samples, np.ndarray):
            chosen: np.ndarray = self.samples[rows]
            return chosen
        raise TypeError("these samples are read block by block")

    def layer(self, weight: np.ndarray, bias: np.ndarray) -> Layer:
        """Return the layer for raw features.

        Args:
            weight: In the basis, ``(num_classes, rank)``.
            bias: ``(num_classes,)``.
        """
        return fold_standardisation((weight @ self.directions.T, bias), self.mean, self.scale)


def build_basis(features: np.ndarray) -> Basis:
    """Return raw features ``(N, num_features)`` standardised, with the basis for them.

    Above 2,048 dimensions the decomposition would cost more than it saves: the basis is then that
    of the features themselves.
    """
    mean, scale = standardisation(features)
    samples = standardise(features, mean, scale)
    n, d = samples.shape
    if min(n, d) > MOST_CORRELATED:
        return Basis(samples, np.eye(d), np.ones(d), True, mean, scale)
    if d <= n:
        some = samples[:: -(-n // _ROWS_FOR_COVARIANCE)]
        variances, directions = _eigenbasis((some.T @ some).astype(np.float64) / len(some))
        return Basis(samples, directions, variances, False, mean, scale)
    samples = samples.astype(np.float64)
    variances, vectors = np.linalg.eigh(samples @ samples.T / n)
    keep = variances > 1e-10 * max(float(variances[-1]), 1e-300)
    variances = variances[keep]
    directions = samples.T @ vectors[:, keep] / np.sqrt(variances * n)
    return Basis(samples @ directions, directions, variances, True, mean, scale)


class StandardisedRows:
    """Standardised features that are read block by block.

    Args:
        rows: Raw.
        mean: ``(num_features,)``.
        scale: ``(num_features,)``, above 0.
        some: A sample of them, standardised, ``(n, num_features)`` float32.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, rows: Rows, mean: np.ndarray, scale: np.ndarray, some: np.ndarray) -> None:
        self._rows, self.some = rows, some
        self.shift, self._factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
        self._can_wait = bool((np.abs(mean) <= _LITTLE_CANCELS * scale).all())

    def __len__(self) -> int:
        return self._rows.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples, and features of each."""
        return self._rows.shape

    @property
    def num_pieces(self) -> int:
        """Parts that can be read in any order."""
        return self._rows.num_pieces

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield as ``Rows.blocks``, standardised ``(n, num_features)``."""
        for where, values in self._rows.blocks(order):
            values -= self.shift  # noqa: PLW2901
            values *= self._factor  # noqa: PLW2901
            yield where, values

    def for_product(
        self, columns: np.ndarray, offset: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Iterator[tuple[slice, np.ndarray]]]:
        """Return weights ``(width, m)`` and biases ``(m, 1)``, and the blocks that they are for.

        Where means are not much larger than deviations, the features stay raw, which saves touching
        each of them twice, and the weights are changed instead.
        """
        if not self._can_wait:
            return columns, offset, self.blocks()
        scaled = columns * self._factor[:, None]
        return scaled, offset - (self.shift @ scaled)[:, None], self._rows.blocks()

    def gradient(self, by_weight: np.ndarray, by_bias: np.ndarray) -> np.ndarray:
        """Return the gradient ``(m, width)`` by weight, of sums over the blocks ``for_product``."""
        if not self._can_wait:
            return by_weight
        gradient: np.ndarray = (by_weight - by_bias.reshape(-1, 1) * self.shift) * self._factor
        return gradient


def build_basis_of_rows(rows: Rows, survey: Survey) -> tuple[Basis, Basis]:
    """Return features that are read block by block, standardised, with the basis for them.

    The second is the same basis for the samples that the survey kept.

    Args:
        rows: Raw features of the training samples, more of them than features.
        survey: Of the same.
    """
    mean, scale = survey.mean, survey.scale
    some = standardise(survey.features, mean, scale)
    if survey.correlation.size:
        variances, directions = _eigenbasis(survey.correlation)
        rotated = False
    else:
        directions, variances, rotated = np.eye(some.shape[1]), np.ones(some.shape[1]), True
    every = StandardisedRows(rows, mean, scale, some.astype(np.float32, copy=False))
    kept = Basis(some, directions, variances, rotated, mean, scale)
    return Basis(every, directions, variances, rotated, mean, scale), kept


def _eigenbasis(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances and directions of a covariance of standardised features."""
    variances, directions = np.linalg.eigh(covariance)
    floor = _ROUNDING * max(float(variances[-1]), 1e-300)
    return np.maximum(variances, floor), directions


def standardise(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return standardised features ``(N, num_features)``, in float64 where that is small.

    Args:
        features: Raw, ``(N, num_features)``.
        mean: ``(num_features,)``.
        scale: ``(num_features,)``, above 0.
    """
    if features.size <= _DOUBLE_UP_TO:
        return np.ascontiguousarray((features - mean) / scale)
    shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
    samples = np.empty(features.shape, np.float32)
    for start in range(0, len(features), 1024):
        rows = slice(start, start + 1024)
        np.subtract(features[rows], shift, out=samples[rows])
        samples[rows] *= factor
    return samples
