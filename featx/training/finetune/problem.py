"""The training problem: labelled images, the loss, and evaluation on held-out samples."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from featx.errors import counted, listed
from featx.features.file import FeatureFile
from featx.heads.head import Head
from featx.heads.samples.folds import HOLDOUT_PARTS
from featx.heads.samples.selection import weights_of
from featx.heads.tasks import TASKS, Targets, Task
from featx.heads.tasks.task import Encoding
from featx.training.finetune.data import CachedData
from featx.training.finetune.options import FinetuneOptions
from featx.training.options import TrainOptions
from featx.training.samples import choose_task, groups_of, targets_of, training_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Goal:
    """Loss and accuracy of a task."""

    loss: Callable[[Tensor, Tensor], Tensor]  # outputs (n, num_outputs), targets (n, …) → (n,)
    accuracy: Callable[[np.ndarray], float] | None = None  # of all held-out outputs


def evaluate(
    tail: nn.Module, head: nn.Module, data: CachedData, goal: Goal, batch_size: int
) -> tuple[float | None, np.ndarray]:
    """Return mean loss and outputs ``(n, num_outputs)`` of the held-out samples, None without any.

    Calculated in eval mode and float32.
    """
    modes = [(module, module.training) for part in (tail, head) for module in part.modules()]
    tail.eval()
    head.eval()
    total, count, outputs = 0.0, 0.0, [np.empty((0, 0), np.float32)]
    with torch.inference_mode():
        for batch in data.held_out(batch_size=batch_size):
            outputs_here = head(tail(batch.activations))
            losses = goal.loss(outputs_here, batch.targets) * batch.weights
            total += float(losses.double().sum())
            count += float(batch.weights.sum())
            outputs.append(outputs_here.cpu().numpy())
    for module, mode in modes:
        module.training = mode
    return total / count if count else None, np.concatenate(outputs[1:] or outputs)


@dataclass(frozen=True, eq=False)
class Problem:
    """Labelled training images, and what to learn of them.

    A stratified tenth is held out, images of one group or content together, never the only one of a
    class; none where nothing can be held out.
    """

    cache: FeatureFile
    targets: Targets  # of all its rows
    rows: np.ndarray  # labelled training rows, ascending, (N,) int64
    encoding: Encoding  # of their targets
    weights: np.ndarray  # what each counts, (N,)
    is_held_out: np.ndarray  # (N,) bool

    @classmethod
    def of(cls, cache: FeatureFile, options: FinetuneOptions, start: Head | None) -> Problem:
        """Return the problem that the labels of a file pose; with a start, the head's task.

        Raises:
            SourceError: The samples cannot train a head.
            ConfigError: An option does not fit them.
        """
        if start is not None and options.task == "auto":
            task = TASKS[start.task]
        else:
            task = choose_task(cache, options.task)
        TrainOptions(class_weight=options.class_weight).solver_for(task)
        targets = targets_of(cache, task)
        rows = training_rows(cache, targets)
        values = targets.values[rows]
        encoding = task.encode(values, len(targets.names))
        is_held_out = task.loss.hold_out(
            encoding.values, HOLDOUT_PARTS, groups=groups_of(cache, rows), seed=options.seed
        )
        _warn_of_small_classes(values, is_held_out, targets)
        weights = weights_of(values, targets.names, options.class_weight)
        return cls(cache, targets, rows, encoding, weights, is_held_out)

    @property
    def task(self) -> Task:
        return self.targets.task

    @property
    def validating(self) -> np.ndarray:
        """The labelled rows of the validation split, ascending, ``(n,)``."""
        rows = self.cache.rows("val")
        return np.asarray(rows[self.targets.labelled[rows]])

    @property
    def digest(self) -> str:
        """The sha256 of what trains and how it is divided, 64 hexadecimal digits."""
        parts = (self.rows.astype("<i8"), self.is_held_out)
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    @property
    def tensor(self) -> Tensor:
        """The targets as the loss takes them."""
        values = torch.from_numpy(np.ascontiguousarray(self.encoding.values))
        return values.long() if values.ndim == 1 else values.float()

    @property
    def goal(self) -> Goal:
        """The task's loss and accuracy."""
        values = self.encoding.values[self.is_held_out]
        thresholds = {"thresholds": [0.5] * self.encoding.num_outputs}
        return Goal(
            _LOSSES[self.task.name],
            lambda outputs: self.task.accuracy(outputs, values, thresholds),
        )


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(outputs, targets, reduction="none")


def _binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(1)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1)


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "single-label": _cross_entropy,
    "multi-label": _binary_cross_entropy,
    "regression": _squared_error,
}


def _warn_of_small_classes(values: np.ndarray, is_held_out: np.ndarray, targets: Targets) -> None:
    """Name the classes that only train, because they have too few images to hold one out."""
    if values.ndim > 1 or not is_held_out.any():
        return
    count = len(targets.names)
    alone = np.bincount(values, minlength=count) > 0
    alone &= np.bincount(values[is_held_out], minlength=count) == 0
    names = [targets.names[number] for number in np.flatnonzero(alone)]
    if names:
        log.warning(
            "%s no image among those that choose learning rate and epoch: %s.",
            *(counted(len(names), "class has", "classes have"), listed(names, 3)),
        )
