"""The numbers that a page shows of one split: predictions, confusions, bins, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from featx.features.file import FeatureFile
from featx.heads.head import Head
from featx.heads.tasks.losses import log_softmax
from featx.heads.tasks.single_label import NUM_BINS, confusion_matrix

MapKind = Literal["pca", "tsne", "none"]
_MAP_SAMPLES = 2000
_TSNE_COMPONENTS = 50


@dataclass(frozen=True, eq=False)
class ClassPredictions:
    """The predictions of a head of classes for labelled samples.

    Attributes:
        rows: Of the feature file, ``(n,)`` int64.
        labels: ``(n,)`` int64.
        predicted: ``(n,)`` int64.
        confidence: Probability of the predicted class, ``(n,)`` float64.
        own: Probability of the labelled class, ``(n,)`` float64.
        confusion: Counts ``(num_classes, num_classes)``: rows are labels, columns predictions.
    """

    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    own: np.ndarray
    confusion: np.ndarray


def predict_classes(head: Head, cache: FeatureFile, rows: np.ndarray) -> ClassPredictions:
    """Return the predictions of a head of classes for labelled rows ``(n,)``."""
    labels = cache.labels[rows]
    probabilities = np.exp(log_softmax(head.logits(cache.features[rows]).astype(np.float64)))
    predicted = probabilities.argmax(axis=1)
    own, confidence = (
        np.take_along_axis(probabilities, index[:, None], axis=1)[:, 0]
        for index in (labels, predicted)
    )
    confusion = confusion_matrix(predicted, labels, size=len(head.classes))
    return ClassPredictions(rows, labels, predicted, confidence, own, confusion)


@dataclass(frozen=True)
class Confusion:
    """Samples of one class that are taken for another."""

    label: str
    predicted: str
    count: int
    share: float


def confused_pairs(
    seen: ClassPredictions, classes: Sequence[str], *, most: int = 10
) -> list[Confusion]:
    """Return the commonest mistakes, with their share of the class's samples."""
    wrong = seen.confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(classes)) for i in order if wrong.flat[i]]
    totals = seen.confusion.sum(axis=1)
    return [
        Confusion(classes[a], classes[b], int(wrong[a, b]), float(wrong[a, b] / totals[a]))
        for a, b in pairs
    ]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Samples by the probability of their prediction, in bins of equal width.

    Attributes:
        counts: Samples of each bin, ``(num_bins,)`` int64.
        confidence: Their mean probability; NaN in an empty bin.
        accuracy: Share of them that are right; NaN in an empty bin.
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def reliability(probability: np.ndarray, right: np.ndarray) -> Reliability:
    """Return how often predictions of each probability are right.

    Args:
        probability: ``(n,)`` in [0, 1].
        right: Whether they are, ``(n,)`` bool.
    """
    bins = np.clip(np.ceil(probability * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    some = np.where(counts, counts, 1)
    sums = (
        np.bincount(bins, weights=values, minlength=NUM_BINS) for values in (probability, right)
    )
    confidence, accuracy = (np.where(counts, each / some, np.nan) for each in sums)
    return Reliability(counts, confidence, accuracy)


@dataclass(frozen=True, eq=False)
class Map:
    """Samples on a plane.

    Attributes:
        points: ``(n, 2)`` float64.
        chosen: Which of the rows, ``(n,)`` int64.
        explained: Share of the variance that the two axes of a PCA show; None for t-SNE.
    """

    points: np.ndarray
    chosen: np.ndarray
    explained: float | None


def map_features(
    cache: FeatureFile, rows: np.ndarray, *, kind: MapKind, seed: int = 0
) -> Map | None:
    """Return the features of rows ``(n,)`` on a plane; of many, 2,000 drawn at random."""
    count = len(rows)
    if kind == "none" or count < 3:
        return None
    chosen = np.arange(count)
    if count > _MAP_SAMPLES:
        chosen = np.sort(np.random.default_rng(seed).choice(count, _MAP_SAMPLES, replace=False))
    features = cache.features[rows[chosen]].astype(np.float64)
    centred = features - features.mean(axis=0)
    scores, values, _ = np.linalg.svd(centred, full_matrices=False)
    components = scores * values  # (n, min(n, D)), the most variance first
    if kind == "pca" or components.shape[1] < 2:
        points = np.zeros((len(chosen), 2))
        points[:, : components.shape[1]] = components[:, :2]
        total = float((values**2).sum()) or 1.0
        return Map(points, chosen, float((values[:2] ** 2).sum()) / total)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(chosen) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    return Map(tsne.fit_transform(components[:, :_TSNE_COMPONENTS]), chosen, None)
