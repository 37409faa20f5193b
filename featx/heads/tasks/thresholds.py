"""From which probability on a tag is given: where its F1 score is best on held-out samples."""

from __future__ import annotations

import numpy as np

from featx.heads.metrics.multi_label import sigmoid

EVEN = 0.5
"""Of a tag that says nothing about where a better one would be."""


def choose_thresholds(logits: np.ndarray, tags: np.ndarray) -> tuple[float, ...]:
    """Return the threshold of each tag with the best F1 score, in (0, 1).

    A threshold is 0.5 where that lies between the same two neighbouring probabilities, else half
    way between them, so that rounding does not decide about a sample. Of equally good ones the
    nearest to 0.5 is taken; 0.5 where no sample has the tag, or all have it.

    Args:
        logits: Of samples a head was not trained on, ``(num_samples, num_tags)``, floating.
        tags: Which these have, ``(num_samples, num_tags)``, 0 or 1.
    """
    probabilities = sigmoid(logits.astype(np.float64))
    return tuple(
        _best_threshold(own, has > 0) for own, has in zip(probabilities.T, tags.T, strict=True)
    )


def _best_threshold(probabilities: np.ndarray, has: np.ndarray) -> float:
    positives = int(has.sum())
    if positives in (0, len(has)):
        return EVEN
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    cuts = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # last of those above
    below = np.append(ranked[1:], 0.0)[cuts]
    above = ranked[cuts]
    scores = 2 * np.cumsum(has[order])[cuts] / (cuts + 1 + positives)
    best = np.flatnonzero(scores == scores.max())
    away = np.maximum(0, np.maximum(below - EVEN, EVEN - above))[best]
    nearest = best[np.argmin(away)]
    low, high = float(below[nearest]), float(above[nearest])
    middle = (low + high) / 2
    return middle if low < middle < high and not low < EVEN <= high else EVEN
