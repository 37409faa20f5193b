"""From the layers that a solver leaves to those of a head: calibrated, for all outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featx.heads.calibration import Calibration, fold_temperature
from featx.heads.head import Layer
from featx.heads.samples.folds import HeldOut
from featx.heads.solvers.fit import Fitted
from featx.heads.tasks import Task
from featx.heads.tasks.task import Encoding


@dataclass(frozen=True, eq=False)
class Question:
    """Targets of the training samples, as a solver takes them.

    Attributes:
        task: What the head answers.
        encoding: The targets.
        weights: What each sample counts, ``(N,)``, above 0.
        num_outputs: Of the head.
    """

    task: Task
    encoding: Encoding
    weights: np.ndarray
    num_outputs: int


@dataclass(frozen=True, eq=False)
class Answers:
    """Layers of a head, and how they came about.

    Attributes:
        layers: For raw features; the temperature, or the unit of a number, is folded in.
        choice: Chosen hyperparameters, JSON values.
        calibration: Of its probabilities; None where it was left out or nothing was held out.
        thresholds: From which probability on each tag is given; empty where there are none.
        unit: Mean and deviation of each target of a regression in training; None of others.
        held_out: Outputs of such heads for samples that they were not trained on; None where
            nothing was held out.
    """

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    calibration: Calibration | None = None
    thresholds: tuple[float, ...] = ()
    unit: tuple[list[float], list[float]] | None = None
    held_out: HeldOut | None = None


def finish(fitted: Fitted, question: Question, *, calibrate: bool) -> Answers:
    """Return a head's layers for all outputs, calibrated where something was held out."""
    task, encoding, held_out = question.task, question.encoding, fitted.held_out
    (*others, (weight, bias)), calibration = fitted.layers, None
    if held_out is not None:
        logits = held_out.logits
        if calibrate and task.calibrate:
            calibration = task.calibrate(held_out)
            weight, bias = fold_temperature(weight, bias, calibration.temperature)
            logits = logits / calibration.temperature
        logits, labels = encoding.decode(logits, held_out.labels)
        held_out = replace(held_out, logits=logits, labels=labels)
    return Answers(
        layers=(*others, encoding.decode_layer(weight, bias)),
        choice=fitted.choice,
        calibration=calibration,
        thresholds=task.choose_thresholds(held_out, question.num_outputs),
        unit=encoding.unit,
        held_out=held_out,
    )
