"""How a file does on images, next to the head it was made of.

Outputs are compared as logits; those of a regression in deviations of each target from its mean, so
that one bound fits every unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.heads.tasks import Task, task_of

_MOST = 0.9
"""Share of images whose outputs are taken for usual."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy through the file, next to the head's own on the same images."""

    split: str
    num_images: int
    num_available: int
    file: float
    head: float
    agreement: float
    measure: str = "accuracy"

    @property
    def drop(self) -> float:
        """Points that the file loses."""
        return 100 * (self.head - self.file)


def measure_accuracy(
    found: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray,
    *,
    num_available: int,
    details: Mapping[str, Any],
) -> Accuracy:
    """Return how the file does on labelled validation images, next to the head.

    Args:
        found: Comparable outputs of the file, ``(num_images, num_classes)``.
        expected: Of the head, likewise.
        labels: Class indices, ``(num_images,)``; tags, or comparable numbers.
        num_available: Labelled images of the split.
        details: Of the head's header.
    """
    task = task_of(details)
    return Accuracy(
        split="val",
        num_images=len(labels),
        num_available=num_available,
        file=task.accuracy(found, labels, details),
        head=task.accuracy(expected, labels, details),
        agreement=float(task.agree(found, expected, details).mean()),
        measure=task.score,
    )


def typical_size(task: Task, expected: np.ndarray, trained: np.ndarray) -> float:
    """Return how large differences between outputs are, at least 1: what bounds are a share of.

    Of each image it is the spread between its logits; of tags and numbers, which have no others to
    be compared with, twice the distance from 0. Of three or more, the farthest one is left out, and
    so is a tenth of the images, so that no absurd output widens a bound.

    Args:
        task: Of the head.
        expected: Comparable outputs, ``(n, num_outputs)``; ``n`` ≥ 1.
        trained: Outputs that count, ``(num_outputs,)`` bool.
    """
    values = expected[:, trained] if trained.any() else expected
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return 1.0
    best = values.max(axis=1, keepdims=True)
    sizes = best - values if task.shift_invariant else 2 * np.abs(values)
    farthest = np.sort(sizes, axis=1)[:, -2 if sizes.shape[1] >= 3 else -1]
    return max(1.0, float(np.quantile(farthest, _MOST, method="lower")))
