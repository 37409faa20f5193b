"""Loss functions: softmax cross-entropy, binary cross-entropy of tags, squared error.

The gradient of each by the outputs is prediction minus target. A loss also divides samples into
those that are trained on and held out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from featx.heads.samples.folds import (
    HOLDOUT_ABOVE,
    NUM_FOLDS,
    Division,
    divide,
    fold_by_tags,
    stratified_folds,
)

_FEWER_PARTS = (5, 2)
"""Numbers of parts for samples so few that one part of more could not be scored."""


class Loss(Protocol):
    """A loss of outputs, its gradient, and which samples are held out."""

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Turn outputs ``(m, n, k)`` into the gradient of each sample's loss, in place."""

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        """Return the mean loss of outputs ``(N, k)``, as it is reported."""

    def divide(
        self, targets: np.ndarray, *, groups: np.ndarray | None = None, seed: int
    ) -> Division | None:
        """Return folds of targets, ``(N,)`` or ``(N, k)``; None where none can be held out."""

    def hold_out(
        self, targets: np.ndarray, num_parts: int, *, groups: np.ndarray | None = None, seed: int
    ) -> np.ndarray:
        """Return a hold-out of one part of several, ``(N,)`` bool; perhaps empty."""


class LogisticLoss(Loss, Protocol):
    """A loss whose linear heads are solved to the optimum."""

    def residual_in_place(
        self, z: np.ndarray, targets: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
        """Turn outputs ``(p, k, n)`` of ``p`` problems into the gradient; return losses ``(p,)``.

        ``share``, ``(p, n)``, is the weight of each sample in each problem.
        """

    def curvature(self, z: np.ndarray) -> np.ndarray:
        """Return the mean second derivative by each output, ``(p, k)``; overwrites ``z``."""

    def top1(self, outputs: np.ndarray, targets: np.ndarray) -> float | None:
        """Return the share of outputs ``(N, k)`` that are right; None for tags."""


class Softmax:
    """Softmax cross-entropy; targets are class indices ``(N,)``."""

    divide = staticmethod(divide)

    def residual_in_place(
        self, z: np.ndarray, targets: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
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
        k = z.shape[1]  # the same for all classes, whose probabilities trade with each other
        z = softmax_in_place(z, axis=1)
        mean = np.clip((z * (1 - z)).mean((1, 2)) * k / max(1, k - 1), 1e-3 / k, 1 / k)  # (p,)
        return np.repeat(mean[:, None], k, axis=1)

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        error = softmax_in_place(z)
        error[:, np.arange(len(targets)), targets] -= 1
        return error

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        return log_loss(outputs, targets, weights=weights)

    def top1(self, outputs: np.ndarray, targets: np.ndarray) -> float | None:
        return float((outputs.argmax(axis=1) == targets).mean())

    def hold_out(
        self, targets: np.ndarray, num_parts: int, *, groups: np.ndarray | None = None, seed: int
    ) -> np.ndarray:
        return _first_part(
            lambda parts: stratified_folds(targets, parts, groups=groups, seed=seed) == 0,
            num_parts,
            lambda held_out: len(np.unique(targets[held_out])) > 1,
        )


class Sigmoid:
    """Binary cross-entropy, summed over tags; targets are tags ``(N, k)``, 0 or 1."""

    def residual_in_place(
        self, z: np.ndarray, targets: np.ndarray, share: np.ndarray
    ) -> np.ndarray:
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
        likely = sigmoid(z, out=z)
        curvature: np.ndarray = np.clip((likely * (1 - likely)).mean(axis=2), 1e-3, 1)
        return curvature

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        error = sigmoid(z, out=z)
        error -= targets
        return error

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        return binary_log_loss(outputs, targets, weights=weights)

    def top1(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        return None

    def divide(
        self, targets: np.ndarray, *, groups: np.ndarray | None = None, seed: int
    ) -> Division | None:
        folds = fold_by_tags(targets, NUM_FOLDS, groups=groups, seed=seed)
        used = np.arange(1 if len(targets) > HOLDOUT_ABOVE else NUM_FOLDS)
        division = Division(folds, np.intersect1d(folds, used))
        return division if _some_tag_varies(targets[division.held_out]) else None

    def hold_out(
        self, targets: np.ndarray, num_parts: int, *, groups: np.ndarray | None = None, seed: int
    ) -> np.ndarray:
        return _first_part(
            lambda parts: fold_by_tags(targets, parts, groups=groups, seed=seed) == 0,
            num_parts,
            lambda held_out: _some_tag_varies(targets[held_out]),
        )


class Squared:
    """Half the squared error, summed over targets ``(N, k)``."""

    divide = staticmethod(divide)

    def error(self, z: np.ndarray, targets: np.ndarray) -> np.ndarray:
        z -= targets
        return z

    def mean(
        self, outputs: np.ndarray, targets: np.ndarray, *, weights: np.ndarray | None = None
    ) -> float:
        squared = np.square(outputs.astype(np.float64) - targets).mean(axis=1)
        return float(np.average(squared, weights=weights))

    def hold_out(
        self, targets: np.ndarray, num_parts: int, *, groups: np.ndarray | None = None, seed: int
    ) -> np.ndarray:
        alike = np.zeros(len(targets), np.int64)
        held_out: np.ndarray = stratified_folds(alike, num_parts, groups=groups, seed=seed) == 0
        return held_out


SOFTMAX = Softmax()
SIGMOID = Sigmoid()
SQUARED = Squared()


def _first_part(
    part_of: Callable[[int], np.ndarray], num_parts: int, enough: Callable[[np.ndarray], bool]
) -> np.ndarray:
    """Return the first of so many parts ``(N,)`` bool, or of fewer where that is not enough."""
    for parts in (num_parts, *_FEWER_PARTS):
        held_out = part_of(parts)
        if enough(held_out):
            return held_out
    return np.zeros_like(held_out)


def _some_tag_varies(tags: np.ndarray) -> bool:
    """Return whether some samples ``(n, num_tags)`` have a tag that others lack."""
    return bool(len(tags)) and bool((np.ptp(tags, axis=0) > 0).any())


def softmax_in_place(z: np.ndarray, *, axis: int = -1) -> np.ndarray:
    """Turn logits ``(*shape,)`` into probabilities, without overflow."""
    z -= z.max(axis=axis, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=axis, keepdims=True)
    return z


def log_loss(logits: np.ndarray, labels: np.ndarray, *, weights: np.ndarray | None = None) -> float:
    """Return the mean of ``-log softmax(logits)[label]``, nats.

    Logits are ``(N, num_classes)``, class indices and weights ``(N,)``.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None], axis=1)[:, 0]
    losses = np.log(np.exp(shifted).sum(axis=1)) - own
    return float(np.average(losses.astype(np.float64), weights=weights))


def binary_log_loss(
    logits: np.ndarray, tags: np.ndarray, *, weights: np.ndarray | None = None
) -> float:
    """Return the mean of ``-log p`` of every decision, over samples and tags, nats.

    Logits and tags, 0 or 1, are ``(N, num_tags)``, weights ``(N,)``.
    """
    z = logits.astype(np.float64)
    losses = np.logaddexp(0, z) - tags * z
    return float(np.average(losses.mean(axis=1), weights=weights))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log probabilities, ``(num_samples, num_classes)`` as the logits, without overflow."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def sigmoid(z: np.ndarray, *, out: np.ndarray | None = None) -> np.ndarray:
    """Return probabilities of logits ``(*shape,)``, without overflow; ``out`` may be the logits."""
    small = np.exp(-np.abs(z))
    probabilities: np.ndarray = np.divide(np.where(z >= 0, 1, small), 1 + small, out=out)
    return probabilities
