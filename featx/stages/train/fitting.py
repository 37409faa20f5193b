"""From samples to heads that are ready to be written, and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.features.blocks import reading_blocks
from featx.features.file import FeatureFile
from featx.heads.calibration import Calibration, calibrate, fold_temperature
from featx.heads.class_weight import weights_of
from featx.heads.device import Device
from featx.heads.few_shot import draw_shots, warn_of_small_classes
from featx.heads.fit import (
    Fitted,
    Samples,
    fit_centroid_head,
    fit_logistic_head,
    fit_mlp_head,
    fit_ridge_head,
    fit_sgd_head,
)
from featx.heads.head import Layer, apply_layers
from featx.heads.metrics import Metrics, measure
from featx.heads.sgd import EpochScores
from featx.stages.train.blocks import Blocked, BlockedFit
from featx.stages.train.options import TrainOptions
from featx.stages.train.room import device_of, fits_into_memory, memory_for
from featx.stages.train.samples import require_finite, training_rows

EpochProgress = Callable[[EpochScores], None]
"""Called after each epoch of ``sgd``."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A head that is ready to be written.

    Attributes:
        layers: For raw features, the temperature folded in.
        choice: What was chosen on the way, JSON values.
        calibration: Of its probabilities; None where it was left out or nothing was held out.
        metrics: Scores of each split that has labelled samples.
        seconds: Of fitting, without reading.
    """

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    calibration: Calibration | None
    metrics: dict[str, Metrics]
    seconds: float


def fit_heads(
    cache: FeatureFile, options: TrainOptions, *, progress: EpochProgress | None = None
) -> list[Trained]:
    """Return the head that the options ask for; with ``few_shot`` one for each draw.

    Raises:
        ArtifactInvalid: A feature is NaN or infinite.
        SourceError: The samples cannot train a classifier.
        ConfigError: An option does not fit them.
    """
    rows = training_rows(cache)
    device = device_of(options)
    memory = memory_for(options)
    if not fits_into_memory(cache, rows, options, memory):
        with reading_blocks(cache) as every:
            blocked = Blocked(cache, every, rows, memory, options, device)
            return _fit_in_blocks(blocked, progress)
    require_finite(cache, np.flatnonzero(~np.isfinite(cache.features).all(1)))
    features, labels = cache.features[rows], cache.labels[rows]
    weights = weights_of(labels, cache.classes, options.class_weight)
    trained = []
    for rows in _draw(labels, options):
        start = time.perf_counter()
        samples = Samples(features[rows], labels[rows], len(cache.classes), weights[rows])
        fitted = _fit(samples, options, progress, device)
        layers, calibration = _calibrated(fitted, options)
        seconds = time.perf_counter() - start
        scores = _score(layers, cache)
        trained.append(Trained(layers, fitted.choice, calibration, scores, seconds))
    return trained


def _fit_in_blocks(blocked: Blocked, progress: EpochProgress | None) -> list[Trained]:
    """Return what ``fit_heads`` does, without holding the features in memory."""
    options = blocked.options
    if options.few_shot:
        fits = []
        for samples in blocked.samples_of(_draw(blocked.labels, options)):
            start = time.perf_counter()
            fitted = _fit(samples, options, progress, blocked.device)
            fits.append(BlockedFit(fitted, time.perf_counter() - start))
    else:
        fits = [blocked.fit(progress)]
    ready = [_calibrated(each.fitted, options) for each in fits]
    scores = blocked.score([layers for layers, _ in ready])
    return [
        Trained(layers, each.fitted.choice, calibration, of_head, each.seconds)
        for each, (layers, calibration), of_head in zip(fits, ready, scores, strict=True)
    ]


def _draw(labels: np.ndarray, options: TrainOptions) -> list[Any]:
    """Return which rows train each head: all of them, or some of each class again and again."""
    if options.few_shot is None:
        return [slice(None)]
    shots = options.few_shot.shots
    warn_of_small_classes(labels, shots)
    return [
        draw_shots(labels, shots, seed=(options.seed, repeat))
        for repeat in range(options.few_shot.repeats)
    ]


def _fit(
    samples: Samples,
    options: TrainOptions,
    progress: EpochProgress | None,
    device: Device | None,
) -> Fitted:
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
        solver=options.solver,
        judge=options.calibrate,
        seed=seed,
        device=device,
    )


def _calibrated(
    fitted: Fitted, options: TrainOptions
) -> tuple[tuple[Layer, ...], Calibration | None]:
    """Return the layers with the temperature folded in that what was held out asks for."""
    if not options.calibrate or fitted.held_out is None:
        return fitted.layers, None
    calibration = calibrate(fitted.held_out)
    return fold_temperature(fitted.layers, calibration.temperature), calibration


def _score(layers: Sequence[Layer], cache: FeatureFile) -> dict[str, Metrics]:
    scores = {}
    for split in cache.split_names:
        rows = cache.rows(split)
        measured = measure(apply_layers(layers, cache.features[rows]), cache.labels[rows])
        if measured:
            scores[split] = measured
    return scores
