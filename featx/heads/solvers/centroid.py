"""Nearest centroid by cosine: no hyperparameters, and a fair baseline with few samples.

Features are centred by their mean and scaled to length 1; a class's centroid is the direction of
the mean of its samples. The largest cosine wins. A linear layer cannot scale to length 1, so its
logits are the cosines times the length of the centred features, which puts the classes in the same
order.

Source: Wang et al., "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning"
(2019).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from featx.heads.head import NEVER, Fitted, Layer, silence_absent
from featx.heads.samples.data import Blocks, Step, TrainingData, blocks_of, no_step
from featx.heads.samples.folds import HeldOut, divide, rows_of_classes, thinning_step

_BLOCK_ROWS, _BLOCK_VALUES = 4096, 2**23


def fit_centroid(data: TrainingData, *, seed: int = 0, step: Step = no_step) -> Fitted:
    """Return the layer whose largest logit is the largest cosine, by one pass.

    Samples of the subsample are held out, each by itself, or with its fold where samples are in
    groups. Classes without samples get logits that lose.
    """
    division = data.divide(partial(divide, leave_one_out=True), seed=seed)
    every = _Centroids(data.mean(), data.num_outputs)
    grouped = division if data.groups is not None else None
    parts = [every.empty() for _ in grouped.held_out_folds] if grouped else []
    folds, fold = (np.zeros(0, int), np.zeros(len(data), int))
    if grouped:
        folds, fold = grouped.held_out_folds, grouped.fold
    work = partial(_add_up, every=every.empty(), folds=folds)
    for found in data.each_part(work, data.targets, data.weights, fold, step=step):
        for sums, added in zip((every, *parts), found, strict=True):
            sums.merge(added)
    choice = {"head": "linear", "solver": "centroid"}
    if division is None:
        return Fitted((every.layer(),), choice)
    rows, some = data.subsample()
    samples = (*every.centred(some.array), some.targets, some.weights)
    nth = thinning_step(int(division.held_out[rows].sum()), data.num_outputs)
    at_once = min(_BLOCK_ROWS, max(256, _BLOCK_VALUES // data.num_outputs))
    at_once = max(1, at_once // data.num_versions)
    logits, labels = [], []
    for number, fold in enumerate(division.held_out_folds):
        of_fold = np.flatnonzero((division.fold[rows] == fold) & division.held_out[rows])
        num_blocks = 1 if parts else max(1, -(-len(of_fold) // at_once))
        for block in np.array_split(of_fold, num_blocks):
            x, lengths, targets, weights = (each[block] for each in samples)
            if parts:
                outputs = every.without(parts[number]).logits(x)
            elif some.num_versions > 1:
                own = np.zeros(x.shape)
                for row in some.rows_of(block):
                    own += (samples[3][row] / samples[1][row])[:, None] * samples[0][row]
                outputs = every.without_versions(x, lengths, targets, own)
            else:
                outputs = every.without_own(x, lengths, targets, weights)
            logits.append(outputs[::nth].copy())
            labels.append(targets[::nth])
    held_out = HeldOut(np.concatenate(logits), np.concatenate(labels), len(parts))
    return Fitted((every.layer(),), choice, held_out if len(held_out.labels) else None)


def _add_up(
    features: np.ndarray | Blocks,
    targets: np.ndarray,
    weights: np.ndarray,
    fold: np.ndarray,
    *,
    every: _Centroids,
    folds: np.ndarray,
) -> list[_Centroids]:
    """Return the sums over all samples, and over those of each fold."""
    found = [every.empty() for _ in range(len(folds) + 1)]
    for where, values in blocks_of(features):
        samples = (*every.centred(values), targets[where], weights[where])
        found[0].add(*samples)
        for number, part in zip(folds, found[1:], strict=True):
            part.add(*(each[fold[where] == number] for each in samples))
    return found


class _Centroids:
    """Sums over the samples of each class, from which everything else follows."""

    def __init__(self, mean: np.ndarray, num_classes: int) -> None:
        self._mean, self._sums = mean, np.zeros((num_classes, len(mean)))
        self._counts = np.zeros(num_classes, np.int64)
        self._length = 0.0

    def empty(self) -> _Centroids:
        return _Centroids(self._mean, len(self._counts))

    def merge(self, other: _Centroids) -> None:
        self._sums += other._sums
        self._counts += other._counts
        self._length += other._length

    def without(self, part: _Centroids) -> _Centroids:
        rest = self.empty()
        rest._sums, rest._counts = self._sums - part._sums, self._counts - part._counts
        rest._length = self._length - part._length
        return rest

    def centred(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return raw features ``(n, num_features)`` centred, and their lengths ``(n,)``."""
        x = features - self._mean.astype(np.float32)
        lengths = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
        return x, np.maximum(lengths, 1e-30)

    def add(
        self, x: np.ndarray, lengths: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> None:
        """Add centred samples, ``(n, num_features)``."""
        shares = weights / lengths
        for label, rows in rows_of_classes(labels):
            self._sums[label] += shares[rows] @ x[rows].astype(np.float64)
        self._length += lengths.sum()
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def _weight(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Return the weight ``(num_classes, num_features)``, norms of the sums, usual length."""
        norms = np.maximum(np.linalg.norm(self._sums, axis=1), 1e-30)
        usual = float(self._length / self._counts.sum())
        return self._sums / norms[:, None] / usual, norms, usual

    def layer(self) -> Layer:
        weight, _, _ = self._weight()
        layer = weight.astype(np.float32), (-weight @ self._mean).astype(np.float32)
        return silence_absent(layer, np.repeat(np.arange(len(self._counts)), self._counts > 0))

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return ``(n, num_classes)`` of centred samples ``(n, num_features)``."""
        weight, _, _ = self._weight()
        return np.asarray(x @ weight.T + np.where(self._counts > 0, 0, NEVER))

    def without_own(
        self, x: np.ndarray, lengths: np.ndarray, labels: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Return the logits of centred samples, each by the centroids of the others."""
        _, norms, usual = self._weight()
        logits = self.logits(x)
        rows = np.arange(len(labels))
        product = logits[rows, labels] * norms[labels] * usual / lengths  # own sum, own direction
        rest = norms[labels] ** 2 - 2 * weights * product + weights**2
        known = rest > 1e-9 * weights**2  # more than the sample itself
        own = (product - weights) / np.sqrt(np.where(known, rest, 1))
        logits[rows, labels] = np.where(known, own, -1) * lengths / usual
        return logits

    def without_versions(
        self, x: np.ndarray, lengths: np.ndarray, labels: np.ndarray, own: np.ndarray
    ) -> np.ndarray:
        """Return as ``without_own``, without all versions of a sample, whose sum is ``own``."""
        _, norms, usual = self._weight()
        logits = self.logits(x)
        rows = np.arange(len(labels))
        product = logits[rows, labels] * norms[labels] * usual - np.einsum("nd,nd->n", own, x)
        size = np.einsum("nd,nd->n", own, own)
        rest = norms[labels] ** 2 - 2 * np.einsum("nd,nd->n", self._sums[labels], own) + size
        known = rest > 1e-9 * size
        cosines = np.where(known, product / np.sqrt(np.where(known, rest, 1)), -lengths)
        logits[rows, labels] = cosines / usual
        return logits
