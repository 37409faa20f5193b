"""What the classifier says of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one image.

    Attributes:
        image: Its path; ``"image 3"`` for one without.
        top: The most probable classes, best first, each with its probability in [0, 1]; empty
            where the image could not be used.
        error: Why it could not be used; None if it could.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    error: str | None = None

    @property
    def label(self) -> str | None:
        """The most probable class."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Its probability, in [0, 1]."""
        return self.top[0][1] if self.top else None


def best_classes(
    probabilities: np.ndarray, classes: Sequence[str], *, top_k: int
) -> list[tuple[tuple[str, float], ...]]:
    """Return the ``top_k`` most probable classes of each image, best first.

    A tie goes to the class that comes first.

    Args:
        probabilities: Shape ``(num_images, num_classes)``, floating.
        classes: Names in index order.
        top_k: Classes to keep; all of them where there are fewer.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        tuple((classes[i], float(row[i])) for i in best)
        for row, best in zip(probabilities, order, strict=True)
    ]
