"""Training on features that do not fit into memory, in passes over their file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.features.blocks import FeatureRows
from featx.features.file import FeatureFile
from featx.heads.head import apply_layers
from featx.heads.metrics import Scores
from featx.heads.samples.rows import Survey, survey
from featx.heads.samples.selection import choose_judges, choose_kept
from featx.heads.solvers.fit import (
    Fitted,
    Samples,
    centroid_fitted,
    logistic_fitted,
    mlp_fitted,
    ridge_fitted,
    sgd_fitted,
)
from featx.heads.solvers.streamed_centroid import fit_centroid_in_blocks
from featx.heads.solvers.streamed_linear import fit_linear_in_blocks
from featx.heads.solvers.streamed_mlp import fit_mlp_in_blocks
from featx.heads.solvers.streamed_ridge import fit_ridge_in_blocks
from featx.heads.solvers.streamed_sgd import fit_sgd_in_blocks
from featx.heads.tasks import Scorer, Targets
from featx.heads.tasks.losses import SIGMOID, SOFTMAX, SQUARED
from featx.training.answers import Answers, Question
from featx.training.samples import require_finite
from featx.training.solving import Solving


@dataclass(frozen=True, eq=False)
class BlockedFit:
    """A head that was trained in blocks.

    Attributes:
        fitted: The head.
        seconds: It took, reading included.
    """

    fitted: Fitted
    seconds: float


@dataclass(frozen=True, eq=False)
class Training:
    """What is trained on, and how.

    Attributes:
        cache: The features.
        targets: Of all its rows.
        rows: Numbers of those that train, ascending, ``(N,)``.
        groups: Of these, -1 for none: held out as a whole; None without groups.
        question: What is asked of them.
        solving: How heads are fitted.
    """

    cache: FeatureFile
    targets: Targets
    rows: np.ndarray
    groups: np.ndarray | None
    question: Question
    solving: Solving


@dataclass(frozen=True, eq=False)
class Blocked:
    """Features that are read in blocks, and what trains on them.

    Attributes:
        training: What is trained on, and how.
        every: All rows of the file.
        memory: Bytes that features and their copies may take.
    """

    training: Training
    every: FeatureRows
    memory: int

    def fit(self) -> BlockedFit:
        """Return the head that the options ask for.

        Raises:
            ArtifactInvalid: A feature is NaN or infinite, or the file was damaged or replaced.
            ConfigError: An option does not fit the samples.
        """
        start = time.perf_counter()
        kept = self._choose()
        self.training.solving.tell("Reading the features")
        fitted = self._fit(self._survey(kept))
        fitted.choice["in_blocks"] = {"kept": len(kept), "bytes_read": self.every.bytes_read}
        return BlockedFit(fitted, time.perf_counter() - start)

    def samples_of(self, draws: Sequence[np.ndarray]) -> list[Samples]:
        """Return the samples of some draws, each rows of those that train, by one pass."""
        question, groups = self.training.question, self.training.groups
        self.training.solving.tell("Reading the features")
        union = np.unique(np.concatenate(draws))
        features = self._survey(union).features
        return [
            Samples(
                features[np.searchsorted(union, rows)],
                question.encoding.values[rows],
                question.encoding.num_outputs,
                question.weights[rows],
                None if groups is None else groups[rows],
            )
            for rows in draws
        ]

    def score(self, heads: Sequence[Answers], targets: Targets) -> list[dict[str, Scores]]:
        """Return each head's scores of each split that has labelled samples, by one pass."""
        cache, tallies = self.training.cache, [dict[str, Scorer]() for _ in heads]
        self.training.solving.tell("Scoring")
        splits = cache.splits
        for where, values in self.every.blocks():
            for answers, of_head in zip(heads, tallies, strict=True):
                outputs = apply_layers(answers.layers, values)
                for number, split in enumerate(cache.split_names):
                    rows = (splits[where] == number) & targets.labelled[where]
                    if rows.any():
                        tally = of_head.setdefault(split, Scorer(targets.task, answers.thresholds))
                        tally.add(outputs[rows], targets.values[where][rows])
        return [
            {
                split: scores
                for split in cache.split_names
                if split in of_head and (scores := of_head[split].scores())
            }
            for of_head in tallies
        ]

    def _choose(self) -> np.ndarray:
        """Return which of the training samples are kept in memory."""
        question, options = self.training.question, self.training.solving.options
        if options.head == "linear" and options.solver == "sgd":
            return np.zeros(0, np.int64)
        widths = self.training.cache.num_features, question.encoding.num_outputs
        limits: dict[str, Any] = {"memory": self.memory * 2 // 3, "seed": options.seed}
        if options.head == "mlp":
            return choose_judges(
                *(question.encoding.values, *widths),
                loss=question.task.loss,
                groups=self.training.groups,
                **limits,
            )
        are_numbers = question.task.loss is SQUARED
        strata = (
            np.zeros(len(question.encoding.values), np.int64)
            if are_numbers
            else question.encoding.values
        )
        return choose_kept(strata, *widths, **limits)

    def _survey(self, kept: np.ndarray) -> Survey:
        options = self.training.solving.options
        correlate = options.head == "linear" and options.solver == "lbfgs"
        surveyed, bad = survey(self.every, self.training.rows, kept, correlate=correlate)
        require_finite(self.training.cache, bad)
        return surveyed

    def _fit(self, surveyed: Survey) -> Fitted:
        question, solving = self.training.question, self.training.solving
        options, seed = solving.options, solving.options.seed
        labels, num_classes = question.encoding.values, question.encoding.num_outputs
        watched: dict[str, Any] = {
            "weights": question.weights,
            "seed": seed,
            "step": solving.step,
        }
        if options.head == "mlp":
            others = self.every.only(np.delete(self.training.rows, surveyed.kept))
            mlp = fit_mlp_in_blocks(
                *(others, labels, num_classes, surveyed, options.mlp),
                pool_bytes=self.memory // 4,
                loss=question.task.loss,
                **watched,
            )
            return mlp_fitted(mlp, options.mlp, seed=seed)
        train = self.every.only(self.training.rows)
        if options.solver == "sgd":
            layer = fit_sgd_in_blocks(
                *(train, labels, num_classes, options.sgd),
                pool_bytes=self.memory // 2,
                progress=solving.progress,
                **watched,
            )
            return sgd_fitted(layer, options.sgd, seed=seed)
        samples = train, labels, num_classes, surveyed
        watched["groups"] = self.training.groups
        if options.solver == "ridge":
            return ridge_fitted(
                fit_ridge_in_blocks(*samples, strengths=options.strengths, **watched)
            )
        if options.solver == "centroid":
            return centroid_fitted(fit_centroid_in_blocks(*samples, **watched))
        linear = fit_linear_in_blocks(
            *samples,
            strengths=options.strengths,
            judge=solving.hold_out or question.task.loss is SIGMOID,
            loss=SIGMOID if question.task.loss is SIGMOID else SOFTMAX,
            **watched,
        )
        return logistic_fitted(linear, solver=options.solver or "lbfgs", seed=seed)
