"""From samples to heads that are ready to be written, and their scores."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featx.features.blocks import reading_blocks
from featx.features.file import FeatureFile
from featx.heads.head import apply_layers
from featx.heads.metrics import Scores
from featx.heads.samples.few_shot import draw_shots, warn_of_small_classes
from featx.heads.samples.weights import weights_of
from featx.heads.solvers.fit import Samples
from featx.heads.tasks import Scorer, Targets, Task
from featx.images.sources import warn_of_two_labels
from featx.training.answers import Answers, Question, finish
from featx.training.blocks import Blocked, BlockedFit, Training
from featx.training.options import CrossValidated, TrainOptions
from featx.training.resources import fits_into_memory, memory_for
from featx.training.samples import choose_task, groups_of, require_finite, targets_of, training_rows
from featx.training.solving import EpochProgress, Solving, Step, solve

log = logging.getLogger(__name__)

_VALUES_AT_ONCE = 2**24
_FEW_IMAGES = 50
"""Validation images below which the cross-validated score is reported as well."""


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
        cross_validated: Scores by cross-validation, where few images validate.
    """

    task: Task
    names: tuple[str, ...]
    answers: Answers
    metrics: dict[str, Scores]
    seconds: float
    drawn: np.ndarray | None = None
    cross_validated: CrossValidated | None = None


def fit_heads(
    cache: FeatureFile,
    options: TrainOptions,
    *,
    progress: EpochProgress | None = None,
    step: Step | None = None,
) -> list[Trained]:
    """Return the head that the options ask for; with ``few_shot`` one for each draw.

    Args:
        cache: The features.
        options: Which head and how.
        progress: Called after each epoch of ``sgd``.
        step: Called with what is being done.

    Raises:
        ArtifactInvalid: A feature is NaN or infinite.
        SourceError: The samples cannot train a head.
        ConfigError: An option does not fit them.
    """
    task = choose_task(cache, options.task)
    options = replace(options, task=task.name, solver=options.solver_for(task))
    targets = targets_of(cache, task)
    rows = training_rows(cache, targets)
    names = [cache.sample_ids[row] for row in rows.tolist()]
    warn_of_two_labels(names, cache.labels[rows], cache.digests[rows], cache.classes)
    values, count = targets.values[rows], len(targets.names)
    weights = weights_of(values, targets.names, options.class_weight)
    question = Question(task, task.encode(values, count), weights, count)
    validate = _should_cross_validate(cache, options, targets)
    solving = Solving(options, options.calibrate or validate, progress, step)
    training = Training(cache, targets, rows, groups_of(cache, rows), question, solving)
    memory = memory_for(options)
    if fits_into_memory(cache, rows, options, memory):
        fits = _fit_in_memory(training)
    else:
        fits = _fit_in_blocks(training, memory)
    _warn_if_nothing_was_held_out(fits[0][0], task, options)
    return [
        Trained(
            *(task, targets.names, answers, scores, seconds, drawn),
            cross_validated=_cross_validated(task, answers) if validate else None,
        )
        for answers, scores, seconds, drawn in fits
    ]


_Fit = tuple[Answers, dict[str, Scores], float, np.ndarray | None]
"""A head, its scores, the seconds it took, and rows that were drawn for it."""


def _fit_in_memory(training: Training) -> list[_Fit]:
    """Return the heads, trained on features in memory."""
    cache, question, solving = training.cache, training.question, training.solving
    require_finite(cache, np.flatnonzero(~np.isfinite(cache.features).all(1)))
    features, options = cache.features[training.rows], solving.options
    fits: list[_Fit] = []
    for drawn in _draw(question.encoding.values, options):
        start = time.perf_counter()
        samples = Samples(
            features[drawn],
            question.encoding.values[drawn],
            question.encoding.num_outputs,
            question.weights[drawn],
            _drawn_groups(training.groups, drawn),
        )
        solving.tell("Fitting")
        answers = finish(
            solve(samples, question.task.loss, solving), question, calibrate=options.calibrate
        )
        seconds = time.perf_counter() - start
        rows = training.rows[drawn] if options.few_shot else None
        solving.tell("Scoring")
        fits.append((answers, _score(answers, cache, training.targets), seconds, rows))
    return fits


def _fit_in_blocks(training: Training, memory: int) -> list[_Fit]:
    """Return what ``_fit_in_memory`` does, without holding the features in memory."""
    question, solving = training.question, training.solving
    drawn: list[np.ndarray | None] = [None]
    with reading_blocks(training.cache) as every:
        blocked = Blocked(training, every, memory)
        if solving.options.few_shot:
            fits, draws = [], _draw(question.encoding.values, solving.options)
            drawn = [training.rows[each] for each in draws]
            for samples in blocked.samples_of(draws):
                start = time.perf_counter()
                fitted = solve(samples, question.task.loss, solving)
                fits.append(BlockedFit(fitted, time.perf_counter() - start))
        else:
            fits = [blocked.fit()]
        answers = [
            finish(each.fitted, question, calibrate=solving.options.calibrate) for each in fits
        ]
        scores = blocked.score(answers, training.targets)
    return [
        (own, of_head, each.seconds, rows)
        for each, own, of_head, rows in zip(fits, answers, scores, drawn, strict=True)
    ]


def _should_cross_validate(cache: FeatureFile, options: TrainOptions, targets: Targets) -> bool:
    """Return whether so few images validate that training samples are to do it as well."""
    num_images = int(targets.labelled[cache.rows("val")].sum())
    return num_images < _FEW_IMAGES and not options.few_shot


def _cross_validated(task: Task, answers: Answers) -> CrossValidated | None:
    """Return the scores of samples that were left out in turn; of a single hold-out none."""
    held_out = answers.held_out
    if held_out is None or held_out.num_folds == 1:
        return None
    scores = task.measure(held_out.logits, held_out.labels, thresholds=answers.thresholds)
    return CrossValidated(scores, held_out.num_folds) if scores else None


def _warn_if_nothing_was_held_out(answers: Answers, task: Task, options: TrainOptions) -> None:
    """Say that nothing was chosen and nothing calibrated where no samples could be spared."""
    if answers.held_out is not None or (options.head == "linear" and options.solver == "sgd"):
        return
    fixed = []
    if options.head == "mlp":
        fixed.append("an MLP is trained for all epochs")
    elif options.solver != "centroid" and len(options.strengths) > 1:
        fixed.append(f"the strength is fixed at C = {answers.choice['strength']:g}")
    if options.calibrate and task.calibrate:
        fixed.append("probabilities are not calibrated (temperature 1)")
    if fixed:
        log.warning(
            "No training images can be held out: %s. So %s.",
            *(task.not_held_out, " and ".join(fixed)),
        )


def _drawn_groups(groups: np.ndarray | None, drawn: Any) -> np.ndarray | None:
    return None if groups is None or (groups[drawn] < 0).all() else groups[drawn]


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
        scorer = Scorer(targets.task, answers.thresholds)
        at_once = max(1024, _VALUES_AT_ONCE // len(targets.names))
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            scorer.add(apply_layers(answers.layers, cache.features[some]), targets.values[some])
        if measured := scorer.scores():
            scores[split] = measured
    return scores
