"""The linear head: L2-regularised logistic regression, solved to the optimum.

``logistic`` has the objective. All strengths are solved, from the strongest regularisation on. Each
search starts where the ones before it point to, and inherits what they learnt of the curvature, so
that it takes a few passes over the features; the folds of the cross-validation are solved side by
side. The strength with the lowest held-out log loss is then solved on all samples, tightly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featx.errors import ConfigError
from featx.heads.basis import build_basis
from featx.heads.device import Device
from featx.heads.folds import Division, HeldOut
from featx.heads.head import Layer
from featx.heads.lbfgs import Minimum, Pairs, Stopping
from featx.heads.logistic import Logistic, Problems
from featx.heads.losses import SOFTMAX, LogisticLoss

log = logging.getLogger(__name__)

STRENGTHS: tuple[float, ...] = tuple(float(f"{c:.3g}") for c in np.logspace(-6.5, 1, 16))
FIXED_STRENGTH = STRENGTHS[10]
"""Where nothing can be held out to choose by: the lowest log loss of one-shot heads, on average."""
_AHEAD = 0.7
"""Share of the last change along the path by which the next start goes on."""
_ON_THE_WAY = Stopping(gradient=1e-7, decrement=5e-5, max_iterations=200)
_TO_THE_END = Stopping(gradient=1e-7)
_TO_SINGLE_PRECISION = Stopping(gradient=1e-6, decrement=2e-7)
_SUSPICIOUS_GRADIENT = 1e-3


@dataclass(frozen=True)
class PathPoint:
    """One strength of the path, solved on the samples that were not held out.

    Attributes:
        strength: ``C``.
        log_loss: On the held-out samples, nats.
        top1: On the held-out samples, in [0, 1]; None for tags.
        objective: At the solution, mean over folds; None if unknown.
        gradient_norm: Largest absolute component of its gradient, over all folds; None if unknown.
    """

    strength: float
    log_loss: float
    top1: float | None
    objective: float | None
    gradient_norm: float | None


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
    device: Device | None = None,
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
        device: What the products run on; None for numpy.
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
            device=device,
        )
        best, path = follow_path(samples, division, strengths, step=step)
    strength = best.point.strength if best else fixed_strength(strengths)
    everything = Logistic(basis, labels, num_classes, weights=weights, loss=loss, device=device)
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


@dataclass(frozen=True, eq=False)
class Solved:
    """One strength on every fold.

    Attributes:
        point: How it did.
        penalties: Factors of the objectives' penalty, ``(num_folds,)``.
        variables: ``(num_folds, num_variables)``.
        curvature: Of each fold.
        held_out: What each fold's solution says of the samples it left out.
    """

    point: PathPoint
    penalties: np.ndarray
    variables: np.ndarray
    curvature: tuple[Pairs, ...]
    held_out: HeldOut


def follow_path(
    samples: Logistic,
    division: Division,
    strengths: Sequence[float],
    *,
    step: Callable[[str], None] | None = None,
) -> tuple[Solved, tuple[PathPoint, ...]]:
    """Return the best strength and the whole path, weakest ``C`` first.

    Args:
        samples: What is trained on, with its division.
        division: Who is held out when.
        strengths: Values of ``C``, at least one.
        step: Called with the step under way.

    Raises:
        ConfigError: There are no strengths.
    """
    before: list[Solved] = []
    best, path = None, []
    for number, strength in enumerate(sorted(strengths), start=1):
        if step:
            step(f"Strength {number} of {len(strengths)}, C = {strength:g}")
        solved = _solve_folds(samples, division, strength, before)
        before = [*before[-1:], solved]
        path.append(solved.point)
        if best is None or solved.point.log_loss < best.point.log_loss:
            best = solved
    if best is None:
        raise ConfigError("there are no strengths C to choose from.")
    if len(path) > 1 and best.point in (path[0], path[-1]):
        log.info("The best strength C=%g is at the end of the range tried.", best.point.strength)
    return best, tuple(path)


def _solve_folds(
    samples: Logistic, division: Division, strength: float, before: Sequence[Solved]
) -> Solved:
    """Return the optimum for each fold left out, starting from the two strengths before."""
    problems = Problems(np.full(len(division.judged), strength), division.judged)
    penalties = samples.penalties(problems)
    curvature: tuple[Pairs, ...] | None = None
    if before:
        last = before[-1]
        curvature = samples.with_penalty(last.curvature, penalties - last.penalties)
    start = _ahead(samples, before, strength, len(penalties))
    minimum = samples.solve(problems, start=start, stopping=_ON_THE_WAY, curvature=curvature)
    held_out, weights = samples.held_out(minimum.variables, division)
    point = PathPoint(
        strength=float(strength),
        log_loss=samples.loss.mean(held_out.logits, held_out.labels, weights=weights),
        top1=samples.loss.top1(held_out.logits, held_out.labels),
        objective=float(minimum.values.mean()),
        gradient_norm=float(minimum.gradient_norms.max()),
    )
    return Solved(point, penalties, minimum.variables, minimum.curvature, held_out)


def _ahead(
    samples: Logistic, before: Sequence[Solved], strength: float, num_folds: int
) -> np.ndarray:
    """Return where to start a strength, ``(num_folds, num_variables)``: on along the path."""
    if not before:
        return np.zeros((num_folds, samples.num_variables))
    last = before[-1]
    if len(before) < 2:
        return last.variables
    gone = np.log(last.point.strength / before[0].point.strength)
    to_go = np.log(strength / last.point.strength)
    share = _AHEAD * min(to_go / gone, 2.0) if gone > 0 else 0.0
    start: np.ndarray = last.variables + share * (last.variables - before[0].variables)
    return start


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

    def progress(num_passes: int) -> None:
        if step:
            step(f"All samples at C = {strength:g}, pass {num_passes}")

    optimum = samples.solve(
        problems, start=start, curvature=curvature, stopping=stopping, progress=progress
    )
    if optimum.gradient_norms[0] > _SUSPICIOUS_GRADIENT:
        log.warning("The linear head stopped early: gradient norm %.1e.", optimum.gradient_norms[0])
    return optimum
