"""Scores of a split, and of each class, tag or target of it; samples without a label do not count.

``_low`` and ``_high`` are the bounds of a 95 % interval: Wilson's; of a regression by bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below
_REPLICATES = (200, 1000)
_DRAWS = 2e7


@dataclass(frozen=True)
class ClassScores:
    """Scores of a class; None where there are no samples to measure."""

    num_samples: int
    num_predicted: int  # samples that were taken for it
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None


@dataclass(frozen=True)
class _Scores:
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        values = asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


@dataclass(frozen=True)
class Metrics(_Scores):
    """Scores of a split.

    Attributes:
        top1: Share whose label has the largest logit, in [0, 1].
        top5: Share whose label is among the five largest; None with five classes or fewer.
        balanced_accuracy: Mean over classes of the recall, in [0, 1].
        macro_f1: Mean over classes of the F1 score, in [0, 1].
        log_loss: Mean of ``-log p(label)``, nats.
        ece: Expected calibration error, in [0, 1].
        per_class: Each class in index order.
    """

    task: ClassVar[Literal["single-label"]] = "single-label"

    top1: float
    top1_low: float
    top1_high: float
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    ece: float
    per_class: tuple[ClassScores, ...]


@dataclass(frozen=True)
class TagScores:
    """Scores of a tag; None where there are no samples to measure."""

    num_samples: int  # that have the tag
    num_predicted: int  # samples that were given it
    threshold: float  # from which probability on it is given
    average_precision: float | None  # area under its precision-recall curve
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None


@dataclass(frozen=True)
class MultiLabelMetrics(_Scores):
    """Scores of a split.

    Attributes:
        mean_average_precision: Mean over the tags that occur, in [0, 1]; None where none does.
        micro_f1: F1 score over all decisions on samples and tags, in [0, 1].
        macro_f1: Mean F1 score over the tags that occur or are predicted, in [0, 1].
        exact: Share of samples with exactly the right tags, in [0, 1].
        log_loss: Mean over samples and tags of ``-log p``, nats.
        ece: Expected calibration error over samples and tags, in [0, 1].
        per_class: Each tag in index order.
    """

    task: ClassVar[Literal["multi-label"]] = "multi-label"

    mean_average_precision: float | None
    micro_f1: float
    macro_f1: float
    exact: float
    exact_low: float
    exact_high: float
    log_loss: float
    ece: float
    per_class: tuple[TagScores, ...]


@dataclass(frozen=True)
class TargetScores:
    """Scores of a target, in its own unit."""

    mae: float
    rmse: float
    r2: float | None  # None where there is no variance


@dataclass(frozen=True)
class RegressionMetrics(_Scores):
    """Scores of a split; the bootstrap's draws are always the same.

    Attributes:
        mae: Mean absolute error, mean over targets.
        rmse: Root of the mean squared error, mean over targets.
        r2: Share of the variance that is explained, mean over the targets that vary; None where
            none does.
        per_target: Each target in index order.
    """

    task: ClassVar[Literal["regression"]] = "regression"

    mae: float
    mae_low: float
    mae_high: float
    rmse: float
    r2: float | None
    r2_low: float | None
    r2_high: float | None
    per_target: tuple[TargetScores, ...]


Scores = Metrics | MultiLabelMetrics | RegressionMetrics


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion, in [0, 1].

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    >>> [round(bound, 3) for bound in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    share, square = hits / count, _Z * _Z / count
    centre = share + square / 2
    spread = _Z * float(np.sqrt(share * (1 - share) / count + square / (4 * count)))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)


def share_with_interval(hits: int, count: int) -> tuple[float | None, float | None, float | None]:
    """Return a proportion and its Wilson interval; None each where ``count`` is 0."""
    if not count:
        return None, None, None
    return hits / count, *wilson_interval(hits, count)


class Difference(NamedTuple):
    """A score less the same score of another head on the same samples, and how likely by chance."""

    value: float
    p_value: float


def paired_differences(first: np.ndarray, second: np.ndarray) -> dict[str, Difference]:
    """Return how far the second of two heads is above the first, by the name of the score.

    Samples are drawn with replacement, for both heads the same ones; the p value is that of the
    difference among normal ones with the deviation of those of the draws. Percentiles of the draws
    would be those of larger calibration errors, as each draw has fewer samples.

    Args:
        first: The task's ``statistics`` of the first head, ``(n, k)``.
        second: The same of the second, for the same samples.
    """
    count = first.shape[1]
    names = ("log_loss", "ece") if count > 1 else ("mae",)

    def scores(means: np.ndarray) -> np.ndarray:  # (r, k) → (r, len(names))
        gaps = np.abs(means[:, 1:]).sum(axis=1)
        return np.stack([means[:, 0], gaps][: len(names)], axis=1)

    def apart(means: np.ndarray) -> np.ndarray:
        return np.asarray(scores(means[:, count:]) - scores(means[:, :count]))

    both = np.concatenate([first, second], axis=1)
    values = apart(both.mean(axis=0)[None])[0].tolist()
    draws = apart(_drawn_means(both, seed=0))

    def p_value(value: float, deviation: float) -> float:
        share = math.erfc(abs(value) / deviation / math.sqrt(2)) if deviation > 0 else 1.0
        return max(share, 1 / len(draws))  # the draws say no more

    return {
        name: Difference(value, p_value(value, deviation))
        for name, value, deviation in zip(names, values, draws.std(axis=0).tolist(), strict=True)
    }


def bootstrap_intervals(
    statistics: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> list[tuple[float, float]]:
    """Return the 95 % percentile intervals of scores that are made of means over samples.

    Samples are drawn with replacement 1,000 times, of many samples less often, at least 200 times.
    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979).

    Args:
        statistics: Of each sample, ``(N, num_statistics)``.
        score: From means ``(r, num_statistics)`` to scores ``(r, num_scores)``, NaN where there is
            none.
        seed: Of the draws.
    """
    intervals = []
    for values in score(_drawn_means(statistics, seed=seed)).T:
        known = values[np.isfinite(values)]
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
        intervals.append((float(low), float(high)))
    return intervals


def _drawn_means(statistics: np.ndarray, *, seed: int) -> np.ndarray:
    """Return the means of samples that are drawn with replacement, ``(r, num_statistics)``."""
    count = len(statistics)
    random = np.random.default_rng(seed)
    replicates = int(np.clip(_DRAWS / count, *_REPLICATES))
    means = np.empty((replicates, statistics.shape[1]))
    for replicate in range(replicates):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        means[replicate] = times @ statistics / count
    return means
