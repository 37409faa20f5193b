"""Ridge: least squares on numbers, or on one-hot targets, in closed form.

For strength ``C`` the objective, on standardised features, is

    weighted sum over samples of |W x + b - target|² / 2  +  |W|² / (2 C)

One decomposition of their covariance gives the solution at every strength, and also what each
sample would be given had it been left out: its residual divided by ``1 - leverage``. So no folds
are needed to choose, unless samples are in groups, which are left out as a whole.

Source: Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge
Parameter" (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featx.heads.head import Layer, fold_standardisation, silence_absent, standardisation
from featx.heads.samples.folds import (
    Division,
    HeldOut,
    divide_to_leave_out,
    every_so_many,
    rows_of_classes,
)
from featx.heads.solvers.eigenbasis import standardise
from featx.heads.solvers.linear import STRENGTHS, fixed_strength

_BLOCK_ROWS, _BLOCK_VALUES = 4096, 2**24
_LEAST_FREEDOM = 1e-9
"""Smallest ``1 - leverage`` that is told from 0, where nothing is known without the sample."""


@dataclass(frozen=True)
class RidgePoint:
    """One strength of the path.

    Attributes:
        strength: ``C``.
        error: Weighted mean over samples of their squared error when left out.
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
        held_out: What each sample is given by the head that was not trained on it; None where
            none can be left out.
    """

    layer: Layer
    strength: float
    path: tuple[RidgePoint, ...]
    held_out: HeldOut | None


LeftOut = Callable[["System", np.ndarray, Sequence[float]], Iterator[np.ndarray]]
"""Outputs for a system's samples, of their labels and some strengths, by heads without them."""


