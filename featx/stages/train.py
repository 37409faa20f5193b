"""Stage 2: fit a head on cached features."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from featx.artifact import Header, describe_environment, require_writable
from featx.errors import ArtifactInvalid, ConfigError, SourceError
from featx.features.file import FeatureFile, open_features
from featx.heads.calibration import Calibration, calibrate, fold_temperature
from featx.heads.class_weight import ClassWeight, weights_of
from featx.heads.few_shot import (
    FewShot,
    FewShotScores,
    draw_shots,
    summarise,
    warn_of_small_classes,
)
from featx.heads.fit import (
    Fitted,
    Samples,
    fit_centroid_head,
    fit_logistic_head,
    fit_mlp_head,
    fit_ridge_head,
    fit_sgd_head,
)
from featx.heads.head import Head, Layer, apply_layers, save_head
from featx.heads.linear import STRENGTHS
from featx.heads.metrics import Metrics, measure
from featx.heads.mlp import MLPOptions
from featx.heads.sgd import EpochScores, SGDOptions
from featx.images.sources import SPLITS

log = logging.getLogger(__name__)

HeadKind = Literal["linear", "mlp"]
Solver = Literal["lbfgs", "sklearn", "ridge", "centroid", "sgd"]


@dataclass(frozen=True)
class TrainOptions:
    """Which head to fit and how.

    Attributes:
        head: ``"linear"`` or ``"mlp"``.
        solver: Of a linear head: logistic regression by featx's own L-BFGS or by scikit-learn,
            ridge on one-hot targets, nearest centroid by cosine, or the tutorials' SGD.
        strengths: Values of ``C`` (inverse L2 strength, as scikit-learn's) to choose from; for
            ``lbfgs``, ``sklearn`` and ``ridge``.
        mlp: Shape and training of an MLP head.
        sgd: The recipe of ``sgd``.
        class_weight: What a sample counts, by the name of its class, 1 where there is none;
            ``"balanced"`` lets every class count the same; None counts each sample once.
        few_shot: Train on a few samples of each class, on several draws; the head of the first is
            written.
        calibrate: Fit a temperature on held-out samples and fold it into the head.
        seed: Decides folds, and everything random about an MLP.
        overwrite: Replace the output.
    """

    head: HeadKind = "linear"
    solver: Solver = "lbfgs"
    strengths: tuple[float, ...] = STRENGTHS
    mlp: MLPOptions = field(default_factory=MLPOptions)
    sgd: SGDOptions = field(default_factory=SGDOptions)
    class_weight: ClassWeight = None
    few_shot: FewShot | None = None
    calibrate: bool = True
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.head not in get_args(HeadKind):
            raise ConfigError(f"head must be 'linear' or 'mlp'; got {self.head!r}.")
        if self.solver not in get_args(Solver):
            raise ConfigError(
                f"solver must be one of {', '.join(get_args(Solver))}; got {self.solver!r}."
            )
        if not self.strengths or not all(0 < c < float("inf") for c in self.strengths):
            raise ConfigError(f"strengths C must be above 0; got {list(self.strengths)}.")


@dataclass(frozen=True)
class TrainReport:
    """What training made.

    Attributes:
        path: The head file.
        head: The head itself.
        metrics: Scores of each split that has labelled samples.
        seconds: Of fitting, without reading and writing.
        choice: The hyperparameters that were chosen, JSON values.
        calibration: Of the head's probabilities; None where it was left out or nothing was held
            out.
        few_shot: Scores of each split over all draws; empty without ``few_shot``.
    """

    path: Path
    head: Head
    metrics: dict[str, Metrics]
    seconds: float
    choice: dict[str, Any]
    calibration: Calibration | None
    few_shot: dict[str, FewShotScores]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "path": str(self.path),
            "metrics": {split: scores.to_dict() for split, scores in self.metrics.items()},
            "seconds": self.seconds,
            "choice": self.choice,
            "calibration": self.calibration.to_dict() if self.calibration else None,
            "few_shot": {split: scores.to_dict() for split, scores in self.few_shot.items()},
        }


def train_head(
    features: str | Path,
    output: str | Path,
    options: TrainOptions | None = None,
    *,
    progress: Callable[[EpochScores], None] | None = None,
) -> TrainReport:
    """Fit a head on the training split of a feature file and write it.

    Validation and test splits are only reported.

    Args:
        features: The feature file.
        output: The head file.
        options: Which head and how.
        progress: Called after each epoch of ``sgd``.

    Raises:
        ArtifactError: The feature file cannot be used, or the output exists.
        SourceError: Its samples cannot train a classifier.
        ConfigError: An option does not fit.
    """
    options, output = options or TrainOptions(), Path(output)
    if output.resolve() == Path(features).resolve():
        raise ConfigError(f"the head would replace '{features}', which it is trained on.")
    cache = open_features(features)
    require_writable(output, overwrite=options.overwrite)
    x, y = _training_samples(cache)
    _require_provenance(cache)
    _warn_of_leaks(cache)
    start = time.perf_counter()
    weights = weights_of(y, cache.classes, options.class_weight)
    draws = _draw(y, options)
    trained = []
    for rows in draws:
        samples = Samples(x[rows], y[rows], len(cache.classes), weights[rows])
        trained.append(_fit_calibrated(samples, options, progress))
    seconds = time.perf_counter() - start
    scores = [_metrics(each.layers, cache) for each in trained]
    few_shot = summarise(scores) if options.few_shot else {}
    head = Head(_header(cache, options, trained[0], scores[0], few_shot), trained[0].layers)
    head = save_head(output, head, overwrite=options.overwrite)
    return TrainReport(
        output, head, scores[0], seconds, trained[0].choice, trained[0].calibration, few_shot
    )


_PROVENANCE = ("source", "weights", "val_fraction")
"""What export needs to find images and weights again; the head passes it on."""


def _require_provenance(cache: FeatureFile) -> None:
    missing = [name for name in _PROVENANCE if name not in cache.header.details]
    if missing:
        raise ArtifactInvalid(
            cache.path,
            f"'{cache.path}' does not say its {', '.join(missing)}; extract it again.",
        )


def _warn_of_leaks(cache: FeatureFile) -> None:
    """Warn where images that judge a head have the content of images that train it."""
    digests = np.ascontiguousarray(cache.digests).view(f"S{cache.digests.shape[1]}")[:, 0]
    judged = (cache.splits != SPLITS.index("train")) & (digests != b"")
    leaks = np.flatnonzero(judged & np.isin(digests, digests[~judged]))
    if len(leaks):
        log.warning(
            "%s validation or test images have the content of a training image ('%s' first): "
            "their scores flatter.",
            *(f"{len(leaks):,}", cache.sample_ids[leaks[0]]),
        )


def _training_samples(cache: FeatureFile) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels of the labelled training rows.

    Raises:
        SourceError: There are none, or fewer than two classes have any.
        ArtifactInvalid: A feature is NaN or infinite.
    """
    rows = cache.rows("train")
    unlabelled = int((cache.labels[rows] < 0).sum())
    rows = rows[cache.labels[rows] >= 0]
    if not (cache.labels >= 0).any():
        raise SourceError(
            f"'{cache.path}' has no labels: its images lie in no class folders. Sort them into one "
            "folder per class, or give their labels in a CSV manifest, and extract again."
        )
    if not len(rows):
        raise SourceError(f"'{cache.path}' has no labelled images in its training split.")
    if unlabelled:
        log.warning("%d training images have no label: left out.", unlabelled)
    counts = np.bincount(cache.labels[rows], minlength=len(cache.classes))
    empty = [name for name, count in zip(cache.classes, counts, strict=True) if not count]
    if len(cache.classes) - len(empty) < 2:
        raise SourceError(
            f"'{cache.path}' has training images of one class only "
            f"('{cache.classes[int(counts.argmax())]}'); a classifier needs two."
        )
    if empty:
        log.warning("No training images of %s: never predicted.", ", ".join(map(repr, empty)))
    bad = [cache.sample_ids[row] for row in np.flatnonzero(~np.isfinite(cache.features).all(1))]
    if bad:
        raise ArtifactInvalid(
            cache.path,
            f"'{cache.path}' has NaN or infinite features in {len(bad)} rows, '{bad[0]}' first. "
            "Extract again with other weights.",
        )
    return cache.features[rows], cache.labels[rows]


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


@dataclass(frozen=True, eq=False)
class _Trained:
    """A head that is ready to be written."""

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    calibration: Calibration | None


def _fit_calibrated(
    samples: Samples, options: TrainOptions, progress: Callable[[EpochScores], None] | None
) -> _Trained:
    fitted = _fit(samples, options, progress)
    if not options.calibrate or fitted.held_out is None:
        return _Trained(fitted.layers, fitted.choice, None)
    calibration = calibrate(fitted.held_out)
    layers = fold_temperature(fitted.layers, calibration.temperature)
    return _Trained(layers, fitted.choice, calibration)


def _fit(
    samples: Samples, options: TrainOptions, progress: Callable[[EpochScores], None] | None
) -> Fitted:
    seed = options.seed
    if options.head == "mlp":
        return fit_mlp_head(samples, options.mlp, seed=seed)
    if options.solver == "sgd":
        return fit_sgd_head(samples, options.sgd, seed=seed, progress=progress)
    if options.solver == "ridge":
        return fit_ridge_head(samples, options.strengths)
    if options.solver == "centroid":
        return fit_centroid_head(samples)
    return fit_logistic_head(
        samples, options.strengths, solver=options.solver, judge=options.calibrate, seed=seed
    )


def _metrics(layers: Sequence[Layer], cache: FeatureFile) -> dict[str, Metrics]:
    scores = {}
    for split in cache.split_names:
        rows = cache.rows(split)
        measured = measure(apply_layers(layers, cache.features[rows]), cache.labels[rows])
        if measured:
            scores[split] = measured
    return scores


def _header(
    cache: FeatureFile,
    options: TrainOptions,
    trained: _Trained,
    metrics: Mapping[str, Metrics],
    few_shot: Mapping[str, FewShotScores],
) -> Header:
    source, calibration, weight = cache.header.details, trained.calibration, options.class_weight
    details: dict[str, Any] = {
        "features": str(cache.path.resolve()),
        **{name: source[name] for name in _PROVENANCE},
        "activation": "relu",
        "choice": trained.choice,
        "class_weight": dict(weight) if isinstance(weight, Mapping) else weight,
        "temperature": calibration.temperature if calibration else 1.0,
        "calibration": calibration.to_dict() if calibration else None,
        "metrics": {split: scores.to_dict() for split, scores in metrics.items()},
    }
    if options.few_shot:
        scores = {split: each.to_dict() for split, each in few_shot.items()}
        details["few_shot"] = asdict(options.few_shot) | {"metrics": scores}
    return Header(
        kind="head",
        spec=cache.header.spec,
        classes=cache.classes,
        details=details,
        environment=describe_environment("torch", "numpy", "scikit-learn"),
    )
