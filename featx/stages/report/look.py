"""What the page shows of one split: counts, bins, a map, and the mistakes worth looking at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from featx.errors import ImageError
from featx.features.file import FeatureFile
from featx.heads.head import Head
from featx.heads.metrics import NUM_BINS, confusion_matrix, log_softmax
from featx.images.decode import content_digest, pixels_of
from featx.images.sources import ImageSource
from featx.images.thumbnail import thumbnail

MapKind = Literal["pca", "tsne", "none"]
_MAP_SAMPLES = 2000
_TSNE_COMPONENTS = 50


@dataclass(frozen=True, eq=False)
class View:
    """A head's answers on the labelled samples of one split.

    Attributes:
        split: Its name.
        rows: Of the feature file, ``(n,)`` int64.
        labels: ``(n,)`` int64.
        predicted: ``(n,)`` int64.
        confidence: Probability of the predicted class, ``(n,)`` float64.
        own: Probability of the labelled class, ``(n,)`` float64.
        confusion: Counts ``(num_classes, num_classes)``: rows are labels, columns predictions.
    """

    split: str
    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    own: np.ndarray
    confusion: np.ndarray


def view(head: Head, cache: FeatureFile, split: str) -> View | None:
    """Return what a head says of a split, None where it has no labelled samples."""
    rows = cache.rows(split)
    rows = rows[cache.labels[rows] >= 0]
    if not len(rows):
        return None
    labels = cache.labels[rows]
    probabilities = np.exp(log_softmax(head.logits(cache.features[rows]).astype(np.float64)))
    predicted = probabilities.argmax(axis=1)
    own, confidence = (
        np.take_along_axis(probabilities, index[:, None], axis=1)[:, 0]
        for index in (labels, predicted)
    )
    confusion = confusion_matrix(predicted, labels, size=len(head.classes))
    return View(split, rows, labels, predicted, confidence, own, confusion)


@dataclass(frozen=True)
class Confusion:
    """Two classes of which one is taken for the other."""

    label: str
    predicted: str
    count: int
    share: float


def confused_pairs(seen: View, classes: Sequence[str], *, most: int = 10) -> list[Confusion]:
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


def reliability(seen: View) -> Reliability:
    """Return how often predictions of each probability are right."""
    bins = np.clip(np.ceil(seen.confidence * NUM_BINS).astype(np.int64) - 1, 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    some = np.where(counts, counts, 1)
    sums = (
        np.bincount(bins, weights=values, minlength=NUM_BINS)
        for values in (seen.confidence, seen.labels == seen.predicted)
    )
    confidence, accuracy = (np.where(counts, each / some, np.nan) for each in sums)
    return Reliability(counts, confidence, accuracy)


@dataclass(frozen=True, eq=False)
class Map:
    """Samples on a plane.

    Attributes:
        kind: How they were put there.
        points: ``(n, 2)`` float64.
        chosen: Which of the view's samples, ``(n,)`` int64.
        explained: Share of the variance that the two axes of a PCA show; None for t-SNE.
    """

    kind: MapKind
    points: np.ndarray
    chosen: np.ndarray
    explained: float | None


def map_features(cache: FeatureFile, seen: View, *, kind: MapKind, seed: int = 0) -> Map | None:
    """Return a view's features on a plane; of many samples, 2,000 drawn at random."""
    count = len(seen.rows)
    if kind == "none" or count < 3:
        return None
    chosen = np.arange(count)
    if count > _MAP_SAMPLES:
        chosen = np.sort(np.random.default_rng(seed).choice(count, _MAP_SAMPLES, replace=False))
    features = cache.features[seen.rows[chosen]].astype(np.float64)
    centred = features - features.mean(axis=0)
    scores, values, _ = np.linalg.svd(centred, full_matrices=False)
    components = scores * values  # (n, min(n, D)), the most variance first
    if kind == "pca" or components.shape[1] < 2:
        points = np.zeros((len(chosen), 2))
        points[:, : components.shape[1]] = components[:, :2]
        total = float((values**2).sum()) or 1.0
        return Map("pca", points, chosen, float((values[:2] ** 2).sum()) / total)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(chosen) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, random_state=seed)
    return Map("tsne", tsne.fit_transform(components[:, :_TSNE_COMPONENTS]), chosen, None)


@dataclass(frozen=True, eq=False)
class Mistake:
    """A sample that the head is sure of, and wrong about.

    Attributes:
        sample_id: Which.
        label: What it is.
        predicted: What the head takes it for.
        confidence: Probability of that, in [0, 1].
        own: Probability of what it is, in [0, 1].
        picture: JPEG file; None where the image cannot be shown.
        why_not: Why it cannot be shown.
    """

    sample_id: str
    label: str
    predicted: str
    confidence: float
    own: float
    picture: bytes | None
    why_not: str | None


def worst_mistakes(
    seen: View, cache: FeatureFile, images: ImageSource | None, *, most: int
) -> list[Mistake]:
    """Return the mistakes that the head is surest of, the surest first."""
    wrong = np.flatnonzero(seen.labels != seen.predicted)
    worst = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:most]
    positions = {sample.sample_id: i for i, sample in enumerate(images.samples)} if images else {}
    mistakes = []
    for i in worst.tolist():
        row = int(seen.rows[i])
        picture, why_not = _picture(images, positions, cache, row)
        mistakes.append(
            Mistake(
                sample_id=cache.sample_ids[row],
                label=cache.classes[seen.labels[i]],
                predicted=cache.classes[seen.predicted[i]],
                confidence=float(seen.confidence[i]),
                own=float(seen.own[i]),
                picture=picture,
                why_not=why_not,
            )
        )
    return mistakes


def _picture(
    images: ImageSource | None, positions: dict[str, int], cache: FeatureFile, row: int
) -> tuple[bytes | None, str | None]:
    """Return a picture of a row's image, or why there is none."""
    name = cache.sample_ids[row]
    if images is None:
        return None, "its source is not there"
    if name not in positions:
        return None, "no longer in the source"
    try:
        content = images.read(positions[name])
        if content_digest(content) != cache.digests[row].tobytes():
            return None, "changed since it was extracted"
        return thumbnail(pixels_of(content, sample_id=name)), None
    except ImageError as err:
        return None, err.reason
