"""Features of new images by the network of a feature file, and the images nearest to them there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from featx.artifact import publish, require_apart, require_replaceable, run_files
from featx.backbones.engines import OnnxEngine, default_batch_size
from featx.backbones.graphs import graph_of
from featx.backbones.spec import BackboneSpec
from featx.classifier.tails import features_through
from featx.errors import ConfigError, SourceError, require_at_least
from featx.features.blocks import reading_blocks
from featx.features.file import FeatureFile, open_features
from featx.features.nearest import Rows, RowsInMemory, nearest_rows
from featx.features.shown import label_of
from featx.images.given import ImageLike, decode_given, name_of
from featx.images.preprocess import preprocess
from featx.images.reading import map_ahead, num_cores
from featx.images.sources import ImageSource, open_source
from featx.images.thumbnails import thumbnail
from featx.reporting.likeness import render_similar
from featx.reporting.summary import SMALL

if TYPE_CHECKING:
    from featx.backbones.network import Network

log = logging.getLogger(__name__)


class Neighbour(NamedTuple):
    """An image of a feature file that is like another one."""

    sample_id: str
    label: str  # empty where it has none
    split: str
    similarity: float  # cosine of the angle between the features less their mean, [-1, 1]


def embed(
    images: Sequence[ImageLike],
    *,
    cache: str | Path | FeatureFile | None = None,
    backbone: str | None = None,
    weights: str | None = None,
) -> np.ndarray:
    """Return features of images, by the network of a feature file or by a backbone.

    On the CPU, in float32, or int8 where a feature file was made so; images are preprocessed as
    that of the feature file, or as the backbone wants them.

    Args:
        images: Paths, encoded images, PIL images, or arrays ``(height, width, 3)`` uint8 RGB.
        cache: A feature file; of one at a cut the whole network is run.
        backbone: Its name, as ``extract`` takes it; exactly one of the two is given.
        weights: The backbone's weights, as ``extract`` takes them; None takes those that the
            feature file recorded, or the backbone's default.

    Returns:
        ``(len(images), num_features)`` float32, in their order.

    Raises:
        ArtifactError: The feature file cannot be used.
        BackboneError: The network cannot be built: its weights are missing or others.
        SourceError: An image cannot be used.
        ConfigError: Something is not an image, or not one of ``cache`` and ``backbone`` is given.
    """
    if isinstance(images, (str, bytes, Path)) or not isinstance(images, Sequence):
        advice = "put a single one in brackets: [image]"
        if isinstance(images, (str, Path)) and Path(images).is_dir():
            advice = f"of a folder, that is sorted(Path('{images}').rglob('*.jpg'))"
        raise ConfigError(f"expected a list of images; {advice}.")
    if (cache is None) == (backbone is None):
        raise ConfigError(
            "embed takes the network of a feature file, cache='features.h5', or of a backbone, "
            f"backbone='resnet18'; got {'neither' if cache is None else 'both'}."
        )
    if cache is None:
        from featx.extraction.by_content import FeaturesByContent
        from featx.extraction.options import ExtractOptions

        options = ExtractOptions(backbone=backbone, weights=weights, device="cpu")
        return FeaturesByContent(options.resolved(), cache=False).features(images)[0]
    opened = _opened(cache)
    spec = BackboneSpec.from_dict(opened.header.spec).without_cut
    origin = str(opened.header.details["weights"])
    engine = OnnxEngine(graph_of(spec, lambda own: _network_of(own, origin, weights)))
    size = default_batch_size("onnxruntime", spec.preprocess.image_size)

    def batch(start: int) -> np.ndarray:
        part = enumerate(images[start : start + size], start)
        read = (decode_given(name_of(each, i), each, spec.preprocess) for i, each in part)
        return engine.features(np.stack([preprocess(each, spec.preprocess) for each in read]))

    starts = range(0, len(images), size)
    with closing(map_ahead(batch, starts, workers=num_cores())) as parts:
        return np.concatenate([np.empty((0, spec.num_features), np.float32), *parts])


def similar(
    cache: str | Path | FeatureFile,
    images: Sequence[ImageLike],
    k: int = 9,
    *,
    weights: str | None = None,
) -> list[tuple[Neighbour, ...]]:
    """Return the images of a feature file that are most like each of some images.

    Args:
        cache: The feature file.
        images: As ``embed`` takes them.
        k: Neighbours of each, the most similar first; all of the file's where it has fewer.
        weights: As ``embed`` takes them.

    Raises:
        ConfigError: ``k`` is below 1, or something is not an image.
        FeatxError: As ``embed``.
    """
    require_at_least("k", k, 1)
    opened = _opened(cache)
    queries = embed(images, cache=opened, weights=weights)
    with _rows_of(features_through(None, opened, weights)) as features:
        rows, similarities = nearest_rows(features, queries, k)
    return [
        tuple(_neighbour(opened, *pair) for pair in zip(*of_image, strict=True))
        for of_image in zip(rows.tolist(), similarities.tolist(), strict=True)
    ]


def write_similar_page(
    cache: str | Path | FeatureFile,
    images: Sequence[ImageLike],
    found: Sequence[Sequence[Neighbour]],
    output: str | Path,
) -> Path:
    """Write images beside those that are like them as one HTML page, pictures included.

    Args:
        cache: The feature file that was searched.
        images: Those that were asked for.
        found: Of ``similar``.
        output: The page; an earlier one of featx is replaced.

    Raises:
        ArtifactError: Something else than a page lies there, or the feature file cannot be used.
        ConfigError: The output is one of the files that are read.
    """
    output, opened = Path(output), _opened(cache)
    read = {f"the image '{each}'": Path(each) for each in images if isinstance(each, (str, Path))}
    require_apart({"the page": output}, {**run_files(opened.path), **read})
    exists = require_replaceable(output, "page")
    asked = [
        (name_of(each, number), thumbnail(decode_given(name_of(each, number), each, SMALL)))
        for number, each in enumerate(images)
    ]
    content = render_similar(asked, found, opened, _source_of(opened))
    publish(output, content, overwrite=exists)
    return output


def _source_of(cache: FeatureFile) -> ImageSource | None:
    try:
        return open_source(str(cache.header.details["source"]))
    except SourceError as err:
        log.warning("No pictures of '%s': %s", cache.path, err)
        return None


@contextmanager
def _rows_of(cache: FeatureFile) -> Iterator[Rows]:
    """Yield the features: from the file, unless they are read or a network makes them."""
    if cache.cut is not None or "features" in vars(cache):
        yield RowsInMemory(cache.features)
    else:
        with reading_blocks(cache) as blocks:
            yield blocks


def _neighbour(cache: FeatureFile, row: int, similarity: float) -> Neighbour:
    return Neighbour(
        cache.sample_ids[row],
        label_of(cache, row),
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
