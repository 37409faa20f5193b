"""Single-label: one class for each sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np

from featx.errors import SourceError
from featx.heads.tasks.calibration import calibrate, fit_temperature
from featx.heads.tasks.losses import SOFTMAX, log_loss, log_softmax, softmax_in_place
from featx.heads.tasks.scores import ClassScores, Metrics, share_with_interval, wilson_interval
from featx.heads.tasks.task import IMAGES, PRECISION_RECALL, Column, Details, Labels, Task, quoted

log = logging.getLogger(__name__)

NUM_BINS = 15
"""Bins of the expected calibration error."""


def _read(labels: Labels, names: Sequence[str] | None) -> np.ndarray:
    """Return the index of each sample's class, joined by name, ``(N,)`` int64."""
    if names is None:
        return labels.index.astype(np.int64)
    index = {name: position for position, name in enumerate(names)}
    own = np.array([index.get(name, -1) for name in labels.classes] or [-1])
    unknown = [labels.classes[i] for i in labels.used if own[i] < 0]
    labels.require_known(unknown, names, "classes")
    return np.where(labels.index >= 0, own[labels.index], -1)


def _require_trainable(values: np.ndarray, names: Sequence[str], origin: str) -> None:
    counts = np.bincount(values, minlength=len(names))
    empty = [name for name, count in zip(names, counts, strict=True) if not count]
    if len(names) - len(empty) < 2:
        raise SourceError(
            f"'{origin}' has training images of one class only "
            f"('{names[int(counts.argmax())]}'); a classifier needs two."
        )
    if empty:
        log.warning("No training images of %s: never predicted.", quoted(empty))


