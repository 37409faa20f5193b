"""Dividing training samples for selection: the same share of each class in every part."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

log = logging.getLogger(__name__)

NUM_FOLDS = 5
HOLDOUT_ABOVE = 20_000


@dataclass(frozen=True, eq=False)
class Division:
    """Who is held out when.

    Attributes:
        fold: Of each sample, ``(N,)`` int64.
        judged: Folds that are held out once each; a single one is a hold-out.
    """

    fold: np.ndarray
    judged: np.ndarray


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What heads said of samples that they were not trained on.

    Attributes:
        logits: ``(n, num_classes)``.
        labels: ``(n,)``.
    """

    logits: np.ndarray
    labels: np.ndarray


def divide(labels: np.ndarray, *, seed: int = 0) -> Division:
    """Return stratified folds of ``(N,)`` labels, a single hold-out where there are many.

    Args:
        labels: Class indices, ``(N,)``.
        seed: Decides which samples of a class go where.
    """
    if len(labels) > HOLDOUT_ABOVE:
        return Division(stratified_folds(labels, NUM_FOLDS, seed=seed), np.array([0]))
    num_folds = choose_num_folds(labels)
    return Division(stratified_folds(labels, num_folds, seed=seed), np.arange(num_folds))


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


def choose_num_folds(labels: np.ndarray) -> int:
    """Return ``NUM_FOLDS``, or fewer where the smallest class has fewer samples; at least 2.

    Args:
        labels: Class indices, ``(num_samples,)``.
    """
    counts = np.bincount(labels)
    smallest = int(counts[counts > 0].min())
    num_folds = max(2, min(NUM_FOLDS, smallest))
    if num_folds < NUM_FOLDS:
        log.warning(
            "The smallest class has %d training samples: %d folds instead of %d.",
            smallest,
            num_folds,
            NUM_FOLDS,
        )
    return num_folds
