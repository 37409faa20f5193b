"""The MLP head: hidden layers with ReLU, trained with AdamW and stopped early.

A stratified tenth of the training samples is held out to decide when to stop, though never the only
sample of a class; the validation and test splits are never looked at. Several seeds and settings
are trained side by side, and the one that held out best is kept. Where nothing can be held out, the
first of them is trained for all epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featx.errors import ConfigError
from featx.heads.head import Layer, apply_layers, fold_standardisation, standardisation
from featx.heads.samples.folds import HeldOut
from featx.heads.solvers.mlp_options import MLPOptions
from featx.heads.solvers.networks import Networks, split_layers
from featx.heads.tasks.losses import SOFTMAX, Loss

HOLDOUT_PARTS = 10
"""One in so many training samples is held out."""


@dataclass(frozen=True)
class Candidate:
    """One of the networks that were trained side by side.

    Attributes:
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        dropout: In [0, 1).
        number: Of its seed, from 0.
        num_epochs: Epoch whose weights were kept, from 1; 0 if it diverged.
        held_out_loss: Its loss on the hold-out; None if it diverged, or nothing was held out.
    """

    learning_rate: float
    weight_decay: float
    dropout: float
    number: int
    num_epochs: int
    held_out_loss: float | None


@dataclass(frozen=True, eq=False)
class MLPFit:
    """A fitted MLP head.

    Attributes:
        layers: First to last, for raw features.
        chosen: The network it is.
        candidates: All that were trained.
        held_out: Its outputs for the hold-out; None if nothing was held out.
    """

    layers: tuple[Layer, ...]
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    held_out: HeldOut | None

    @property
    def num_epochs(self) -> int:
        """Epoch whose weights were kept, from 1."""
        return self.chosen.num_epochs

    @property
    def held_out_loss(self) -> float:
        """Loss on the hold-out."""
        return math.nan if self.chosen.held_out_loss is None else self.chosen.held_out_loss


def fit_mlp(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    options: MLPOptions,
    *,
    weights: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    loss: Loss = SOFTMAX,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> MLPFit:
    """Return the MLP of the network and epoch with the lowest held-out loss.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``; tags or numbers ``(N, num_classes)`` where the
            loss takes these.
        num_classes: Outputs of the head.
        options: Shape and training.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        groups: Of each sample, ``(N,)``, -1 for none; they are held out as a whole.
        loss: What is made small, and compared.
        seed: Of initial weights, shuffling, dropout and the hold-out.
        step: Called with the step under way.

    Raises:
        ConfigError: Training with these options diverges.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    judged = loss.hold_out(labels, HOLDOUT_PARTS, groups=groups, seed=seed)
    trained = ~judged
    mean, scale = standardisation(features[trained])
    train = _Rows(_standardised(features[trained], mean, scale), labels[trained], weights[trained])
    judge = Judges(features[judged], labels[judged], weights[judged])
    standard = mean, scale
    return train_mlp(
        *(train, judge, standard, num_classes, options),
        loss=loss,
        seed=seed,
        step=step,
    )


