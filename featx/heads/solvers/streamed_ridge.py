"""Ridge on features that are read block by block: two passes after the survey.

The first sums up the covariance and what it takes for the solutions at every strength, the second
finds their error on samples left out: one by one, or in folds where samples are in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featx.heads.samples.folds import Division, HeldOut, divide_to_leave_out
from featx.heads.samples.rows import Rows, Survey
from featx.heads.solvers.eigenbasis import StandardisedRows, standardise
from featx.heads.solvers.linear import STRENGTHS, fixed_strength
from featx.heads.solvers.ridge import (
    RidgeFit,
    System,
    errors_along,
    predicted,
    ridge_fit,
    with_samples,
    with_variance,
    without_own,
)


def fit_ridge_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    survey: Survey,
    *,
    strengths: Sequence[float] = STRENGTHS,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> RidgeFit:
    """Return the ridge solution on all samples, at the strength with the least left-out error.

    Args:
        rows: Raw features of the training samples, finite, more of them than features.
        labels: ``(N,)`` in ``[0, num_classes)``; or numbers, ``(N, num_classes)`` floating.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        survey: Of the rows; what it kept, and is left out, is what comes back as held out.
        strengths: Values of ``C`` to choose from, at least one.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; with groups folds are left out.
        seed: Decides the folds.
        step: Called with the step under way.
    """
    standard = survey.mean, survey.scale
    weights = np.ones(len(labels)) if weights is None else weights
    samples = StandardisedRows(rows, *standard, survey.features[:0])
    division = divide_to_leave_out(labels, groups=groups, seed=seed)
    grouped = groups is not None and division is not None
    every, parts = _sum_up(
        samples, labels, num_classes, weights=weights, division=division if grouped else None
    )
    system = every.system()
    if division is None:
        return ridge_fit(system, labels, standard, fixed_strength(strengths))
    left_out = predicted if grouped else without_own
    systems = [every.without(part).system() for part in parts] if grouped else [system]
    blocks = ((np.arange(where.start, where.stop), x) for where, x in samples.blocks())
    path = errors_along(
        _parts(blocks, division, systems, weights), labels, strengths, left_out, step=step
    )
    best = min(path, key=lambda point: point.error)
    kept = [(survey.kept, standardise(survey.features, *standard))]
    outputs, of_kept = [], []
    for numbers, part in _parts(kept, division, systems, weights):
        outputs.append(next(left_out(part, labels[numbers], [best.strength])))
        of_kept.append(labels[numbers])
    held_out = None
    if outputs:
        held_out = HeldOut(np.concatenate(outputs), np.concatenate(of_kept), len(parts))
    return ridge_fit(system, labels, standard, best.strength, path=path, held_out=held_out)


@dataclass(eq=False)
class _Sums:
    """Weighted sums over samples, of which their system is made.

    Attributes:
        squares: Of outer products of samples, ``(num_features, num_features)`` float64.
        products: Of targets with samples, ``(num_classes, num_features)``.
        samples: ``(num_features,)``.
        targets: ``(num_classes,)``.
        total: Of weights.
    """

    squares: np.ndarray
    products: np.ndarray
    samples: np.ndarray
    targets: np.ndarray
    total: float = 0.0

    @classmethod
    def zeros(cls, width: int, num_classes: int) -> _Sums:
        return cls(
            np.zeros((width, width)),
            np.zeros((num_classes, width)),
            np.zeros(width),
            np.zeros(num_classes),
        )

    def add(self, x: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Take in samples ``(n, num_features)`` and weighted targets ``(num_classes, n)``."""
        wide = x.astype(np.float64)
        self.products += targets @ wide
        self.samples += weights @ wide
        self.targets += targets.sum(axis=1)
        self.total += weights.sum()
        wide *= np.sqrt(weights)[:, None]
        self.squares += wide.T @ wide

    def without(self, part: _Sums) -> _Sums:
        """Return the sums over the samples that are not in a part."""
        return _Sums(
            self.squares - part.squares,
            self.products - part.products,
            self.samples - part.samples,
            self.targets - part.targets,
            self.total - part.total,
        )

    def system(self) -> System:
        """Return the system, without samples."""
        centre = self.samples / self.total
        squares = self.squares - self.total * np.outer(centre, centre)
        variances, directions = with_variance(*np.linalg.eigh(squares))
        products = ((self.products - self.targets[:, None] * centre) @ directions).T
        none, shares = np.zeros((0, len(variances))), self.targets / self.total
        return System(
            *(none, directions, variances, products, centre, shares, none[:, 0], self.total)
        )


def _sum_up(
    samples: StandardisedRows,
    labels: np.ndarray,
    num_classes: int,
    *,
    weights: np.ndarray,
    division: Division | None,
) -> tuple[_Sums, list[_Sums]]:
    """Return the sums over all samples, and over those in each fold that is held out."""
    folds = division.fold if division else np.zeros(len(labels), np.int64)
    judged = division.judged if division else np.zeros(0, np.int64)
    width = len(samples.shift)
    every = _Sums.zeros(width, num_classes)
    parts = [_Sums.zeros(width, num_classes) for _ in judged]
    for where, x in samples.blocks():
        targets = _weighted(labels[where], num_classes, weights[where])
        every.add(x, targets, weights[where])
        for fold, part in zip(judged, parts, strict=True):
            own = folds[where] == fold
            part.add(x[own], targets[:, own], weights[where][own])
    return every, parts


def _parts(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    division: Division,
    systems: Sequence[System],
    weights: np.ndarray,
) -> Iterator[tuple[np.ndarray, System]]:
    """Yield numbers of samples that are left out, and the system for them.

    Args:
        blocks: Numbers of samples ``(n,)``, and these, standardised.
        division: Of all samples.
        systems: One for each fold that is left out.
        weights: Of all samples.
    """
    for numbers, x in blocks:
        for fold, system in zip(division.judged, systems, strict=True):
            own = division.fold[numbers] == fold
            if own.any():
                yield numbers[own], with_samples(system, x[own], weights[numbers[own]])


def _weighted(labels: np.ndarray, num_classes: int, weights: np.ndarray) -> np.ndarray:
    """Return the targets of samples times their weights ``(n,)``, ``(num_classes, n)`` float64."""
    if labels.ndim == 2:
        targets: np.ndarray = (labels * weights[:, None]).T
        return targets
    one_hot = np.zeros((num_classes, len(labels)))
    one_hot[labels, np.arange(len(labels))] = weights
    return one_hot
