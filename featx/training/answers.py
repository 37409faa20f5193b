"""What a solver is asked, at each task, and what makes an answer of the layers that it leaves.

The same whether features are in memory or read in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from featx.heads.calibration import Calibration, calibrate, fold_temperature
from featx.heads.head import Layer, fold_target_scale
from featx.heads.samples.folds import HeldOut
from featx.heads.samples.moments import Moments
from featx.heads.samples.weights import weights_of
from featx.heads.solvers.fit import Fitted
from featx.heads.tasks.losses import SIGMOID, SOFTMAX, SQUARED, Loss
from featx.heads.tasks.task import Task
from featx.heads.tasks.thresholds import EVEN, choose_thresholds
from featx.training.options import TrainOptions


@dataclass(frozen=True, eq=False)
class Answers:
    """Layers that answer, and how they came about.

    Attributes:
        layers: For raw features; the temperature, or the unit of a number, is folded in.
        choice: What was chosen on the way, JSON values.
        calibration: Of its probabilities; None where it was left out or nothing was held out.
        thresholds: From which probability on each tag is given; empty where there are none.
        unit: Mean and deviation of each target of a regression in training; None of others.
        held_out: What such a head answers to samples that it was not trained on, as ``layers`` do;
            None where nothing was held out.
    """

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    calibration: Calibration | None = None
    thresholds: tuple[float, ...] = ()
    unit: tuple[list[float], list[float]] | None = None
    held_out: HeldOut | None = None


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
        held_out = _scaled(fitted.held_out, calibration)
        return Answers(layers, fitted.choice, calibration, held_out=held_out)


class _Tags:
    """Which tags.

    A tag that all samples have, or none, has no optimum and is not asked for: its logit is that of
    ``(N + 1) / (N + 2)`` on the side where they are.

    Args:
        tags: Which each sample has, ``(N, num_tags)``; one at least is had by some.
    """

    loss: Loss = SIGMOID

    def __init__(self, tags: np.ndarray) -> None:
        self._varies, self._constant = np.ptp(tags, axis=0) > 0, tags[0]
        self._sides = np.where(tags[0], 1, -1) * np.log(len(tags) + 1)
        self.values = tags[:, self._varies]
        self.num_outputs = int(self._varies.sum())
        self.weights = np.ones(len(tags))

    def answers(self, fitted: Fitted, options: TrainOptions) -> Answers:
        """Return what a solver left, with temperature, thresholds, and the tags left out."""
        (*others, (weight, bias)), calibration = _calibrated(fitted, options)
        thresholds = np.full(len(self._varies), EVEN)
        held_out = _scaled(fitted.held_out, calibration)
        if held_out is not None:
            thresholds[self._varies] = choose_thresholds(held_out.logits, held_out.labels)
            held_out = self._of_all_tags(held_out)
        all_weights = np.zeros((len(self._varies), weight.shape[1]), np.float32)
        all_weights[self._varies] = weight
        all_biases = self._sides.astype(np.float32)
        all_biases[self._varies] = bias
        layers = (*others, (all_weights, all_biases))
        given = tuple(thresholds.tolist())
        return Answers(layers, fitted.choice, calibration, given, held_out=held_out)

    def _of_all_tags(self, held_out: HeldOut) -> HeldOut:
        """Return outputs for the tags that were asked for with those that were not."""
        count = len(held_out.labels)
        logits, tags = np.tile(self._sides, (count, 1)), np.tile(self._constant, (count, 1))
        logits[:, self._varies], tags[:, self._varies] = held_out.logits, held_out.labels
        return replace(held_out, logits=logits, labels=tags)


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
        unit = self._mean.tolist(), self._scale.tolist()
        held_out = fitted.held_out
        if held_out is not None:
            outputs, numbers = (
                part * self._scale + self._mean for part in (held_out.logits, held_out.labels)
            )
            held_out = replace(held_out, logits=outputs, labels=numbers)
        return Answers(layers, fitted.choice, unit=unit, held_out=held_out)


def _calibrated(
    fitted: Fitted, options: TrainOptions
) -> tuple[tuple[Layer, ...], Calibration | None]:
    """Return the layers with the temperature folded in that what was held out asks for."""
    if not options.calibrate or fitted.held_out is None:
        return fitted.layers, None
    calibration = calibrate(fitted.held_out)
    return fold_temperature(fitted.layers, calibration.temperature), calibration


def _scaled(held_out: HeldOut | None, calibration: Calibration | None) -> HeldOut | None:
    """Return held-out logits divided by the temperature that is folded into the layers."""
    if held_out is None or calibration is None:
        return held_out
    return replace(held_out, logits=held_out.logits / calibration.temperature)