def train_mlp(
    train: Batches,
    judge: Judges,
    standard: tuple[np.ndarray, np.ndarray],
    num_classes: int,
    options: MLPOptions,
    *,
    loss: Loss = SOFTMAX,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> MLPFit:
    """Return the MLP of the network and epoch with the lowest loss on the samples that judge.

    Args:
        train: The samples that train it, standardised.
        judge: The samples that decide when to stop; perhaps none.
        standard: Mean and scale of the features, ``(num_features,)`` each.
        num_classes: Outputs of the head.
        options: Shape and training.
        loss: What is made small, and compared.
        seed: Of initial weights, shuffling and dropout.
        step: Called with the step under way.

    Raises:
        ConfigError: Training with these options diverges.
    """
    widths = (judge.features.shape[1], *options.hidden, num_classes)
    settings = options.settings(seed)
    if not len(judge.labels):
        settings = settings[:1]  # there is nothing to compare them by
    networks = Networks(widths, settings, loss=loss)
    x = _standardised(judge.features, *standard)
    rows = _Rows(x, judge.labels, judge.weights)
    best = _train(networks, train, rows, options, loss, seed=seed, step=step)
    candidates = [
        Candidate(
            setting.learning_rate,
            setting.weight_decay,
            setting.dropout,
            setting.seed[1],
            each.epoch,
            each.loss if each.epoch and len(judge.labels) else None,
        )
        for setting, each in zip(settings, best, strict=True)
    ]
    winner = min(range(len(best)), key=lambda i: best[i].loss)
    if not best[winner].epoch:
        raise ConfigError(
            f"training the MLP diverged: no epoch had a finite loss. Use a learning rate below "
            f"{min(setting.learning_rate for setting in settings):g}."
        )
    layers = [
        (np.ascontiguousarray(weight[0].T), bias[0, 0].copy())
        for weight, bias in split_layers(best[winner].parameters[None], widths)
    ]
    complete = (fold_standardisation(layers[0], *standard), *layers[1:])
    held_out = None
    if len(judge.labels):
        held_out = HeldOut(apply_layers(complete, judge.features), judge.labels)
    return MLPFit(complete, candidates[winner], tuple(candidates), held_out)


def _standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ``(N, num_features)`` float32, whatever the size of the values."""
    standardised = np.empty(features.shape, np.float32)
    for start in range(0, len(features), 1024):
        rows = slice(start, start + 1024)
        standardised[rows] = (features[rows] - mean) / scale
    return standardised


Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Standardised samples ``(n, num_features)``, labels ``(n,)``, and shares of the loss ``(n,)``."""


class Batches(Protocol):
    """Samples that train networks."""

    def batches(self, size: int, random: np.random.Generator) -> Iterator[Batch]:
        """Yield all samples in random order, ``size`` at a time."""


@dataclass(frozen=True, eq=False)
class Judges:
    """Samples that decide when to stop.

    Attributes:
        features: Raw, ``(n, num_features)``.
        labels: ``(n,)``.
        weights: What each counts, ``(n,)``.
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, eq=False)
class _Rows:
    """Standardised samples.

    Attributes:
        x: ``(n, num_features)`` float32.
        labels: ``(n,)``.
        weights: ``(n,)``.
    """

    x: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def batches(self, size: int, random: np.random.Generator) -> Iterator[Batch]:
        """Yield all samples in random order, ``size`` at a time."""
        order = random.permutation(len(self.labels))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield self.x[rows], self.labels[rows], shares_of(self.weights[rows])


def shares_of(weights: np.ndarray) -> np.ndarray:
    """Return the share of each sample ``(n,)`` in the loss of their batch, float32."""
    shares: np.ndarray = (weights / weights.sum()).astype(np.float32)
    return shares


@dataclass(frozen=True, eq=False)
class _Best:
    """The best epoch of a network so far; epoch 0 has an infinite loss."""

    epoch: int
    loss: float
    parameters: np.ndarray


def _train(
    networks: Networks,
    train: Batches,
    judge: _Rows,
    options: MLPOptions,
    loss: Loss,
    *,
    seed: int,
    step: Callable[[str], None] | None,
) -> list[_Best]:
    """Train in place and return each network's best epoch; one that is done drops out."""
    random = np.random.default_rng(seed)
    best = [_Best(0, math.inf, row) for row in networks.parameters.copy()]
    going = np.arange(len(networks))
    for epoch in range(1, options.max_epochs + 1):
        if step:
            step(f"Epoch {epoch} of at most {options.max_epochs}")
        pace = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / options.max_epochs))
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges has no finite loss
            for batch in train.batches(options.batch_size, random):
                networks.step(*batch, pace=pace)
            losses = _losses(networks, judge, loss, epoch)
        for row, number in enumerate(going):
            if losses[row] < best[number].loss:
                best[number] = _Best(epoch, losses[row], networks.parameters[row].copy())
        keep = np.array([epoch - best[number].epoch < options.patience for number in going])
        if not keep.all():
            networks.only(keep)
            going = going[keep]
        if not len(going):
            break
    return best


def _losses(networks: Networks, judge: _Rows, loss: Loss, epoch: int) -> list[float]:
    """Return the held-out loss of each network; without a hold-out the latest epoch is the best."""
    if not len(judge.labels):
        finite = np.isfinite(networks.parameters).all(axis=1)
        return [-float(epoch) if each else math.inf for each in finite]
    logits = networks.logits(judge.x)
    return [loss.mean(own, judge.labels, weights=judge.weights) for own in logits]
