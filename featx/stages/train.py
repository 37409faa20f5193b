"""Stage 2: fit a head on cached features."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from featx.artifact import Header, describe_environment, require_writable
from featx.errors import ArtifactInvalid, ConfigError, SourceError
from featx.features.file import FeatureFile, open_features
from featx.heads.calibration import Calibration, calibrate, fold_temperature
from featx.heads.folds import HeldOut
from featx.heads.head import Head, Layer, apply_layers, save_head
from featx.heads.linear import STRENGTHS
from featx.heads.metrics import Metrics, measure
from featx.heads.mlp import MLPOptions, fit_mlp

log = logging.getLogger(__name__)

HeadKind = Literal["linear", "mlp"]
Solver = Literal["lbfgs", "sklearn"]


@dataclass(frozen=True)
class TrainOptions:
    """Which head to fit and how.

    Attributes:
        head: ``"linear"`` or ``"mlp"``.
        solver: For a linear head: featx's own L-BFGS, or scikit-learn.
        strengths: Values of ``C`` (inverse L2 strength, as scikit-learn's) to choose from.
        mlp: Shape and training of an MLP head.
        calibrate: Fit a temperature on held-out samples and fold it into the head.
        seed: Decides folds, and everything random about an MLP.
        overwrite: Replace the output.
    """

    head: HeadKind = "linear"
    solver: Solver = "lbfgs"
    strengths: tuple[float, ...] = STRENGTHS
    mlp: MLPOptions = field(default_factory=MLPOptions)
    calibrate: bool = True
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.head not in get_args(HeadKind):
            raise ConfigError(f"head must be 'linear' or 'mlp'; got {self.head!r}.")
        if self.solver not in get_args(Solver):
            raise ConfigError(f"solver must be 'lbfgs' or 'sklearn'; got {self.solver!r}.")
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
    """

    path: Path
    head: Head
    metrics: dict[str, Metrics]
    seconds: float
    choice: dict[str, Any]
    calibration: Calibration | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "path": str(self.path),
            "metrics": {split: scores.to_dict() for split, scores in self.metrics.items()},
            "seconds": self.seconds,
            "choice": self.choice,
            "calibration": self.calibration.to_dict() if self.calibration else None,
        }


def train_head(
    features: str | Path, output: str | Path, options: TrainOptions | None = None
) -> TrainReport:
    """Fit a head on the training split of a feature file and write it.

    Validation and test splits are only reported.

    Args:
        features: The feature file.
        output: The head file.
        options: Which head and how.

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
    start = time.perf_counter()
    fitted = _fit(x, y, len(cache.classes), options)
    layers, calibration = fitted.layers, None
    if options.calibrate and fitted.held_out:
        calibration = calibrate(fitted.held_out)
        layers = fold_temperature(layers, calibration.temperature)
    seconds = time.perf_counter() - start
    metrics = _metrics(layers, cache)
    header = _header(cache, fitted.choice, calibration, metrics)
    head = save_head(output, Head(header, layers), overwrite=options.overwrite)
    return TrainReport(output, head, metrics, seconds, fitted.choice, calibration)


_PROVENANCE = ("source", "weights", "val_fraction")
"""What export needs to find images and weights again; the head passes it on."""


def _require_provenance(cache: FeatureFile) -> None:
    missing = [name for name in _PROVENANCE if name not in cache.header.details]
    if missing:
        raise ArtifactInvalid(
            cache.path,
            f"'{cache.path}' does not say its {', '.join(missing)}; extract it again.",
        )


def _training_samples(cache: FeatureFile) -> tuple[np.ndarray, np.ndarray]:
    """Return features and labels of the labelled training rows.

    Raises:
        SourceError: There are none, or fewer than two classes have any.
        ArtifactInvalid: A feature is NaN or infinite.
    """
    rows = cache.rows("train")
    rows = rows[cache.labels[rows] >= 0]
    if not (cache.labels >= 0).any():
        raise SourceError(
            f"'{cache.path}' has no labels: its images lie in no class folders. Sort them into one "
            "folder per class, or give their labels in a CSV manifest, and extract again."
        )
    if not len(rows):
        raise SourceError(f"'{cache.path}' has no labelled images in its training split.")
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


@dataclass(frozen=True, eq=False)
class _Fitted:
    """A head as its solver left it.

    Attributes:
        layers: For raw features.
        choice: What was chosen on the way, JSON values.
        held_out: What it, or its like, said of samples that were not trained on; None if nothing.
    """

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    held_out: HeldOut | None


def _fit(x: np.ndarray, y: np.ndarray, num_classes: int, options: TrainOptions) -> _Fitted:
    if options.head == "mlp":
        return _fit_mlp(x, y, num_classes, options)
    if options.solver == "sklearn":
        from featx.heads.with_sklearn import fit_with_sklearn as fit
    else:
        from featx.heads.linear import fit_linear as fit
    linear = fit(
        x,
        y,
        num_classes,
        strengths=options.strengths,
        judge=options.calibrate,
        seed=options.seed,
    )
    choice = {
        "head": "linear",
        "solver": options.solver,
        "strength": linear.strength,
        "path": [asdict(point) for point in linear.path],
        "num_folds": linear.num_folds,
        "objective": linear.objective,
        "gradient_norm": linear.gradient_norm,
        "num_evaluations": linear.num_evaluations,
        "seed": options.seed,
    }
    return _Fitted((linear.layer,), choice, linear.held_out)


def _fit_mlp(x: np.ndarray, y: np.ndarray, num_classes: int, options: TrainOptions) -> _Fitted:
    mlp = fit_mlp(x, y, num_classes, options.mlp, seed=options.seed)
    choice = {
        "head": "mlp",
        "solver": "adamw",
        **asdict(options.mlp),
        "hidden": list(options.mlp.hidden),
        "num_epochs": mlp.num_epochs,
        "held_out_loss": mlp.held_out_loss,
        "seed": options.seed,
    }
    return _Fitted(mlp.layers, choice, mlp.held_out)


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
    choice: dict[str, Any],
    calibration: Calibration | None,
    metrics: dict[str, Metrics],
) -> Header:
    source = cache.header.details
    return Header(
        kind="head",
        spec=cache.header.spec,
        classes=cache.classes,
        details={
            "features": str(cache.path.resolve()),
            **{name: source[name] for name in _PROVENANCE},
            "activation": "relu",
            "choice": choice,
            "temperature": calibration.temperature if calibration else 1.0,
            "calibration": calibration.to_dict() if calibration else None,
            "metrics": {split: scores.to_dict() for split, scores in metrics.items()},
        },
        environment=describe_environment("torch", "numpy", "scikit-learn"),
    )
