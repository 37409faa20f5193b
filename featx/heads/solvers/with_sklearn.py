"""The linear head fitted by scikit-learn: the field's reference, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from featx.heads.head import Layer, fold_standardisation, standardisation
from featx.heads.metrics.single_label import log_loss
from featx.heads.samples.folds import Division, HeldOut, divide
from featx.heads.solvers.linear import STRENGTHS, LinearFit, fixed_strength
from featx.heads.solvers.path import PathPoint

_NEVER = -1e4
"""Bias of a class without training samples; its probability is 0 in float32."""


def fit_with_sklearn(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    judge: bool = False,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> LinearFit:
    """Return scikit-learn's logistic regression, at the strength that held out best.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head.
        strengths: Values of ``C`` to choose from.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; they are held out as a whole.
        judge: Cross-validate a single strength too.
        seed: Decides the folds, the same ones as ``fit_linear``'s.
        step: Called with the step under way.
    """
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    weights = np.ones(len(labels)) if weights is None else weights
    path: list[tuple[PathPoint, HeldOut]] = []
    division = None
    if len(strengths) > 1 or judge:
        division = divide(labels, groups=groups, seed=seed)
    if division:
        for number, candidate in enumerate(sorted(strengths), start=1):
            if step:
                step(f"Strength {number} of {len(strengths)}, C = {candidate:g}")
            path.append(
                _cross_validate(
                    x, labels, num_classes, strength=candidate, weights=weights, division=division
                )
            )
    point, held_out = min(path, key=lambda pair: pair[0].log_loss) if path else (None, None)
    strength = point.strength if point else fixed_strength(strengths)
    if step:
        step(f"All samples at C = {strength:g}")
    layer, evaluations = _fit(
        x, labels, num_classes, strength=strength, weights=weights, tolerance=1e-6
    )
    return LinearFit(
        layer=fold_standardisation(layer, mean, scale),
        strength=strength,
        path=tuple(point for point, _ in path),
        objective=None,
        gradient_norm=None,
        num_evaluations=evaluations,
        num_folds=len(division.judged) if division else 0,
        held_out=held_out,
    )


def _cross_validate(
    x: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strength: float,
    weights: np.ndarray,
    division: Division,
) -> tuple[PathPoint, HeldOut]:
    """Return how a strength does on the folds, each left out once."""
    logits, rows = [], []
    for fold in division.judged:
        held_out = division.fold == fold
        trained = ~held_out
        (weight, bias), _ = _fit(
            x[trained],
            labels[trained],
            num_classes,
            strength=strength,
            weights=weights[trained],
            tolerance=1e-4,
        )
        logits.append(x[held_out] @ weight.T + bias)
        rows.append(np.flatnonzero(held_out))
    row = np.concatenate(rows)
    out = HeldOut(np.concatenate(logits), labels[row], len(division.judged))
    top1 = float((out.logits.argmax(axis=1) == out.labels).mean())
    loss = log_loss(out.logits, out.labels, weights=weights[row])
    return PathPoint(float(strength), loss, top1, None, None), out


def _fit(
    x: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strength: float,
    weights: np.ndarray,
    tolerance: float,
) -> tuple[Layer, int]:
    """Return the layer for standardised features and the number of iterations."""
    weight = np.zeros((num_classes, x.shape[1]))
    bias = np.full(num_classes, float(_NEVER))
    present = np.unique(labels)
    if len(present) == 1:  # all of the other class are in the fold left out
        bias[present] = 0
        return (weight, bias), 0
    # Of two classes scikit-learn penalises the difference d of two rows, |d|²/2; with rows -d/2 and
    # d/2 the penalty on each row is half of that, so twice its C is the strength meant here.
    scale = 2 if len(present) == 2 else 1
    model = LogisticRegression(C=scale * strength, tol=tolerance, max_iter=5000).fit(
        x, labels, sample_weight=weights
    )
    if len(present) == 2:
        half_weight, half_bias = model.coef_[0] / 2, model.intercept_[0] / 2
        weight[model.classes_] = [-half_weight, half_weight]
        bias[model.classes_] = [-half_bias, half_bias]
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return (weight, bias), int(model.n_iter_.max())