def fit_ridge(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> RidgeFit:
    """Return the ridge solution on all samples, at the strength with the least left-out error.

    Where no sample can be left out, the strength nearest to ``linear.FIXED_STRENGTH`` is taken.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``; or numbers, ``(N, num_classes)`` floating.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        strengths: Values of ``C`` to choose from, at least one.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; with groups folds are left out.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    mean, scale = standardisation(features)
    weights = np.ones(len(labels)) if weights is None else weights
    x = standardise(features, mean, scale)
    system = _decompose(x, labels, num_classes, weights)
    division = divide_to_leave_out(labels, groups=groups, seed=seed)
    if division is None:
        return ridge_fit(system, labels, (mean, scale), fixed_strength(strengths))
    left_out, num_folds = without_own, 0
    parts = list(_parts(system, division))
    if groups is not None:
        left_out, num_folds = predicted, len(division.judged)
        parts = [
            (
                rows,
                with_samples(_decompose(x[rest], labels[rest], num_classes, weights[rest]), *own),
            )
            for rows, rest, own in _folds(x, weights, division)
        ]
    path = errors_along(parts, labels, strengths, left_out, step=step)
    best = min(path, key=lambda point: point.error)
    every = every_so_many(int(division.held_out.sum()), num_classes)
    outputs = [
        next(left_out(part, labels[rows], [best.strength]))[::every].copy() for rows, part in parts
    ]
    held_labels = np.concatenate([labels[rows[::every]] for rows, _ in parts])
    held_out = HeldOut(np.concatenate(outputs), held_labels, num_folds)
    return ridge_fit(system, labels, (mean, scale), best.strength, path=path, held_out=held_out)


def ridge_fit(
    system: System,
    labels: np.ndarray,
    standard: tuple[np.ndarray, np.ndarray],
    strength: float,
    *,
    path: tuple[RidgePoint, ...] = (),
    held_out: HeldOut | None = None,
) -> RidgeFit:
    """Return the head at a strength; classes without samples lose, held out or not.

    Args:
        system: Of all samples.
        labels: ``(N,)``; or numbers, ``(N, num_classes)``.
        standard: Mean and scale of the features, ``(num_features,)`` each.
        strength: ``C``.
        path: Each ``C`` tried.
        held_out: Outputs for samples that were left out; changed in place.
    """
    layer = fold_standardisation(solve_at(system, strength), *standard)
    if labels.ndim == 1:
        layer = silence_absent(layer, labels)
        if held_out:
            absent = np.bincount(labels, minlength=len(layer[1])) == 0
            held_out.logits[:, absent] = layer[1][absent]
    return RidgeFit(layer, strength, path, held_out)


def _parts(system: System, division: Division) -> Iterator[tuple[np.ndarray, System]]:
    """Yield numbers of samples that are left out one by one, a few at a time, and their system."""
    rows = np.flatnonzero(division.held_out)
    at_once = min(_BLOCK_ROWS, max(256, _BLOCK_VALUES // system.products.shape[1]))
    for some in np.array_split(rows, -(-len(rows) // at_once)):
        own = system.coordinates[some], system.weights[some]
        yield some, replace(system, coordinates=own[0], weights=own[1])


def _folds(
    x: np.ndarray, weights: np.ndarray, division: Division
) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Yield numbers of samples left out, of the others, and samples and weights of the former."""
    for fold in division.judged:
        out = division.fold == fold
        yield np.flatnonzero(out), np.flatnonzero(~out), (x[out], weights[out])


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
    for label, rows in rows_of_classes(labels):
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


def with_samples(system: System, x: np.ndarray, weights: np.ndarray) -> System:
    """Return the system with other standardised samples ``(n, num_features)``."""
    coordinates = (x - system.centre.astype(x.dtype)) @ system.directions.astype(x.dtype)
    return replace(system, coordinates=coordinates, weights=weights)


def predicted(
    system: System, labels: np.ndarray, strengths: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield the outputs ``(N, num_classes)`` for a system's samples, at each strength."""
    u = system.coordinates
    for strength in strengths:
        along = system.products / (system.squares + 1 / strength)[:, None]
        outputs: np.ndarray = u @ along.astype(u.dtype) + system.shares
        yield outputs


def without_own(
    system: System, labels: np.ndarray, strengths: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield what each sample is given by the solution without it, ``(N, num_classes)``."""
    leverages = leverages_of(system, strengths)
    own = np.arange(len(labels)), labels
    for outputs, leverage in zip(predicted(system, labels, strengths), leverages, strict=True):
        freedom = np.maximum(1 - leverage, _LEAST_FREEDOM)[:, None]
        if labels.ndim == 2:
            yield labels + (outputs - labels) / freedom
            continue
        outputs[own] -= 1  # minus the residual
        np.divide(outputs, freedom, out=outputs, casting="same_kind")
        outputs[own] += 1
        yield outputs


def errors_along(
    parts: Iterable[tuple[np.ndarray, System]],
    labels: np.ndarray,
    strengths: Sequence[float],
    left_out: LeftOut,
    *,
    step: Callable[[str], None] | None = None,
) -> tuple[RidgePoint, ...]:
    """Return how each strength, ascending, does on samples that it was not trained on.

    Args:
        parts: Numbers of samples ``(n,)``, and a system with these.
        labels: ``(N,)``; or numbers, ``(N, num_classes)``.
        strengths: Values of ``C``.
        left_out: Outputs for the samples.
        step: Called with the step under way.
    """
    strengths = sorted(map(float, strengths))
    error, right, total, count = np.zeros(len(strengths)), np.zeros(len(strengths)), 0.0, 0
    for rows, system in parts:
        total, count = total + system.weights.sum(), count + len(rows)
        if step:
            step(f"{len(strengths)} strengths on {count:,} of {len(labels):,} samples left out")
        for i, outputs in enumerate(left_out(system, labels[rows], strengths)):
            squared, hits = errors_of(outputs, labels[rows])
            error[i] += system.weights @ squared
            if hits is not None:
                right[i] += hits.sum()
    are_classes = labels.ndim == 1
    return tuple(
        RidgePoint(strength, float(lost / total), float(hit / count) if are_classes else None)
        for strength, lost, hit in zip(strengths, error, right, strict=True)
    )


def errors_of(left_out: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return each sample's squared error, ``(n,)``, and whether it is right; None of numbers."""
    if labels.ndim == 2:
        return np.square(left_out - labels).sum(axis=1), None
    own = left_out[np.arange(len(labels)), labels]
    squared = np.einsum("nk,nk->n", left_out, left_out) - 2 * own + 1
    return squared, left_out.argmax(axis=1) == labels
