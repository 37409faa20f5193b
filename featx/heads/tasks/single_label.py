"""Single-label: one class for each sample."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from featx.errors import SourceError
from featx.heads.calibration import calibrate, fit_temperature
from featx.heads.metrics.single_label import (
    ClassScores,
    Metrics,
    expected_calibration_error,
    log_loss,
    measure_classes,
    outcomes_of,
)
from featx.heads.tasks.losses import SOFTMAX
from featx.heads.tasks.task import IMAGES, PRECISION_RECALL, Column, Details, Labels, Task, listed

log = logging.getLogger(__name__)


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
        log.warning("No training images of %s: never predicted.", listed(empty))


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


def _loss_and_error(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    return log_loss(logits, labels), expected_calibration_error(logits, labels)


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return probabilities


def logits_of(probabilities: np.ndarray) -> np.ndarray:
    """Return logits ``(N, k)`` of probabilities, up to a constant in each row."""
    logits: np.ndarray = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny))
    return logits


def is_top_class(classes: np.ndarray, expected: np.ndarray, bound: float) -> np.ndarray:
    """Return whether a class is the top one, or ties with it within a bound, ``(n,)`` bool.

    Args:
        classes: ``(n,)`` int64.
        expected: Logits, ``(n, num_classes)``.
        bound: At least 0.
    """
    gap = expected.max(axis=1) - expected[np.arange(len(expected)), classes]
    settled: np.ndarray = gap <= bound
    return settled


def _same_untrained(
    found: np.ndarray, expected: np.ndarray, others: np.ndarray, share: float, details: Details
) -> np.ndarray:
    top, wanted = found.argmax(axis=1), expected.argmax(axis=1)
    same: np.ndarray = ~np.isin(top, others) | (top == wanted)
    return same


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
    choose_thresholds=lambda held_out, num_outputs: (),
    thresholds_of=lambda details, num_outputs: (),
    summarise=outcomes_of,
    measure_parts=lambda parts, num_outputs, thresholds: measure_classes(parts, num_outputs),
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
    probabilities=_softmax,
    logits=logits_of,
    comparable=lambda outputs, details: outputs,
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
