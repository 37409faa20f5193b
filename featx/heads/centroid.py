"""Nearest centroid by cosine: nothing to choose, and a fair first guess with few samples.

Features are centred by their mean and scaled to length 1; a class's centroid is the direction of
the mean of its samples. The largest cosine wins. A linear layer cannot scale to length 1, so its
logits are the cosines times the length of the centred features, which puts the classes in the same
order.

Source: Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning"
(2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.heads.folds import HeldOut
from featx.heads.head import Layer, silence_absent


@dataclass(frozen=True, eq=False)
class CentroidFit:
    """A fitted nearest-centroid head.

    Attributes:
        layer: For raw features.
        held_out: What each sample is given by the centroids without it.
    """

    layer: Layer
    held_out: HeldOut


def fit_centroid(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    weights: np.ndarray | None = None,
) -> CentroidFit:
    """Return the layer whose largest logit is the largest cosine.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    centroids = Centroids(features.mean(axis=0, dtype=np.float64), num_classes)
    x, lengths = centroids.centred(features)
    centroids.add(x, lengths, labels, weights)
    return CentroidFit(centroids.layer(), centroids.without_own(x, lengths, labels, weights))


class Centroids:
    """Sums over the samples of each class, from which everything else follows.

    Args:
        mean: Of the features, ``(num_features,)`` float64.
        num_classes: Outputs of the head.
    """

    def __init__(self, mean: np.ndarray, num_classes: int) -> None:
        self._mean, self._sums = mean, np.zeros((num_classes, len(mean)))
        self._counts = np.zeros(num_classes, np.int64)
        self._length = 0.0

    def centred(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return raw features ``(n, num_features)`` centred, and their lengths ``(n,)``."""
        x = features - self._mean.astype(np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
        return x, np.maximum(lengths, 1e-30)

    def add(
        self, x: np.ndarray, lengths: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> None:
        """Take in centred samples ``(n, num_features)``."""
        shares = weights / lengths
        for label in np.unique(labels):
            rows = labels == label
            self._sums[label] += shares[rows] @ x[rows].astype(np.float64)
        self._length += lengths.sum()
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def _weight(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the weight ``(num_classes, num_features)``, norms of the sums, usual length."""
        norms = np.maximum(np.linalg.norm(self._sums, axis=1), 1e-30)
        usual = float(self._length / self._counts.sum())
        return self._sums / norms[:, None] / usual, norms, usual

    def layer(self) -> Layer:
        """Return the layer for raw features."""
        weight, _, _ = self._weight()
        layer = weight.astype(np.float32), (-weight @ self._mean).astype(np.float32)
        return silence_absent(layer, np.repeat(np.arange(len(self._counts)), self._counts > 0))

    def without_own(
        self, x: np.ndarray, lengths: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> HeldOut:
        """Return what centred samples are given by the centroids without them.

        Args:
            x: ``(n, num_features)``.
            lengths: ``(n,)``.
            labels: ``(n,)``.
            weights: What each counts, ``(n,)``.
        """
        weight, norms, usual = self._weight()
        logits = x @ weight.T + np.where(norms > 1e-30, 0, self.layer()[1])
        rows = np.arange(len(labels))
        product = logits[rows, labels] * norms[labels] * usual / lengths  # own sum, own direction
        rest = norms[labels] ** 2 - 2 * weights * product + weights**2
        known = rest > 1e-9 * weights**2  # more than the sample itself
        own = (product - weights) / np.sqrt(np.where(known, rest, 1))
        logits[rows, labels] = np.where(known, own, -1) * lengths / usual
        return HeldOut(logits, labels)
