"""What training makes small, and how far it has come on the held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from featx.training.finetune.data import Batch


class Data(Protocol):
    """Training samples, and the held-out ones that choose the epoch."""

    @property
    def num_samples(self) -> int:
        """Number of training samples."""

    def batches(self, *, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield each training sample once, in an order that ``epoch`` and ``seed`` decide."""

    def held_out(self, *, batch_size: int) -> Iterator[Batch]:
        """Yield the held-out samples at the evaluation view."""

    def name_of(self, number: int) -> str:
        """Return what a sample is called in messages."""


@dataclass(frozen=True, eq=False)
class Goal:
    """What training makes small, and how good its outputs are.

    Attributes:
        loss: Of each sample ``(n,)``, from outputs ``(n, num_outputs)`` and targets ``(n, …)``.
        accuracy: Of the outputs of all held-out samples, ``(n, num_outputs)``; None for none.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    accuracy: Callable[[np.ndarray], float] | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Held-out samples: their mean loss, None without any, and outputs ``(n, num_outputs)``."""

    loss: float | None
    outputs: np.ndarray


def evaluate(
    tail: nn.Module,
    head: nn.Module,
    data: Data,
    loss: Callable[[Tensor, Tensor], Tensor],
    batch_size: int,
) -> Evaluation:
    """Return loss and outputs of the held-out samples, in eval mode and float32."""
    modes = [(module, module.training) for part in (tail, head) for module in part.modules()]
    tail.eval()
    head.eval()
    total, count, outputs = 0.0, 0.0, [np.empty((0, 0), np.float32)]
    with torch.inference_mode():
        for batch in data.held_out(batch_size=batch_size):
            outputs_here = head(tail(batch.activations))
            losses = loss(outputs_here, batch.targets) * batch.weights
            total += float(losses.double().sum())
            count += float(batch.weights.sum())
            outputs.append(outputs_here.cpu().numpy())
    for module, mode in modes:
        module.training = mode
    return Evaluation(total / count if count else None, np.concatenate(outputs[1:] or outputs))
