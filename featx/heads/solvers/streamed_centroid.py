"""Nearest centroid by cosine, on features that are read block by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featx.heads.samples.folds import HeldOut, divide_to_leave_out
from featx.heads.samples.rows import Rows, Survey
from featx.heads.solvers.centroid import CentroidFit, Centroids


def fit_centroid_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    survey: Survey,
    *,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> CentroidFit:
    """Return the layer whose largest logit is the largest cosine, by one more pass.

    Args:
        rows: Raw features of the training samples, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        survey: Of the rows; what it kept, and is left out, is what comes back as held out.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; with groups folds are left out.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    division = divide_to_leave_out(labels, groups=groups, seed=seed)
    folds = division.judged if division else np.zeros(0, np.int64)
    every = Centroids(survey.mean, num_classes)
    parts = [every.empty() for _ in folds] if groups is not None else []
    for where, values in rows.blocks():
        if step:
            step(f"{where.stop:,} of {len(labels):,} samples")
        samples = (*every.centred(values), labels[where], weights[where])
        every.add(*samples)
        if division:
            for fold, part in zip(folds[: len(parts)], parts, strict=True):
                part.add(*(each[division.fold[where] == fold] for each in samples))
    if division is None:
        return CentroidFit(every.layer(), None)
    kept = survey.kept
    samples = (*every.centred(survey.features), labels[kept], weights[kept])
    outputs, held_labels = [], []
    for number, fold in enumerate(folds):
        own = tuple(each[division.fold[kept] == fold] for each in samples)
        rest = every.without(parts[number]) if parts else every
        outputs.append(rest.logits(own[0]) if parts else every.without_own(*own))
        held_labels.append(own[2])
    held_out = HeldOut(np.concatenate(outputs), np.concatenate(held_labels), len(parts))
    return CentroidFit(every.layer(), held_out if len(held_out.labels) else None)
