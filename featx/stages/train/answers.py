"""From samples to layers that answer in the way of their task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.heads.calibration import Calibration, calibrate, fold_temperature
from featx.heads.device import Device
from featx.heads.fit import (
    Fitted,
    Samples,
    fit_centroid_head,
    fit_logistic_head,
    fit_mlp_head,
    fit_ridge_head,
    fit_sgd_head,
    fit_tags_head,
)
from featx.heads.head import Layer, fold_target_scale, standardisation
from featx.heads.losses import SIGMOID, SQUARED
from featx.heads.sgd import EpochScores
from featx.heads.thresholds import EVEN, choose_thresholds
from featx.stages.train.options import TrainOptions

EpochProgress = Callable[[EpochScores], None]
"""Called after each epoch of ``sgd``."""


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


def answer_classes(
    samples: Samples,
    options: TrainOptions,
    progress: EpochProgress | None = None,
    device: Device | None = None,
) -> Answers:
    """Return layers that say which class; ``options`` name the solver."""
    return ready(fit_classes(samples, options, progress, device), options)


def fit_classes(
    samples: Samples,
    options: TrainOptions,
    progress: EpochProgress | None = None,
    device: Device | None = None,
) -> Fitted:
    """Return layers that say which class, as their solver left them."""
    seed = options.seed
    if options.head == "mlp":
        return fit_mlp_head(samples, options.mlp, seed=seed, device=device)
    if options.solver == "sgd":
        return fit_sgd_head(samples, options.sgd, seed=seed, progress=progress)
    if options.solver == "ridge":
        return fit_ridge_head(samples, options.strengths)
    if options.solver == "centroid":
        return fit_centroid_head(samples)
    return fit_logistic_head(
        samples,
        options.strengths,
        solver=options.solver or "lbfgs",
        judge=options.calibrate,
        seed=seed,
        device=device,
    )


def ready(fitted: Fitted, options: TrainOptions) -> Answers:
    """Return what a solver left, with its temperature folded in."""
    layers, calibration = _calibrated(fitted, options)
    return Answers(layers, fitted.choice, calibration)


def answer_tags(features: np.ndarray, tags: np.ndarray, options: TrainOptions) -> Answers:
    """Return layers that say which tags.

    A tag that all samples have, or none, has no optimum: its logit is that of ``(N + 1) / (N + 2)``
    on the side where they are.

    Args:
        features: Raw, ``(N, num_features)``.
        tags: Which each sample has, ``(N, num_tags)``; one at least is had by some.
        options: How to fit.
    """
    varies = np.ptp(tags, axis=0) > 0
    samples = Samples(features, tags[:, varies], int(varies.sum()), np.ones(len(tags)))
    if options.head == "mlp":
        fitted = fit_mlp_head(samples, options.mlp, loss=SIGMOID, seed=options.seed)
    else:
        fitted = fit_tags_head(samples, options.strengths, seed=options.seed)
    (*others, (weight, bias)), calibration = _calibrated(fitted, options)
    thresholds = np.full(tags.shape[1], EVEN)
    if fitted.held_out is not None:
        temperature = calibration.temperature if calibration else 1.0
        logits = fitted.held_out.logits / temperature
        thresholds[varies] = choose_thresholds(logits, fitted.held_out.labels)
    all_weights = np.zeros((tags.shape[1], weight.shape[1]), np.float32)
    all_weights[varies] = weight
    sides = np.where(tags[0], 1, -1) * np.log(len(tags) + 1)
    all_biases = sides.astype(np.float32)
    all_biases[varies] = bias
    layers = (*others, (all_weights, all_biases))
    return Answers(layers, fitted.choice, calibration, tuple(thresholds.tolist()))


def answer_numbers(features: np.ndarray, numbers: np.ndarray, options: TrainOptions) -> Answers:
    """Return layers that say how much, in the unit of the labels.

    Args:
        features: Raw, ``(N, num_features)``.
        numbers: Of each sample, ``(N, num_targets)`` float64.
        options: How to fit.
    """
    mean, scale = standardisation(numbers)
    standardised = (numbers - mean) / scale
    samples = Samples(features, standardised, numbers.shape[1], np.ones(len(numbers)))
    if options.head == "mlp":
        fitted = fit_mlp_head(samples, options.mlp, loss=SQUARED, seed=options.seed)
    else:
        fitted = fit_ridge_head(samples, options.strengths)
    layers = tuple(fold_target_scale(fitted.layers, mean, scale))
    return Answers(layers, fitted.choice, unit=(mean.tolist(), scale.tolist()))


def _calibrated(
    fitted: Fitted, options: TrainOptions
) -> tuple[tuple[Layer, ...], Calibration | None]:
    """Return the layers with the temperature folded in that what was held out asks for."""
    if not options.calibrate or fitted.held_out is None:
        return fitted.layers, None
    calibration = calibrate(fitted.held_out)
    return fold_temperature(fitted.layers, calibration.temperature), calibration
