"""Images whose label the other images contradict.

Every labelled image gets probabilities from a head that was not trained on it. The number of wrong
labels is estimated by confident learning (Northcutt et al. 2021): an image counts as one of class
``j`` where its probability is at least the mean of the images that are labelled so.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from featx.heads.tasks.losses import softmax_in_place
from featx.training.out_of_fold import OutOfFold


@dataclass(frozen=True, eq=False)
class Doubts:
    """What heads say about labels that did not train them.

    Attributes:
        rows: Of the images that were judged, ascending, ``(n,)``.
        given: Their labels, ``(n,)``.
        probabilities: Of the classes, ``(n, num_classes)``, each row sums to 1.
        num_folds: Parts of the training images that were left out in turn.
        knows: Whether the head was trained on other images of that label, ``(n,)`` bool; None
            where all were. A label that it does not know cannot be contradicted.
    """

    rows: np.ndarray
    given: np.ndarray
    probabilities: np.ndarray
    num_folds: int
    knows: np.ndarray | None = None

    @property
    def contradicted(self) -> np.ndarray:
        """The images whose label is not the most probable class, worst first, ``(n,)`` int64."""
        doubt, wrong = self.doubt, self.likely != self.given
        found = np.flatnonzero(wrong if self.knows is None else wrong & self.knows)
        return np.asarray(found[np.argsort(-doubt[found], kind="stable")])

    @property
    def likely(self) -> np.ndarray:
        """The most probable class of each image, ``(n,)``."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def doubt(self) -> np.ndarray:
        """One less the probability of the label by that of the likely class; ``(n,)``, [0, 1].

        Between many classes, the difference of the two would put those labels first whose likely
        class is clear, and leave behind those that are certainly not what they say.
        """
        own = self.probabilities[np.arange(len(self.given)), self.given]
        return np.asarray(1 - own / self.probabilities.max(axis=1))

    def confident_counts(self) -> np.ndarray:
        """Return how many images with label ``i`` count as class ``j``; ``(classes, classes)``.

        An image that is confidently none of the classes, or of classes without images, is not
        counted.
        """
        num_classes = self.probabilities.shape[1]
        counts = np.zeros((num_classes, num_classes), np.int64)
        own = self.probabilities[np.arange(len(self.given)), self.given]
        sizes = np.bincount(self.given, minlength=num_classes)
        sums = np.bincount(self.given, own, minlength=num_classes)
        bounds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
        confident = np.where(self.probabilities >= bounds, self.probabilities, -1.0)
        counted = confident.max(axis=1) >= 0
        np.add.at(counts, (self.given[counted], confident.argmax(axis=1)[counted]), 1)
        return counts

    def num_wrong(self, *, leave_out: Collection[int] = ()) -> float:
        """Return the estimated number of wrong labels, but for those of some classes."""
        counts = self.confident_counts().astype(float)
        counts[list(leave_out)] = 0
        sums = counts.sum(axis=1)
        sizes = np.bincount(self.given, minlength=len(counts))
        off = sums - np.diag(counts)
        return float((off * sizes / np.maximum(sums, 1)).sum())


def doubts_of(found: OutOfFold) -> Doubts:
    """Return what heads say of the classes of images."""
    given = found.targets.values[found.rows]
    probabilities = softmax_in_place(found.outputs.copy())
    knows = found.knows[np.arange(len(given)), given]
    return Doubts(found.rows, given, probabilities, found.num_folds, knows)
