"""Ridge on features that are read block by block: two passes after the survey.

The first sums up the covariance and what it takes for the solutions at every strength; the second
judges these by leave-one-out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from featx.heads.basis import StandardisedRows, standardise
from featx.heads.folds import HeldOut
from featx.heads.head import fold_standardisation, silence_absent
from featx.heads.linear import STRENGTHS
from featx.heads.ridge import (
    RidgeFit,
    RidgePoint,
    System,
    errors_of,
    leverages_of,
    solve_at,
    with_variance,
    without_own,
)
from featx.heads.rows import Rows, Survey


def fit_ridge_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    survey: Survey,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
) -> RidgeFit:
    """Return the ridge solution on all samples, at the strength with the least left-out error.

    Args:
        rows: Raw features of the training samples, finite, more of them than features.
        labels: ``(N,)`` in ``[0, num_classes)``; or numbers, ``(N, num_classes)`` floating.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        survey: Of the rows; what it kept is what comes back as held out.
        strengths: Values of ``C`` to choose from, at least one.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
    """
    mean, scale = survey.mean, survey.scale
    weights = np.ones(len(labels)) if weights is None else weights
    samples = StandardisedRows(rows, mean, scale, survey.features[:0])
    system = _sum_up(samples, labels, num_classes, weights)
    strengths = sorted(map(float, strengths))
    path = _judge(_systems(samples, system, weights), labels, strengths)
    best = min(path, key=lambda point: point.error)
    layer = fold_standardisation(solve_at(system, best.strength), mean, scale)
    kept = survey.kept
    some = _with_samples(system, standardise(survey.features, mean, scale), weights[kept])
    leverage = leverages_of(some, [best.strength])[0]
    held_out = without_own(some, labels[kept], best.strength, leverage)
    if labels.ndim == 1:
        layer = silence_absent(layer, labels)
        absent = np.bincount(labels, minlength=num_classes) == 0
        held_out[:, absent] = layer[1][absent]
    return RidgeFit(layer, best.strength, tuple(path), HeldOut(held_out, labels[kept]))


def _sum_up(
    samples: StandardisedRows, labels: np.ndarray, num_classes: int, weights: np.ndarray
) -> System:
    """Return the system, without samples."""
    width = len(samples.shift)
    squares, sums = np.zeros((width, width)), np.zeros((num_classes, width))
    by_feature, of_targets = np.zeros(width), np.zeros(num_classes)
    for where, x in samples.blocks():
        wide = x.astype(np.float64)
        own = _weighted(labels[where], num_classes, weights[where])
        sums += own @ wide
        by_feature += weights[where] @ wide
        of_targets += own.sum(axis=1)
        wide *= np.sqrt(weights[where])[:, None]
        squares += wide.T @ wide
    total = weights.sum()
    centre = by_feature / total
    variances, directions = np.linalg.eigh(squares - total * np.outer(centre, centre))
    variances, directions = with_variance(variances, directions)
    shares = of_targets / total
    products = ((sums - of_targets[:, None] * centre) @ directions).T
    none = np.zeros((0, len(variances)))
    return System(none, directions, variances, products, centre, shares, weights[:0], total)


def _weighted(labels: np.ndarray, num_classes: int, weights: np.ndarray) -> np.ndarray:
    """Return the targets of samples times their weights ``(n,)``, ``(num_classes, n)`` float64."""
    if labels.ndim == 2:
        targets: np.ndarray = (labels * weights[:, None]).T
        return targets
    one_hot = np.zeros((num_classes, len(labels)))
    one_hot[labels, np.arange(len(labels))] = weights
    return one_hot


def _with_samples(system: System, x: np.ndarray, weights: np.ndarray) -> System:
    """Return the system with standardised samples ``(n, num_features)``."""
    coordinates = (x - system.centre.astype(x.dtype)) @ system.directions.astype(x.dtype)
    return replace(system, coordinates=coordinates, weights=weights)


def _systems(
    samples: StandardisedRows, system: System, weights: np.ndarray
) -> Iterator[tuple[slice, System]]:
    for where, x in samples.blocks():
        yield where, _with_samples(system, x, weights[where])


def _judge(
    systems: Iterator[tuple[slice, System]], labels: np.ndarray, strengths: Sequence[float]
) -> list[RidgePoint]:
    """Return how each strength does on the samples it is without."""
    error, right, total = np.zeros(len(strengths)), np.zeros(len(strengths)), 0.0
    for where, system in systems:
        leverages = leverages_of(system, strengths)
        total += system.weights.sum()
        for i, (strength, leverage) in enumerate(zip(strengths, leverages, strict=True)):
            left_out = without_own(system, labels[where], strength, leverage)
            squared, hits = errors_of(left_out, labels[where])
            error[i] += system.weights @ squared
            if hits is not None:
                right[i] += hits.sum()
    are_classes = labels.ndim == 1
    return [
        RidgePoint(strength, float(lost / total), float(hit / len(labels)) if are_classes else None)
        for strength, lost, hit in zip(strengths, error, right, strict=True)
    ]
