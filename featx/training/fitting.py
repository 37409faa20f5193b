"""Fit heads to the training samples of a feature file, and score them on every split."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featx.classifier.tails import features_through
from featx.errors import ConfigError, counted
from featx.features.blocks import reading_blocks
from featx.features.file import FeatureFile
from featx.heads.head import Fitted
from featx.heads.samples.data import (
    Blocks,
    FirstPass,
    Step,
    TrainingData,
    no_step,
    read_first_pass,
)
from featx.heads.samples.selection import (
    FewShot,
    choose_held_out,
    choose_subsample,
    draw_shots,
    warn_of_small_classes,
    weights_of,
)
from featx.heads.solvers.centroid import fit_centroid
from featx.heads.solvers.linear import fit_linear
from featx.heads.solvers.mlp import fit_mlp
from featx.heads.solvers.ridge import fit_ridge
from featx.heads.solvers.sgd import EpochScores, fit_sgd
from featx.heads.tasks import Targets
from featx.heads.tasks.losses import Sigmoid, Softmax
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.task import Encoding
from featx.images.sources import warn_of_two_labels
from featx.training.options import TrainOptions, memory_for
from featx.training.samples import choose_task, groups_of, require_finite, targets_of, training_rows
from featx.training.trained import (
    Trained,
    cross_validated,
    finish_head,
    held_out_scores,
    score_heads,
    slices_of,
)

log = logging.getLogger(__name__)

EpochProgress = Callable[[EpochScores], None]
"""Called after each epoch of ``sgd``."""

COPIES = {"lbfgs": 4, "sklearn": 8, "ridge": 7, "centroid": 5, "sgd": 3, "mlp": 5}
"""Copies of all features in float32 that training in memory holds at once."""
_FEW_IMAGES = 50
"""Validation images below which the cross-validated score is reported as well."""
_COMPARED = {"log_loss": -1, "mae": -1, "top1": 1, "mean_average_precision": 1, "r2": 1}
"""Scores of a task that are shown with and without views; 1 where more is better."""
_CLEARLY = 0.05
"""Share by which log loss or error must grow for a warning."""


def fit_heads(
    cache: FeatureFile,
    options: TrainOptions,
    *,
    progress: EpochProgress | None = None,
    step: Step = no_step,
    rows: np.ndarray | None = None,
    elsewhere: Blocks | None = None,
) -> list[Trained]:
    """Return the head that the options ask for; with ``few_shot`` one for each draw.

    Args:
        cache: The feature file; at a cut, with the network behind it, or that of the weights is
            run.
        options: Which head and how.
        progress: Called after each epoch of ``sgd``.
        step: Called with the step under way.
        rows: Those of ``training_rows`` that train, ascending, ``(n,)``; None for all of them.
        elsewhere: All rows of the cache where others read them; None reads them here.

    Raises:
        ArtifactInvalid: A feature is NaN or infinite.
        SourceError: The samples cannot train a head.
        ConfigError: An option does not fit them.
    """
    if cache.cut is not None and cache.through is None:
        step(f"Features behind the cut '{cache.cut}'")
        cache = features_through(None, cache)
    task = choose_task(cache, options.task)
    options = replace(options, task=task.name, solver=options.solver_for(task))
    targets = targets_of(cache, task)
    if rows is None:
        rows = training_rows(cache, targets)
        labels = np.full(len(cache), -1)
        labels[rows] = cache.labels[rows]
        warn_of_two_labels(cache.sample_ids, labels, cache.digests, cache.classes)
        del labels
    values = targets.values[rows]
    num_validating = int(targets.labelled[cache.rows("val")].sum())
    validate = num_validating < _FEW_IMAGES and not options.few_shot
    num_views = cache.num_views if options.use_views else 0
    training = _Training(
        cache=cache,
        options=options,
        targets=targets,
        encoding=task.encode(values, len(targets.names)),
        weights=weights_of(values, targets.names, options.class_weight),
        rows=rows,
        groups=groups_of(cache, rows),
        memory=memory_for(options.memory),
        hold_out=options.calibrate or validate or not task.has_classes or bool(num_views),
        progress=progress,
        step=step,
        num_views=num_views,
    ).without_views_that_do_not_fit()
    with training.reading(elsewhere) as blocks:
        if options.few_shot:
            heads = training.fit_draws(options.few_shot, blocks)
        else:
            heads = [training.fit(blocks)]
        _warn_if_nothing_was_held_out(heads[0], options)
        training.step("Scoring")
        scored = blocks or slices_of(cache.features, len(targets.names))
        scores = score_heads(heads, cache, targets, scored)
    return [
        replace(head, metrics=of_head, cross_validated=cross_validated(head) if validate else None)
        for head, of_head in zip(heads, scores, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class _Training:
    """Samples of a cache that train heads, and how."""

    cache: FeatureFile
    options: TrainOptions  # head and solver as the task has them
    targets: Targets  # of all rows of the cache
    encoding: Encoding  # of the training samples
    weights: np.ndarray  # of the training samples, (N,), above 0
    rows: np.ndarray  # of the training samples in the cache, ascending, (N,)
    groups: np.ndarray | None  # of the training samples, (N,), -1 for none
    memory: int  # bytes that features and their copies may take
    hold_out: bool  # for a single strength too
    progress: EpochProgress | None
    step: Step
    num_views: int = 0  # of each training image that train it

    def without_views_that_do_not_fit(self) -> _Training:
        """Return the same, without views where these do not fit into memory."""
        needed = self._needed()
        if not self.num_views or needed <= self.memory:
            return self
        log.warning(
            "The features with their views need about %s of memory, and %s may be taken: views are "
            "left out. Allow more by memory=….",
            *(_show(needed), _show(self.memory)),
        )
        return replace(self, num_views=0)

    def _needed(self) -> int:
        """Return the bytes of features and the copies of them that training in memory makes."""
        options, cache = self.options, self.cache
        solver = "mlp" if options.head == "mlp" else options.solver or "lbfgs"
        num_rows = len(cache) + self.num_views * len(cache.rows("train"))
        return 4 * num_rows * cache.num_features * COPIES["sgd" if options.few_shot else solver]

    def reading(self, elsewhere: Blocks | None) -> AbstractContextManager[Blocks | None]:
        """Return what opens the rows to be read in blocks; None where they are in memory."""
        if elsewhere:
            self.require_samples_for_blocks("too few for ray=….")
            return nullcontext(elsewhere)
        return nullcontext() if self.fits_into_memory() else reading_blocks(self.cache)

    def fits_into_memory(self) -> bool:
        """Return whether all features fit into memory, with the copies that training makes."""
        options, num_features, needed = self.options, self.cache.num_features, self._needed()
        if needed <= self.memory:
            return True
        if self.cache.cut is not None:  # each pass would run the network
            raise ConfigError(
                f"the features behind the cut '{self.cache.cut}' need about {_show(needed)} of "
                f"memory, and {_show(self.memory)} may be taken. Allow more by memory=…, or "
                "extract features without a cut, which are read in blocks."
            )
        if not options.few_shot:
            if options.head == "linear" and options.solver == "sklearn":
                raise ConfigError(
                    f"scikit-learn trains in memory: it needs about {_show(needed)} for these "
                    f"features, and may take {_show(self.memory)}. Use solver='lbfgs', which has "
                    "the same optimum and reads them in blocks, or allow more by memory=…."
                )
            self.require_samples_for_blocks(
                f"too few to be read in blocks. They need about {_show(needed)} of memory, and "
                f"{_show(self.memory)} may be taken. Allow more by memory=…."
            )
        size = 4 * len(self.cache) * num_features
        log.info("The features take %s: they are read in blocks, pass after pass.", _show(size))
        return False

    def require_samples_for_blocks(self, why: str) -> None:
        """Refuse to read in blocks what has fewer samples than features."""
        num_features = self.cache.num_features
        if not self.options.few_shot and len(self.rows) <= num_features:
            raise ConfigError(
                f"{counted(len(self.rows), 'sample')} of {num_features:,} features are {why}"
            )

    def fit(self, blocks: Blocks | None) -> Trained:
        """Return the head, fitted to features in memory, or to blocks that are read."""
        if not blocks:
            return self._fit(self._load(slice(None)))
        start = time.perf_counter()
        subsample = self._choose_subsample()
        data = self._data(
            blocks.only(self.rows),
            first_pass=self._read_once(blocks, subsample),
            pool_bytes=self.memory // (4 if self.options.head == "mlp" else 2),
        )
        fitted = self._solve(data)
        fitted.choice["in_blocks"] = {"kept": len(subsample), "bytes_read": blocks.bytes_read}
        return self._finish(fitted, time.perf_counter() - start)

    def fit_draws(self, few_shot: FewShot, blocks: Blocks | None) -> list[Trained]:
        """Return a head for each draw of a few samples of each class."""
        classes, seed = self.encoding.values, self.options.seed
        warn_of_small_classes(classes, few_shot.shots)
        draws = [
            draw_shots(classes, few_shot.shots, seed=(seed, repeat))
            for repeat in range(few_shot.repeats)
        ]
        drawn = np.unique(np.concatenate(draws))
        read = blocks and self._read_once(blocks, drawn).features
        data = self._load(drawn) if read is None else self._data(read, drawn)
        return [
            self._fit(data.select(np.searchsorted(drawn, rows)), self.rows[rows], first=not number)
            for number, rows in enumerate(draws)
        ]

    def _fit(
        self, data: TrainingData, drawn: np.ndarray | None = None, *, first: bool = True
    ) -> Trained:
        """Return the head; the first of several draws is compared with one without views."""
        self.step("Fitting")
        start = time.perf_counter()
        head = self._finish(self._solve(data), time.perf_counter() - start, drawn)
        if not (self.num_views and first):
            return head
        without = None
        if head.held_out is not None:
            self.step("Fitting without views")
            without = held_out_scores(self._finish(self._solve(data.first_versions()), 0.0))
        views = _compare_views(self.num_views, held_out_scores(head), without)
        return replace(head, choice=head.choice | {"views": views})

    def _finish(self, fitted: Fitted, seconds: float, drawn: np.ndarray | None = None) -> Trained:
        options, targets = self.options, self.targets
        head = finish_head(fitted, targets, self.encoding, calibrate=options.calibrate)
        return replace(head, seconds=seconds, drawn=drawn)

    def _load(self, samples: np.ndarray | slice) -> TrainingData:
        """Return training samples in memory, with their views."""
        require_finite(self.cache, np.flatnonzero(~np.isfinite(self.cache.features).all(1)))
        rows = self.rows[samples]
        if not self.num_views:
            return self._data(self.cache.features[rows], samples)
        versions = _versions_of(self.cache, rows)
        return self._data(versions[: len(rows)], samples).in_versions(versions)

    def _data(
        self,
        features: np.ndarray | Blocks,
        rows: np.ndarray | slice = slice(None),
        first_pass: FirstPass | None = None,
        pool_bytes: int = 0,
    ) -> TrainingData:
        """Return training samples, given their features; all of them, or some rows."""
        return TrainingData(
            features,
            self.encoding.values[rows],
            self.encoding.num_outputs,
            self.weights[rows],
            None if self.groups is None else self.groups[rows],
            first_pass,
            pool_bytes,
        )

    def _choose_subsample(self) -> np.ndarray:
        """Return which of the training samples are kept in memory."""
        options, values, loss = self.options, self.encoding.values, self.targets.task.loss
        if options.head == "linear" and options.solver == "sgd":
            return np.zeros(0, np.int64)
        widths, memory = (self.cache.num_features, self.encoding.num_outputs), self.memory * 2 // 3
        if options.head == "mlp":
            return choose_held_out(
                *(values, *widths), loss=loss, groups=self.groups, memory=memory, seed=options.seed
            )
        return choose_subsample(values, *widths, memory=memory, seed=options.seed)

    def _read_once(self, blocks: Blocks, subsample: np.ndarray) -> FirstPass:
        self.step("Reading the features")
        correlate = self.options.head == "linear" and self.options.solver == "lbfgs"
        first_pass, bad = read_first_pass(blocks, self.rows, subsample, correlate=correlate)
        require_finite(self.cache, bad)
        return first_pass

    def _solve(self, data: TrainingData) -> Fitted:
        options, loss, step = self.options, self.targets.task.loss, self.step
        seed = options.seed
        if options.head == "mlp":
            return fit_mlp(data, options.mlp, loss=loss, seed=seed, step=step)
        if options.solver == "sgd":
            return fit_sgd(data, options.sgd, seed=seed, progress=self.progress, step=step)
        if options.solver == "ridge":
            return fit_ridge(data, options.strengths, seed=seed, step=step)
        if options.solver == "centroid":
            return fit_centroid(data, seed=seed, step=step)
        if options.solver == "sklearn":
            from featx.heads.solvers.with_sklearn import fit_with_sklearn

            return fit_with_sklearn(
                data, options.strengths, hold_out=self.hold_out, seed=seed, step=step
            )
        assert isinstance(loss, Softmax | Sigmoid)
        return fit_linear(
            data, options.strengths, hold_out=self.hold_out, loss=loss, seed=seed, step=step
        )


def _warn_if_nothing_was_held_out(head: Trained, options: TrainOptions) -> None:
    """Warn that nothing was chosen and nothing calibrated where no samples could be spared."""
    if head.held_out is not None or (options.head == "linear" and options.solver == "sgd"):
        return
    fixed = []
    if options.head == "mlp":
        fixed.append("an MLP is trained for all epochs")
    elif options.solver != "centroid" and len(options.strengths) > 1:
        fixed.append(f"the strength is fixed at C = {head.choice['strength']:g}")
    if options.calibrate and head.task.calibrate:
        fixed.append("probabilities are not calibrated (temperature 1)")
    if fixed:
        log.warning(
            "No training images can be held out: %s. So %s.",
            *(head.task.not_held_out, " and ".join(fixed)),
        )


def _versions_of(cache: FeatureFile, rows: np.ndarray) -> np.ndarray:
    """Return training rows and their views, ``((1 + num_views) * n, num_features)`` float32.

    The rows ``(n,)`` themselves come first, then the first view of each, then the second.
    """
    places = np.searchsorted(cache.rows("train"), rows)
    versions = np.empty((1 + cache.num_views, len(rows), cache.num_features), np.float32)
    versions[0] = cache.features[rows]
    for view, version in enumerate(versions[1:]):
        version[:] = cache.view_features[places, view]
    return versions.reshape(-1, cache.num_features)


def _compare_views(
    num_views: int, with_views: Scores | None, without: Scores | None
) -> dict[str, Any]:
    """Return the scores of held-out samples, trained with views and without, as JSON values.

    Where views made all scores worse, and clearly so, a warning says it. Without held-out samples
    both are None.
    """
    found = {"num_views": num_views, "with": None, "without": None}
    if with_views is None or without is None:
        return found
    names = [name for name in _COMPARED if getattr(with_views, name, None) is not None]
    names = [name for name in names if getattr(without, name) is not None]
    ours, theirs = ({name: getattr(s, name) for name in names} for s in (with_views, without))
    error = names[0]  # log loss or mae
    worse = all((ours[name] - theirs[name]) * _COMPARED[name] < 0 for name in names)
    if worse and ours[error] > (1 + _CLEARLY) * theirs[error]:
        changes = (f"{name} {theirs[name]:.4f} → {ours[name]:.4f}" for name in names)
        log.warning(
            "Views made the held-out scores worse (%s): the augmentation may show another class, "
            "as a mirrored letter does. Train without views by use_views=False, or extract them "
            "with another augmentation.",
            ", ".join(changes).replace("_", " ").replace("top1", "top-1"),
        )
    shared = {"num_samples": with_views.num_samples}
    return found | shared | {"with": ours, "without": theirs}


def _show(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
