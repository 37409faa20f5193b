"""Folds for cross-validation: the same share of each class or tag, groups kept together.

A class needs a sample to be trained on while another one is held out. So the only sample of a
class, or all of them where they are in one group, are never held out: every fold trains on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

NUM_FOLDS = 5
HOLDOUT_ABOVE = 20_000
HOLDOUT_PARTS = 10
"""An MLP holds out one in so many samples for early stopping."""
_MOST_LOGITS = 2**26


@dataclass(frozen=True, eq=False)
class Division:
    """Assignment of samples to folds; a single one that is held out is a hold-out."""

    fold: np.ndarray  # of each sample, (N,) int64
    held_out_folds: np.ndarray  # once each; others always train
    num_scored: int | None = None  # the first so many are scored when held out; None for all

    @property
    def held_out(self) -> np.ndarray:
        """Which samples are held out at some time, and scored, ``(N,)`` bool."""
        held_out = np.isin(self.fold, self.held_out_folds)
        held_out[len(self.fold[: self.num_scored]) :] = False
        return held_out

    def scored_in(self, fold: int) -> np.ndarray:
        """Return the samples of a fold that are scored, ascending, ``(n,)``."""
        return np.flatnonzero(self.fold[: self.num_scored] == fold)

    def in_versions(self, count: int) -> Division:
        """Return the folds of so many versions of each sample; the first of each is scored."""
        if count == 1:
            return self
        return Division(np.tile(self.fold, count), self.held_out_folds, len(self.fold))


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Outputs of heads for samples that they were not trained on."""

    logits: np.ndarray  # (n, num_classes)
    labels: np.ndarray  # (n,); tags or numbers (n, num_classes)
    num_folds: int = 1  # 1 for a hold-out, 0 for leave-one-out


def divide(
    targets: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    seed: int = 0,
    leave_one_out: bool = False,
) -> Division | None:
    """Return stratified folds, a single hold-out where there are many samples.

    None where no sample may be held out, or of classes all that may are of one class: they cannot
    be compared.

    Args:
        targets: Class indices, ``(N,)``; or numbers, ``(N, num_outputs)``.
        groups: Group of each sample, ``(N,)``, -1 for none; a group is in one fold.
        seed: Decides which samples of a class are in which fold.
        leave_one_out: Without groups, hold samples out one by one: all of them are in fold 0.
    """
    are_classes = targets.ndim == 1
    classes = targets if are_classes else np.zeros(len(targets), np.int64)
    if leave_one_out and groups is None:
        folds, held_out = np.where(_has_others(classes), 0, 1), 1
    else:
        num_folds, held_out = NUM_FOLDS, 1
        if len(classes) <= HOLDOUT_ABOVE:
            num_folds = held_out = choose_num_folds(classes, groups=groups)
        folds = stratified_folds(classes, num_folds, groups=groups, seed=seed)
    division = Division(folds, np.intersect1d(folds, np.arange(held_out)))
    enough = 2 if are_classes else 1
    return division if len(np.unique(classes[division.held_out])) >= enough else None


def choose_num_folds(labels: np.ndarray, *, groups: np.ndarray | None = None) -> int:
    """Return ``NUM_FOLDS``, or fewer where no class has as many samples or groups; at least 2.

    A smaller class is in some of the folds only. Where all classes are equally small, each fold
    holds out one sample of each, so that the others stay balanced. Both are ``(N,)``.
    """
    of_classes = labels
    if groups is not None:
        pairs = np.stack([labels, units_of(groups, len(labels))])
        of_classes = np.unique(pairs, axis=1)[0]
    return max(2, min(NUM_FOLDS, int(np.bincount(of_classes).max())))


