"""Standardised features and the eigenbasis of their covariance, where solvers work.

A penalty on the squared weights does not see a rotation, and in this basis the Hessian of a linear
model is nearly diagonal. Directions without variance carry no weight at the optimum and are left
out, so 4,096 features of 245 images cost no more than 245.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.heads.head import Layer, fold_standardisation, standardisation

_ROTATE_UP_TO = 2048
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
            where these are wider than samples are many, their coordinates in the basis.
        directions: The basis in the space of standardised features, ``(num_features, rank)``
            float64, orthonormal columns.
        variances: Of the samples along each direction, ``(rank,)`` float64.
        rotated: The samples are coordinates already.
        mean: Of the raw features, ``(num_features,)``.
        scale: Of the raw features, ``(num_features,)``.
    """

    samples: np.ndarray
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
    if min(n, d) > _ROTATE_UP_TO:
        return Basis(samples, np.eye(d), np.ones(d), True, mean, scale)
    if d <= n:
        some = samples[:: -(-n // _ROWS_FOR_COVARIANCE)]
        variances, directions = np.linalg.eigh((some.T @ some).astype(np.float64) / len(some))
        floor = _ROUNDING * max(float(variances[-1]), 1e-300)
        return Basis(samples, directions, np.maximum(variances, floor), False, mean, scale)
    samples = samples.astype(np.float64)
    variances, vectors = np.linalg.eigh(samples @ samples.T / n)
    keep = variances > 1e-10 * max(float(variances[-1]), 1e-300)
    variances = variances[keep]
    directions = samples.T @ vectors[:, keep] / np.sqrt(variances * n)
    return Basis(samples @ directions, directions, variances, True, mean, scale)


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
