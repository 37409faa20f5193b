"""How a file does on labelled images, next to the head it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.classifier.agreement import MEASURES, agreeing, share_right
from featx.heads.tasks.task import task_of


@dataclass(frozen=True)
class Accuracy:
    """Accuracy through the file, next to the head's own on the same images.

    Attributes:
        split: Which images.
        num_images: Labelled images that were run.
        num_available: Labelled images that there are.
        file: Share that the file gets right, in [0, 1].
        head: Share that the head gets right on cached features, in [0, 1].
        agreement: Share for which both say the same, in [0, 1].
        measure: What counts as right: the class, or all tags; of numbers the share of the variance
            that is explained.
    """

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
    details: Mapping[str, Any] | None = None,
) -> Accuracy:
    """Return how the file does on labelled validation images, next to the head.

    Args:
        found: Of the file, as ``answers`` gives them, ``(num_images, num_classes)``.
        expected: Of the head, likewise.
        labels: Class indices, ``(num_images,)``; tags, or numbers as ``comparable`` gives them.
        num_available: Labelled images of the split.
        details: Of the head's header; None for a head of classes.
    """
    details = details or {}
    return Accuracy(
        split="val",
        num_images=len(labels),
        num_available=num_available,
        file=share_right(details, found, labels),
        head=share_right(details, expected, labels),
        agreement=float(agreeing(details, found, expected).mean()),
        measure=MEASURES[task_of(details)],
    )
