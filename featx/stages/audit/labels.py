"""Images whose label the other images contradict.

Every labelled image gets probabilities from a head that was not trained on it: training images by
cross-validation at the strength of the default head, all others from that head. The number of wrong
labels is estimated by confident learning (Northcutt et al. 2021): an image counts as one of class
``j`` where its probability is at least the mean of the images that are labelled so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.errors import SourceError
from featx.features.file import FeatureFile
from featx.heads.head import Layer, apply_layers
from featx.heads.samples.data import Step, TrainingData
from featx.heads.samples.folds import NUM_FOLDS, choose_num_folds, stratified_folds
from featx.heads.solvers.linear import fit_linear
from featx.heads.tasks import SINGLE_LABEL
from featx.heads.tasks.losses import softmax_in_place
from featx.training.fitting import fit_heads
from featx.training.options import TrainOptions
from featx.training.samples import groups_of, targets_of, training_rows


@dataclass(frozen=True, eq=False)
class Doubts:
    """What heads say about labels that did not train them.

    Attributes:
        rows: Of the images that were judged, ascending, ``(n,)``.
        given: Their labels, ``(n,)``.
        probabilities: Of the classes, ``(n, num_classes)``, each row sums to 1.
        num_folds: Parts of the training images that were left out in turn.
    """

    rows: np.ndarray
    given: np.ndarray
    probabilities: np.ndarray
    num_folds: int

    @property
    def likely(self) -> np.ndarray:
        """The most probable class of each image, ``(n,)``."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def margins(self) -> np.ndarray:
        """Probability of the label, less that of the best other class; ``(n,)``, in [-1, 1]."""
        number = np.arange(len(self.given))
        others = self.probabilities.copy()
        others[number, self.given] = -np.inf
        return np.asarray(self.probabilities[number, self.given] - others.max(axis=1))

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

    def num_wrong(self) -> float:
        """Return the estimated number of wrong labels."""
        counts = self.confident_counts().astype(float)
        sums = counts.sum(axis=1)
        sizes = np.bincount(self.given, minlength=len(counts))
        off = sums - np.diag(counts)
        return float((off * sizes / np.maximum(sums, 1)).sum())


def doubt_labels(cache: FeatureFile, *, seed: int, step: Step) -> Doubts | None:
    """Return probabilities for each labelled image; None where nothing can be left out.

    Validation and test images do not train a head here.

    Raises:
        SourceError: The samples cannot train a head.
    """
    targets = targets_of(cache, SINGLE_LABEL)
    if not targets.labelled[cache.rows("train")].any():
        raise SourceError(
            f"'{cache.path}' has no labelled images in its training split, and only these train "
            "the heads that judge labels."
        )
    rows = training_rows(cache, targets)
    labels, groups = targets.values[rows], groups_of(cache, rows)
    num_folds = choose_num_folds(labels, groups=groups)
    folds = stratified_folds(labels, num_folds, groups=groups, seed=seed)
    if not (folds < num_folds).any():
        return None
    (head,) = fit_heads(cache, TrainOptions(task="single-label", use_views=False), step=step)
    temperature = head.calibration.temperature if head.calibration else 1.0
    features, num_classes = cache.features, len(targets.names)
    logits = np.full((len(cache), num_classes), np.nan)
    for fold in range(num_folds):
        step(f"Part {fold + 1} of {num_folds}")
        train, out = np.flatnonzero(folds != fold), rows[folds == fold]
        if not len(out):
            continue
        data = TrainingData(features[rows[train]], labels[train], num_classes, np.ones(len(train)))
        layers = fit_linear(data, (head.choice["strength"],), seed=seed).layers
        logits[out] = apply_layers(layers, features[out]) / temperature
    others = np.flatnonzero(targets.labelled & (cache.splits != 0))
    logits[others] = _outputs(head.layers, features[others], num_classes)
    judged = np.flatnonzero(np.isfinite(logits).all(axis=1))
    probabilities = softmax_in_place(logits[judged])
    return Doubts(judged, targets.values[judged], probabilities, min(num_folds, NUM_FOLDS))


def _outputs(layers: tuple[Layer, ...], features: np.ndarray, num_classes: int) -> np.ndarray:
    if not len(features):
        return np.empty((0, num_classes))
    return apply_layers(layers, features)