def stratified_folds(
    labels: np.ndarray, num_folds: int, *, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Return the fold of each sample, ``(N,)`` int64.

    It is in ``[0, num_folds)``, or ``num_folds`` for samples that are never to be held out. Classes
    are dealt out one after the other. Without groups fold sizes differ by at most one sample, and a
    class's counts differ by at most one between folds. Arguments are those of ``divide``.
    """
    generator = np.random.default_rng(seed)
    if groups is not None and (groups >= 0).any():
        return _grouped_folds(labels, units_of(groups, len(labels)), num_folds, generator)
    order = generator.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    by_class = by_class[_has_others(labels)[by_class]]
    folds = np.full(len(labels), num_folds, dtype=np.int64)
    folds[by_class] = np.arange(len(by_class)) % num_folds
    return folds


def _has_others(labels: np.ndarray) -> np.ndarray:
    """Return which samples are not the only one of their class; both ``(N,)``."""
    return np.asarray(np.bincount(labels)[labels] > 1)


def rows_of_classes(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class of ``(N,)`` labels that has samples, with their numbers, ascending."""
    order = np.argsort(labels, kind="stable")
    present, start = np.unique(labels[order], return_index=True)
    yield from zip(present.tolist(), np.split(order, start)[1:], strict=True)


def thinning_step(num_samples: int, num_outputs: int) -> int:
    """Return the step between held-out samples whose outputs fit into memory together."""
    return max(1, -(-num_samples * num_outputs // _MOST_LOGITS))


def units_of(groups: np.ndarray | None, num_samples: int) -> np.ndarray:
    """Return the unit of each sample that is in one fold as a whole, ``(N,)`` int64, from 0 on.

    It is the sample's group, or the sample itself where it has none, -1.
    """
    every = np.arange(num_samples)
    if groups is None:
        return every
    alone = groups < 0
    keys = np.where(alone, every, groups)
    _, units = np.unique(np.stack([alone, keys]), axis=1, return_inverse=True)
    return np.asarray(units, np.int64).reshape(-1)


def _keep_one_trained(folds: np.ndarray, units: np.ndarray, sides: np.ndarray, last: int) -> None:
    """Put a unit of each side whose units are all in one fold into the last, in place.

    A side is a class, or a tag that is there or not: ``units`` ``(P,)`` have the ascending
    ``sides`` ``(P,)``. Units in fold ``last`` are never held out.
    """
    named, start = np.unique(sides, return_index=True)
    if not len(named):
        return
    lowest = np.minimum.reduceat(folds[units], start)
    highest = np.maximum.reduceat(folds[units], start)
    folds[units[start[(lowest == highest) & (lowest < last)]]] = last


def _grouped_folds(
    labels: np.ndarray, units: np.ndarray, num_folds: int, generator: np.random.Generator
) -> np.ndarray:
    """Return the fold of each sample; a unit goes where there is least of its class."""
    pairs, counts = np.unique(np.stack([labels, units]), axis=1, return_counts=True)
    classes, members = pairs
    sizes, filled = np.bincount(units), np.zeros(num_folds)
    folds = np.full(len(sizes), -1)
    _, start, num_units = np.unique(classes, return_index=True, return_counts=True)
    folds[members[start[num_units == 1]]] = num_folds
    for row in np.argsort(num_units, kind="stable"):
        part = slice(start[row], start[row] + num_units[row])
        own = np.bincount(folds[members[part]] + 1, counts[part], num_folds + 2)[1:-1]
        order = generator.permutation(np.arange(part.start, part.stop))
        for pair in order[np.argsort(-counts[order], kind="stable")]:
            if folds[members[pair]] < 0:
                fold = int(np.lexsort((filled, own))[0])
                folds[members[pair]] = fold
                own[fold] += counts[pair]
                filled[fold] += sizes[members[pair]]
    _keep_one_trained(folds, members, classes, num_folds)
    return np.asarray(folds[units])


def fold_by_tags(
    tags: np.ndarray, num_folds: int, *, groups: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Return the fold of each sample, ``(N,)`` int64, with each tag in every fold if possible.

    Tags are dealt out from the rarest on. Its samples go where there are fewest of them, then to
    the smallest fold. The rarer of two sides counts: a tag that nearly all samples have is as hard
    to stratify as one that hardly any has. Folds are in ``[0, num_folds)``; ``num_folds`` itself is
    that of samples that are never to be held out, so that whichever fold is, some sample with each
    tag is trained on, and some without.

    Source: Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (2011).
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
        _keep_one_trained(folds, members, np.zeros_like(members), num_folds)
    return np.asarray(folds[units])


def _any_of(side: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Return which units have a sample on a side, ``(num_units, num_tags)`` bool."""
    order = np.argsort(units, kind="stable")
    _, start = np.unique(units[order], return_index=True)
    return np.asarray(np.logical_or.reduceat(side[order], start))


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
    ahead = np.arange(len(rows))
    fold = np.repeat(np.arange(num_folds), len(rows))
    # what each fold has before its next sample, with the tag and in all
    levels, filled = ((each[:, None] + ahead).reshape(-1) for each in (own, sizes))
    folds[rows] = fold[np.lexsort((fold, filled, levels))[: len(rows)]]
    sizes += np.bincount(folds[rows], minlength=num_folds)
