"""The linear head fitted by scikit-learn: the field's reference, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression

from featx.heads.folds import stratified_folds
from featx.heads.head import Layer, fold_standardisation, standardisation
from featx.heads.linear import HOLDOUT_ABOVE, NUM_FOLDS, STRENGTHS, LinearFit, choose_num_folds
from featx.heads.metrics import log_loss

_NEVER = -1e4
"""Bias of a class without training samples; its probability is 0 in float32."""


def fit_with_sklearn(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LinearFit:
    """Return scikit-learn's logistic regression, at the strength that held out best.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head.
        strengths: Values of ``C`` to choose from; a single one is used as it is.
        seed: Decides the folds, the same ones as ``fit_linear``'s.
    """
    mean, scale = standardisation(features)
    x = (features - mean) / scale
    path: list[tuple[float, float]] = []
    strength, num_folds = strengths[0], 0
    if len(strengths) > 1:
        holdout = len(labels) > HOLDOUT_ABOVE
        count = NUM_FOLDS if holdout else choose_num_folds(labels)
        folds = stratified_folds(labels, count, seed=seed)
        num_folds = 1 if holdout else count
        for candidate in strengths:
            losses = [
                _held_out_loss(x, labels, folds == fold, num_classes, candidate)
                for fold in range(num_folds)
            ]
            sizes = [(folds == fold).sum() for fold in range(num_folds)]
            path.append((candidate, float(np.average(losses, weights=sizes))))
        strength = min(path, key=lambda point: point[1])[0]
    layer, evaluations = _fit(x, labels, num_classes, strength, tolerance=1e-6)
    return LinearFit(
        layer=fold_standardisation(layer, mean, scale),
        strength=strength,
        path=tuple(path),
        gradient_norm=None,
        num_evaluations=evaluations,
        num_folds=num_folds,
    )


def _held_out_loss(
    x: np.ndarray, labels: np.ndarray, held_out: np.ndarray, num_classes: int, strength: float
) -> float:
    (weight, bias), _ = _fit(x[~held_out], labels[~held_out], num_classes, strength, tolerance=1e-4)
    return log_loss(x[held_out] @ weight.T + bias, labels[held_out])


def _fit(
    x: np.ndarray, labels: np.ndarray, num_classes: int, strength: float, *, tolerance: float
) -> tuple[Layer, int]:
    """Return the layer for standardised features and the number of iterations."""
    weight = np.zeros((num_classes, x.shape[1]))
    bias = np.full(num_classes, float(_NEVER))
    present = np.unique(labels)
    if len(present) == 1:  # the other class is all in the fold left out
        bias[present] = 0
        return (weight, bias), 0
    # Of two classes scikit-learn penalises the difference d of two rows, |d|²/2; with rows -d/2 and
    # d/2 the penalty on each row is half of that, so twice its C is the strength meant here.
    scale = 2 if len(present) == 2 else 1
    model = LogisticRegression(C=scale * strength, tol=tolerance, max_iter=5000).fit(x, labels)
    if len(present) == 2:
        half_weight, half_bias = model.coef_[0] / 2, model.intercept_[0] / 2
        weight[model.classes_] = [-half_weight, half_weight]
        bias[model.classes_] = [-half_bias, half_bias]
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return (weight, bias), int(model.n_iter_.max())
