"""One way to call every solver: samples in; layers, what was chosen, and held-out logits out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from featx.heads.head import Layer
from featx.heads.samples.folds import HeldOut
from featx.heads.solvers.centroid import CentroidFit, fit_centroid
from featx.heads.solvers.linear import LinearFit, fit_linear
from featx.heads.solvers.mlp import MLPFit, fit_mlp
from featx.heads.solvers.mlp_options import MLPOptions
from featx.heads.solvers.ridge import RidgeFit, fit_ridge
from featx.heads.solvers.sgd import EpochScores, SGDOptions, fit_sgd
from featx.heads.tasks.losses import SIGMOID, SOFTMAX, Loss


@dataclass(frozen=True, eq=False)
class Samples:
    """What a head is trained on.

    Attributes:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``; tags or numbers ``(N, num_classes)``.
        num_classes: Outputs of the head.
        weights: What each sample counts, ``(N,)``, above 0.
        groups: Of each sample, ``(N,)``, -1 for none: held out as a whole; None without groups.
    """

    features: np.ndarray
    labels: np.ndarray
    num_classes: int
    weights: np.ndarray
    groups: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Features, labels, and number of classes."""
        return self.features, self.labels, self.num_classes


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head as its solver left it.

    Attributes:
        layers: For raw features.
        choice: What was chosen on the way, JSON values.
        held_out: Outputs of it, or its like, for samples that were not trained on; None if nothing
            was held out.
    """

    layers: tuple[Layer, ...]
    choice: dict[str, Any]
    held_out: HeldOut | None


def fit_logistic_head(
    samples: Samples,
    strengths: Sequence[float],
    *,
    solver: str,
    judge: bool,
    seed: int,
    step: Callable[[str], None] | None = None,
) -> Fitted:
    """Return logistic regression by ``"lbfgs"`` or ``"sklearn"``; see ``fit_linear``."""
    chosen: dict[str, Any] = {
        "strengths": strengths,
        "weights": samples.weights,
        "groups": samples.groups,
        "judge": judge,
        "seed": seed,
        "step": step,
    }
    if solver == "sklearn":
        from featx.heads.solvers.with_sklearn import fit_with_sklearn

        linear = fit_with_sklearn(*samples.arrays, **chosen)
    else:
        linear = fit_linear(*samples.arrays, **chosen)
    return logistic_fitted(linear, solver=solver, seed=seed)


def logistic_fitted(linear: LinearFit, *, solver: str, seed: int) -> Fitted:
    """Return a logistic regression with what was chosen."""
    choice = {
        "head": "linear",
        "solver": solver,
        "strength": linear.strength,
        "path": [asdict(point) for point in linear.path],
        "num_folds": linear.num_folds,
        "objective": linear.objective,
        "gradient_norm": linear.gradient_norm,
        "num_evaluations": linear.num_evaluations,
        "seed": seed,
    }
    return Fitted((linear.layer,), choice, linear.held_out)


def fit_tags_head(
    samples: Samples,
    strengths: Sequence[float],
    *,
    seed: int,
    step: Callable[[str], None] | None = None,
) -> Fitted:
    """Return a logistic regression for each tag, all of one strength; see ``fit_linear``."""
    linear = fit_linear(
        *samples.arrays,
        strengths=strengths,
        weights=samples.weights,
        groups=samples.groups,
        judge=True,
        loss=SIGMOID,
        seed=seed,
        step=step,
    )
    return logistic_fitted(linear, solver="lbfgs", seed=seed)


def fit_ridge_head(
    samples: Samples,
    strengths: Sequence[float],
    *,
    seed: int,
    step: Callable[[str], None] | None = None,
) -> Fitted:
    """Return ridge on numbers, or on one-hot targets; see ``fit_ridge``."""
    ridge = fit_ridge(
        *samples.arrays,
        strengths=strengths,
        weights=samples.weights,
        groups=samples.groups,
        seed=seed,
        step=step,
    )
    return ridge_fitted(ridge)


def ridge_fitted(ridge: RidgeFit) -> Fitted:
    """Return a ridge head with what was chosen."""
    choice = {
        "head": "linear",
        "solver": "ridge",
        "strength": ridge.strength,
        "path": [asdict(point) for point in ridge.path],
        "num_folds": ridge.held_out.num_folds if ridge.held_out else None,
    }
    return Fitted((ridge.layer,), choice, ridge.held_out)


def fit_centroid_head(samples: Samples, *, seed: int) -> Fitted:
    """Return nearest centroid by cosine; see ``fit_centroid``."""
    centroid = fit_centroid(
        *samples.arrays, weights=samples.weights, groups=samples.groups, seed=seed
    )
    return centroid_fitted(centroid)


def centroid_fitted(centroid: CentroidFit) -> Fitted:
    """Return a nearest-centroid head."""
    return Fitted((centroid.layer,), {"head": "linear", "solver": "centroid"}, centroid.held_out)


def fit_sgd_head(
    samples: Samples,
    options: SGDOptions,
    *,
    seed: int,
    progress: Callable[[EpochScores], None] | None = None,
    step: Callable[[str], None] | None = None,
) -> Fitted:
    """Return the tutorials' recipe; see ``fit_sgd``. It holds nothing out."""
    layer = fit_sgd(
        *samples.arrays,
        options,
        weights=samples.weights,
        seed=seed,
        progress=progress,
        step=step,
    )
    return sgd_fitted(layer, options, seed=seed)


def sgd_fitted(layer: Layer, options: SGDOptions, *, seed: int) -> Fitted:
    """Return the recipe's head with the recipe."""
    choice = {"head": "linear", "solver": "sgd", **asdict(options), "seed": seed}
    return Fitted((layer,), choice, None)


def fit_mlp_head(
    samples: Samples,
    options: MLPOptions,
    *,
    loss: Loss = SOFTMAX,
    seed: int,
    step: Callable[[str], None] | None = None,
) -> Fitted:
    """Return an MLP; see ``fit_mlp``."""
    mlp = fit_mlp(
        *samples.arrays,
        options,
        weights=samples.weights,
        groups=samples.groups,
        loss=loss,
        seed=seed,
        step=step,
    )
    return mlp_fitted(mlp, options, seed=seed)


def mlp_fitted(mlp: MLPFit, options: MLPOptions, *, seed: int) -> Fitted:
    """Return an MLP with what was chosen."""
    choice = {
        "head": "mlp",
        "solver": "adamw",
        "hidden": list(options.hidden),
        "batch_size": options.batch_size,
        "max_epochs": options.max_epochs,
        "patience": options.patience,
        **asdict(mlp.chosen),
        "candidates": [asdict(candidate) for candidate in mlp.candidates],
        "seed": seed,
    }
    return Fitted(mlp.layers, choice, mlp.held_out)
