"""Scores of multi-label logits, with thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from featx.heads.metrics.intervals import share_with_interval, wilson_interval
from featx.heads.metrics.single_label import calibration_gap


@dataclass(frozen=True)
class TagScores:
    """How one tag did; a bound is that of a 95 % Wilson interval.

    Attributes:
        num_samples: Labelled samples that have the tag.
        num_predicted: Samples that were given it.
        threshold: From which probability on it is given.
        average_precision: Area under its precision-recall curve, in [0, 1]; None without samples.
        precision: Share of those given it that have it, in [0, 1]; None without any.
        precision_low: Lower bound of ``precision``.
        precision_high: Upper bound of ``precision``.
        recall: Share of its samples that were given it, in [0, 1]; None without any.
        recall_low: Lower bound of ``recall``.
        recall_high: Upper bound of ``recall``.
    """

    num_samples: int
    num_predicted: int
    threshold: float
    average_precision: float | None
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None


@dataclass(frozen=True)
class MultiLabelMetrics:
    """Scores on one split; samples without a label do not count.

    Attributes:
        task: What is scored.
        num_samples: Labelled samples.
        mean_average_precision: Mean over the tags that occur, in [0, 1]; None where none does.
        micro_f1: F1 score over all decisions on samples and tags, in [0, 1].
        macro_f1: Mean F1 score over the tags that occur or are predicted, in [0, 1].
        exact: Share of samples with exactly the right tags, in [0, 1].
        exact_low: Lower bound of ``exact``, of a 95 % Wilson interval.
        exact_high: Its upper bound.
        log_loss: Mean over samples and tags of ``-log p``, nats.
        ece: Expected calibration error over samples and tags, in [0, 1].
        per_class: Each tag in index order.
    """

    task: ClassVar[Literal["multi-label"]] = "multi-label"

    num_samples: int
    mean_average_precision: float | None
    micro_f1: float
    macro_f1: float
    exact: float
    exact_low: float
    exact_high: float
    log_loss: float
    ece: float
    per_class: tuple[TagScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        values = asdict(self)
        return values | {"per_class": list(values["per_class"])}


def measure_tags(
    logits: np.ndarray, tags: np.ndarray, thresholds: Sequence[float]
) -> MultiLabelMetrics:
    """Return the scores of labelled samples, at least one.

    Args:
        logits: ``(num_samples, num_tags)``, floating.
        tags: Which each sample has, ``(num_samples, num_tags)``, 0 or 1.
        thresholds: From which probability on a tag is given, one for each.
    """
    given = given_tags(logits, thresholds)
    logits, has = logits.astype(np.float64), tags.astype(bool)
    hits, samples, predicted = (each.sum(axis=0) for each in (has & given, has, given))
    exact = int((has == given).all(axis=1).sum())
    low, high = wilson_interval(exact, len(tags))
    per_class = []
    for tag, threshold in enumerate(thresholds):
        precision = share_with_interval(int(hits[tag]), int(predicted[tag]))
        recall = share_with_interval(int(hits[tag]), int(samples[tag]))
        area = average_precision(logits[:, tag], has[:, tag])
        per_class.append(
            TagScores(int(samples[tag]), int(predicted[tag]), threshold, area, *precision, *recall)
        )
    known = [own.average_precision for own in per_class if own.average_precision is not None]
    total = samples + predicted
    occurs = total > 0
    return MultiLabelMetrics(
        num_samples=len(tags),
        mean_average_precision=float(np.mean(known)) if known else None,
        micro_f1=float(2 * hits.sum() / total.sum()) if occurs.any() else 1.0,
        macro_f1=float((2 * hits[occurs] / total[occurs]).mean()) if occurs.any() else 1.0,
        exact=exact / len(tags),
        exact_low=low,
        exact_high=high,
        log_loss=binary_log_loss(logits, tags),
        ece=calibration_gap(sigmoid(logits).reshape(-1), has.reshape(-1)),
        per_class=tuple(per_class),
    )


def given_tags(logits: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return which tags are given, ``(num_samples, num_tags)`` bool.

    Args:
        logits: ``(num_samples, num_tags)``, floating.
        thresholds: Probability from which on a tag is given, one for each.
    """
    given: np.ndarray = sigmoid(logits.astype(np.float64)) >= np.asarray(thresholds)
    return given


def average_precision(scores: np.ndarray, has: np.ndarray) -> float | None:
    """Return the mean precision at the ranks where recall grows, None without positives.

    Samples of equal score count as one rank, as scikit-learn has it.

    Args:
        scores: ``(num_samples,)``, the larger the surer.
        has: Who has the tag, ``(num_samples,)`` bool.

    >>> average_precision(np.array([0.9, 0.8, 0.1]), np.array([True, False, True]))
    0.8333333333333333
    """
    positives = int(has.sum())
    if not positives:
        return None
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)  # of each group of equals
    hits = np.cumsum(has[order])[last]
    precision = hits / (last + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / positives)


def binary_log_loss(
    logits: np.ndarray, tags: np.ndarray, *, weights: np.ndarray | None = None
) -> float:
    """Return the mean of ``-log p`` of every decision, over samples and tags, nats.

    Args:
        logits: ``(num_samples, num_tags)``, floating.
        tags: ``(num_samples, num_tags)``, 0 or 1.
        weights: Of each sample, ``(num_samples,)``; None for 1 each.
    """
    z = logits.astype(np.float64)
    losses = np.logaddexp(0, z) - tags * z
    return float(np.average(losses.mean(axis=1), weights=weights))


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return probabilities of logits ``(*shape,)``, without overflow."""
    small = np.exp(-np.abs(z))
    probabilities: np.ndarray = np.where(z >= 0, 1, small) / (1 + small)
    return probabilities
