"""Folds for samples with several tags: each tag in every part, as far as that goes.

Tags are dealt out from the rarest on. Its samples go where there are fewest of them, then to the
smallest fold. Of two sides the rarer counts: a tag that nearly all samples have is as hard to judge
as one that hardly any has.

Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (2011).
"""

from __future__ import annotations

import numpy as np


def fold_by_tags(tags: np.ndarray, num_folds: int, *, seed: int = 0) -> np.ndarray:
    """Return the fold of each sample, ``(N,)`` int64.

    They are in ``[0, num_folds)``; ``num_folds`` itself is the fold of samples that are never to be
    held out, because they alone have a tag, or alone lack it.

    Args:
        tags: Which each sample has, ``(N, num_tags)``, 0 or 1.
        num_folds: At least 2.
        seed: Decides which samples go where.
    """
    random = np.random.default_rng(seed)
    rarer = tags.astype(bool)
    common = rarer.sum(axis=0) * 2 > len(tags)
    rarer = rarer ^ common
    counts = rarer.sum(axis=0)
    folds = np.full(len(tags), -1, np.int64)
    folds[rarer[:, counts == 1].any(axis=1)] = num_folds
    sizes = np.zeros(num_folds, np.int64)
    for tag in np.argsort(counts, kind="stable"):
        here = folds[rarer[:, tag]]
        rows = np.flatnonzero(rarer[:, tag] & (folds < 0))
        own = np.bincount(here[(here >= 0) & (here < num_folds)], minlength=num_folds)
        _deal(folds, random.permutation(rows), own, sizes)
    rest = np.flatnonzero(folds < 0)
    _deal(folds, random.permutation(rest), sizes.copy(), sizes)
    return folds


def _deal(folds: np.ndarray, rows: np.ndarray, own: np.ndarray, sizes: np.ndarray) -> None:
    """Put rows where ``own`` is least, then ``sizes``, one after the other; both are per fold."""
    if not len(rows):
        return
    num_folds = len(own)
    levels = own[:, None] + np.arange(len(rows))  # what each fold has before its next sample
    fold = np.broadcast_to(np.arange(num_folds)[:, None], levels.shape)
    filled = np.broadcast_to(sizes[:, None], levels.shape) + np.arange(len(rows))
    order = np.lexsort((fold.reshape(-1), filled.reshape(-1), levels.reshape(-1)))[: len(rows)]
    folds[rows] = fold.reshape(-1)[order]
    sizes += np.bincount(folds[rows], minlength=num_folds)


def unjudged_tags(tags: np.ndarray, folds: np.ndarray, judged: np.ndarray) -> np.ndarray:
    """Return which tags lose all samples that have them, or lack them, with a fold.

    Args:
        tags: Which each sample has, ``(N, num_tags)``, 0 or 1.
        folds: As ``fold_by_tags`` returns them.
        judged: Folds that are left out, one after the other.

    Returns:
        ``(num_tags,)`` bool.
    """
    size = int(max(folds.max(), judged.max())) + 1
    has = np.stack([np.bincount(folds, weights=own, minlength=size) for own in tags.T])
    lacks = np.bincount(folds, minlength=size) - has
    unjudged: np.ndarray = (has[:, judged] == has.sum(axis=1, keepdims=True)).any(axis=1)
    unjudged |= (lacks[:, judged] == lacks.sum(axis=1, keepdims=True)).any(axis=1)
    return unjudged
