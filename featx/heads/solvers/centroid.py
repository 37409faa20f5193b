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

from featx.heads.head import NEVER, Layer, silence_absent
from featx.heads.samples.folds import HeldOut, divide_to_leave_out, every_so_many, rows_of_classes

_BLOCK_ROWS, _BLOCK_VALUES = 4096, 2**23


@dataclass(frozen=True, eq=False)
class CentroidFit:
    """A fitted nearest-centroid head.

    Attributes:
        layer: For raw features.
        held_out: What each sample is given by the centroids without it, or without its fold where
            samples are in groups; None where none can be left out.
    """

    layer: Layer
    held_out: HeldOut | None


def fit_centroid(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> CentroidFit:
    """Return the layer whose largest logit is the largest cosine.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; with groups folds are left out.
        seed: Decides the folds.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    every = Centroids(features.mean(axis=0, dtype=np.float64), num_classes)
    samples = (*every.centred(features), labels, weights)
    every.add(*samples)
    division = divide_to_leave_out(labels, groups=groups, seed=seed)
    if division is None:
        return CentroidFit(every.layer(), None)
    parts = [np.flatnonzero(division.fold == fold) for fold in division.judged]
    every_nth = every_so_many(int(division.held_out.sum()), num_classes)
    if groups is None:
        at_once = min(_BLOCK_ROWS, max(256, _BLOCK_VALUES // num_classes))
        parts = np.array_split(parts[0], -(-len(parts[0]) // at_once))
    outputs = []
    for rows in parts:
        own = tuple(each[rows] for each in samples)
        if groups is None:
            outputs.append(every.without_own(*own)[::every_nth].copy())
            continue
        part = every.empty()
        part.add(*own)
        outputs.append(every.without(part).logits(own[0])[::every_nth].copy())
    held_out = HeldOut(
        np.concatenate(outputs),
        labels[np.concatenate([rows[::every_nth] for rows in parts])],
        0 if groups is None else len(division.judged),
    )
    return CentroidFit(every.layer(), held_out)


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

    def empty(self) -> Centroids:
        """Return the sums over no samples, of features with the same mean."""
        return Centroids(self._mean, len(self._counts))

    def without(self, part: Centroids) -> Centroids:
        """Return the sums over the samples that are not in a part."""
        rest = self.empty()
        rest._sums, rest._counts = self._sums - part._sums, self._counts - part._counts
        rest._length = self._length - part._length
        return rest

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
        for label, rows in rows_of_classes(labels):
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

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return ``(n, num_classes)`` of centred samples ``(n, num_features)``."""
        weight, _, _ = self._weight()
        logits: np.ndarray = x @ weight.T + np.where(self._counts > 0, 0, NEVER)
        return logits

    def without_own(
        self, x: np.ndarray, lengths: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Return what centred samples are given by the centroids without them, each by itself.

        Args:
            x: ``(n, num_features)``.
            lengths: ``(n,)``.
            labels: ``(n,)``.
            weights: What each counts, ``(n,)``.

        Returns:
            ``(n, num_classes)``.
        """
        _, norms, usual = self._weight()
        logits = self.logits(x)
        rows = np.arange(len(labels))
        product = logits[rows, labels] * norms[labels] * usual / lengths  # own sum, own direction
        rest = norms[labels] ** 2 - 2 * weights * product + weights**2
        known = rest > 1e-9 * weights**2  # more than the sample itself
        own = (product - weights) / np.sqrt(np.where(known, rest, 1))
        logits[rows, labels] = np.where(known, own, -1) * lengths / usual
        return logits
