"""The linear head fitted by scikit-learn: the field's reference, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from featx.heads.head import NEVER, Fitted, Layer, fold_standardisation
from featx.heads.samples.data import Step, TrainingData, no_step
from featx.heads.samples.folds import Division, HeldOut, divide
from featx.heads.solvers.linear import STRENGTHS, fixed_strength
from featx.heads.tasks.losses import log_loss


def fit_with_sklearn(
    data: TrainingData,
    strengths: Sequence[float] = STRENGTHS,
    *,
    hold_out: bool = False,
    seed: int = 0,
    step: Step = no_step,
) -> Fitted:
    """Return scikit-learn's logistic regression, at the strength with the least held-out loss.

    The arguments are those of ``fit_linear``, and the folds the same.
    """
    mean, scale = data.standardisation()
    data = replace(data, features=(data.array - mean) / scale)
    path: list[tuple[dict[str, Any], HeldOut]] = []
    division = None
    if len(strengths) > 1 or hold_out:
        division = data.divide(divide, seed=seed)
    if division:
        for number, candidate in enumerate(sorted(strengths), start=1):
            step(f"Strength {number} of {len(strengths)}, C = {candidate:g}")
            path.append(_cross_validate(data, candidate, division))
    best = min(path, key=lambda pair: pair[0]["log_loss"]) if path else None
    strength = best[0]["strength"] if best else fixed_strength(strengths)
    step(f"All samples at C = {strength:g}")
    layer, evaluations = _fit(data, strength, tolerance=1e-6)
    choice = {
        "head": "linear",
        "solver": "sklearn",
        "strength": strength,
        "path": [point for point, _ in path],
        "num_folds": len(division.held_out_folds) if division else 0,
        "objective": None,
        "gradient_norm": None,
        "num_evaluations": evaluations,
        "seed": seed,
    }
    layers = (fold_standardisation(layer, mean, scale),)
    return Fitted(layers, choice, best[1] if best else None)


def _cross_validate(
    data: TrainingData, strength: float, division: Division
) -> tuple[dict[str, Any], HeldOut]:
    """Return a point of the path, and the outputs for the folds, each left out once."""
    logits, rows = [], []
    for fold in division.held_out_folds:
        held_out = division.scored_in(fold)
        trained = np.flatnonzero(division.fold[: data.num_samples] != fold)
        (weight, bias), _ = _fit(data.select(trained), strength, tolerance=1e-4)
        logits.append(data.array[held_out] @ weight.T + bias)
        rows.append(held_out)
    row = np.concatenate(rows)
    out = HeldOut(np.concatenate(logits), data.targets[row], len(division.held_out_folds))
    point = {
        "strength": float(strength),
        "log_loss": log_loss(out.logits, out.labels, weights=data.weights[row]),
        "top1": float((out.logits.argmax(axis=1) == out.labels).mean()),
        "objective": None,
        "gradient_norm": None,
    }
    return point, out


def _fit(data: TrainingData, strength: float, *, tolerance: float) -> tuple[Layer, int]:
    """Return the layer for standardised features and the number of iterations."""
    weight = np.zeros((data.num_outputs, data.array.shape[1]))
    bias = np.full(data.num_outputs, float(NEVER))
    present = np.unique(data.targets)
    if len(present) == 1:  # all of the other class are in the fold left out
        bias[present] = 0
        return (weight, bias), 0
    # Of two classes scikit-learn penalises the difference d of two rows, |d|²/2; with rows -d/2 and
    # d/2 the penalty on each row is half of that, so twice its C is the strength meant here.
    scale = 2 if len(present) == 2 else 1
    model = LogisticRegression(C=scale * strength, tol=tolerance, max_iter=5000).fit(
        data.array, data.targets, sample_weight=data.weights
    )
    if len(present) == 2:
        half_weight, half_bias = model.coef_[0] / 2, model.intercept_[0] / 2
        weight[model.classes_] = [-half_weight, half_weight]
        bias[model.classes_] = [-half_bias, half_bias]
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return (weight, bias), int(model.n_iter_.max())
