"""Features of new images by the network of a feature file, and the images nearest to them there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featx.backbones.engines import OnnxEngine, default_batch_size
from featx.backbones.graphs import graph_of
from featx.backbones.spec import BackboneSpec
from featx.classifier.tails import features_through
from featx.errors import ConfigError
from featx.features.file import FeatureFile, open_features
from featx.images.given import ImageLike, decode_given, name_of
from featx.images.preprocess import preprocess
from featx.images.reading import map_ahead, num_cores

if TYPE_CHECKING:
    from featx.backbones.network import Network

_BLOCK_ROWS = 8192


class Neighbour(NamedTuple):
    """An image of a feature file that is like another one."""

    sample_id: str
    label: str  # empty where it has none
    split: str
    similarity: float  # cosine of the angle between the features less their mean, [-1, 1]


def embed(
    images: Sequence[ImageLike], *, features: str | Path | FeatureFile, weights: str | None = None
) -> np.ndarray:
    """Return features of images by the network that a feature file was made with.

    On the CPU, in float32, or int8 where the file was made so; images are preprocessed as its own.

    Args:
        images: Paths, encoded images, PIL images, or arrays ``(height, width, 3)`` uint8 RGB.
        features: The feature file; of one at a cut the whole network is run.
        weights: The backbone's weights where they are now; None takes those that it recorded.

    Returns:
        ``(len(images), num_features)`` float32, in their order.

    Raises:
        ArtifactError: The feature file cannot be used.
        BackboneError: The network cannot be built: its weights are missing or others.
        ImageError: An image cannot be used.
        ConfigError: Something is no image.
    """
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise ConfigError("embed takes a list of images; put a single one in brackets: [image].")
    cache = _opened(features)
    spec = BackboneSpec.from_dict(cache.header.spec).without_cut
    origin = str(cache.header.details["weights"])
    engine = OnnxEngine(graph_of(spec, lambda own: _network_of(own, origin, weights)))
    size = default_batch_size("onnxruntime", spec.preprocess.image_size)

    def batch(start: int) -> np.ndarray:
        part = enumerate(images[start : start + size], start)
        opened = (decode_given(name_of(each, i), each, spec.preprocess) for i, each in part)
        return engine.features(np.stack([preprocess(each, spec.preprocess) for each in opened]))

    starts = range(0, len(images), size)
    with closing(map_ahead(batch, starts, workers=num_cores())) as parts:
        return np.concatenate([np.empty((0, spec.num_features), np.float32), *parts])


def similar(
    features: str | Path | FeatureFile,
    images: Sequence[ImageLike],
    k: int = 9,
    *,
    weights: str | None = None,
) -> list[tuple[Neighbour, ...]]:
    """Return the images of a feature file that are most like each of some images.

    Args:
        features: The feature file.
        images: As ``embed`` takes them.
        k: Neighbours of each, the most similar first; all of the file's where it has fewer.
        weights: As ``embed`` takes them.

    Raises:
        ConfigError: ``k`` is below 1, or something is no image.
        FeatxError: As ``embed``.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1; got {k}.")
    cache = _opened(features)
    queries = embed(images, features=cache, weights=weights)
    if cache.cut is not None:
        cache = features_through(None, cache, weights)
    rows, similarities = nearest(cache.features, queries, k)
    return [
        tuple(_neighbour(cache, *pair) for pair in zip(*of_image, strict=True))
        for of_image in zip(rows.tolist(), similarities.tolist(), strict=True)
    ]


def nearest(features: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and cosines of the features nearest to each query, calculated in float64.

    The mean of the features is taken from both: what all images share tells none from another.

    Args:
        features: ``(N, num_features)``.
        queries: ``(n, num_features)``.
        k: At most so many of each.

    Returns:
        Rows ``(n, min(k, N))`` int64, the nearest first, of equally near ones the lowest row; and
        cosines of the same shape.
    """
    mean = features.mean(axis=0, dtype=np.float64)
    units = _units(queries - mean)
    cosines = np.empty((len(queries), len(features)))
    for start in range(0, len(features), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        cosines[:, block] = units @ _units(features[block] - mean).T
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosines, rows, axis=1)


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-300))


def _neighbour(cache: FeatureFile, row: int, similarity: float) -> Neighbour:
    label = int(cache.labels[row])
    return Neighbour(
        cache.sample_ids[row],
        cache.classes[label] if label >= 0 else "",
        cache.split_names[cache.splits[row]],
        similarity,
    )


def _opened(features: str | Path | FeatureFile) -> FeatureFile:
    if isinstance(features, FeatureFile):
        return features
    return open_features(features, features_later=True)


def _network_of(spec: BackboneSpec, origin: str, weights: str | None) -> Network:
    from featx.backbones.tails import build_recorded
    from featx.backbones.weights import open_recorded

    return build_recorded(spec, open_recorded(spec, origin, weights))
