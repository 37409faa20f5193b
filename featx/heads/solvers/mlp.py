"""The MLP head: hidden layers with ReLU, trained with AdamW and stopped early.

A stratified tenth of the training samples is held out to decide when to stop, though never the only
sample of a class; the validation and test splits are never looked at. Several seeds and settings
are trained side by side, and the one with the lowest held-out loss is kept. Where nothing can be
held out, the first of them is trained for all epochs. All are one batched model: they see the same
batches, and each is trained as it would be alone.

Sources: Kingma and Ba, "Adam" (2015); Loshchilov and Hutter, "Decoupled Weight Decay
Regularization" (2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from numbers import Integral
from typing import Any

import numpy as np

from featx.artifact.keywords import require_types
from featx.errors import ConfigError, require_at_least, require_number
from featx.heads.head import Fitted, apply_layers, fold_standardisation
from featx.heads.samples.data import Blocks, Step, TrainingData, no_step, shuffled_batches
from featx.heads.samples.folds import HOLDOUT_PARTS, HeldOut
from featx.heads.solvers.eigenbasis import StandardisedBlocks
from featx.heads.tasks.losses import SOFTMAX, Loss

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Setting:
    """Settings of one network; the seed decides initial weights and dropout."""

    seed: tuple[int, ...]
    learning_rate: float
    weight_decay: float
    dropout: float


@dataclass(frozen=True)
class MLPOptions:
    """How an MLP head is built and trained.

    Of dropout, learning rate and weight decay several may be given: every combination is trained,
    with every seed.

    Attributes:
        hidden: Width of each hidden layer, first to last.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        learning_rate: AdamW's, at the start of its cosine decay.
        weight_decay: AdamW's.
        num_seeds: Initial weights that are tried.
        batch_size: Samples a step.
        max_epochs: Length of the cosine decay.
        patience: Epochs without a better held-out loss before training stops.

    Raises:
        ConfigError: A value is out of range.
    """

    hidden: tuple[int, ...] = (100,)
    dropout: float | tuple[float, ...] = 0.0
    learning_rate: float | tuple[float, ...] = 1e-3
    weight_decay: float | tuple[float, ...] = 1e-2
    num_seeds: int = 1
    batch_size: int = 128
    max_epochs: int = 100
    patience: int = 10

    def __post_init__(self) -> None:
        hidden: Any = self.hidden
        if isinstance(hidden, Integral):
            object.__setattr__(self, "hidden", (hidden,))
        require_types(self)
        if not self.hidden:
            raise ConfigError("hidden must be the size of one layer or of several; got none.")
        for size in self.hidden:
            require_at_least("hidden", size, 1)
        for rate in _several(self.learning_rate):
            require_number("learning_rate", rate, 0, ends="(]")
        for decay in _several(self.weight_decay):
            require_number("weight_decay", decay, 0)
        for share in _several(self.dropout):
            require_number("dropout", share, 0, 1, ends="[)")
        if not all(map(_several, (self.learning_rate, self.weight_decay, self.dropout))):
            raise ConfigError("there is no learning rate, weight decay or dropout to train with.")
        for name in ("num_seeds", "batch_size", "max_epochs", "patience"):
            require_at_least(name, getattr(self, name), 1)

    def settings(self, seed: int) -> list[Setting]:
        grid = product(
            _several(self.learning_rate),
            _several(self.weight_decay),
            _several(self.dropout),
            range(self.num_seeds),
        )
        return [Setting((seed, number), *rest) for *rest, number in grid]


def _several(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,)


def parse_hidden(text: str | Sequence[int]) -> tuple[int, ...]:
    """Return layer widths from ``"100"`` or ``"256,128"``.

    Raises:
        ConfigError: It is not a list of whole numbers.

    >>> parse_hidden("256,128")
    (256, 128)
    """
    try:
        parts = text.split(",") if isinstance(text, str) else text
        return tuple(int(part) for part in parts)
    except ValueError as err:
        raise ConfigError(f"hidden sizes must be like 100 or 256,128; got '{text}'.") from err


def fit_mlp(
    data: TrainingData,
    options: MLPOptions,
    *,
    loss: Loss = SOFTMAX,
    seed: int = 0,
    step: Step = no_step,
) -> Fitted:
    """Return the MLP of the network and epoch with the lowest held-out loss.

    From samples in blocks the subsample is held out. The seed decides initial weights, shuffling,
    dropout and the hold-out.

    Raises:
        ConfigError: Training with these options diverges.
    """
    if data.first_pass:
        rows, held_out = data.subsample()
    else:
        rows = np.flatnonzero(
            loss.hold_out(
                data.targets[: data.num_samples], HOLDOUT_PARTS, groups=data.groups, seed=seed
            )
        )
        held_out = data.select(rows).first_versions()
    train = data.select(np.delete(np.arange(data.num_samples), rows))
    mean, scale = train.standardisation()
    widths = (train.features.shape[1], *options.hidden, data.num_outputs)
    # without a hold-out there is nothing to compare them by
    settings = options.settings(seed)[: None if len(held_out) else 1]
    networks = Networks(widths, settings, loss=loss)
    x: np.ndarray | Blocks
    if isinstance(train.features, np.ndarray):
        x = _standardised(train.features, mean, scale)
    else:
        x = StandardisedBlocks(train.features, mean, scale)
    train = replace(train, features=x)
    validation = replace(held_out, features=_standardised(held_out.array, mean, scale))
    best = _train(networks, train, validation, options, seed=seed, step=step)
    candidates = [
        {
            "learning_rate": setting.learning_rate,
            "weight_decay": setting.weight_decay,
            "dropout": setting.dropout,
            "number": setting.seed[1],
            "num_epochs": each.epoch,
            "held_out_loss": each.loss if each.epoch and len(held_out) else None,
        }
        for setting, each in zip(settings, best, strict=True)
    ]
    winner = min(range(len(best)), key=lambda i: best[i].loss)
    if not best[winner].epoch:
        raise ConfigError(
            f"training the MLP diverged: no epoch had a finite loss. Use a learning rate below "
            f"{min(setting.learning_rate for setting in settings):g}."
        )
    first, *others = [
        (np.ascontiguousarray(weight[0].T), bias[0, 0].copy())
        for weight, bias in split_layers(best[winner].parameters[None], widths)
    ]
    layers = (fold_standardisation(first, mean, scale), *others)
    choice = {
        "head": "mlp",
        "solver": "adamw",
        "hidden": list(options.hidden),
        "batch_size": options.batch_size,
        "max_epochs": options.max_epochs,
        "patience": options.patience,
        **candidates[winner],
        "candidates": candidates,
        "seed": seed,
    }
    if not len(held_out):
        return Fitted(layers, choice)
    return Fitted(layers, choice, HeldOut(apply_layers(layers, held_out.array), held_out.targets))


def _standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ``(N, num_features)`` float32, whatever the size of the values."""
    standardised = np.empty(features.shape, np.float32)
    for start in range(0, len(features), 1024):
        rows = slice(start, start + 1024)
        standardised[rows] = (features[rows] - mean) / scale
    return standardised


