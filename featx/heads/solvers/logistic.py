"""Logistic regressions on the same samples, evaluated side by side.

For strength ``C`` the objective is

    weighted mean over samples of -log softmax(W x + b)[label]  +  |W|² / (2 C S)

with ``S`` the sum of the sample weights, which are 1 unless classes are weighted. That is
scikit-learn's divided by ``C S``. With two classes scikit-learn has one row of weights where there
are two here, and its ``2 C`` is ``C`` here.

Of tags that don't exclude each other the first term is the sum of their log losses; the optimum is
then that of a scikit-learn model with strength ``C`` for each tag.

Problems differ in strength and in the fold left out. One pass over the features serves all of them:
a block of rows is multiplied with the weights of every problem while it is in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featx.heads.head import Layer
from featx.heads.samples.data import TrainingData
from featx.heads.samples.folds import Division, HeldOut
from featx.heads.solvers.eigenbasis import Eigenbasis, StandardisedBlocks
from featx.heads.solvers.lbfgs import Minimum, Pairs, Stopping, minimise
from featx.heads.tasks.losses import SOFTMAX, LogisticLoss

_BLOCK_ROWS = 2048
_BLOCK_VALUES = 2**24
_MEMORY_BYTES = 2**29
_MAX_PAIRS = 30
_ROWS_FOR_CURVATURE = 4096
_VALUES_FOR_CURVATURE = 2**23
_NOISE = 4
"""Rounding error of the objective, in units of the last place."""


@dataclass(frozen=True, eq=False)
class Problems:
    """Problems that are solved together: ``C`` of each, and the fold left out, -1 for none."""

    strengths: np.ndarray
    left_out: np.ndarray


class Logistic:
    """Samples with targets, on which problems are solved.

    Variables of a problem are ``(num_classes, rank + 1)``: weights in the basis, then the bias.
    """

    def __init__(
        self,
        basis: Eigenbasis,
        data: TrainingData,
        *,
        division: Division | None = None,
        loss: LogisticLoss = SOFTMAX,
    ) -> None:
        self.loss, self.num_classes = loss, data.num_outputs
        self._basis, self._data, self._x = basis, data, basis.samples
        self._targets, self._weights = data.targets, data.weights
        self._division = division or Division(np.zeros(len(data), int), np.zeros(0, int))
        self._fold, self.held_out_folds = self._division.fold, self._division.held_out_folds
        if isinstance(self._x, np.ndarray) and len(self.held_out_folds) == 1:
            rows = np.flatnonzero(self._fold != self.held_out_folds[0])  # these always train
            self._x, self._fold = self._x[rows], self._fold[rows]
            self._targets, self._weights = self._targets[rows], self._weights[rows]

    @property
    def num_variables(self) -> int:
        return self.num_classes * (len(self._basis.variances) + 1)

    @property
    def multiplications(self) -> int:
        """Multiplications of a pass for one problem."""
        return int(np.prod(self._x.shape)) * self.num_classes

    def class_means(self, left_out: np.ndarray) -> np.ndarray:
        """Return the mean in the basis of each class, without the fold ``(P,)`` left out.

        It is ``(P, num_classes, rank)`` float64; 0 where there are no samples.
        """
        x, means = self._x, []
        assert isinstance(x, np.ndarray)
        for fold in left_out:
            rows = np.flatnonzero(self._fold != fold)
            rows = rows[np.argsort(self._targets[rows], kind="stable")]
            there, start, counts = np.unique(
                self._targets[rows], return_index=True, return_counts=True
            )
            sums = np.zeros((self.num_classes, x.shape[1]))
            for first in range(0, x.shape[1], 256):
                columns = slice(first, first + 256)
                sums[there, columns] = np.add.reduceat(x[rows, columns], start)
            sums[there] /= counts[:, None]
            means.append(self._basis.from_samples(sums))
        return np.stack(means)

    def of_classes(self, classes: np.ndarray) -> Logistic:
        """Return the same for some ascending classes ``(m,)`` alone."""
        rows = np.flatnonzero(np.isin(self._data.targets, classes))
        fold, num_scored = self._division.fold[rows], self._division.num_scored
        if num_scored is not None:
            num_scored = int(np.searchsorted(rows, num_scored))
        data = replace(
            self._data,
            features=self._data.array[:0],
            targets=np.searchsorted(classes, self._data.targets[rows]),
            num_outputs=len(classes),
            weights=self._data.weights[rows],
        )
        return Logistic(
            replace(self._basis, samples=self._basis.array[rows]),
            data,
            division=Division(fold, np.intersect1d(fold, self.held_out_folds), num_scored),
            loss=self.loss,
        )

    @property
    def is_double(self) -> bool:
        """Whether a pass is in float64."""
        return self._x.dtype == np.float64

    def _totals(self, left_out: np.ndarray) -> np.ndarray:
        """Return the sum of the trained samples' weights for each fold left out, ``(P,)``."""
        return np.array([self._weights[self._fold != fold].sum() for fold in left_out])

    def penalties(self, problems: Problems) -> np.ndarray:
        """Return the factor of ``|W|² / 2`` in each objective, ``(P,)``."""
        return np.asarray(1 / (problems.strengths * self._totals(problems.left_out)))

    def solve(
        self,
        problems: Problems,
        *,
        start: np.ndarray,
        stopping: Stopping,
        curvature: Sequence[Pairs] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Minimum:
        """Return the optimum of each problem, from variables ``(P, num_variables)`` on.

        The curvature is that of similar problems, adapted by ``with_penalty``. ``progress`` is
        called after each iteration with the number of passes so far.
        """
        totals = self._totals(problems.left_out)
        penalties = self.penalties(problems)

        def objective(variables: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return self._evaluate(
                variables, penalties[which], totals[which], problems.left_out[which]
            )

        pair_bytes = 16 * start.size
        return minimise(
            objective,
            start,
            inverse_diagonal=1 / self._diagonal(start, penalties),
            stopping=replace(stopping, noise=_NOISE * float(np.finfo(self._x.dtype).eps)),
            curvature=curvature,
            memory=max(3, min(_MAX_PAIRS, _MEMORY_BYTES // pair_bytes)),
            progress=progress,
        )

    def with_penalty(self, curvature: Sequence[Pairs], change: np.ndarray) -> tuple[Pairs, ...]:
        """Return curvature once each penalty ``(P,)`` has changed so much."""
        adapted = []
        for pairs, difference in zip(curvature, change, strict=True):
            shift = np.full((self.num_classes, len(self._basis.variances) + 1), difference)
            shift[:, -1] = 0
            adapted.append([(s, y + shift.reshape(-1) * s) for s, y in pairs])
        return tuple(adapted)

    def _diagonal(self, variables: np.ndarray, penalties: np.ndarray) -> np.ndarray:
        """Return roughly the diagonal of each Hessian, ``(P, num_variables)``.

        A class's probability varies by ``p (1 - p)``; its mean is taken of some of the samples.
        """
        some = self._x if isinstance(self._x, np.ndarray) else self._x.some
        weight, bias = self._unpack(variables)
        p, k, _ = weight.shape
        count = max(128, min(_ROWS_FOR_CURVATURE, _VALUES_FOR_CURVATURE // (p * k)))
        some = some[:: -(-len(some) // count)]
        z = (some @ weight.reshape(p * k, -1).T).T.reshape(p, k, -1) + bias[:, :, None]
        curvature = self.loss.curvature(z)  # (p, k)
        rank = len(self._basis.variances)
        diagonal = np.empty((p, k, rank + 1))
        diagonal[:, :, :rank] = curvature[:, :, None] * self._basis.variances
        diagonal[:, :, :rank] += penalties[:, None, None]
        diagonal[:, :, rank] = curvature
        return diagonal.reshape(p, -1)

    def _unpack(self, variables: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights ``(p, num_classes, width)`` for the samples and biases, in their type."""
        shaped = variables.reshape(len(variables), self.num_classes, -1)
        weight = self._basis.to_samples(shaped[:, :, :-1])
        return weight.astype(self._x.dtype), shaped[:, :, -1].astype(self._x.dtype)

    def _evaluate(
        self, variables: np.ndarray, penalties: np.ndarray, totals: np.ndarray, skip: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        weight, bias = self._unpack(variables)
        p, k, width = weight.shape
        columns = np.ascontiguousarray(weight.reshape(p * k, width).T)
        work = _Pass(columns, bias.reshape(-1, 1), totals, skip, self.loss)
        samples = (self._targets, self._weights, self._fold)
        x = self._x
        parts = [work(x, *samples)] if isinstance(x, np.ndarray) else x.each_part(work, *samples)
        losses, by_weight, by_bias = np.zeros(p), np.zeros((p * k, width)), np.zeros((p, k))
        for own_losses, own_by_weight, own_by_bias in parts:
            losses += own_losses
            by_weight += own_by_weight
            by_bias += own_by_bias
        own = variables.reshape(p, k, -1)[:, :, :-1]
        gradient = np.empty((p, k, own.shape[2] + 1))
        gradient[:, :, :-1] = self._basis.from_samples(by_weight.reshape(p, k, width))
        gradient[:, :, :-1] += penalties[:, None, None] * own
        gradient[:, :, -1] = by_bias
        values = losses + 0.5 * penalties * (own * own).sum((1, 2))
        return values, gradient.reshape(p, -1)

    def held_out(self, variables: np.ndarray) -> tuple[HeldOut, np.ndarray]:
        """Return outputs of each fold's solution for the samples it left out, and their weights.

        Variables are ``(num_folds, num_variables)``.
        """
        rows = [self._division.scored_in(fold) for fold in self.held_out_folds]
        logits = [
            self.logits(of_fold, self._basis.array[row])
            for row, of_fold in zip(rows, variables, strict=True)
        ]
        row = np.concatenate(rows)
        out = HeldOut(np.concatenate(logits), self._data.targets[row], len(rows))
        return out, self._data.weights[row]

    def logits(self, variables: np.ndarray, samples: np.ndarray) -> np.ndarray:
        """Return ``(n, num_classes)`` of samples ``(n, width)`` and one problem's variables."""
        weight, bias = self._unpack(variables[None])
        return np.asarray(samples @ weight[0].T + bias[0])

    def layer(self, variables: np.ndarray) -> Layer:
        """Return the layer for raw features, of one problem's variables."""
        shaped = variables.reshape(self.num_classes, -1)
        return self._basis.layer(shaped[:, :-1], shaped[:, -1])


@dataclass(frozen=True, eq=False)
class _Pass:
    """Sums over samples of the losses of P problems, and their gradients."""

    columns: np.ndarray  # weights, (width, P * num_classes)
    offset: np.ndarray  # biases, (P * num_classes, 1)
    totals: np.ndarray  # sum of the trained samples' weights, (P,)
    skip: np.ndarray  # fold left out, (P,)
    loss: LogisticLoss

    def __call__(
        self,
        x: np.ndarray | StandardisedBlocks,
        targets: np.ndarray,
        weights: np.ndarray,
        fold: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return losses ``(P,)``, gradients ``(P * num_classes, width)`` and ``(P, num_classes)``.

        Samples have features, targets, weights and the fold in which they are held out.
        """
        columns, offset, p = self.columns, self.offset, len(self.skip)
        if isinstance(x, np.ndarray):
            blocks = iter([(slice(0, len(x)), x)])
        else:
            columns, offset, blocks = x.for_product(columns, offset)
        losses, by_weight = np.zeros(p), np.zeros(columns.T.shape)
        by_bias = np.zeros((p, len(offset) // p))
        for rows, block in self._pieces(blocks):
            z = columns.T @ block.T  # (P * num_classes, n)
            z += offset
            z = z.reshape(*by_bias.shape, -1)
            share = weights[rows] / self.totals[:, None]  # of each problem's loss; 0 where left out
            share = np.where(fold[rows] == self.skip[:, None], 0, share).astype(x.dtype)
            losses += self.loss.residual_in_place(z, targets[rows], share)
            by_weight += z.reshape(len(offset), -1) @ block
            by_bias += z.sum(2)
        if not isinstance(x, np.ndarray):
            by_weight = x.gradient(by_weight, by_bias)
        return losses, by_weight, by_bias

    def _pieces(
        self, blocks: Iterator[tuple[slice, np.ndarray]]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the samples of blocks, a few at a time."""
        step = max(128, min(_BLOCK_ROWS, _BLOCK_VALUES // len(self.offset)))
        for where, x in blocks:
            for start in range(where.start, where.stop, step):
                stop = min(start + step, where.stop)
                yield slice(start, stop), x[start - where.start : stop - where.start]
