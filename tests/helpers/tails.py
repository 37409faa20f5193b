"""A tail, a head, and activations of three classes in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from featx.training.finetune.data import Batch, CachedData
from featx.training.finetune.problem import Goal


class Memory:
    """Activations of versions, ``(1 + V, N, …)``."""

    def __init__(self, values: np.ndarray, block_rows: int = 8) -> None:
        self.values, self.block_rows = values, block_rows

    def read(self, rows: np.ndarray, view: int) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        return np.asarray(self.values[view, rows])


class Rows(CachedData):
    """Samples in memory, of which the last are held out; remembers the order."""

    order: list[list[int]]

    def batches(self, *, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        self.order.append([])
        for batch in super().batches(epoch=epoch, batch_size=batch_size, seed=seed):
            self.order[-1] += batch.numbers.tolist()
            yield batch


def rows_of(activations: Tensor, targets: Tensor, num_held_out: int = 16) -> Rows:
    count = len(targets)
    rows = Rows(
        source=Memory(activations.numpy()[None]),
        rows=np.arange(count),
        positions=np.arange(count),
        targets=targets,
        weights=torch.ones(count),
        is_held_out=np.arange(count) >= count - num_held_out,
        names=[f"{number}.jpg" for number in range(count)],
        num_views=0,
        row_bytes=activations[0].nbytes,
        memory=2**30,
        device=torch.device("cpu"),
    )
    rows.order = []
    return rows


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


GOAL = Goal(loss, lambda outputs: float(outputs.argmax(1).mean()))


def problem(count: int = 112, num_held_out: int = 16) -> tuple[nn.Module, nn.Module, Rows]:
    """Return a tail of two blocks, a head, and maps of three classes."""
    torch.manual_seed(0)
    tail = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
    )
    targets = torch.arange(count) % 3
    centres = torch.randn(3, 4, 1, 1)
    activations = centres[targets] + torch.randn(count, 4, 5, 5)
    return tail, nn.Linear(8, 3), rows_of(activations, targets, num_held_out)
