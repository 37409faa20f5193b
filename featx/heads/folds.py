"""Dividing training samples for selection: the same share of each class in every part."""

from __future__ import annotations

import numpy as np


def stratified_folds(labels: np.ndarray, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """Return the fold of each sample, ``(N,)`` int64 in ``[0, num_folds)``.

    Classes are dealt out one after the other, so fold sizes differ by at most one sample, and a
    class's counts differ by at most one between folds.

    Args:
        labels: Class indices, ``(N,)``.
        num_folds: At least 2.
        seed: Decides which samples of a class go where.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), dtype=np.int64)
    folds[by_class] = np.arange(len(labels)) % num_folds
    return folds
