"""Logistic regression on features that are read block by block.

The strength is chosen on samples that are kept in memory, standardised as all are. The refit is on
all samples and starts where that left off. Beside it, in the same passes, the same strength is
solved without the samples that were held out in the choice, so that the temperature is fitted on
what a head like the one that is written says of samples it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from featx.heads.samples.folds import NUM_FOLDS, Division, HeldOut, units_of
from featx.heads.samples.rows import Rows, Survey
from featx.heads.solvers.eigenbasis import build_basis_of_rows
from featx.heads.solvers.linear import STRENGTHS, LinearFit, fixed_strength, refit
from featx.heads.solvers.logistic import Logistic
from featx.heads.solvers.path import PathPoint, follow_path
from featx.heads.tasks.losses import SOFTMAX, LogisticLoss


def fit_linear_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    survey: Survey,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    judge: bool = False,
    loss: LogisticLoss = SOFTMAX,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> LinearFit:
    """Return the regularised optimum on all samples, at the strength that held out best on some.

    Args:
        rows: Raw features of the training samples, finite.
        labels: ``(N,)`` in ``[0, num_classes)``; with ``SIGMOID`` tags ``(N, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        survey: Of the rows; what it kept decides the strength.
        strengths: Values of ``C`` to choose from.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; they are held out as a whole.
        judge: Hold samples out for a single strength too.
        loss: Of what labels are.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    basis, basis_of_kept = build_basis_of_rows(rows, survey)
    kept, best, inner = survey.kept, None, None
    path: tuple[PathPoint, ...] = ()
    left_out = np.full(len(labels), -2)
    if len(strengths) > 1 or judge:
        inner = _hold_out(labels[kept], None if groups is None else groups[kept], loss, seed=seed)
    if inner:
        some = Logistic(
            basis_of_kept,
            labels[kept],
            num_classes,
            weights=weights[kept],
            division=inner,
            loss=loss,
        )
        best, path = follow_path(some, inner, strengths, step=step)
        units = units_of(groups, len(labels))
        left_out[np.isin(units, units[kept[inner.held_out]])] = 0  # the rest of their groups, too
    strength = best.point.strength if best else fixed_strength(strengths)
    every = Logistic(
        basis,
        labels,
        num_classes,
        weights=weights,
        division=Division(left_out, np.array([0])),
        loss=loss,
    )
    optimum = refit(every, strength, best, left_out=[-1, 0] if best else [-1], step=step)
    held_out = None
    if inner:
        out = inner.held_out
        logits = every.logits(optimum.variables[1], basis_of_kept.samples_at(out))
        held_out = HeldOut(logits, labels[kept][out])
    return LinearFit(
        layer=every.layer(optimum.variables[0]),
        strength=strength,
        path=path,
        objective=float(optimum.values[0]),
        gradient_norm=float(optimum.gradient_norms[0]),
        num_evaluations=optimum.num_evaluations,
        num_folds=1 if inner else 0,
        held_out=held_out,
    )


def _hold_out(
    labels: np.ndarray, groups: np.ndarray | None, loss: LogisticLoss, *, seed: int
) -> Division | None:
    """Return who of the kept samples is held out: one fold, so that one head more is solved."""
    held_out = loss.hold_out(labels, NUM_FOLDS, groups=groups, seed=seed)
    return Division(np.where(held_out, 0, 1), np.array([0])) if held_out.any() else None
