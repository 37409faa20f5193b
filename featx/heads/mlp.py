"""The MLP head: hidden layers with ReLU, trained with AdamW and stopped early.

A stratified tenth of the training samples is held out to decide when to stop, though never the only
sample of a class; the validation and test splits are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from featx.errors import ConfigError
from featx.heads.folds import HeldOut, stratified_folds
from featx.heads.head import Layer, apply_layers, fold_standardisation, standardisation

_HOLDOUT_SHARE = 10
"""One in so many training samples is held out."""


@dataclass(frozen=True)
class MLPOptions:
    """How an MLP head is built and trained.

    Attributes:
        hidden: Width of each hidden layer, first to last.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        learning_rate: AdamW's, at the start of its cosine decay.
        weight_decay: AdamW's.
        batch_size: Samples a step.
        max_epochs: Length of the cosine decay.
        patience: Epochs without a better held-out loss before training stops.

    Raises:
        ConfigError: A value is out of range.
    """

    hidden: tuple[int, ...] = (100,)
    dropout: float = 0.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 128
    max_epochs: int = 100
    patience: int = 10

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(f"hidden sizes must be at least 1; got {list(self.hidden)}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be at least 0 and below 1; got {self.dropout}.")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ConfigError(
                f"the learning rate must be above 0 and the weight decay at least 0; got "
                f"{self.learning_rate} and {self.weight_decay}."
            )
        if min(self.batch_size, self.max_epochs, self.patience) < 1:
            raise ConfigError(
                "batch size, epochs and patience must be at least 1; got "
                f"{self.batch_size}, {self.max_epochs} and {self.patience}."
            )


@dataclass(frozen=True, eq=False)
class MLPFit:
    """A fitted MLP head.

    Attributes:
        layers: First to last, for raw features.
        num_epochs: Epoch whose weights were kept, from 1.
        held_out_loss: Its log loss on the hold-out, nats.
        held_out: What it said of the hold-out.
    """

    layers: tuple[Layer, ...]
    num_epochs: int
    held_out_loss: float
    held_out: HeldOut


def fit_mlp(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    options: MLPOptions,
    *,
    seed: int = 0,
) -> MLPFit:
    """Return the MLP of the epoch with the lowest held-out loss.

    Args:
        features: Raw, ``(N, num_features)``, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head.
        options: Shape and training.
        seed: Of initial weights, shuffling, dropout and the hold-out.

    Raises:
        ConfigError: Training with these options diverges.
    """
    trained, judged = _hold_out(labels, seed=seed)
    mean, scale = standardisation(features[trained])
    x = torch.from_numpy(((features - mean) / scale).astype(np.float32))
    y = torch.from_numpy(labels.astype(np.int64))
    train, held_out = torch.from_numpy(trained), torch.from_numpy(judged)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(features.shape[1], num_classes, options)
        epoch, loss = _train(network, (x[train], y[train]), (x[held_out], y[held_out]), options)
    layers = [
        (module.weight.detach().numpy().copy(), module.bias.detach().numpy().copy())
        for module in network
        if isinstance(module, nn.Linear)
    ]
    first = fold_standardisation(layers[0], mean, scale)
    complete = (first, *layers[1:])
    said = HeldOut(apply_layers(complete, features[judged]), labels[judged])
    return MLPFit(complete, epoch, loss, said)


def _hold_out(labels: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which samples are trained on and which decide when to stop, ``(N,)`` bool each.

    Where every class has a single sample, all of them are used for both.
    """
    several = np.flatnonzero(np.bincount(labels)[labels] > 1)
    if not len(several):
        everything = np.ones(len(labels), dtype=bool)
        return everything, everything
    held_out = np.zeros(len(labels), dtype=bool)
    held_out[several] = stratified_folds(labels[several], _HOLDOUT_SHARE, seed=seed) == 0
    return ~held_out, held_out


def _build(num_features: int, num_classes: int, options: MLPOptions) -> nn.Sequential:
    modules: list[nn.Module] = []
    width = num_features
    for hidden in options.hidden:
        modules += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(options.dropout)]
        width = hidden
    return nn.Sequential(*modules, nn.Linear(width, num_classes))


def _train(
    network: nn.Sequential,
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    options: MLPOptions,
) -> tuple[int, float]:
    """Train in place, leave the best epoch's weights in the network, return epoch and loss."""
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.max_epochs)
    best_loss, best_epoch, best_state = math.inf, 0, network.state_dict()
    for epoch in range(1, options.max_epochs + 1):
        _one_epoch(network, optimiser, *train, batch_size=options.batch_size)
        schedule.step()
        network.eval()
        with torch.inference_mode():
            loss = float(nn.functional.cross_entropy(network(held_out[0]), held_out[1]))
        if loss < best_loss:
            best_loss, best_epoch = loss, epoch
            best_state = {name: value.clone() for name, value in network.state_dict().items()}
        elif epoch - best_epoch >= options.patience:
            break
    if not best_epoch:
        raise ConfigError(
            f"training the MLP diverged: no epoch had a finite loss. Use a learning rate below "
            f"{options.learning_rate:g}."
        )
    network.load_state_dict(best_state)
    return best_epoch, best_loss


def _one_epoch(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    features: Tensor,
    labels: Tensor,
    *,
    batch_size: int,
) -> None:
    network.train()
    for rows in torch.split(torch.randperm(len(labels)), batch_size):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(features[rows]), labels[rows])
        torch.autograd.backward(loss)
        optimiser.step()


def parse_hidden(text: str | Sequence[int]) -> tuple[int, ...]:
    """Return layer widths from ``"100"`` or ``"256,128"``.

    Raises:
        ConfigError: It is no list of whole numbers.

    >>> parse_hidden("256,128")
    (256, 128)
    """
    try:
        parts = text.split(",") if isinstance(text, str) else text
        return tuple(int(part) for part in parts)
    except ValueError as err:
        raise ConfigError(f"hidden sizes must be like 100 or 256,128; got '{text}'.") from err