@dataclass(frozen=True, eq=False)
class _Classes:
    values: np.ndarray
    num_outputs: int
    unit: None = None

    def decode_layer(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the layer as it is."""
        return weight, bias

    def decode(self, outputs: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits ``(n, num_classes)`` and labels ``(n,)`` as they are."""
        return outputs, values


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Labelled samples reduced to what their scores depend on, ``(n,)`` each."""

    labels: np.ndarray
    predicted: np.ndarray
    in_top5: np.ndarray  # whether the label is; empty with five classes or fewer
    losses: np.ndarray  # -log p(label)
    confidences: np.ndarray  # probability of the predicted class


def outcomes_of(logits: np.ndarray, labels: np.ndarray) -> Outcomes:
    """Return the outcomes of logits ``(n, num_classes)`` and labels ``(n,)``."""
    logits = logits.astype(np.float64)
    in_top5 = is_in_top_k(logits, labels, k=5) if logits.shape[1] > 5 else np.zeros(0, bool)
    predicted = logits.argmax(axis=1)
    logits -= np.take_along_axis(logits, predicted[:, None], axis=1)
    own = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    total = np.exp(logits, out=logits).sum(axis=1)
    labels, predicted = labels.astype(np.int32), predicted.astype(np.int32)
    return Outcomes(labels, predicted, in_top5, losses=np.log(total) - own, confidences=1 / total)


@dataclass(frozen=True, eq=False)
class Tally:
    """Sums over labelled samples that their scores depend on."""

    hits: np.ndarray  # samples of each class that were taken for it, (num_classes,)
    samples: np.ndarray  # of each class
    given: np.ndarray  # samples that were taken for each class
    in_top5: int
    losses: float
    gaps: np.ndarray  # of bins of probability, as gaps_of gives them

    def __add__(self, other: Tally) -> Tally:
        names = [each.name for each in fields(Tally)]
        return Tally(*(getattr(self, name) + getattr(other, name) for name in names))


def tally(logits: np.ndarray, labels: np.ndarray) -> Tally:
    """Return the sums over logits ``(n, num_classes)`` and labels ``(n,)``."""
    own = outcomes_of(logits, labels)
    right = own.predicted == own.labels
    count = partial(np.bincount, minlength=logits.shape[1])
    return Tally(
        hits=count(own.labels[right]),
        samples=count(own.labels),
        given=count(own.predicted),
        in_top5=int(own.in_top5.sum()),
        losses=float(own.losses.sum()),
        gaps=gaps_of(own.confidences, right),
    )


def measure_classes(sums: Tally) -> Metrics:
    """Return the scores of the samples of a tally, at least one."""
    hits, samples, given = sums.hits, sums.samples, sums.given
    count, num_right = int(samples.sum()), int(hits.sum())
    low, high = wilson_interval(num_right, count)
    recalls = hits[samples > 0] / samples[samples > 0]
    total = samples + given  # twice F1's denominator
    return Metrics(
        num_samples=count,
        top1=num_right / count,
        top1_low=low,
        top1_high=high,
        top5=sums.in_top5 / count if len(hits) > 5 else None,
        balanced_accuracy=float(recalls.mean()),
        macro_f1=float((2 * hits[total > 0] / total[total > 0]).mean()),
        log_loss=sums.losses / count,
        ece=float(np.abs(sums.gaps).sum() / count),
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
    """
    confidence = np.exp(log_softmax(logits).max(axis=1))
    return calibration_gap(confidence, logits.argmax(axis=1) == labels)


def calibration_gap(probability: np.ndarray, right: np.ndarray) -> float:
    """Return the mean gap, over 15 bins of probability, between it and how often it comes true."""
    return float(np.abs(gaps_of(probability, right)).sum() / len(probability))


def gaps_of(probability: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return how many more came true in each of 15 bins of probability than were expected to."""
    gap = right - probability.astype(np.float64)
    return np.bincount(_bins(probability), weights=gap, minlength=NUM_BINS)


def calibration_gaps(probability: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the gap of each bin of probability, ``(n, 15)``, of answers ``(n, num_answers)``.

    It is the mean over a sample's answers: how many came true, less how many were expected to.
    """
    count, num_answers = probability.shape
    bins = _bins(probability) + NUM_BINS * np.arange(count)[:, None]
    gap = (right - probability.astype(np.float64)).reshape(-1)
    gaps = np.bincount(bins.reshape(-1), weights=gap, minlength=count * NUM_BINS)
    return np.asarray(gaps.reshape(count, NUM_BINS) / num_answers)


def _bins(probability: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(np.ceil(probability * NUM_BINS) - 1, 0, NUM_BINS - 1), np.int8)


def _loss_and_gaps(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    own = outcomes_of(logits, labels)
    gaps = calibration_gaps(own.confidences[:, None], (own.predicted == own.labels)[:, None])
    return np.column_stack([own.losses, gaps])


def is_in_top_k(logits: np.ndarray, labels: np.ndarray, *, k: int) -> np.ndarray:
    """Return whether each label is among the ``k`` largest logits, ``(N,)`` bool.

    A tie goes to the smaller class index, so the score never depends on sort order.

    >>> is_in_top_k(np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]), np.array([0, 1]), k=2).tolist()
    [False, True]
    """
    own = np.take_along_axis(logits, labels[:, None], axis=1)  # (N, 1)
    smaller_index = np.arange(logits.shape[1])[None, :] < labels[:, None]
    behind = (logits < own) | ((logits == own) & ~smaller_index)  # itself included; NaN never is
    return np.asarray((~behind).sum(axis=1) < k)


def confusion_matrix(
    predicted: np.ndarray, labels: np.ndarray, *, size: int | None = None
) -> np.ndarray:
    """Return counts ``(size, size)``: rows are labels, columns predictions.

    Without a size there are just enough for the classes that occur.
    """
    size = size or int(max(predicted.max(), labels.max())) + 1
    counts = np.bincount(labels * size + predicted, minlength=size * size)
    return counts.reshape(size, size)


def _loss_and_error(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    return log_loss(logits, labels), expected_calibration_error(logits, labels)


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Return logits ``(N, k)`` of probabilities, up to a constant in each row."""
    logits: np.ndarray = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return logits


def best_classes(
    probabilities: np.ndarray, classes: Sequence[str], *, top_k: int
) -> list[tuple[tuple[str, float], ...]]:
    """Return the ``top_k`` best classes of each row ``(num_classes,)``; of a tie the first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        tuple((classes[i], float(row[i])) for i in best)
        for row, best in zip(probabilities, order, strict=True)
    ]


def is_top_class(classes: np.ndarray, expected: np.ndarray, bound: float) -> np.ndarray:
    """Return whether a class is the top one, or ties with it within a bound, ``(n,)`` bool.

    Classes are ``(n,)`` int64, expected logits ``(n, num_classes)``.
    """
    gap = expected.max(axis=1) - expected[np.arange(len(expected)), classes]
    return np.asarray(gap <= bound)


def _same_untrained(
    found: np.ndarray, expected: np.ndarray, others: np.ndarray, share: float, details: Details
) -> np.ndarray:
    top, wanted = found.argmax(axis=1), expected.argmax(axis=1)
    return np.asarray(~np.isin(top, others) | (top == wanted))


SINGLE_LABEL = Task(
    name="single-label",
    output="class",
    answer="class",
    other_answer="another class",
    raw_output="logits",
    activation="Softmax",
    shift_invariant=True,
    loss=SOFTMAX,
    solvers=("lbfgs", "sklearn", "ridge", "centroid", "sgd"),
    has_classes=True,
    not_held_out="fewer than two classes have two images, or two groups of them",
    score="accuracy",
    names_of=tuple,
    read_values=_read,
    has=lambda values, output: values == output,
    canonical=str,
    knows=lambda label, names: label in names,
    require_trainable=_require_trainable,
    encode=_Classes,
    calibrate=partial(calibrate, fit=fit_temperature, loss_and_error=_loss_and_error),
    summarise=tally,
    adds_up=True,
    measure_parts=lambda parts, num_outputs, thresholds: measure_classes(*parts),
    statistics=_loss_and_gaps,
    scores=(Metrics, ClassScores, "per_class"),
    columns=(
        IMAGES,
        Column("top-1", ("top1",), is_main=True),
        Column("95 %", ("top1_low", "top1_high"), is_main=True),
        Column("top-5", ("top5",)),
        Column("balanced", ("balanced_accuracy",)),
        Column("macro F1", ("macro_f1",)),
        Column("log loss", ("log_loss",), is_main=True),
        Column("ECE", ("ece",)),
    ),
    output_columns=(IMAGES, Column("predicted", ("num_predicted",), ","), *PRECISION_RECALL),
    rank=lambda scores: (-scores.top1, scores.log_loss),
    probabilities=lambda logits: softmax_in_place(logits.copy()),
    logits=logits_of,
    vary=lambda values, num_outputs: np.bincount(values, minlength=num_outputs) > 0,
    agree=lambda found, expected, details: (found.argmax(axis=1) == expected.argmax(axis=1)).astype(
        np.float64
    ),
    settled=lambda found, expected, bound, details: is_top_class(
        found.argmax(axis=1), expected, bound
    ),
    same_untrained=_same_untrained,
    accuracy=lambda outputs, labels, details: float((outputs.argmax(axis=1) == labels).mean()),
)
