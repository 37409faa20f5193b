"""Standardised features and the eigenbasis of their covariance, where solvers work.

A penalty on the squared weights does not see a rotation, and in this basis the Hessian of a linear
model is nearly diagonal. Directions without variance carry no weight at the optimum and are left
out, so 4,096 features of 245 images cost no more than 245.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from featx.heads.head import Layer, fold_standardisation
from featx.heads.samples.data import Blocks, Step, TrainingData, no_step
from featx.heads.samples.statistics import MOST_CORRELATED

T = TypeVar("T")
_LITTLE_CANCELS = 4
"""Distance of a mean from 0, in deviations, up to which products of raw features are precise."""
_DOUBLE_UP_TO = 2**22
"""Number of values up to which features are standardised in float64, above in float32."""
_ROWS_FOR_COVARIANCE = 2**14
_ROUNDING = 1e-7
"""Share of the largest variance below which a variance is rounding."""


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Standardised samples, and a basis in which their coordinates are uncorrelated.

    Samples ``(N, width)`` are float32 or float64: the standardised features, or, where these are
    wider than samples are many, their coordinates in the basis.
    """

    samples: np.ndarray | StandardisedBlocks
    directions: np.ndarray  # orthonormal columns, (num_features, rank) float64
    variances: np.ndarray  # along each direction, (rank,) float64
    rotated: bool  # whether the samples are coordinates
    mean: np.ndarray  # of the raw features, (num_features,)
    scale: np.ndarray  # of the raw features, (num_features,)

    @property
    def array(self) -> np.ndarray:
        """The samples, where they are in memory."""
        assert isinstance(self.samples, np.ndarray)
        return self.samples

    def to_samples(self, weight: np.ndarray) -> np.ndarray:
        """Convert weights ``(*, rank)`` of the basis to ``(*, width)`` of the samples."""
        return weight if self.rotated else weight @ self.directions.T

    def from_samples(self, gradient: np.ndarray) -> np.ndarray:
        """Convert a gradient ``(*, width)`` by weights of the samples to ``(*, rank)``."""
        return gradient if self.rotated else gradient @ self.directions

    def layer(self, weight: np.ndarray, bias: np.ndarray) -> Layer:
        """Return the layer for raw features of one in the basis, ``(num_classes, rank)``."""
        return fold_standardisation((weight @ self.directions.T, bias), self.mean, self.scale)


def build_eigenbasis(data: TrainingData) -> tuple[Eigenbasis, Eigenbasis]:
    """Return standardised features with their basis, and the same for the subsample alone.

    Above 2,048 dimensions the decomposition would cost more than it saves: the basis is then that
    of the features themselves.
    """
    mean, scale = data.standardisation()
    if not isinstance(data.features, np.ndarray):
        return _of_blocks(data, data.features)
    samples = standardise(data.features, mean, scale)
    n, d = samples.shape
    if min(n, d) > MOST_CORRELATED:
        basis = Eigenbasis(samples, np.eye(d), np.ones(d), True, mean, scale)
    elif d <= n:
        some = samples[:: -(-n // _ROWS_FOR_COVARIANCE)]
        variances, directions = _decompose((some.T @ some).astype(np.float64) / len(some))
        basis = Eigenbasis(samples, directions, variances, False, mean, scale)
    else:
        samples, directions, variances = rotate(samples)
        basis = Eigenbasis(samples, directions, variances, True, mean, scale)
    return basis, basis


def rotate(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return coordinates, directions and variances of samples with more features than samples.

    They are ``(N, rank)``, ``(num_features, rank)`` and ``(rank,)`` float64.
    """
    samples = samples.astype(np.float64)
    variances, vectors = np.linalg.eigh(samples @ samples.T / len(samples))
    keep = variances > 1e-10 * max(float(variances[-1]), 1e-300)
    variances = variances[keep]
    directions = samples.T @ vectors[:, keep] / np.sqrt(variances * len(samples))
    return samples @ directions, directions, variances


def _of_blocks(data: TrainingData, blocks: Blocks) -> tuple[Eigenbasis, Eigenbasis]:
    mean, scale = data.standardisation()
    _, subsample = data.subsample()
    some = standardise(subsample.array, mean, scale)
    d = some.shape[1]
    directions, variances, rotated = np.eye(d), np.ones(d), True
    if data.first_pass and data.first_pass.correlation.size:
        variances, directions = _decompose(data.first_pass.correlation)
        rotated = False
    basis = Eigenbasis(some, directions, variances, rotated, mean, scale)
    every = StandardisedBlocks(blocks, mean, scale, some.astype(np.float32, copy=False))
    return replace(basis, samples=every), basis


def _decompose(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return variances and directions of a covariance of standardised features."""
    variances, directions = np.linalg.eigh(covariance)
    least = _ROUNDING * max(float(variances[-1]), 1e-300)
    return np.maximum(variances, least), directions


class StandardisedBlocks:
    """Standardised features that are read block by block; ``some`` of them are in memory."""

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        features: Blocks,
        mean: np.ndarray,
        scale: np.ndarray,
        some: np.ndarray | None = None,
    ) -> None:
        self._features, self._standard = features, (mean, scale)
        self.some = np.empty((0, len(mean)), np.float32) if some is None else some
        self._shift, self._factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
        self._can_wait = bool((np.abs(mean) <= _LITTLE_CANCELS * scale).all())

    def __len__(self) -> int:
        return self._features.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples, and features of each."""
        return self._features.shape

    @property
    def num_pieces(self) -> int:
        """Parts that can be read in any order."""
        return self._features.num_pieces

    @property
    def bytes_read(self) -> int:
        """Bytes of features read."""
        return self._features.bytes_read

    def only(self, rows: np.ndarray) -> StandardisedBlocks:
        """Return some samples; ``rows`` ``(n,)`` are ascending."""
        return StandardisedBlocks(self._features.only(rows), *self._standard, self.some)

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield as ``Blocks.blocks``, standardised ``(n, num_features)``."""
        for where, values in self._features.blocks(order):
            values -= self._shift  # noqa: PLW2901
            values *= self._factor  # noqa: PLW2901
            yield where, values

    def each_part(
        self, work: Callable[..., T], *columns: np.ndarray, step: Step = no_step
    ) -> Iterator[T]:
        """Yield as ``Blocks.each_part``, with the blocks standardised."""
        standardised = partial(_standardised, work, self._standard)
        return self._features.each_part(standardised, *columns, step=step)

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
        return scaled, offset - (self._shift @ scaled)[:, None], self._features.blocks()

    def gradient(self, by_weight: np.ndarray, by_bias: np.ndarray) -> np.ndarray:
        """Return the gradient ``(m, width)`` by weight, of sums over the blocks ``for_product``."""
        if not self._can_wait:
            return by_weight
        return np.asarray((by_weight - by_bias.reshape(-1, 1) * self._shift) * self._factor)


def _standardised(
    work: Callable[..., T], standard: tuple[np.ndarray, np.ndarray], features: Blocks, *columns: Any
) -> T:
    return work(StandardisedBlocks(features, *standard), *columns)


def standardise(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return standardised features ``(N, num_features)``, in float64 where these are few."""
    if features.size <= _DOUBLE_UP_TO:
        return np.ascontiguousarray((features - mean) / scale)
    shift, factor = mean.astype(np.float32), (1 / scale).astype(np.float32)
    samples = np.empty(features.shape, np.float32)
    for start in range(0, len(features), 1024):
        rows = slice(start, start + 1024)
        np.subtract(features[rows], shift, out=samples[rows])
        samples[rows] *= factor
    return samples
