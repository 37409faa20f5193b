"""The linear head: L2-regularised logistic regression, solved to the optimum.

``logistic`` has the objective, ``path`` chooses the strength: the one with the lowest held-out log
loss, which is then solved on all samples, tightly.

Of features that are read in blocks the strength is chosen on the subsample. The last fit starts
where that left off, and solves the same strength without the held-out samples in the same passes,
so that the temperature is fitted on outputs for samples that were not trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict

import numpy as np

from featx.heads.head import Fitted
from featx.heads.samples.data import TrainingData
from featx.heads.samples.folds import NUM_FOLDS, Division, HeldOut, units_of
from featx.heads.solvers.eigenbasis import build_eigenbasis
from featx.heads.solvers.lbfgs import Minimum, Pairs, Stopping
from featx.heads.solvers.logistic import Logistic, Problems
from featx.heads.solvers.path import PathPoint, Solved, follow_path, takes_seconds, with_all_samples
from featx.heads.tasks.losses import SOFTMAX, LogisticLoss

log = logging.getLogger(__name__)

STRENGTHS: tuple[float, ...] = tuple(float(f"{c:.3g}") for c in np.logspace(-6.5, 1, 16))
FIXED_STRENGTH = STRENGTHS[10]
"""Used where nothing can be held out: has the lowest log loss of one-shot heads, on average."""
_TO_THE_END = Stopping(gradient=1e-7)
_TO_SINGLE_PRECISION = Stopping(gradient=1e-6, decrement=2e-7)
_OF_MANY_CLASSES = Stopping(gradient=1e-6, decrement=5e-6)
_SUSPICIOUS_GRADIENT = 1e-3


def fit_linear(
    data: TrainingData,
    strengths: Sequence[float] = STRENGTHS,
    *,
    hold_out: bool = False,
    loss: LogisticLoss = SOFTMAX,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> Fitted:
    """Return the regularised optimum on all samples, at the strength with the least held-out loss.

    Where nothing can be held out, the strength nearest to ``FIXED_STRENGTH`` is taken. Classes
    without samples get logits that lose.

    Args:
        data: Its targets are class indices, or with ``SIGMOID`` tags.
        strengths: Values of ``C`` to choose from.
        hold_out: Hold samples out for a single strength too.
        loss: Minimised.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    basis, basis_of_some = build_eigenbasis(data)
    rows, some = data.subsample()
    division, best = None, None
    path: tuple[PathPoint, ...] = ()
    if len(strengths) > 1 or hold_out:
        division = _divide(data, some, loss, seed=seed)
    if division:
        samples = Logistic(basis_of_some, some, division=division, loss=loss)
        best, path = follow_path(samples, strengths, step=step)
    strength = best.point.strength if best else fixed_strength(strengths)
    held_out = best.held_out if best else None
    if data.first_pass:
        left_out = np.full(len(data), -2)
        if division:
            units = units_of(data.groups, len(data))  # the rest of their groups is left out, too
            left_out[np.isin(units, units[rows[division.held_out]])] = 0
        every = Logistic(basis, data, division=Division(left_out, np.array([0])), loss=loss)
        optimum = _refit(every, strength, best, left_out=[-1, 0] if best else [-1], step=step)
        if division:
            out = division.held_out
            logits = every.logits(optimum.variables[1], basis_of_some.array[out])
            held_out = HeldOut(logits, some.targets[out])
    else:
        every = Logistic(basis, data, loss=loss)
        if best and loss is SOFTMAX and takes_seconds(every):
            best = with_all_samples(best, samples, every)
        optimum = _refit(every, strength, best, step=step)
    choice = {
        "head": "linear",
        "solver": "lbfgs",
        "strength": strength,
        "path": [asdict(point) for point in path],
        "num_folds": len(division.held_out_folds) if division else 0,
        "objective": float(optimum.values[0]),
        "gradient_norm": float(optimum.gradient_norms[0]),
        "num_evaluations": optimum.num_evaluations,
        "seed": seed,
    }
    return Fitted((every.layer(optimum.variables[0]),), choice, held_out)


def _divide(
    data: TrainingData, some: TrainingData, loss: LogisticLoss, *, seed: int
) -> Division | None:
    """Return who of the subsample is held out when; None for nobody."""
    if not data.first_pass:
        return loss.divide(data.targets, groups=data.groups, seed=seed)
    # one fold, so that the last fit solves only one head more
    held_out = loss.hold_out(some.targets, NUM_FOLDS, groups=some.groups, seed=seed)
    return Division(np.where(held_out, 0, 1), np.array([0])) if held_out.any() else None


def fixed_strength(strengths: Sequence[float]) -> float:
    """Return the strength to take where nothing can be held out to choose by.

    >>> fixed_strength([0.001]), fixed_strength(STRENGTHS)
    (0.001, 0.0316)
    """
    return float(min(strengths, key=lambda c: abs(np.log(c / FIXED_STRENGTH))))


def _refit(
    samples: Logistic,
    strength: float,
    best: Solved | None,
    *,
    left_out: Sequence[int] = (-1,),
    step: Callable[[str], None] | None = None,
) -> Minimum:
    """Return the optimum at one strength, started where the path has it.

    Args:
        samples: All of them.
        strength: ``C``.
        best: The end of the path, if there is one.
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
