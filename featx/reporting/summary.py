"""Content of a page about one split: predictions, confusions, bins, a map, the worst mistakes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np

from featx.errors import ImageError
from featx.features.file import FeatureFile
from featx.heads.tasks.losses import log_softmax
from featx.heads.tasks.single_label import NUM_BINS, confusion_matrix
from featx.images.decode import NO_DIGEST
from featx.images.preprocess import PreprocessSpec
from featx.images.reading import read_images
from featx.images.sources import ImageSource
from featx.images.thumbnails import thumbnail

MapKind = Literal["pca", "tsne", "none"]
_MAP_SAMPLES = 2000
_TSNE_COMPONENTS = 50
_SIDE = 160
SMALL = PreprocessSpec(_SIDE, _SIDE, (0, 0, 0), (1, 1, 1), crop="none", decode="scaled")
"""How images are decoded for pictures: large JPEGs at a part of their size."""


@dataclass(frozen=True, eq=False)
class ClassPredictions:
    """The predictions of a head of classes for labelled samples."""

    rows: np.ndarray  # of the feature file, (n,) int64
    labels: np.ndarray  # (n,) int64
    predicted: np.ndarray  # (n,) int64
    confidence: np.ndarray  # probability of the predicted class, (n,) float64
    own: np.ndarray  # probability of the labelled class, (n,) float64
    confusion: np.ndarray  # counts, labels × predictions, (num_classes, num_classes)


def predict_classes(logits: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> ClassPredictions:
    """Return the predictions ``(n,)`` of logits ``(n, num_classes)`` for labelled samples.

    Args:
        logits: Of a head of classes.
        labels: Class indices, ``(n,)``.
        rows: Of the samples in the feature file, ``(n,)``.
    """
    probabilities = np.exp(log_softmax(logits.astype(np.float64)))
    predicted = probabilities.argmax(axis=1)
    own, confidence = (
        np.take_along_axis(probabilities, index[:, None], axis=1)[:, 0]
        for index in (labels, predicted)
    )
    confusion = confusion_matrix(predicted, labels, size=logits.shape[1])
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
    """Samples by the probability of their prediction, in bins of equal width."""

    counts: np.ndarray  # samples of each bin, (num_bins,) int64
    confidence: np.ndarray  # their mean probability; NaN in an empty bin
    accuracy: np.ndarray  # share of them that are right; NaN in an empty bin


def reliability(probability: np.ndarray, right: np.ndarray) -> Reliability:
    """Return how often predictions of each probability ``(n,)`` are right, ``(n,)`` bool."""
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
    """Samples on a plane."""

    points: np.ndarray  # (n, 2) float64
    chosen: np.ndarray  # which of the rows, (n,) int64
    explained: float | None  # share of the variance that a PCA shows; None for t-SNE


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


@dataclass(frozen=True)
class Mistake:
    """A sample that the head is wrong about."""

    row: int  # of the feature file
    predicted: str
    predicted_note: str  # how sure, or how far off
    expected: str
    expected_note: str = ""  # the probability of what the label says
    sample_id: str = ""
    picture: str | None = None  # a data URI of a JPEG
    why_not: str = ""  # why there is no picture


def worst_classes(
    seen: ClassPredictions, classes: Sequence[str], *, most: int
) -> tuple[list[Mistake], int]:
    """Return the most confident mistakes, and how many mistakes there are."""
    wrong = np.flatnonzero(seen.labels != seen.predicted)
    worst = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:most]
    mistakes = [
        Mistake(
            int(seen.rows[i]),
            classes[seen.predicted[i]],
            f"{seen.confidence[i]:.3f}",
            classes[seen.labels[i]],
            f"{seen.own[i]:.3f}",
        )
        for i in worst.tolist()
    ]
    return mistakes, len(wrong)


def worst_tags(
    rows: np.ndarray,
    probabilities: np.ndarray,
    thresholds: Sequence[float],
    tagged: np.ndarray,
    tags: Sequence[str],
    *,
    most: int,
) -> tuple[list[Mistake], int]:
    """Return the most confident wrong decisions, and how many there are.

    ``probabilities`` and ``tagged``, which says what the labels have, are ``(n, num_tags)``.
    """
    own = np.where(tagged, probabilities, 1 - probabilities)  # of what is true
    samples, columns = np.nonzero((probabilities >= np.array(thresholds)) != tagged)
    worst = np.argsort(own[samples, columns], kind="stable")[:most]
    mistakes = []
    for i, tag in zip(samples[worst].tolist(), columns[worst].tolist(), strict=True):
        names = [name for name, has in zip(tags, tagged[i], strict=True) if has]
        mistakes.append(
            Mistake(
                int(rows[i]),
                f"not {tags[tag]}" if tagged[i, tag] else tags[tag],
                f"{1 - own[i, tag]:.3f}",
                ", ".join(names) or "no tag",
            )
        )
    return mistakes, len(samples)


def worst_values(
    rows: np.ndarray, values: np.ndarray, true: np.ndarray, targets: Sequence[str], *, most: int
) -> list[Mistake]:
    """Return the largest errors of values ``(n, num_targets)``, in deviations of their target."""
    deviation = true.std(axis=0)
    off = np.abs(values - true) / np.where(deviation > 0, deviation, 1)
    mistakes = []
    for i in np.argsort(-off.max(axis=1), kind="stable")[:most].tolist():
        column = int(off[i].argmax())
        value, expected = values[i, column], true[i, column]
        prefix = "" if len(targets) == 1 else f"{targets[column]}: "
        mistakes.append(
            Mistake(
                int(rows[i]),
                f"{prefix}{value:.4g}",
                f"off by {value - expected:+.3g}",
                f"{expected:.4g}",
            )
        )
    return mistakes


def with_pictures(
    mistakes: Sequence[Mistake], cache: FeatureFile, images: ImageSource | None
) -> list[Mistake]:
    """Return mistakes with the pictures of their images; None stands for a source that is gone."""
    shown = pictures_of([each.row for each in mistakes], cache, images)
    found = []
    for each in mistakes:
        picture, why_not = shown[each.row]
        name = cache.sample_ids[each.row]
        found.append(replace(each, sample_id=name, picture=picture, why_not=why_not))
    return found


def pictures_of(
    rows: Sequence[int],
    cache: FeatureFile,
    images: ImageSource | None,
    *,
    most_bytes: int | None = None,
) -> dict[int, tuple[str | None, str]]:
    """Return the picture of each row as a data URI of a JPEG; where there is none, None and why.

    Args:
        rows: Of the feature file; the first ones first where there is no room for all.
        cache: The feature file.
        images: Its source; None where that is gone.
        most_bytes: Room for all URIs; None for as many as there are.
    """
    if images is None:
        return dict.fromkeys(rows, (None, "its source is not there"))
    positions = {each.sample_id: i for i, each in enumerate(images.samples)}
    shown = dict.fromkeys(rows, (cast("str | None", None), "no longer in the source"))
    wanted = {positions[name]: row for row in rows if (name := cache.sample_ids[row]) in positions}
    room = float("inf") if most_bytes is None else most_bytes
    shown |= dict.fromkeys(wanted.values(), (None, "not shown: no room"))
    with closing(read_images(images, wanted, thumbnail, preprocess=SMALL)) as read:
        for position, digest, jpeg in read:
            row = wanted[position]
            if digest not in (NO_DIGEST, cache.digests[row].tobytes()):
                shown[row] = None, "changed since it was extracted"
            elif isinstance(jpeg, ImageError):
                shown[row] = None, jpeg.reason
            else:
                uri = jpeg_uri(jpeg)
                room -= len(uri)
                if room < 0:
                    break
                shown[row] = uri, ""
    return shown


def jpeg_uri(jpeg: bytes) -> str:
    """Return a JPEG file as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