@dataclass(frozen=True, eq=False)
class _Best:
    """The best epoch of a network so far; epoch 0 has an infinite loss."""

    epoch: int
    loss: float
    parameters: np.ndarray


def _train(
    networks: Networks,
    train: TrainingData,
    validation: TrainingData,
    options: MLPOptions,
    *,
    seed: int,
    step: Step,
) -> list[_Best]:
    """Train on standardised features; return each network's best epoch.

    A network that is done drops out, in place.
    """
    random = np.random.default_rng(seed)
    best = [_Best(0, math.inf, row) for row in networks.parameters.copy()]
    going = np.arange(len(networks))
    for epoch in range(1, options.max_epochs + 1):
        step(f"Epoch {epoch} of at most {options.max_epochs}")
        lr_scale = 0.5 * (1 + math.cos(math.pi * (epoch - 1) / options.max_epochs))
        with np.errstate(over="ignore", invalid="ignore"):  # what diverges has no finite loss
            for rows, batch in shuffled_batches(train, options.batch_size, random):
                weights = train.weights[rows]
                shares = (weights / weights.sum()).astype(np.float32)
                networks.step(batch, train.targets[rows], shares, lr_scale=lr_scale)
            losses = _losses(networks, validation, epoch)
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


def _losses(networks: Networks, validation: TrainingData, epoch: int) -> list[float]:
    """Return the held-out loss of each network; without a hold-out the latest epoch is the best."""
    if not len(validation):
        finite = np.isfinite(networks.parameters).all(axis=1)
        return [-float(epoch) if each else math.inf for each in finite]
    return [
        networks.loss.mean(logits, validation.targets, weights=validation.weights)
        for logits in networks.logits(validation.array)
    ]


