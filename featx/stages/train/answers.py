"""What a solver is asked, at each task, and what makes an answer of the layers that it leaves.

The same whether features are in memory or read in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from featx.heads.calibration import Calibration, calibrate, fold_temperature
from featx.heads.class_weight import weights_of
from featx.heads.fit import Fitted
from featx.heads.head import Layer, fold_target_scale
from featx.heads.losses import SIGMOID, SOFTMAX, SQUARED, Loss
from featx.heads.moments import Moments
from featx.heads.task import Task
from featx.heads.thresholds import EVEN, choose_thresholds
from featx.stages.train.options import TrainOptions


@dataclass(frozen=True, eq=False)
class Answers:
    """Layers that answer, and how they came about.

    Attributes:
        layers: For raw features; the temperature, or the unit of a number, is folded in.
        choice: What was chosen on the way, JSON values.
        calibration: Of its probabilities; None where it was left out or nothing was held out.
        thresholds: From which probability on each tag is given; empty where there are none.
        unit: Mean and deviation of each target of a regression in training; None of others.
    """

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    calibration: Calibration | None = None
    thresholds: tuple[float, ...] = ()
    unit: tuple[list[float], list[float]] | None = None


class Question(Protocol):
    """Targets of the training samples, as a solver takes them, and the way back."""

    @property
    def values(self) -> np.ndarray:
        """Class indices ``(N,)``; tags or numbers ``(N, num_outputs)``."""

    @property
    def num_outputs(self) -> int:
        """Of the head that the solver fits."""

    @property
    def weights(self) -> np.ndarray:
        """What each sample counts, ``(N,)``, above 0."""

    @property
    def loss(self) -> Loss:
        """What a head is to make small."""

    def answers(self, fitted: Fitted, options: TrainOptions) -> Answers:
        """Return what a solver left as the answer to what was asked."""


def question_of(
    task: Task, values: np.ndarray, classes: Sequence[str], options: TrainOptions
) -> Question:
    """Return what a solver is asked.

    Args:
        task: What the head answers.
        values: Targets of the training samples, as ``heads.targets`` reads them: ``(N,)`` or ``(N,
            num_outputs)``.
        classes: Names of the classes, of class indices.
        options: Where classes are weighted.
    """
    if task == "multi-label":
        return _Tags(values)
    if task == "regression":
        return _Numbers(values)
    return _Classes(values, len(classes), weights_of(values, classes, options.class_weight))


@dataclass(frozen=True, eq=False)
class _Classes:
    """Which class: class indices ``(N,)``."""

    values: np.ndarray
    num_outputs: int
    weights: np.ndarray
    loss: Loss = SOFTMAX

    def answers(self, fitted: Fitted, options: TrainOptions) -> Answers:
        """Return what a solver left, with its temperature folded in."""
        layers, calibration = _calibrated(fitted, options)
        return Answers(layers, fitted.choice, calibration)


class _Tags:
    """Which tags.

    A tag that all samples have, or none, has no optimum and is not asked for: its logit is that of
    ``(N + 1) / (N + 2)`` on the side where they are.

    Args:
        tags: Which each sample has, ``(N, num_tags)``; one at least is had by some.
    """

    loss: Loss = SIGMOID

    def __init__(self, tags: np.ndarray) -> None:
        self._varies = np.ptp(tags, axis=0) > 0
        self._sides = np.where(tags[0], 1, -1) * np.log(len(tags) + 1)
        self.values = tags[:, self._varies]
        self.num_outputs = int(self._varies.sum())
        self.weights = np.ones(len(tags))

    def answers(self, fitted: Fitted, options: TrainOptions) -> Answers:
        """Return what a solver left, with temperature, thresholds, and the tags left out."""
        (*others, (weight, bias)), calibration = _calibrated(fitted, options)
        thresholds = np.full(len(self._varies), EVEN)
        if fitted.held_out is not None:
            temperature = calibration.temperature if calibration else 1.0
            logits = fitted.held_out.logits / temperature
            thresholds[self._varies] = choose_thresholds(logits, fitted.held_out.labels)
        all_weights = np.zeros((len(self._varies), weight.shape[1]), np.float32)
        all_weights[self._varies] = weight
        all_biases = self._sides.astype(np.float32)
        all_biases[self._varies] = bias
        layers = (*others, (all_weights, all_biases))
        return Answers(layers, fitted.choice, calibration, tuple(thresholds.tolist()))


class _Numbers:
    """How much: numbers, standardised for the solver.

    Args:
        numbers: Of each sample, ``(N, num_targets)`` float64.
    """

    loss: Loss = SQUARED

    def __init__(self, numbers: np.ndarray) -> None:
        moments = Moments(numbers.shape[1])
        moments.add(numbers)
        self._mean, self._scale = moments.deviation()
        self.values = (numbers - self._mean) / self._scale
        self.num_outputs = numbers.shape[1]
        self.weights = np.ones(len(numbers))

    def answers(self, fitted: Fitted, options: TrainOptions) -> Answers:
        """Return what a solver left, in the unit of the labels."""
        layers = tuple(fold_target_scale(fitted.layers, self._mean, self._scale))
        return Answers(layers, fitted.choice, unit=(self._mean.tolist(), self._scale.tolist()))


def _calibrated(
    fitted: Fitted, options: TrainOptions
) -> tuple[tuple[Layer, ...], Calibration | None]:
    """Return the layers with the temperature folded in that what was held out asks for."""
    if not options.calibrate or fitted.held_out is None:
        return fitted.layers, None
    calibration = calibrate(fitted.held_out)
    return fold_temperature(fitted.layers, calibration.temperature), calibration
