"""From samples in memory to the layers that a solver leaves."""

from __future__ import annotations

from collections.abc import Callable

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
from featx.heads.losses import SIGMOID, Loss
from featx.heads.sgd import EpochScores
from featx.stages.train.options import TrainOptions

EpochProgress = Callable[[EpochScores], None]
"""Called after each epoch of ``sgd``."""


def solve(
    samples: Samples,
    loss: Loss,
    options: TrainOptions,
    progress: EpochProgress | None = None,
    device: Device | None = None,
) -> Fitted:
    """Return layers as their solver left them.

    Args:
        samples: What is trained on.
        loss: What is made small, of what their labels are.
        options: Head and solver, settled for the task.
        progress: Called after each epoch of ``sgd``.
        device: What the products run on; None for numpy.
    """
    seed = options.seed
    if options.head == "mlp":
        return fit_mlp_head(samples, options.mlp, loss=loss, seed=seed, device=device)
    if options.solver == "sgd":
        return fit_sgd_head(samples, options.sgd, seed=seed, progress=progress)
    if options.solver == "ridge":
        return fit_ridge_head(samples, options.strengths, seed=seed)
    if options.solver == "centroid":
        return fit_centroid_head(samples, seed=seed)
    if loss is SIGMOID:
        return fit_tags_head(samples, options.strengths, seed=seed)
    return fit_logistic_head(
        samples,
        options.strengths,
        solver=options.solver or "lbfgs",
        judge=options.calibrate,
        seed=seed,
        device=device,
    )
