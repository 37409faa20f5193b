"""From samples in memory to the layers that a solver leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from featx.heads.solvers.fit import (
    Fitted,
    Samples,
    fit_centroid_head,
    fit_logistic_head,
    fit_mlp_head,
    fit_ridge_head,
    fit_sgd_head,
    fit_tags_head,
)
from featx.heads.solvers.sgd import EpochScores
from featx.heads.tasks.losses import SIGMOID, Loss
from featx.training.options import TrainOptions

EpochProgress = Callable[[EpochScores], None]
"""Called after each epoch of ``sgd``."""

Step = Callable[[str], None]
"""Called with the step under way, in a few words."""


@dataclass(frozen=True, eq=False)
class Solving:
    """How heads are fitted.

    Attributes:
        options: Head and solver, settled for the task.
        hold_out: Hold samples out of a single strength too.
        progress: Called after each epoch of ``sgd``.
        step: Called with the step under way.
    """

    options: TrainOptions
    hold_out: bool = True
    progress: EpochProgress | None = None
    step: Step | None = None

    def tell(self, step: str) -> None:
        """Say which step is under way."""
        if self.step:
            self.step(step)


def solve(samples: Samples, loss: Loss, solving: Solving) -> Fitted:
    """Return layers as their solver left them.

    Args:
        samples: What is trained on.
        loss: Of what their labels are.
        solving: How.
    """
    options, step = solving.options, solving.step
    seed = options.seed
    if options.head == "mlp":
        return fit_mlp_head(samples, options.mlp, loss=loss, seed=seed, step=step)
    if options.solver == "sgd":
        return fit_sgd_head(samples, options.sgd, seed=seed, progress=solving.progress, step=step)
    if options.solver == "ridge":
        return fit_ridge_head(samples, options.strengths, seed=seed, step=step)
    if options.solver == "centroid":
        return fit_centroid_head(samples, seed=seed)
    if loss is SIGMOID:
        return fit_tags_head(samples, options.strengths, seed=seed, step=step)
    return fit_logistic_head(
        samples,
        options.strengths,
        solver=options.solver or "lbfgs",
        judge=solving.hold_out,
        seed=seed,
        step=step,
    )
