"""The linear head: L2-regularised multinomial logistic regression, solved to the optimum.

For strength ``C`` and ``n`` samples the objective is

    mean over samples of -log softmax(W x + b)[label]  +  |W|² / (2 C n)

which is scikit-learn's divided by ``C n``. With two classes scikit-learn has one row of weights
where there are two here, and its ``2 C`` is ``C`` here.

The features are standardised and rotated into the eigenbasis of their covariance. The penalty does
not see a rotation, and in this basis the Hessian at ``W = 0`` is diagonal and known, which is all
the preconditioning L-BFGS needs. Directions without variance carry no weight at the optimum and are
dropped, so 4,096 features of 245 images cost no more than 245.

The strength is chosen by stratified cross-validation, the folds solved as one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featx.heads.folds import stratified_folds
from featx.heads.head import Layer, fold_standardisation, standardisation
from featx.heads.lbfgs import Minimum, minimise

log = logging.getLogger(__name__)

STRENGTHS: tuple[float, ...] = tuple(float(f"{c:.3g}") for c in np.logspace(-6.5, 1, 16))
NUM_FOLDS = 5
HOLDOUT_ABOVE = 20_000
_ROTATE_UP_TO = 2048
_BLOCK_VALUES = 2**24
_SELECT_TOLERANCE, _REFIT_TOLERANCE = 1e-4, 1e-7
_WORSE_IN_A_ROW = 3


@dataclass(frozen=True, eq=False)
class LinearFit:
    """A fitted linear head.

    Attributes:
        layer: For raw features.
        strength: The chosen ``C``.
        path: Of each ``C`` tried, the log loss on held-out samples, nats.
        gradient_norm: Largest absolute component of the gradient at the solution; None if unknown.
        num_evaluations: Of the objective, for the refit.
        num_folds: Of the cross-validation; 1 for a single hold-out, 0 where nothing was chosen.
    """

    layer: Layer
    strength: float
    path: tuple[tuple[float, float], ...]
    gradient_norm: float | None
    num_evaluations: int
    num_folds: int


def fit_linear(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LinearFit:
    """Return the regularised optimum on all samples, at the strength that held out best.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        strengths: Values of ``C`` to choose from; a single one is used as it is.
        seed: Decides the folds.
    """
    mean, scale = standardisation(features)
    basis = _Basis.of((features - mean) / scale)
    problem = _Problem(basis.coordinates, basis.variances, labels, num_classes)
    path: list[tuple[float, float]] = []
    strength, num_folds = strengths[0], 0
    if len(strengths) > 1:
        strength, path, num_folds = _select(problem, labels, strengths, seed=seed)
    everything = np.full(1, -1)
    optimum = problem.solve(
        np.array([strength]), everything, np.zeros(len(labels)), tolerance=_REFIT_TOLERANCE
    )
    weight, bias = problem.unpack(optimum.variables)
    rotated = (weight[0].T @ basis.directions.T).numpy()  # (num_classes, num_features)
    layer = fold_standardisation((rotated, bias[0].numpy()), mean, scale)
    gradient_norm = float(optimum.gradient_norms[0])
    if gradient_norm > 100 * _REFIT_TOLERANCE:
        log.warning("The linear head stopped early: gradient norm %.1e.", gradient_norm)
    return LinearFit(
        layer, strength, tuple(path), gradient_norm, optimum.num_evaluations, num_folds
    )


def _select(
    problem: _Problem, labels: np.ndarray, strengths: Sequence[float], *, seed: int
) -> tuple[float, list[tuple[float, float]], int]:
    """Return the best strength, the held-out log loss of each tried, and the number of folds.

    The folds are solved side by side, the strengths one after the other, weakest ``C`` first, each
    starting where the last one ended. A larger ``C`` costs more and fits the folds closer; once
    several in a row are worse than the best, the rest is not tried.
    """
    holdout = len(labels) > HOLDOUT_ABOVE
    num_folds = NUM_FOLDS if holdout else choose_num_folds(labels)
    left_out = np.array([0]) if holdout else np.arange(num_folds)
    folds = stratified_folds(labels, num_folds, seed=seed)
    sizes = np.array([(folds == fold).sum() for fold in left_out])
    single = problem.single()
    path: list[tuple[float, float]] = []
    start: Tensor | None = None
    for strength in sorted(strengths):
        optimum = single.solve(
            np.full(len(left_out), strength),
            left_out,
            folds,
            tolerance=_SELECT_TOLERANCE,
            start=start,
        )
        start = optimum.variables
        losses = single.held_out_loss(start, left_out, folds)
        path.append((float(strength), float(np.average(losses, weights=sizes))))
        best = min(range(len(path)), key=lambda i: path[i][1])
        if len(path) - 1 - best >= _WORSE_IN_A_ROW:
            break
    if best in (0, len(strengths) - 1):
        log.info("The best strength C=%g is at the end of the range tried.", path[best][0])
    return path[best][0], path, 1 if holdout else num_folds


def choose_num_folds(labels: np.ndarray) -> int:
    """Return ``NUM_FOLDS``, or fewer where the smallest class has fewer samples; at least 2.

    Args:
        labels: Class indices, ``(num_samples,)``.
    """
    counts = np.bincount(labels)
    smallest = int(counts[counts > 0].min())
    num_folds = max(2, min(NUM_FOLDS, smallest))
    if num_folds < NUM_FOLDS:
        log.warning(
            "The smallest class has %d training samples: %d folds instead of %d.",
            smallest,
            num_folds,
            NUM_FOLDS,
        )
    return num_folds


@dataclass(frozen=True, eq=False)
class _Basis:
    """Standardised features in the eigenbasis of their covariance.

    Attributes:
        coordinates: ``(N, rank)``.
        variances: Of each coordinate, ``(rank,)``.
        directions: ``(num_features, rank)``, orthonormal columns.
    """

    coordinates: Tensor
    variances: Tensor
    directions: Tensor

    @classmethod
    def of(cls, standardised: np.ndarray) -> _Basis:
        x = torch.from_numpy(np.ascontiguousarray(standardised, dtype=np.float64))
        n, d = x.shape
        if min(n, d) > _ROTATE_UP_TO:  # the decomposition would cost more than it saves
            return cls(x, torch.ones(d, dtype=x.dtype), torch.eye(d, dtype=x.dtype))
        variances, vectors = torch.linalg.eigh(x.T @ x / n if d <= n else x @ x.T / n)
        keep = variances > 1e-10 * variances[-1].clamp_min(1e-300)
        variances, vectors = variances[keep], vectors[:, keep]
        if d > n:
            vectors = x.T @ vectors / (variances * n).sqrt()
        return cls(x @ vectors, variances, vectors)


class _Problem:
    """Logistic regressions on the same samples that differ in strength and in the fold left out.

    Args:
        coordinates: ``(N, rank)``.
        variances: ``(rank,)``.
        labels: ``(N,)``.
        num_classes: Number of outputs.
    """

    def __init__(
        self, coordinates: Tensor, variances: Tensor, labels: np.ndarray, num_classes: int
    ) -> None:
        self._coordinates = coordinates
        self._variances = variances
        self._labels = labels
        self._targets = torch.from_numpy(labels.astype(np.int64))
        self._num_classes = num_classes

    def single(self) -> _Problem:
        """Return the same problem in float32: twice as fast, precise enough to choose by."""
        return _Problem(
            self._coordinates.float(), self._variances.float(), self._labels, self._num_classes
        )

    def unpack(self, variables: Tensor) -> tuple[Tensor, Tensor]:
        """Return weights ``(p, rank, num_classes)`` and biases ``(p, num_classes)``."""
        shaped = variables.view(len(variables), -1, self._num_classes)
        return shaped[:, :-1], shaped[:, -1]

    def solve(
        self,
        strengths: np.ndarray,
        left_out: np.ndarray,
        folds: np.ndarray,
        *,
        tolerance: float,
        start: Tensor | None = None,
    ) -> Minimum:
        """Return the optimum of each problem.

        Args:
            strengths: ``C`` of each, ``(P,)``.
            left_out: Fold that is not trained on, ``(P,)``; -1 for none.
            folds: Of each sample, ``(N,)``.
            tolerance: Bound on the gradient.
            start: Variables to start from; None starts at 0.
        """
        dtype = self._coordinates.dtype
        fold_of = torch.from_numpy(folds.astype(np.int64))
        skip = torch.from_numpy(left_out.astype(np.int64))
        sizes = torch.tensor([(folds != fold).sum() for fold in left_out], dtype=dtype)
        penalty = 1 / (torch.tensor(strengths, dtype=dtype) * sizes)  # (P,)
        rank = len(self._variances)
        curvature = self._variances / self._num_classes  # Hessian of the loss at W = 0
        diagonal = torch.cat(
            [curvature + penalty[:, None], torch.full((len(penalty), 1), 1 / self._num_classes)],
            dim=1,
        ).to(dtype)
        inverse = (1 / diagonal)[:, :, None].expand(-1, -1, self._num_classes).flatten(1)

        def objective(variables: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
            return self._evaluate(variables, penalty[which], sizes[which], skip[which], fold_of)

        if start is None:
            start = torch.zeros(len(strengths), (rank + 1) * self._num_classes, dtype=dtype)
        return minimise(
            objective, start, inverse_diagonal=inverse.contiguous(), tolerance=tolerance
        )

    def _evaluate(
        self, variables: Tensor, penalty: Tensor, sizes: Tensor, skip: Tensor, fold_of: Tensor
    ) -> tuple[Tensor, Tensor]:
        weight, bias = self.unpack(variables)
        values = 0.5 * penalty * (weight * weight).sum((1, 2))
        gradient = torch.empty_like(variables).view(len(variables), -1, self._num_classes)
        gradient[:, :-1] = penalty[:, None, None] * weight
        gradient[:, -1] = 0
        for rows in self._blocks(len(variables)):
            x = self._coordinates[rows]  # (n, rank)
            trained = (fold_of[rows] != skip[:, None]).to(x.dtype) / sizes[:, None]  # (p, n)
            log_p = self._log_probabilities(x, weight, bias)  # (p, n, num_classes)
            index = self._targets[rows][None, :, None].expand(len(variables), -1, 1)
            own = log_p.gather(2, index)
            values = values - (own[:, :, 0] * trained).sum(1)
            residual = log_p.exp_()
            residual.scatter_add_(2, index, -torch.ones_like(own))
            residual *= trained[:, :, None]
            gradient[:, :-1] += _transposed_product(x, residual)
            gradient[:, -1] += residual.sum(1)
        return values, gradient.flatten(1)

    def held_out_loss(
        self, variables: Tensor, left_out: np.ndarray, folds: np.ndarray
    ) -> np.ndarray:
        """Return each problem's mean log loss on the fold it was not trained on, ``(P,)``."""
        weight, bias = self.unpack(variables)
        losses = np.empty(len(left_out))
        for fold in np.unique(left_out):
            which = np.flatnonzero(left_out == fold)
            rows = torch.from_numpy(np.flatnonzero(folds == fold))
            log_p = self._log_probabilities(self._coordinates[rows], weight[which], bias[which])
            index = self._targets[rows][None, :, None].expand(len(which), -1, 1)
            losses[which] = -log_p.gather(2, index).double().mean((1, 2)).numpy()
        return losses

    def _log_probabilities(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        p, rank, num_classes = weight.shape
        columns = weight.permute(1, 0, 2).reshape(rank, p * num_classes)
        logits = (x @ columns).view(len(x), p, num_classes).permute(1, 0, 2) + bias[:, None]
        return logits.log_softmax(2)

    def _blocks(self, num_problems: int) -> list[slice]:
        n = len(self._coordinates)
        step = max(256, _BLOCK_VALUES // (num_problems * self._num_classes))
        return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def _transposed_product(x: Tensor, residual: Tensor) -> Tensor:
    """Return ``xᵀ residual`` for each problem, ``(p, rank, num_classes)``, as one product."""
    p, n, num_classes = residual.shape
    columns = residual.permute(1, 0, 2).reshape(n, p * num_classes)
    return (x.T @ columns).view(-1, p, num_classes).permute(1, 0, 2)
