"""Multilayer perceptrons of one shape, trained side by side as one batched model.

They see the same batches; each has its own initial weights, dropout and rates, and is trained as it
would be alone.

Sources: Kingma and Ba, "Adam" (2015); Loshchilov and Hutter, "Decoupled Weight Decay
Regularization" (2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

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


class Networks:
    """Networks of one shape, changed in place by ``step``.

    Args:
        widths: Features, hidden sizes, outputs.
        settings: One for each network.
        loss: Minimised.

    Their parameters are ``(num_networks, num_parameters)`` float32.
    """

    def __init__(
        self, widths: Sequence[int], settings: Sequence[Setting], *, loss: Loss = SOFTMAX
    ) -> None:
        self.loss = loss
        self._widths = tuple(widths)
        self._settings = tuple(settings)
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
        """Take one step of AdamW on the weighted mean loss of a batch.

        Args:
            x: Standardised features, ``(n, in)``.
            labels: Targets, ``(n,)`` or ``(n, out)``.
            shares: Share of each sample in the loss, ``(n,)``, summing to 1.
            lr_scale: Factor of the learning rates.
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
