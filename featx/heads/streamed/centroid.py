"""Nearest centroid by cosine, on features that are read block by block."""

from __future__ import annotations

import numpy as np

from featx.heads.centroid import CentroidFit, Centroids
from featx.heads.rows import Rows, Survey


def fit_centroid_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    survey: Survey,
    *,
    weights: np.ndarray | None = None,
) -> CentroidFit:
    """Return the layer whose largest logit is the largest cosine, by one more pass.

    Args:
        rows: Raw features of the training samples, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        survey: Of the rows; what it kept is judged without itself.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    centroids = Centroids(survey.mean, num_classes)
    for where, values in rows.blocks():
        centroids.add(*centroids.centred(values), labels[where], weights[where])
    kept = survey.kept
    held_out = centroids.without_own(
        *centroids.centred(survey.features), labels[kept], weights[kept]
    )
    return CentroidFit(centroids.layer(), held_out)
