"""Folds for samples with several tags: each tag in every fold, as far as possible.

Tags are dealt out from the rarest on. Its samples go where there are fewest of them, then to the
smallest fold. Of two sides the rarer counts: a tag that nearly all samples have is as hard to
stratify as one that hardly any has.

Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (2011).
"""

from __future__ import annotations

import numpy as np

from featx.heads.samples.folds import keep_one_trained, units_of


def fold_by_tags(
    tags: np.ndarray, num_folds: int, *, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Return the fold of each sample, ``(N,)`` int64.

    They are in ``[0, num_folds)``; ``num_folds`` itself is the fold of samples that are never to be
    held out, so that whichever fold is, some sample with each tag is trained on, and some without.

    Args:
        tags: Which each sample has, ``(N, num_tags)``, 0 or 1.
        num_folds: At least 2.
        groups: Of each sample, ``(N,)``, -1 for none; a group is in one fold.
        seed: Decides which samples go where.
    """
    units = units_of(groups, len(tags))
    has, lacks = tags.astype(bool), tags == 0
    common = has.sum(axis=0) * 2 > len(tags)
    if groups is not None:
        has, lacks = (_any_of(side, units) for side in (has, lacks))
    rarer = np.where(common, lacks, has)
    folds = _deal_by_tags(rarer, num_folds, seed=seed)
    for column in (*has.T, *lacks.T):
        members = np.flatnonzero(column)
        keep_one_trained(folds, members, np.zeros_like(members), num_folds)
    of_samples: np.ndarray = folds[units]
    return of_samples


def _any_of(side: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return which units have a sample on a side, ``(num_units, num_tags)`` bool."""
    order = np.argsort(units, kind="stable")
    _, start = np.unique(units[order], return_index=True)
    there: np.ndarray = np.logical_or.reduceat(side[order], start)
    return there


def _deal_by_tags(rarer: np.ndarray, num_folds: int, *, seed: int) -> np.ndarray:
    """Return the fold of each unit, by the rarer side of each tag ``(num_units, num_tags)``."""
    random = np.random.default_rng(seed)
    counts = rarer.sum(axis=0)
    folds = np.full(len(rarer), -1, np.int64)
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