class Networks:
    """Networks of one shape, changed in place by ``step``.

    The widths are features, hidden sizes, outputs; ``parameters`` are ``(num_networks,
    num_parameters)`` float32.
    """

    def __init__(
        self, widths: Sequence[int], settings: Sequence[Setting], *, loss: Loss = SOFTMAX
    ) -> None:
        self.loss, self._widths, self._settings = loss, tuple(widths), tuple(settings)
        self._random = [np.random.default_rng(setting.seed) for setting in settings]
        self.parameters = np.stack(
            [_initial_parameters(self._widths, random) for random in self._random]
        )
        self._moments = np.zeros((2, *self.parameters.shape), np.float32)
        self._steps = 0

    def __len__(self) -> int:
        return len(self._settings)

    def only(self, keep: np.ndarray) -> None:
        """Drop networks; ``keep`` is ``(num_networks,)`` bool."""
        rows = np.flatnonzero(keep)
        self._settings = tuple(self._settings[row] for row in rows)
        self._random = [self._random[row] for row in rows]
        self.parameters = self.parameters[rows]
        self._moments = self._moments[:, rows]

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Return ``(num_networks, N, num_classes)`` of standardised features ``(N, in)``."""
        layers = split_layers(self.parameters, self._widths)
        parts = []
        for start in range(0, len(x), _ROWS_AT_ONCE):
            hidden = x[None, start : start + _ROWS_AT_ONCE]
            for weight, bias in layers[:-1]:
                hidden = np.maximum(hidden @ weight + bias, 0)
            parts.append(hidden @ layers[-1][0] + layers[-1][1])
        return np.concatenate(parts, axis=1)

    def step(
        self, x: np.ndarray, labels: np.ndarray, shares: np.ndarray, *, lr_scale: float
    ) -> None:
        """Take one step of AdamW on a batch of standardised features ``(n, in)``.

        The shares ``(n,)`` of its samples in the loss sum to 1.
        """
        gradient = self._gradient(x, labels, shares)
        rates = np.array([s.learning_rate for s in self._settings], np.float32)[:, None]
        decays = np.array([s.weight_decay for s in self._settings], np.float32)[:, None]
        self._steps += 1
        mean, square = self._moments
        first, second = (np.float32(beta) for beta in _BETAS)
        mean += (1 - first) * (gradient - mean)
        gradient *= gradient
        square += (1 - second) * (gradient - square)
        rates *= np.float32(lr_scale)
        self.parameters *= 1 - rates * decays
        np.sqrt(square, out=gradient)
        gradient /= np.float32(np.sqrt(1 - _BETAS[1] ** self._steps))
        gradient += np.float32(_EPSILON)
        np.divide(mean, gradient, out=gradient)
        gradient *= rates / np.float32(1 - _BETAS[0] ** self._steps)
        self.parameters -= gradient

    def _gradient(self, x: np.ndarray, labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
        layers = split_layers(self.parameters, self._widths)
        seen = [x[None]]
        for weight, bias in layers[:-1]:
            hidden = seen[-1] @ weight
            hidden += bias
            np.maximum(hidden, 0, out=hidden)
            self._drop(hidden)
            seen.append(hidden)
        error = self.loss.error(seen[-1] @ layers[-1][0] + layers[-1][1], labels)
        error *= shares[:, None]
        gradient = np.empty_like(self.parameters)
        parts = split_layers(gradient, self._widths)
        for i in range(len(layers) - 1, -1, -1):
            np.matmul(seen[i].mT, error, out=parts[i][0])
            np.sum(error, axis=1, keepdims=True, out=parts[i][1])
            if i:
                error = error @ layers[i][0].mT
                error *= self._passed(seen[i])
        return gradient

    def _drop(self, hidden: np.ndarray) -> None:
        for row, (setting, random) in enumerate(zip(self._settings, self._random, strict=True)):
            if setting.dropout:
                kept = random.random(hidden[row].shape, dtype=np.float32) >= setting.dropout
                hidden[row] *= kept / np.float32(1 - setting.dropout)

    def _passed(self, hidden: np.ndarray) -> np.ndarray:
        """Return the factor of a gradient that passes these units, ``(m, n, width)``."""
        scales = [1 / (1 - setting.dropout) for setting in self._settings]
        return (hidden > 0) * np.array(scales, np.float32)[:, None, None]


def split_layers(
    parameters: np.ndarray, widths: Sequence[int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return views of parameters ``(m, num_parameters)``: ``(m, in, out)`` and ``(m, 1, out)``."""
    layers, at, m = [], 0, len(parameters)
    for inputs, outputs in pairwise(widths):
        end = at + inputs * outputs
        weight = parameters[:, at:end].reshape(m, inputs, outputs)
        layers.append((weight, parameters[:, None, end : end + outputs]))
        at = end + outputs
    return layers


def _initial_parameters(widths: Sequence[int], random: np.random.Generator) -> np.ndarray:
    """Return parameters as torch's Linear draws them, ``(num_parameters,)`` float32."""
    parts = []
    for inputs, outputs in pairwise(widths):
        bound = 1 / np.sqrt(inputs)
        parts.append(random.uniform(-bound, bound, inputs * outputs + outputs))
    return np.concatenate(parts).astype(np.float32)
