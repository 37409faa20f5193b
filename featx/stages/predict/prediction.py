"""What the classifier says of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from featx.images.sources.labels import SEPARATOR


@dataclass(frozen=True)
class Prediction:
    """What the classifier says of one image.

    Attributes:
        image: Its path; ``"image 3"`` for one without.
        top: The most probable classes or tags, best first, each with its probability in [0, 1];
            empty where the image could not be used, and of a regression.
        error: Why it could not be used; None if it could.
        tags: Those that it is given, each with a probability from its threshold on; None unless
            the classifier answers tags.
        values: Each target of a regression with its value; empty of others.
    """

    image: str
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    tags: tuple[str, ...] | None = None
    values: tuple[tuple[str, float], ...] = ()

    @property
    def label(self) -> str | None:
        """The most probable class; of tags those given, as ``"big|red"``, or ``"|"`` for none."""
        if self.tags is not None:
            return SEPARATOR.join(self.tags) or SEPARATOR
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Of the most probable class, in [0, 1]; None of tags, which have one each."""
        return self.top[0][1] if self.top and self.tags is None else None


class Answer(NamedTuple):
    """What the classifier gives for one image; see ``Prediction``."""

    top: tuple[tuple[str, float], ...] = ()
    tags: tuple[str, ...] | None = None
    values: tuple[tuple[str, float], ...] = ()


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


def given_tags(
    tops: Sequence[tuple[tuple[str, float], ...]], thresholds: Mapping[str, float]
) -> list[tuple[str, ...]]:
    """Return the tags that each image is given, by name.

    Args:
        tops: Tags with their probabilities.
        thresholds: Probability from which on each tag is given.
    """
    return [tuple(sorted(tag for tag, p in top if p >= thresholds[tag])) for top in tops]
