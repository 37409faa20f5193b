"""Solvers called with arrays, and results whose choice can be read as attributes."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from featx.heads.head import Fitted
from featx.heads.samples.data import Blocks, FirstPass, TrainingData, read_first_pass
from featx.heads.solvers import centroid, linear, mlp, ridge, sgd
from featx.heads.solvers.eigenbasis import Eigenbasis, build_eigenbasis


class ArrayBlocks:
    """Features in memory, served in blocks like those of a file, or of parts with so many rows."""

    def __init__(self, features: np.ndarray, piece_rows: int, part_rows: int | None = None) -> None:
        self._features, self._step, self._part = features, piece_rows, part_rows

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._features), self._features.shape[1]

    @property
    def num_pieces(self) -> int:
        return -(-len(self._features) // self._step)

    def only(self, rows: np.ndarray) -> ArrayBlocks:
        return ArrayBlocks(self._features[rows], self._step, self._part)

    def each_part(
        self, work: Callable[..., Any], *columns: np.ndarray, step: Any = None
    ) -> Iterator[Any]:
        if self._part is None:
            yield work(self, *columns)
            return
        for start in range(0, len(self._features), self._part):
            part = slice(start, start + self._part)
            sent = pickle.dumps((work, self._features[part], *(each[part] for each in columns)))
            there, features, *own = pickle.loads(sent)
            for each in own:
                each.flags.writeable = False  # as they come from a cluster
            yield pickle.loads(pickle.dumps(there(ArrayBlocks(features, self._step), *own)))

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        for piece in range(self.num_pieces) if order is None else order.tolist():
            start = piece * self._step
            stop = min(start + self._step, len(self._features))
            yield slice(start, stop), self._features[start:stop].astype(np.float32)


def read_once(features: np.ndarray, subsample: np.ndarray, piece_rows: int) -> FirstPass:
    """Return the first pass over blocks of an array, all of which is finite."""
    blocks = ArrayBlocks(features, piece_rows)
    found, bad = read_first_pass(blocks, np.arange(len(features)), subsample)
    assert not len(bad)
    return found


def data_of(
    features: np.ndarray | Blocks,
    labels: np.ndarray,
    num_outputs: int,
    *,
    weights: np.ndarray | None = None,
    **given: Any,
) -> TrainingData:
    """Return training data; without weights each sample counts once."""
    weights = np.ones(len(labels)) if weights is None else weights
    return TrainingData(features, labels, num_outputs, weights, **given)


def called_with_arrays(solver: Callable[..., Fitted]) -> Callable[..., SimpleNamespace]:
    """Return a function of features, targets, their number, and what the solver takes."""
    names = ("weights", "groups", "first_pass", "pool_bytes")

    def fit(
        features: np.ndarray | Blocks,
        labels: np.ndarray,
        num_outputs: int,
        *args: Any,
        **given: Any,
    ) -> SimpleNamespace:
        of_data = {name: given.pop(name) for name in names if name in given}
        fitted = solver(data_of(features, labels, num_outputs, **of_data), *args, **given)
        lists = {
            name: tuple(SimpleNamespace(**each) for each in fitted.choice[name])
            for name in ("path", "candidates")
            if name in fitted.choice
        }
        return SimpleNamespace(
            **(fitted.choice | lists),
            layers=fitted.layers,
            layer=fitted.layers[0],
            held_out=fitted.held_out,
        )

    return fit


fit_linear = called_with_arrays(linear.fit_linear)
fit_ridge = called_with_arrays(ridge.fit_ridge)
fit_centroid = called_with_arrays(centroid.fit_centroid)
fit_sgd = called_with_arrays(sgd.fit_sgd)
fit_mlp = called_with_arrays(mlp.fit_mlp)


def eigenbasis_of(features: np.ndarray) -> Eigenbasis:
    basis, _ = build_eigenbasis(data_of(features, np.zeros(len(features), np.int64), 1))
    return basis


def samples_of(
    num_samples: int, num_features: int, num_classes: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Make features and labels of classes that overlap, as many samples of each."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % num_classes
    centres = random.normal(size=(num_classes, num_features))
    features = centres[labels] + random.normal(size=(num_samples, num_features))
    return (3 * features + 5).astype(np.float32), labels
