"""The linear head: L2-regularised logistic regression, solved to the optimum.

``logistic`` has the objective, ``path`` chooses the strength. The one with the lowest held-out log
loss is then solved on all samples, tightly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featx.heads.head import Layer
from featx.heads.samples.folds import HeldOut
from featx.heads.solvers.eigenbasis import build_basis
from featx.heads.solvers.lbfgs import Minimum, Pairs, Stopping
from featx.heads.solvers.logistic import Logistic, Problems
from featx.heads.solvers.path import PathPoint, Solved, follow_path, takes_seconds, with_all_samples
from featx.heads.tasks.losses import SOFTMAX, LogisticLoss

log = logging.getLogger(__name__)

STRENGTHS: tuple[float, ...] = tuple(float(f"{c:.3g}") for c in np.logspace(-6.5, 1, 16))
FIXED_STRENGTH = STRENGTHS[10]
"""Where nothing can be held out to choose by: the lowest log loss of one-shot heads, on average."""
_TO_THE_END = Stopping(gradient=1e-7)
_TO_SINGLE_PRECISION = Stopping(gradient=1e-6, decrement=2e-7)
_OF_MANY_CLASSES = Stopping(gradient=1e-6, decrement=5e-6)
_SUSPICIOUS_GRADIENT = 1e-3


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A fitted linear head.

    Attributes:
        layer: For raw features.
        strength: The chosen ``C``.
        path: Each ``C`` tried, ascending.
        objective: At the solution; None if unknown.
        gradient_norm: Largest absolute component of the gradient at the solution; None if unknown.
        num_evaluations: Of the objective, for the refit.
        num_folds: Of the cross-validation; 1 for a single hold-out, 0 where nothing was held out.
        held_out: Of the chosen strength; None where nothing was held out.
    """

    layer: Layer
    strength: float
    path: tuple[PathPoint, ...]
    objective: float | None
    gradient_norm: float | None
    num_evaluations: int
    num_folds: int
    held_out: HeldOut | None


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    judge: bool = False,
    loss: LogisticLoss = SOFTMAX,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> LinearFit:
    """Return the regularised optimum on all samples, at the strength that held out best.

    Where nothing can be held out, the strength nearest to ``FIXED_STRENGTH`` is taken.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``; with ``SIGMOID`` tags ``(N, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        strengths: Values of ``C`` to choose from.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; they are held out as a whole.
        judge: Cross-validate a single strength too, which is then known on held-out samples.
        loss: Of what labels are.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    basis = build_basis(features)
    weights = np.ones(len(labels)) if weights is None else weights
    division, best = None, None
    path: tuple[PathPoint, ...] = ()
    if len(strengths) > 1 or judge:
        division = loss.divide(labels, groups=groups, seed=seed)
    if division:
        samples = Logistic(
            basis,
            labels,
            num_classes,
            weights=weights,
            division=division,
            loss=loss,
        )
        best, path = follow_path(samples, division, strengths, step=step)
    strength = best.point.strength if best else fixed_strength(strengths)
    everything = Logistic(basis, labels, num_classes, weights=weights, loss=loss)
    if best and division and loss is SOFTMAX and takes_seconds(everything):
        best = with_all_samples(best, samples, division, everything)
    optimum = refit(everything, strength, best, step=step)
    return LinearFit(
        layer=everything.layer(optimum.variables[0]),
        strength=strength,
        path=path,
        objective=float(optimum.values[0]),
        gradient_norm=float(optimum.gradient_norms[0]),
        num_evaluations=optimum.num_evaluations,
        num_folds=len(division.judged) if division else 0,
        held_out=best.held_out if best else None,
    )


def fixed_strength(strengths: Sequence[float]) -> float:
    """Return the strength to take where nothing can be held out to choose by.

    >>> fixed_strength([0.001]), fixed_strength(STRENGTHS)
    (0.001, 0.0316)
    """
    return float(min(strengths, key=lambda c: abs(np.log(c / FIXED_STRENGTH))))


def refit(
    samples: Logistic,
    strength: float,
    best: Solved | None,
    *,
    left_out: Sequence[int] = (-1,),
    step: Callable[[str], None] | None = None,
) -> Minimum:
    """Return the optimum at one strength, warm from the path where there is one.

    Args:
        samples: What is trained on.
        strength: ``C``.
        best: Where the path has it.
        left_out: The fold that each problem leaves out, -1 for none; all samples come first.
        step: Called with the step under way.
    """
    count = len(left_out)
    problems = Problems(np.full(count, strength), np.array(left_out))
    curvature: tuple[Pairs, ...] | None = None
    start = np.zeros((count, samples.num_variables))
    if best:
        start = np.repeat(best.variables.mean(axis=0, keepdims=True), count, axis=0)
        change = samples.penalties(problems) - best.penalties[:1]
        curvature = samples.with_penalty([best.curvature[0]] * count, change)
    stopping = _TO_THE_END if samples.is_double else _TO_SINGLE_PRECISION
    if takes_seconds(samples):
        stopping = _OF_MANY_CLASSES

    def progress(num_passes: int) -> None:
        if step:
            step(f"All samples at C = {strength:g}, pass {num_passes}")

    optimum = samples.solve(
        problems, start=start, curvature=curvature, stopping=stopping, progress=progress
    )
    if optimum.gradient_norms[0] > _SUSPICIOUS_GRADIENT:
        log.warning("The linear head stopped early: gradient norm %.1e.", optimum.gradient_norms[0])
    return optimum
