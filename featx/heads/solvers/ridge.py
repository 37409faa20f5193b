"""Ridge: least squares on numbers, or on one-hot targets, in closed form.

For strength ``C`` the objective, on standardised features, is

    weighted sum over samples of |W x + b - target|² / 2  +  |W|² / (2 C)

One decomposition of their covariance gives the solution at every strength, and also the output for
each sample had it been left out: its residual divided by ``1 - leverage``. So no folds are needed
to choose, unless samples are in groups, which are left out as a whole. One pass sums up the
covariance, a second one finds the errors on samples that are left out.

Source: Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good Ridge
Parameter" (1979).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial, reduce
from typing import Any

import numpy as np

from featx.heads.head import Fitted, fold_standardisation, silence_absent
from featx.heads.samples.data import Step, TrainingData, no_step
from featx.heads.samples.folds import Division, HeldOut, divide, rows_of_classes, thinning_step
from featx.heads.solvers.eigenbasis import StandardisedBlocks, rotate, standardise
from featx.heads.solvers.linear import STRENGTHS, fixed_strength

_BLOCK_ROWS, _BLOCK_VALUES = 4096, 2**24
_LEAST_FREEDOM = 1e-9
"""Least ``1 - leverage``; at 0 the other samples say nothing about the output."""


def fit_ridge(
    data: TrainingData,
    strengths: Sequence[float] = STRENGTHS,
    *,
    seed: int = 0,
    step: Step = no_step,
) -> Fitted:
    """Return the ridge solution on all samples, at the strength with the least left-out error.

    Where no sample can be left out, the strength nearest to ``linear.FIXED_STRENGTH`` is taken.
    Classes without samples get logits that lose. Targets are class indices, or numbers; of blocks
    there are more samples than features.
    """
    mean, scale = data.standardisation()
    x: np.ndarray | StandardisedBlocks
    rotation: np.ndarray | None = None
    if isinstance(data.features, np.ndarray):
        x = standardise(data.features, mean, scale)
        if x.shape[1] > len(x):
            x, rotation, _ = rotate(x)
    else:
        x = StandardisedBlocks(data.features, mean, scale)
    division = data.divide(partial(divide, leave_one_out=True), seed=seed)
    grouped = division is not None and data.groups is not None
    every, of_folds = _systems(x, data, division if grouped else None)
    strength, held_out = fixed_strength(strengths), None
    path: list[dict[str, Any]] = []
    if division is not None:
        systems = of_folds if grouped else [every]
        strengths = sorted(map(float, strengths))
        errors = _Errors(division.held_out_folds, systems, strengths, leave_one_out=not grouped)
        found, parts = _left_out(x, data, division, errors, step)
        path = _path(found, strengths, are_classes=data.targets.ndim == 1)
        strength = min(path, key=lambda point: point["error"])["strength"]
        rows, some = data.subsample()
        if data.first_pass:
            kept = rows, standardise(some.array, mean, scale)
            parts = list(_parts([kept], data.targets, data.weights, division, systems))
        nth = thinning_step(int(division.held_out[rows].sum()), data.num_outputs)
        outputs, targets = [], []
        for part in parts:
            left_out = next(_outputs(part, [strength], leave_one_out=not grouped))
            outputs.append(left_out[::nth].copy())
            targets.append(part.targets[::nth])
        if outputs:
            held_out = HeldOut(np.concatenate(outputs), np.concatenate(targets), len(of_folds))
    weight = (every.directions @ every.solution(strength)).T
    bias = every.shares - weight @ every.centre
    if rotation is not None:
        weight = weight @ rotation.T
    layer = fold_standardisation((weight, bias), mean, scale)
    if data.targets.ndim == 1:
        layer = silence_absent(layer, data.targets)
        if held_out:
            absent = np.bincount(data.targets, minlength=data.num_outputs) == 0
            held_out.logits[:, absent] = layer[1][absent]
    choice = {
        "head": "linear",
        "solver": "ridge",
        "strength": strength,
        "path": path,
        "num_folds": held_out.num_folds if held_out else None,
    }
    return Fitted((layer,), choice, held_out)


def _left_out(
    x: np.ndarray | StandardisedBlocks,
    data: TrainingData,
    division: Division,
    errors: _Errors,
    step: Step,
) -> tuple[Iterable[np.ndarray], list[_Part]]:
    """Return the errors on samples that are left out, and these where they are in memory."""
    told = f"{len(errors.strengths)} strengths on {{}} left out"
    if not isinstance(x, np.ndarray):
        samples = (data.targets, data.weights, division.fold)
        return x.each_part(errors, *samples, step=lambda text: step(told.format(text))), []
    step(told.format(f"{data.num_samples:,} samples"))
    if data.num_versions > 1 and errors.leave_one_out:
        parts = list(_parts_in_versions(x, data, division, errors.systems[0]))
    else:
        blocks = _blocks(x, data.num_outputs)
        parts = list(_parts(blocks, data.targets, data.weights, division, errors.systems))
    return [errors.of(parts)], parts


@dataclass(frozen=True, eq=False)
class _System:
    """Weighted least squares in the eigenbasis of the covariance, float64."""

    directions: np.ndarray  # the basis, (num_features, rank)
    squares: np.ndarray  # weighted sum of the squared coordinates, (rank,)
    products: np.ndarray  # coordinates times centred targets, (rank, num_outputs)
    centre: np.ndarray  # weighted mean of the standardised samples, (num_features,)
    shares: np.ndarray  # weighted mean of each target, (num_outputs,)
    total: float  # of the weights

    def solution(self, strength: float) -> np.ndarray:
        """Return the weights in the basis, ``(rank, num_outputs)``."""
        return self.products / (self.squares + 1 / strength)[:, None]


@dataclass(frozen=True, eq=False)
class _Part:
    """Samples that are left out, and the system of all samples, or of those in other folds."""

    targets: np.ndarray  # (n,) or (n, num_outputs)
    weights: np.ndarray  # (n,)
    coordinates: np.ndarray  # in the system's basis, centred, (n, rank)
    system: _System
    versions: np.ndarray | None = None  # coordinates of all versions, (num_versions, n, rank)


@dataclass(eq=False)
class _Sums:
    """Weighted sums over samples, of which their system is made, float64."""

    squares: np.ndarray  # outer products of samples, (num_features, num_features)
    products: np.ndarray  # targets times samples, (num_outputs, num_features)
    samples: np.ndarray  # (num_features,)
    targets: np.ndarray  # (num_outputs,)
    total: float = 0.0

    @classmethod
    def zeros(cls, width: int, num_outputs: int) -> _Sums:
        return cls(
            np.zeros((width, width)),
            np.zeros((num_outputs, width)),
            np.zeros(width),
            np.zeros(num_outputs),
        )

    def add(self, x: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> None:
        """Add samples, ``(n, num_features)``."""
        wide = x.astype(np.float64)
        self.products += _weighted_sums(wide, targets, len(self.targets), weights)
        ones = np.ones((len(x), 1))
        self.targets += _weighted_sums(ones, targets, len(self.targets), weights)[:, 0]
        self.samples += weights @ wide
        self.total += weights.sum()
        wide *= np.sqrt(weights)[:, None]
        self.squares += wide.T @ wide

    def plus(self, other: _Sums, sign: int = 1) -> _Sums:
        names = [field.name for field in fields(self)]
        return _Sums(*(getattr(self, name) + sign * getattr(other, name) for name in names))

    def system(self) -> _System:
        centre = self.samples / self.total
        squares = self.squares - self.total * np.outer(centre, centre)
        squares, directions = np.linalg.eigh(squares)
        keep = squares > 1e-10 * max(float(squares[-1]), 1e-300)  # more than rounding
        squares, directions = squares[keep], np.ascontiguousarray(directions[:, keep])
        products = ((self.products - self.targets[:, None] * centre) @ directions).T
        return _System(directions, squares, products, centre, self.targets / self.total, self.total)


def _systems(
    x: np.ndarray | StandardisedBlocks, data: TrainingData, division: Division | None
) -> tuple[_System, list[_System]]:
    """Return the system of all samples, and for each held-out fold that of the others."""
    fold = division.fold if division else np.zeros(len(data), np.int64)
    folds = division.held_out_folds if division else np.zeros(0, np.int64)
    work = partial(_add_up, folds=folds, num_outputs=data.num_outputs)
    samples = (data.targets, data.weights, fold)
    found = [work(x, *samples)] if isinstance(x, np.ndarray) else x.each_part(work, *samples)
    every, *each = (reduce(_Sums.plus, sums) for sums in zip(*found, strict=True))
    return every.system(), [every.plus(part, -1).system() for part in each]


def _add_up(
    x: np.ndarray | StandardisedBlocks,
    targets: np.ndarray,
    weights: np.ndarray,
    fold: np.ndarray,
    *,
    folds: np.ndarray,
    num_outputs: int,
) -> list[_Sums]:
    """Return the sums over all samples, and over those of each fold."""
    every, *each = (_Sums.zeros(x.shape[1], num_outputs) for _ in range(len(folds) + 1))
    for rows, block in _blocks(x, num_outputs):
        every.add(block, targets[rows], weights[rows])
        for number, part in zip(folds, each, strict=True):
            own = fold[rows] == number
            part.add(block[own], targets[rows][own], weights[rows][own])
    return [every, *each]


def _weighted_sums(
    values: np.ndarray, targets: np.ndarray, num_outputs: int, weights: np.ndarray
) -> np.ndarray:
    """Return the weighted sums of values ``(n, m)`` times targets, ``(num_outputs, m)`` float64."""
    if targets.ndim == 2:
        weighted: np.ndarray = (targets * weights[:, None]).T @ values.astype(np.float64)
        return weighted
    sums = np.zeros((num_outputs, values.shape[1]))  # over the samples of each class
    for label, rows in rows_of_classes(targets):
        sums[label] = weights[rows] @ values[rows].astype(np.float64)
    return sums


def _blocks(
    x: np.ndarray | StandardisedBlocks, num_outputs: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers ``(n,)`` and standardised features of samples, as many as fit the cache."""
    if isinstance(x, np.ndarray):
        at_once = min(_BLOCK_ROWS, max(256, _BLOCK_VALUES // num_outputs))
        for start in range(0, len(x), at_once):
            block = x[start : start + at_once]
            yield np.arange(start, start + len(block)), block
    else:
        for where, block in x.blocks():
            yield np.arange(where.start, where.stop), block


def _parts(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]],
    targets: np.ndarray,
    weights: np.ndarray,
    division: Division,
    systems: Sequence[_System],
) -> Iterator[_Part]:
    """Yield the held-out samples of blocks: numbers ``(n,)`` and standardised features."""
    held_out = division.held_out
    for numbers, x in blocks:
        for fold, system in zip(division.held_out_folds, systems, strict=True):
            own = (division.fold[numbers] == fold) & held_out[numbers]
            if own.any():
                centred = x[own] - system.centre.astype(x.dtype)
                coordinates = centred @ system.directions.astype(x.dtype)
                rows = numbers[own]
                yield _Part(targets[rows], weights[rows], coordinates, system)


