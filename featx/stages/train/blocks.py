"""Training on features that do not fit into memory, in passes over their file."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featx.features.blocks import FeatureRows
from featx.features.file import FeatureFile
from featx.heads.class_weight import weights_of
from featx.heads.device import Device
from featx.heads.fit import (
    Fitted,
    Samples,
    centroid_fitted,
    logistic_fitted,
    mlp_fitted,
    ridge_fitted,
    sgd_fitted,
)
from featx.heads.head import Layer, apply_layers
from featx.heads.metrics import Judged, Metrics, judge, measure_judged
from featx.heads.rows import Survey, survey
from featx.heads.sgd import EpochScores
from featx.heads.streamed.centroid import fit_centroid_in_blocks
from featx.heads.streamed.linear import fit_linear_in_blocks
from featx.heads.streamed.mlp import fit_mlp_in_blocks
from featx.heads.streamed.ridge import fit_ridge_in_blocks
from featx.heads.streamed.selection import choose_judges, choose_kept
from featx.heads.streamed.sgd import fit_sgd_in_blocks
from featx.stages.train.options import TrainOptions
from featx.stages.train.samples import require_finite


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
class Blocked:
    """Features that are read in blocks, and what trains on them.

    Attributes:
        cache: Their file.
        every: All rows of it.
        rows: Numbers of those that train, ascending, ``(N,)``.
        memory: Bytes that features and their copies may take.
        options: What is trained, with the solver that was settled.
        device: What the products run on; None for numpy.
    """

    cache: FeatureFile
    every: FeatureRows
    rows: np.ndarray
    memory: int
    options: TrainOptions
    device: Device | None = None

    @property
    def labels(self) -> np.ndarray:
        """Of the rows that train, ``(N,)``."""
        labels: np.ndarray = self.cache.labels[self.rows]
        return labels

    def fit(self, progress: Callable[[EpochScores], None] | None = None) -> BlockedFit:
        """Return the head that the options ask for.

        Raises:
            ArtifactInvalid: A feature is NaN or infinite, or the file was damaged or replaced.
            ConfigError: An option does not fit the samples.
        """
        start = time.perf_counter()
        kept = self._choose()
        fitted = self._fit(self._survey(kept), progress)
        fitted.choice["in_blocks"] = {"kept": len(kept), "bytes_read": self.every.bytes_read}
        return BlockedFit(fitted, time.perf_counter() - start)

    def samples_of(self, draws: Sequence[np.ndarray]) -> list[Samples]:
        """Return the samples of some draws, each rows of those that train, by one pass."""
        labels, num_classes = self.labels, len(self.cache.classes)
        weights = weights_of(labels, self.cache.classes, self.options.class_weight)
        union = np.unique(np.concatenate(draws))
        features = self._survey(union).features
        return [
            Samples(
                features[np.searchsorted(union, rows)], labels[rows], num_classes, weights[rows]
            )
            for rows in draws
        ]

    def score(self, heads: Sequence[Sequence[Layer]]) -> list[dict[str, Metrics]]:
        """Return each head's scores of each split that has labelled samples, by one pass."""
        parts: list[dict[str, list[Judged]]] = [{} for _ in heads]
        labels, splits = self.cache.labels, self.cache.splits
        for where, values in self.every.blocks():
            for layers, of_head in zip(heads, parts, strict=True):
                logits = apply_layers(layers, values)
                for number, split in enumerate(self.cache.split_names):
                    rows = (splits[where] == number) & (labels[where] >= 0)
                    if rows.any():
                        said = judge(logits[rows], labels[where][rows])
                        of_head.setdefault(split, []).append(said)
        return [
            {
                split: measure_judged(of_head[split], len(self.cache.classes))
                for split in self.cache.split_names
                if split in of_head
            }
            for of_head in parts
        ]

    def _choose(self) -> np.ndarray:
        """Return which of the training samples are kept in memory."""
        if self.options.head == "linear" and self.options.solver == "sgd":
            return np.zeros(0, np.int64)
        choose = choose_judges if self.options.head == "mlp" else choose_kept
        return choose(
            self.labels,
            self.cache.num_features,
            len(self.cache.classes),
            memory=self.memory * 2 // 3,
            seed=self.options.seed,
        )

    def _survey(self, kept: np.ndarray) -> Survey:
        correlate = self.options.head == "linear" and self.options.solver == "lbfgs"
        surveyed, bad = survey(self.every, self.rows, kept, correlate=correlate)
        require_finite(self.cache, bad)
        return surveyed

    def _fit(self, surveyed: Survey, progress: Callable[[EpochScores], None] | None) -> Fitted:
        options, seed = self.options, self.options.seed
        labels, num_classes = self.labels, len(self.cache.classes)
        weights = weights_of(labels, self.cache.classes, options.class_weight)
        train = self.every.only(self.rows)
        if options.head == "mlp":
            others = self.every.only(np.delete(self.rows, surveyed.kept))
            mlp = fit_mlp_in_blocks(
                *(others, labels, num_classes, surveyed, options.mlp),
                pool_bytes=self.memory // 4,
                weights=weights,
                seed=seed,
                device=self.device,
            )
            return mlp_fitted(mlp, options.mlp, seed=seed)
        if options.solver == "sgd":
            layer = fit_sgd_in_blocks(
                *(train, labels, num_classes, options.sgd),
                pool_bytes=self.memory // 2,
                weights=weights,
                seed=seed,
                progress=progress,
            )
            return sgd_fitted(layer, options.sgd, seed=seed)
        samples = train, labels, num_classes, surveyed
        if options.solver == "ridge":
            return ridge_fitted(
                fit_ridge_in_blocks(*samples, strengths=options.strengths, weights=weights)
            )
        if options.solver == "centroid":
            return centroid_fitted(fit_centroid_in_blocks(*samples, weights=weights))
        linear = fit_linear_in_blocks(
            *samples,
            strengths=options.strengths,
            weights=weights,
            judge=options.calibrate,
            seed=seed,
            device=self.device,
        )
        return logistic_fitted(linear, solver=options.solver or "lbfgs", seed=seed)
