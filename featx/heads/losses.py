"""What a head is trained to make small, one way for each task.

All three end alike: the gradient of a sample's loss by its outputs is what the head says minus what
is true. ``Softmax`` has one class for each sample, ``Sigmoid`` tags that don't exclude each other,
``Squared`` numbers. A loss also says how samples are divided so that it can be judged.
"""

from __future__ import annotations

import logging
from typing import Protocol

import numpy as np

from featx.heads.folds import HOLDOUT_ABOVE, NUM_FOLDS, Division, divide, stratified_folds
from featx.heads.metrics.multi_label import binary_log_loss
from featx.heads.metrics.single_label import log_loss
from featx.heads.tag_folds import fold_by_tags, unjudged_tags

log = logging.getLogger(__name__)


class Loss(Protocol):
    """A loss of outputs, its gradient, and who is held out to see how it comes on."""

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Return the gradient of each sample's loss by its outputs ``(m, n, k)``, in place."""

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        """Return the loss that is reported, of outputs ``(N, k)``: a mean over samples."""

    def hold_out(self, targets: np.ndarray, num_parts: int, *, seed: int) -> np.ndarray:
        """Return who is held out when one part of several is, ``(N,)`` bool; none, if need be."""


class LogisticLoss(Loss, Protocol):
    """A loss whose linear heads are solved to the optimum, with folds to choose the strength."""

    def residual_in_place(
        self, z: np.ndarray, targets: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
        """Turn outputs ``(p, k, n)`` into shares of the loss's gradient; return losses, ``(p,)``.

        Args:
            z: Outputs of some problems for some samples.
            targets: Of the samples.
            share: What each sample counts in each problem, ``(p, n)``.
        """

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Return the second derivative by each output, mean of samples, ``(p, k)``; rough.

        Args:
            z: Outputs ``(p, k, n)``; they are overwritten.
        """

    def top1(self, outputs: np.ndarray, targets: np.ndarray) -> float | None:
        """Return the share of outputs ``(N, k)`` that are right; None where none alone can be."""

    def divide(self, targets: np.ndarray, *, seed: int) -> Division:
        """Return who of targets, ``(N,)`` or ``(N, k)``, is held out when to judge."""


class Softmax:
    """Log loss of one class for each sample; targets are class indices ``(N,)``."""

    def residual_in_place(
        self, z: np.ndarray, targets: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
        """Turn outputs ``(p, k, n)`` into shares of the gradient; return losses ``(p,)``."""
        at = np.arange(z.shape[2])
        z -= z.max(axis=1, keepdims=True)
        own = z[:, targets, at]  # (p, n)
        np.exp(z, out=z)
        total = z.sum(axis=1)
        losses: np.ndarray = np.einsum("pn,pn->p", share, np.log(total) - own, dtype=np.float64)
        z *= (share / total)[:, None]
        z[:, targets, at] -= share
        return losses

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Return the second derivative by each output, ``(p, k)``.

        It is the same for all classes, whose probabilities trade with each other.
        """
        k = z.shape[1]
        z = _softmax_in_place(z, axis=1)
        mean = np.clip((z * (1 - z)).mean((1, 2)) * k / max(1, k - 1), 1e-3 / k, 1 / k)  # (p,)
        return np.repeat(mean[:, None], k, axis=1)

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Turn outputs ``(m, n, k)`` into the gradient of each sample's loss, in place."""
        error = _softmax_in_place(z, axis=-1)
        error[:, np.arange(len(targets)), targets] -= 1
        return error

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        """Return the mean loss of outputs ``(N, k)``."""
        return log_loss(outputs, targets, weights=weights)

    def top1(self, outputs: np.ndarray, targets: np.ndarray) -> float | None:
        """Return the share of outputs ``(N, k)`` that are right."""
        return float((outputs.argmax(axis=1) == targets).mean())

    def divide(self, targets: np.ndarray, *, seed: int) -> Division:
        """Return who of targets ``(N,)`` is held out when to judge."""
        return divide(targets, seed=seed)

    def hold_out(self, targets: np.ndarray, num_parts: int, *, seed: int) -> np.ndarray:
        """Return who is held out, ``(N,)`` bool; never the only sample of a class."""
        several = np.flatnonzero(np.bincount(targets)[targets] > 1)
        held_out = np.zeros(len(targets), dtype=bool)
        if len(several):
            held_out[several] = stratified_folds(targets[several], num_parts, seed=seed) == 0
        return held_out


class Sigmoid:
    """Sum over tags of their log losses; targets are tags ``(N, k)``, 0 or 1."""

    def residual_in_place(
        self, z: np.ndarray, targets: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
        """Turn outputs ``(p, k, n)`` into shares of the gradient; return losses ``(p,)``."""
        has = targets.T.astype(z.dtype)
        small = np.exp(-np.abs(z))
        loss = np.maximum(z, 0)
        loss += np.log1p(small)
        loss -= has * z
        losses: np.ndarray = np.einsum("pn,pkn->p", share, loss, dtype=np.float64)
        np.divide(np.where(z >= 0, 1, small), 1 + small, out=z)
        z -= has
        z *= share[:, None]
        return losses

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Return the second derivative by each output, ``(p, k)``."""
        likely = _sigmoid_in_place(z)
        curvature: np.ndarray = np.clip((likely * (1 - likely)).mean(axis=2), 1e-3, 1)
        return curvature

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Turn outputs ``(m, n, k)`` into the gradient of each sample's loss, in place."""
        error = _sigmoid_in_place(z)
        error -= targets
        return error

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        """Return the mean loss of outputs ``(N, k)``; a mean over tags, too."""
        return binary_log_loss(outputs, targets, weights=weights)

    def top1(self, outputs: np.ndarray, targets: np.ndarray) -> float | None:
        """Return None: of outputs ``(N, k)``, tags have no single right answer."""
        return None

    def divide(self, targets: np.ndarray, *, seed: int) -> Division:
        """Return who of tags ``(N, k)`` is held out, every tag on both sides if possible."""
        folds = fold_by_tags(targets, NUM_FOLDS, seed=seed)
        judged = np.arange(1 if len(targets) > HOLDOUT_ABOVE else NUM_FOLDS)
        judged = judged[np.isin(judged, folds)]
        if not len(judged):  # each sample is the only one with some tag
            return divide(np.zeros(len(targets), np.int64), seed=seed)
        unjudged = int(unjudged_tags(targets, folds, judged).sum())
        if unjudged:
            log.warning(
                "%d tags have all their samples in one fold: what is held out judges them badly.",
                unjudged,
            )
        return Division(folds, judged)

    def hold_out(self, targets: np.ndarray, num_parts: int, *, seed: int) -> np.ndarray:
        """Return who is held out, ``(N,)`` bool; never the only one that has, or lacks, a tag."""
        held_out: np.ndarray = fold_by_tags(targets, num_parts, seed=seed) == 0
        return held_out


class Squared:
    """Half the squared error, summed over targets; these are numbers ``(N, k)``."""

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Turn outputs ``(m, n, k)`` into the gradient of each sample's loss, in place."""
        z -= targets
        return z

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        """Return the squared error of outputs ``(N, k)``, a mean over samples and targets."""
        squared = np.square(outputs.astype(np.float64) - targets).mean(axis=1)
        return float(np.average(squared, weights=weights))

    def hold_out(self, targets: np.ndarray, num_parts: int, *, seed: int) -> np.ndarray:
        """Return who is held out, ``(N,)`` bool; at random."""
        return SOFTMAX.hold_out(np.zeros(len(targets), np.int64), num_parts, seed=seed)


SOFTMAX = Softmax()
SIGMOID = Sigmoid()
SQUARED = Squared()


def _softmax_in_place(z: np.ndarray, *, axis: int) -> np.ndarray:
    z -= z.max(axis=axis, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=axis, keepdims=True)
    return z


def _sigmoid_in_place(z: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(z))
    np.divide(np.where(z >= 0, 1, small), 1 + small, out=z)
    return z
