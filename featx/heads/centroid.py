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
    mean = features.mean(axis=0, dtype=np.float64)
    x = features - mean.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    lengths = np.maximum(lengths, 1e-30)
    shares = weights / lengths
    sums = np.zeros((num_classes, features.shape[1]))
    for label in np.unique(labels):
        rows = labels == label
        sums[label] = shares[rows] @ x[rows].astype(np.float64)
    norms = np.maximum(np.linalg.norm(sums, axis=1), 1e-30)
    usual = float(lengths.mean())
    weight = sums / norms[:, None] / usual
    layer = weight.astype(np.float32), (-weight @ mean).astype(np.float32)
    layer = silence_absent(layer, labels)
    logits = x @ weight.T + np.where(norms > 1e-30, 0, layer[1])
    rows = np.arange(len(labels))
    product = logits[rows, labels] * norms[labels] * usual / lengths  # of own sum and own direction
    rest = norms[labels] ** 2 - 2 * weights * product + weights**2
    known = rest > 1e-9 * weights**2  # more than the sample itself
    own = (product - weights) / np.sqrt(np.where(known, rest, 1))
    logits[rows, labels] = np.where(known, own, -1) * lengths / usual
    return CentroidFit(layer, HeldOut(logits, labels))
