"""Ridge: least squares on numbers, or on one-hot targets, in closed form.

For strength ``C`` the objective, on standardised features, is

    weighted sum over samples of |W x + b - target|² / 2  +  |W|² / (2 C)

One decomposition of their covariance gives the solution at every strength, and also what each
sample would be given had it been left out: its residual divided by ``1 - leverage``. So no folds
are needed to choose.

Source: Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge
Parameter" (1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featx.heads.basis import standardise
from featx.heads.folds import HeldOut
from featx.heads.head import Layer, fold_standardisation, silence_absent, standardisation
from featx.heads.linear import STRENGTHS

_BLOCK_ROWS = 4096
_LEAST_FREEDOM = 1e-9
"""Smallest ``1 - leverage`` that is told from 0, where nothing is known without the sample."""


@dataclass(frozen=True)
class RidgePoint:
    """One strength of the path.

    Attributes:
        strength: ``C``.
        error: Weighted mean over samples of the squared leave-one-out error.
        top1: Share of samples that are right when left out, in [0, 1]; None of numbers.
    """

    strength: float
    error: float
    top1: float | None


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """A fitted ridge head.

    Attributes:
        layer: For raw features.
        strength: The chosen ``C``.
        path: Each ``C`` tried, ascending.
        held_out: What each sample is given by the head that was not trained on it.
    """

    layer: Layer
    strength: float
    path: tuple[RidgePoint, ...]
    held_out: HeldOut


def fit_ridge(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
) -> RidgeFit:
    """Return the ridge solution on all samples, at the strength with the least left-out error.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``; or numbers, ``(N, num_classes)`` floating.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        strengths: Values of ``C`` to choose from, at least one.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
    """
    mean, scale = standardisation(features)
    weights = np.ones(len(labels)) if weights is None else weights
    system = _decompose(standardise(features, mean, scale), labels, num_classes, weights)
    strengths = sorted(map(float, strengths))
    leverages = leverages_of(system, strengths)
    path = [
        _point(strength, without_own(system, labels, strength, leverage), labels, weights)
        for strength, leverage in zip(strengths, leverages, strict=True)
    ]
    best = min(path, key=lambda point: point.error)
    weight, bias = solve_at(system, best.strength)
    layer = fold_standardisation((weight, bias), mean, scale)
    held_out = without_own(system, labels, best.strength, leverages[path.index(best)])
    if labels.ndim == 1:
        layer = silence_absent(layer, labels)
        absent = np.bincount(labels, minlength=num_classes) == 0
        held_out[:, absent] = layer[1][absent]
    return RidgeFit(layer, best.strength, tuple(path), HeldOut(held_out, labels))


@dataclass(frozen=True, eq=False)
class System:
    """Weighted least squares in the eigenbasis of the covariance, and some of its samples.

    Attributes:
        coordinates: Of the centred samples, ``(N, rank)``.
        directions: The basis, ``(num_features, rank)`` float64.
        squares: Weighted sum of the squared coordinates, ``(rank,)`` float64.
        products: Of coordinates with centred targets, ``(rank, num_classes)`` float64.
        centre: Weighted mean of the standardised samples, ``(num_features,)``.
        shares: Weighted mean of each target, ``(num_classes,)``: of one-hot ones, class shares.
        weights: Of each sample, ``(N,)``.
        total: Sum of all weights.
    """

    coordinates: np.ndarray
    directions: np.ndarray
    squares: np.ndarray
    products: np.ndarray
    centre: np.ndarray
    shares: np.ndarray
    weights: np.ndarray
    total: float


def _decompose(x: np.ndarray, labels: np.ndarray, num_classes: int, weights: np.ndarray) -> System:
    total = weights.sum()
    centre = weights @ x / total
    shares = _sums(np.ones((len(labels), 1)), labels, num_classes, weights)[:, 0] / total
    if x.shape[1] <= len(x):
        squares, directions = np.linalg.eigh(_gram(x, centre, weights))
    else:
        rooted = np.sqrt(weights)[:, None] * (x - centre)
        squares, vectors = np.linalg.eigh(rooted @ rooted.T)
        directions = rooted.T @ vectors / np.sqrt(np.maximum(squares, 1e-300))
    squares, directions = with_variance(squares, directions)
    coordinates = (x - centre.astype(x.dtype)) @ directions.astype(x.dtype)
    sums = _sums(coordinates, labels, num_classes, weights)
    products = sums.T - (weights @ coordinates.astype(np.float64))[:, None] * shares
    return System(coordinates, directions, squares, products, centre, shares, weights, total)


def with_variance(squares: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return those squares ``(rank,)`` and directions that are more than rounding."""
    keep = squares > 1e-10 * max(float(squares[-1]), 1e-300)
    return squares[keep], np.ascontiguousarray(directions[:, keep])


