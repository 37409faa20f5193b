"""From samples to heads that are ready to be written, and their scores."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featx.features.blocks import reading_blocks
from featx.features.file import FeatureFile
from featx.heads.few_shot import draw_shots, warn_of_small_classes
from featx.heads.fit import Samples
from featx.heads.head import apply_layers
from featx.heads.metrics import Scores, measure_for
from featx.heads.targets import Targets
from featx.heads.task import Task
from featx.stages.train.answers import Answers, question_of
from featx.stages.train.blocks import Blocked, BlockedFit
from featx.stages.train.options import TrainOptions
from featx.stages.train.room import device_of, fits_into_memory, memory_for
from featx.stages.train.samples import (
    choose_task,
    require_finite,
    targets_of,
    training_rows,
)
from featx.stages.train.solving import EpochProgress, solve


@dataclass(frozen=True, eq=False)
class Trained:
    """A head that is ready to be written.

    Attributes:
        task: What it answers.
        names: Of its outputs.
        answers: Its layers and what was chosen on the way.
        metrics: Scores of each split that has labelled samples.
        seconds: Of fitting, without reading.
        drawn: Rows of the file that trained it, ``(n,)`` int64; None for the training split.
    """

    task: Task
    names: tuple[str, ...]
    answers: Answers
    metrics: dict[str, Scores]
    seconds: float
    drawn: np.ndarray | None = None


def fit_heads(
    cache: FeatureFile, options: TrainOptions, *, progress: EpochProgress | None = None
) -> list[Trained]:
    """Return the head that the options ask for; with ``few_shot`` one for each draw.

    Raises:
        ArtifactInvalid: A feature is NaN or infinite.
        SourceError: The samples cannot train a head.
        ConfigError: An option does not fit them.
    """
    task = choose_task(cache, options.task)
    options = replace(options, task=task, solver=options.solver_for(task))
    targets = targets_of(cache, task)
    rows = training_rows(cache, targets)
    question = question_of(task, targets.values[rows], cache.classes, options)
    device, memory = device_of(options), memory_for(options)
    if not fits_into_memory(cache, rows, options, memory):
        with reading_blocks(cache) as every:
            blocked = Blocked(cache, every, rows, question, memory, options, device=device)
            return _fit_in_blocks(blocked, targets, progress)
    require_finite(cache, np.flatnonzero(~np.isfinite(cache.features).all(1)))
    features, values, weights = cache.features[rows], question.values, question.weights
    trained = []
    for drawn in _draw(values, options):
        start = time.perf_counter()
        samples = Samples(features[drawn], values[drawn], question.num_outputs, weights[drawn])
        answers = question.answers(
            solve(samples, question.loss, options, progress, device), options
        )
        seconds = time.perf_counter() - start
        scores = _score(answers, cache, targets)
        own = rows[drawn] if options.few_shot else None
        trained.append(Trained(task, targets.names, answers, scores, seconds, own))
    return trained


def _fit_in_blocks(
    blocked: Blocked, targets: Targets, progress: EpochProgress | None
) -> list[Trained]:
    """Return what ``fit_heads`` does, without holding the features in memory."""
    options, question = blocked.options, blocked.question
    drawn: list[np.ndarray | None] = [None]
    if options.few_shot:
        fits, draws = [], _draw(question.values, options)
        drawn = [blocked.rows[each] for each in draws]
        for samples in blocked.samples_of(draws):
            start = time.perf_counter()
            fitted = solve(samples, question.loss, options, progress, blocked.device)
            fits.append(BlockedFit(fitted, time.perf_counter() - start))
    else:
        fits = [blocked.fit(progress)]
    answers = [question.answers(each.fitted, options) for each in fits]
    scores = blocked.score(answers, targets)
    return [
        Trained(targets.task, targets.names, own, of_head, each.seconds, rows)
        for each, own, of_head, rows in zip(fits, answers, scores, drawn, strict=True)
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


def _score(answers: Answers, cache: FeatureFile, targets: Targets) -> dict[str, Scores]:
    scores = {}
    for split in cache.split_names:
        rows = cache.rows(split)
        rows = rows[targets.labelled[rows]]
        if len(rows) and (
            measured := measure_for(
                targets.task,
                apply_layers(answers.layers, cache.features[rows]),
                targets.values[rows],
                thresholds=answers.thresholds,
            )
        ):
            scores[split] = measured
    return scores
