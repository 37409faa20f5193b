"""Subsamples of features that do not fit into memory, draws of a few samples, and class weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from featx.artifact.keywords import require_types
from featx.errors import ConfigError, counted, require_at_least
from featx.heads.samples.folds import HOLDOUT_PARTS, units_of
from featx.heads.tasks.losses import Loss
from featx.heads.tasks.scores import Scores

log = logging.getLogger(__name__)

ClassWeight = Literal["balanced"] | Mapping[str, float] | None
"""``"balanced"``, a weight for some class names, or None: each sample counts once."""

MAX_SUBSAMPLE = 2**16
"""More samples hardly change the best strength, but the time to find it."""
MIN_SUBSAMPLE = 2**11
_COPIES = 3
"""Copies of the subsample's features: raw, standardised, without the held-out."""
_COPIES_OF_LOGITS = 8


@dataclass(frozen=True)
class FewShot:
    """How many samples are drawn, and how often.

    Attributes:
        shots: Samples of each class.
        repeats: Draws; each trains a head.

    Raises:
        ConfigError: A value is below 1.
    """

    shots: int
    repeats: int = 10

    def __post_init__(self) -> None:
        require_types(self)
        require_at_least("shots", self.shots, 1)
        require_at_least("repeats", self.repeats, 1)


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of one score over all draws; 0 of a single one."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class FewShotScores:
    """Scores of one split over all draws, as those of ``Metrics``."""

    top1: Spread
    balanced_accuracy: Spread
    macro_f1: Spread
    log_loss: Spread


def choose_subsample(
    labels: np.ndarray,
    num_features: int,
    num_classes: int,
    *,
    memory: int,
    seed: int,
    at_most: int = MAX_SUBSAMPLE,
) -> np.ndarray:
    """Return which samples to keep, ascending: the same share of each class, by chance.

    At least one sample with each tag is kept, and one without it, the rarest tags first. The number
    of samples is a power of two, so that a little more or less memory changes nothing.

    Args:
        labels: Class indices, ``(N,)``; or tags or numbers, ``(N, num_classes)``.
        num_features: Length of a row.
        num_classes: Length of a row of logits.
        memory: Bytes for their features and copies of these.
        seed: Decides which.
        at_most: Upper bound of their number.
    """
    fitting = _fitting(num_features, num_classes, memory)
    count = min(len(labels), at_most, max(MIN_SUBSAMPLE, fitting))
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.dtype.kind == "f":  # numbers are one class
        labels = np.zeros(len(labels), np.int64)
    if labels.ndim == 2:
        first = _one_of_each(labels, order)
        others = order[~np.isin(order, first)]
        return np.sort(np.concatenate([first, others])[:count])
    by_class = order[np.argsort(labels[order], kind="stable")]
    # evenly spread over classes that stand one after the other
    places = (np.arange(count) * len(labels)) // count
    return np.sort(by_class[places])


def _fitting(num_features: int, num_classes: int, memory: int) -> int:
    """Return how many samples fit, a power of two."""
    row_bytes = 4 * num_features * _COPIES + 8 * num_classes * _COPIES_OF_LOGITS
    return 1 << max(0, int(memory // row_bytes).bit_length() - 1)


def choose_held_out(
    labels: np.ndarray,
    num_features: int,
    num_classes: int,
    *,
    loss: Loss,
    groups: np.ndarray | None = None,
    memory: int,
    seed: int,
) -> np.ndarray:
    """Return the samples ``(n,)`` held out for early stopping, ascending: a tenth at most.

    With more samples than fit into memory, some are taken first, whole groups of them.
    """
    fitting = _fitting(num_features, num_classes, memory)
    most = HOLDOUT_PARTS * min(MAX_SUBSAMPLE, max(MIN_SUBSAMPLE, fitting))
    some = np.arange(len(labels))
    if len(labels) > most:
        units = units_of(groups, len(labels))
        order = np.argsort(np.random.default_rng(seed).permutation(units.max() + 1)[units])
        whole = np.flatnonzero(np.diff(units[order], append=-1))  # last of each unit
        end = whole[max(0, int(np.searchsorted(whole, most)) - 1)] + 1
        some = np.sort(order[:end])
    of_some = None if groups is None else groups[some]
    held_out = loss.hold_out(labels[some], HOLDOUT_PARTS, groups=of_some, seed=seed)
    return np.asarray(some[held_out])


def _one_of_each(tags: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the first in an order to have each tag, and to lack it; rarest tags first."""
    counts = tags.sum(axis=0, dtype=np.int64)
    first = []
    for tag in np.argsort(np.minimum(counts, len(tags) - counts), kind="stable"):
        has = tags[order, tag] > 0
        first += [int(order[side.argmax()]) for side in (has, ~has) if side.any()]
    return np.array(list(dict.fromkeys(first)), np.int64)


def weights_of(labels: np.ndarray, classes: Sequence[str], class_weight: ClassWeight) -> np.ndarray:
    """Return the weight of each sample, ``(N,)`` float64.

    Balanced weights are scikit-learn's: the samples of each class count ``N / number of classes``
    together, so that all samples still count ``N``. A class that is given no weight has 1.

    Raises:
        ConfigError: A name is not a class, or a weight is not above 0.
    """
    if class_weight is None:
        return np.ones(len(labels))
    if isinstance(class_weight, str):
        if class_weight != "balanced":
            raise ConfigError(
                f"class weight must be 'balanced' or weights by class name; got {class_weight!r}."
            )
        counts = np.bincount(labels, minlength=len(classes))
        return np.asarray(len(labels) / (np.count_nonzero(counts) * counts[labels]))
    unknown = sorted(set(class_weight) - set(classes))
    if unknown:
        raise ConfigError(
            f"class weights name '{unknown[0]}', which is not a class; the classes are "
            f"{', '.join(classes[:10])}."
        )
    for name, value in class_weight.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < np.inf):
            raise ConfigError(f"class weights must be above 0; got {value!r} for '{name}'.")
    by_class = np.array([float(class_weight.get(name, 1.0)) for name in classes])
    return np.asarray(by_class[labels])


def draw_shots(labels: np.ndarray, shots: int, *, seed: Sequence[int]) -> np.ndarray:
    """Return the rows of some of labels ``(N,)``: of each class so many, ascending, int64."""
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(labels))
    rows = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def warn_of_small_classes(labels: np.ndarray, shots: int) -> None:
    """Log how many classes have fewer samples than are to be drawn; ``labels`` are ``(N,)``."""
    counts = np.bincount(labels)
    small = int(((counts > 0) & (counts < shots)).sum())
    if small:
        log.warning(
            "%s fewer than %d training samples: all are used.",
            *(counted(small, "class has", "classes have"), shots),
        )


def summarise(draws: Sequence[Mapping[str, Scores]]) -> dict[str, FewShotScores]:
    """Return mean and deviation of each split's scores."""
    names = [field.name for field in fields(FewShotScores)]
    return {
        split: FewShotScores(
            **{name: _spread([getattr(draw[split], name) for draw in draws]) for name in names}
        )
        for split in draws[0]
    }


def _spread(values: Sequence[float]) -> Spread:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Spread(float(np.mean(values)), deviation)