def _sums(
    values: np.ndarray, labels: np.ndarray, num_classes: int, weights: np.ndarray
) -> np.ndarray:
    """Return the weighted sums of values ``(N, m)`` times targets, ``(num_classes, m)`` float64."""
    if labels.ndim == 2:
        weighted: np.ndarray = (labels * weights[:, None]).T @ values.astype(np.float64)
        return weighted
    sums = np.zeros((num_classes, values.shape[1]))  # over the samples of each class
    for label in np.unique(labels):
        rows = labels == label
        sums[label] = weights[rows] @ values[rows].astype(np.float64)
    return sums


def _gram(x: np.ndarray, centre: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted sum of outer products of centred samples, in float64."""
    gram = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        block = (x[rows] - centre) * np.sqrt(weights[rows])[:, None]
        gram += block.T @ block
    return gram


def solve_at(system: System, strength: float) -> Layer:
    """Return the layer for standardised features, float64."""
    along = system.products / (system.squares + 1 / strength)[:, None]  # (rank, num_classes)
    weight = (system.directions @ along).T
    return weight, system.shares - weight @ system.centre


def leverages_of(system: System, strengths: Sequence[float]) -> np.ndarray:
    """Return how much each sample pulls its own fit, ``(num_strengths, N)``, in (0, 1]."""
    factors = 1 / (system.squares[:, None] + 1 / np.array(strengths))  # (rank, num_strengths)
    factors = factors.astype(system.coordinates.dtype)
    leverages = np.empty((len(strengths), len(system.coordinates)))
    for start in range(0, len(system.coordinates), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        leverages[:, rows] = (np.square(system.coordinates[rows]) @ factors).T
    leverages += 1 / system.total  # of the bias
    leverages *= system.weights
    return leverages


def without_own(
    system: System, labels: np.ndarray, strength: float, leverage: np.ndarray
) -> np.ndarray:
    """Return what each sample is given by the solution without it, ``(N, num_classes)``."""
    along = system.products / (system.squares + 1 / strength)[:, None]
    u = system.coordinates
    fitted: np.ndarray = u @ along.astype(u.dtype) + system.shares
    freedom = np.maximum(1 - leverage, _LEAST_FREEDOM)[:, None]
    if labels.ndim == 2:
        numbers: np.ndarray = labels + (fitted - labels) / freedom
        return numbers
    own = np.arange(len(labels)), labels
    fitted[own] -= 1  # minus the residual
    fitted /= freedom
    fitted[own] += 1
    return fitted


def _point(
    strength: float, left_out: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> RidgePoint:
    squared, right = errors_of(left_out, labels)
    top1 = None if right is None else float(right.mean())
    return RidgePoint(strength, float(np.average(squared, weights=weights)), top1)


def errors_of(left_out: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return each sample's squared error, ``(n,)``, and whether it is right; None of numbers."""
    if labels.ndim == 2:
        return np.square(left_out - labels).sum(axis=1), None
    own = left_out[np.arange(len(labels)), labels]
    squared = np.einsum("nk,nk->n", left_out, left_out) - 2 * own + 1
    return squared, left_out.argmax(axis=1) == labels