def _parts_in_versions(
    x: np.ndarray, data: TrainingData, division: Division, system: _System
) -> Iterator[_Part]:
    """Yield the held-out samples with all their versions."""
    samples = np.flatnonzero(division.held_out)
    at_once = max(1, min(_BLOCK_ROWS, _BLOCK_VALUES // data.num_versions) // data.num_versions)
    for start in range(0, len(samples), at_once):
        some = samples[start : start + at_once]
        rows = data.rows_of(some)
        centred = x[rows.reshape(-1)] - system.centre.astype(x.dtype)
        coordinates = centred @ system.directions.astype(x.dtype)
        versions = coordinates.reshape(*rows.shape, -1)
        yield _Part(data.targets[some], data.weights[some], versions[0], system, versions)


def _leverages(part: _Part, strengths: Sequence[float]) -> np.ndarray:
    """Return how much each sample pulls its own fit, ``(num_strengths, n)``, in (0, 1]."""
    u, system = part.coordinates, part.system
    factors = 1 / (system.squares[:, None] + 1 / np.array(strengths))  # (rank, num_strengths)
    leverages: np.ndarray = (np.square(u) @ factors.astype(u.dtype)).T.astype(np.float64)
    leverages += 1 / system.total  # of the bias
    leverages *= part.weights
    return leverages


def _outputs(
    part: _Part, strengths: Sequence[float], *, leave_one_out: bool
) -> Iterator[np.ndarray]:
    """Yield the outputs ``(n, num_outputs)`` for samples, of the solution without each of them."""
    u, system, targets = part.coordinates, part.system, part.targets
    if leave_one_out and part.versions is not None:
        yield from _outputs_without_versions(part, part.versions, strengths)
        return
    leverages = _leverages(part, strengths) if leave_one_out else [None] * len(strengths)
    own = np.arange(len(targets)), targets
    for strength, leverage in zip(strengths, leverages, strict=True):
        outputs: np.ndarray = u @ system.solution(strength).astype(u.dtype) + system.shares
        if leverage is not None:
            freedom = np.maximum(1 - leverage, _LEAST_FREEDOM)[:, None]
            if targets.ndim == 2:
                outputs = targets + (outputs - targets) / freedom
            else:
                outputs[own] -= 1  # minus the residual
                np.divide(outputs, freedom, out=outputs, casting="same_kind")
                outputs[own] += 1
        yield outputs


def _outputs_without_versions(
    part: _Part, versions: np.ndarray, strengths: Sequence[float]
) -> Iterator[np.ndarray]:
    """Yield the outputs ``(n, num_outputs)`` for samples, of the solution without all versions.

    The residuals of a sample's versions ``e`` become ``(I - H)⁻¹ e``, with ``H`` their block of the
    hat matrix; of the first version, a sum over all with the factors of a row of that inverse.
    """
    system, targets = part.system, part.targets
    by_sample = np.swapaxes(versions, 0, 1).astype(np.float64)  # (n, num_versions, rank)
    for strength in strengths:
        hat = (by_sample / (system.squares + 1 / strength)) @ np.swapaxes(by_sample, 1, 2)
        hat = (hat + 1 / system.total) * part.weights[:, None, None]
        shares, vectors = np.linalg.eigh(hat)
        freedom = np.maximum(1 - shares, _LEAST_FREEDOM)
        factors = np.einsum("nvj,nj,nj->nv", vectors, vectors[:, 0], 1 / freedom)
        total = factors.sum(axis=1, keepdims=True)
        coordinates = np.einsum("nv,nvd->nd", factors, by_sample)
        outputs: np.ndarray = coordinates @ system.solution(strength) + total * system.shares
        if targets.ndim == 2:
            outputs += (1 - total) * targets
        else:
            outputs[np.arange(len(targets)), targets] += 1 - total[:, 0]
        yield outputs


@dataclass(frozen=True, eq=False)
class _Errors:
    """Finds squared errors on samples that are left out, at several strengths."""

    folds: np.ndarray  # that are held out
    systems: Sequence[_System]  # of each
    strengths: Sequence[float]
    leave_one_out: bool

    def __call__(
        self, x: StandardisedBlocks, targets: np.ndarray, weights: np.ndarray, fold: np.ndarray
    ) -> np.ndarray:
        division = Division(fold, self.folds)
        return self.of(_parts(_blocks(x, 1), targets, weights, division, self.systems))

    def of(self, parts: Iterable[_Part]) -> np.ndarray:
        """Return sums of errors, of samples that are right, of weights and of samples, ``(4, S)``.

        Errors are weighted; what is right is 0 of numbers.
        """
        found = np.zeros((4, len(self.strengths)))
        for part in parts:
            found[2] += part.weights.sum()
            found[3] += len(part.weights)
            each = _outputs(part, self.strengths, leave_one_out=self.leave_one_out)
            for i, outputs in enumerate(each):
                squared, hits = _errors(outputs, part.targets)
                found[:2, i] += part.weights @ squared, hits
        return found


def _path(
    found: Iterable[np.ndarray], strengths: Sequence[float], *, are_classes: bool
) -> list[dict[str, Any]]:
    """Return the weighted mean squared error of each strength, and top-1 of classes."""
    error, right, total, count = np.sum(list(found), axis=0)
    return [
        {"strength": c, "error": float(lost), "top1": float(hits) if are_classes else None}
        for c, lost, hits in zip(strengths, error / total, right / count, strict=True)
    ]


def _errors(outputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, int]:
    """Return each sample's squared error, ``(n,)``, and how many are right; 0 of numbers."""
    if targets.ndim == 2:
        return np.square(outputs - targets).sum(axis=1), 0
    own = outputs[np.arange(len(targets)), targets]
    squared = np.einsum("nk,nk->n", outputs, outputs) - 2 * own + 1
    return squared, int((outputs.argmax(axis=1) == targets).sum())
