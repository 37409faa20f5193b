"""Scores of single-label logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np

from featx.heads.metrics.intervals import share_with_interval, wilson_interval

NUM_BINS = 15
"""Bins of the expected calibration error."""


@dataclass(frozen=True)
class ClassScores:
    """How one class did; a bound is that of a 95 % Wilson interval.

    Attributes:
        num_samples: Labelled samples of the class.
        num_predicted: Samples that were taken for it.
        precision: Share of these that are of it, in [0, 1]; None without any.
        precision_low: Lower bound of ``precision``.
        precision_high: Upper bound of ``precision``.
        recall: Share of its samples that were recognised, in [0, 1]; None without any.
        recall_low: Lower bound of ``recall``.
        recall_high: Upper bound of ``recall``.
    """

    num_samples: int
    num_predicted: int
    precision: float | None
    precision_low: float | None
    precision_high: float | None
    recall: float | None
    recall_low: float | None
    recall_high: float | None


@dataclass(frozen=True)
class Metrics:
    """Scores on one split; samples without a label do not count.

    Attributes:
        task: What is scored.
        num_samples: Labelled samples.
        top1: Share whose label has the largest logit, in [0, 1].
        top1_low: Lower bound of ``top1``, of a 95 % Wilson interval.
        top1_high: Its upper bound.
        top5: Share whose label is among the five largest; None with five classes or fewer.
        balanced_accuracy: Mean over classes of the recall, in [0, 1].
        macro_f1: Mean over classes of the F1 score, in [0, 1].
        log_loss: Mean of ``-log p(label)``, nats.
        ece: Expected calibration error, in [0, 1].
        per_class: Each class in index order.
    """

    task: ClassVar[Literal["single-label"]] = "single-label"

    num_samples: int
    top1: float
    top1_low: float
    top1_high: float
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    ece: float
    per_class: tuple[ClassScores, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as JSON values."""
        values = asdict(self)
        return values | {"per_class": list(values["per_class"])}


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Labelled samples reduced to what their scores depend on.

    Attributes:
        labels: ``(n,)`` integer.
        predicted: Class with the largest logit, ``(n,)``.
        in_top5: Whether the label is among the five largest, ``(n,)``; empty with five classes or
            fewer.
        losses: ``-log p(label)``, ``(n,)`` float64.
        confidences: Probability of the predicted class, ``(n,)`` float64.
    """

    labels: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray
    losses: np.ndarray
    confidences: np.ndarray


def outcomes_of(logits: np.ndarray, labels: np.ndarray) -> Outcomes:
    """Return the outcomes of logits ``(n, num_classes)`` and labels ``(n,)``."""
    logits = logits.astype(np.float64)
    in_top5 = is_in_top_k(logits, labels, k=5) if logits.shape[1] > 5 else np.zeros(0, bool)
    predicted = logits.argmax(axis=1)
    logits -= np.take_along_axis(logits, predicted[:, None], axis=1)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    total = np.exp(logits, out=logits).sum(axis=1)
    return Outcomes(labels, predicted, in_top5, losses=np.log(total) - own, confidences=1 / total)


def measure_classes(parts: Sequence[Outcomes], num_classes: int) -> Metrics:
    """Return the scores of the samples of all parts, at least one."""
    labels, predicted, in_top5, losses, confidences = (
        np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Outcomes)
    )
    right = predicted == labels
    hits, samples, given = (
        np.bincount(values, minlength=num_classes) for values in (labels[right], labels, predicted)
    )
    low, high = wilson_interval(int(right.sum()), len(labels))
    recalls = hits[samples > 0] / samples[samples > 0]
    total = samples + given  # twice F1's denominator
    return Metrics(
        num_samples=len(labels),
        top1=float(right.mean()),
        top1_low=low,
        top1_high=high,
        top5=float(in_top5.mean()) if num_classes > 5 else None,
        balanced_accuracy=float(recalls.mean()),
        macro_f1=float((2 * hits[total > 0] / total[total > 0]).mean()),
        log_loss=float(np.average(losses)),
        ece=calibration_gap(confidences, right),
        per_class=tuple(
            ClassScores(
                own, taken, *share_with_interval(hit, taken), *share_with_interval(hit, own)
            )
            for hit, own, taken in zip(hits.tolist(), samples.tolist(), given.tolist(), strict=True)
        ),
    )


def expected_calibration_error(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean gap between the winner's probability and how often it is right, in [0, 1].

    Samples are put into 15 bins of equal width by that probability.
    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3.

    Args:
        logits: ``(num_samples, num_classes)``, floating.
        labels: Class indices, ``(num_samples,)``.
    """
    confidence = np.exp(log_softmax(logits).max(axis=1))
    return calibration_gap(confidence, logits.argmax(axis=1) == labels)


def calibration_gap(probability: np.ndarray, right: np.ndarray) -> float:
    """Return the mean gap, over 15 bins of probability, between it and how often it comes true.

    Args:
        probability: ``(n,)`` in [0, 1].
        right: Whether it came true, ``(n,)``.
    """
    bins = np.clip(np.ceil(probability * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    gaps = np.bincount(bins, weights=right - probability.astype(np.float64), minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(probability))


def is_in_top_k(logits: np.ndarray, labels: np.ndarray, *, k: int) -> np.ndarray:
    """Return whether each label is among the ``k`` largest logits, ``(N,)`` bool.

    A tie goes to the smaller class index, so the score never depends on sort order.

    Args:
        logits: ``(N, num_classes)``, floating.
        labels: Class indices, ``(N,)``.
        k: Guesses allowed per sample, ``1 <= k <= num_classes``.

    >>> is_in_top_k(np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]), np.array([0, 1]), k=2).tolist()
    [False, True]
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # (N, 1)
    smaller_index = np.arange(logits.shape[1])[None, :] < labels[:, None]
    behind = (logits < own) | ((logits == own) & ~smaller_index)  # itself included; NaN never is
    among: np.ndarray = (~behind).sum(axis=1) < k
    return among


def confusion_matrix(
    predicted: np.ndarray, labels: np.ndarray, *, size: int | None = None
) -> np.ndarray:
    """Return counts ``(size, size)``: rows are labels, columns predictions.

    Args:
        predicted: Class indices, ``(num_samples,)``.
        labels: Class indices, ``(num_samples,)``.
        size: Number of classes; None for just enough for those that occur.
    """
    size = size or int(max(predicted.max(), labels.max())) + 1
    counts = np.bincount(labels * size + predicted, minlength=size * size)
    return counts.reshape(size, size)


def log_loss(logits: np.ndarray, labels: np.ndarray, *, weights: np.ndarray | None = None) -> float:
    """Return the mean of ``-log softmax(logits)[label]``, nats.

    Args:
        logits: ``(num_samples, num_classes)``, floating.
        labels: Class indices, ``(num_samples,)``.
        weights: Of each sample, ``(num_samples,)``; None for 1 each.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    losses = np.log(np.exp(shifted).sum(axis=1)) - own
    return float(np.average(losses.astype(np.float64), weights=weights))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities, ``(num_samples, num_classes)`` as the logits, without overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised
