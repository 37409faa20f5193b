"""What leaks are worth, which classes are alike, and where more images would help."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featx.features.file import FeatureFile
from featx.heads.head import apply_layers
from featx.heads.samples.data import Step
from featx.heads.samples.folds import choose_num_folds, stratified_folds
from featx.heads.tasks import SINGLE_LABEL
from featx.stages.audit.findings import AlikeClasses, ClassGain, CurvePoint, LeaksWorth
from featx.training.options import TrainOptions
from featx.training.out_of_fold import OutOfFold, fit_at
from featx.training.samples import groups_of, training_rows

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
_NOT_APART = 0.7
_ENOUGH = 10
"""Images that a class needs to be compared with another one."""
_ALL_FOLDS_UP_TO = 5000
"""Training images above which the curve is measured on one part of them only."""
_MOST_CLASSES = 500


def leaks_worth(cache: FeatureFile, found: OutOfFold, leaked: np.ndarray) -> Iterator[LeaksWorth]:
    """Yield the accuracy of each split with leaked images, with and without them.

    Args:
        cache: The feature file.
        found: What heads say of classes.
        leaked: Rows that are in a split before their own, too, ``(N,)`` bool.
    """
    right = found.outputs.argmax(axis=1) == found.targets.values[found.rows]
    for split in ("val", "test"):
        here = cache.splits[found.rows] == cache.split_names.index(split)
        also_before = here & leaked[found.rows]
        if also_before.any() and not also_before[here].all():
            yield LeaksWorth(
                split,
                int(here.sum()),
                int(also_before.sum()),
                float(right[here].mean()),
                float(right[here & ~also_before].mean()),
            )


def alike_classes(found: OutOfFold) -> tuple[AlikeClasses, ...]:
    """Return the pairs of classes that are told apart in less than 70 % of cases, worst first."""
    labels, names = found.targets.values[found.rows], found.targets.names
    counts = np.bincount(labels, minlength=len(names))
    large = np.flatnonzero(counts >= _ENOUGH)
    if len(large) > _MOST_CLASSES:
        return ()
    members = {int(each): np.flatnonzero(labels == each) for each in large}
    ahead = {  # share of a class's images that are rather of it than of each other class
        own: (found.outputs[rows, own, None] > found.outputs[rows]).mean(axis=0)
        for own, rows in members.items()
    }
    pairs = []
    for first in members:
        for second in members:
            if first < second:
                accuracy = float(ahead[first][second] + ahead[second][first]) / 2
                if accuracy < _NOT_APART:
                    sizes = int(counts[first]), int(counts[second])
                    pairs.append(AlikeClasses(names[first], names[second], *sizes, accuracy))
    return tuple(sorted(pairs, key=lambda pair: pair.accuracy))


def learning_curve(
    cache: FeatureFile, found: OutOfFold, *, seed: int, step: Step
) -> tuple[tuple[CurvePoint, ...], tuple[ClassGain, ...]]:
    """Return the accuracy of heads of some of the training images, and which classes lack images.

    Parts of the training images are left out in turn and asked about; heads are trained on an
    eighth, a quarter, half and all of the rest, at one strength.
    """
    rows = training_rows(cache, found.targets)
    labels, groups = found.targets.values[rows], groups_of(cache, rows)
    num_folds = choose_num_folds(labels, groups=groups)
    folds = stratified_folds(labels, num_folds, groups=groups, seed=seed)
    num_used = num_folds if len(rows) <= _ALL_FOLDS_UP_TO else 1
    order = np.random.default_rng(seed).permutation(len(rows))
    options = TrainOptions(task="single-label", strengths=(found.strength,), seed=seed)
    num_classes = len(found.targets.names)
    right = np.full((len(SHARES), len(rows)), np.nan)
    sizes = np.zeros(len(SHARES))
    for fold in range(num_used):
        out = np.flatnonzero(folds == fold)
        rest = order[folds[order] != fold]
        for number, share in enumerate(SHARES):
            some = np.sort(_some_of_each(rest, labels[rest], share))
            if not len(out) or len(np.unique(labels[some])) < 2:
                continue
            step(f"Learning curve, {len(some):,} images")
            train = cache.features[rows[some]], labels[some]
            layers = fit_at(*train, num_classes, SINGLE_LABEL, options)
            guesses = apply_layers(layers, cache.features[rows[out]]).argmax(axis=1)
            right[number, out] = guesses == labels[out]
            sizes[number] += len(some) / num_used
    points = tuple(
        CurvePoint(share, round(size), float(np.nanmean(correct)))
        for share, size, correct in zip(SHARES, sizes, right, strict=True)
        if size and np.isfinite(correct).any()
    )
    gains = _gains(found.targets.names, labels, right[-2], right[-1])
    return points, tuple(sorted(gains, key=lambda gain: -gain.gain))


def _some_of_each(numbers: np.ndarray, labels: np.ndarray, share: float) -> np.ndarray:
    """Return the first so many of each class, rounded up."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    sizes = np.bincount(labels)[labels]
    return np.asarray(numbers[rank < np.ceil(share * sizes)])


def _gains(
    names: tuple[str, ...], labels: np.ndarray, before: np.ndarray, after: np.ndarray
) -> Iterator[ClassGain]:
    """Yield the classes that gained more from the last doubling than chance would make."""
    known = np.isfinite(before) & np.isfinite(after)
    for label, name in enumerate(names):
        own = known & (labels == label)
        changes = after[own] - before[own]
        if len(changes) >= _ENOUGH:
            error = float(changes.std()) / len(changes) ** 0.5
            gain = float(changes.mean())
            if gain > 2 * error and gain > 0:
                yield ClassGain(name, int((labels == label).sum()), gain)
