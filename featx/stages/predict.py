"""Stage 4: answer for new images with an exported file; ONNX Runtime, numpy and Pillow only."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from featx.classifier.session import open_classifier
from featx.errors import ConfigError, ImageError
from featx.images.decode import (
    MAX_PIXELS,
    check_max_pixels,
    decode_image,
    pixels_of,
    read_image_file,
    rgb_pixels,
)
from featx.images.preprocess import PreprocessSpec
from featx.images.read_ahead import read_ahead
from featx.images.sources import open_source

ImageLike = str | Path | bytes | Image.Image | np.ndarray
"""A path, an encoded image, a PIL image, or pixels ``(height, width, 3)`` uint8 RGB."""

_CHUNK = 256  # images that threads are given at once
_MAX_BATCH = 16
_MAX_BATCH_BYTES = 2**25


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


class Predictor:
    """An exported classifier, ready to answer.

    Args:
        path: The ONNX file.
        threads: For one image; None takes all cores.
        max_pixels: Height times width that an image may have.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a featx classifier, or is damaged.
        ConfigError: ``max_pixels`` is out of range.
    """

    def __init__(
        self, path: str | Path, *, threads: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        check_max_pixels(max_pixels)
        self._max_pixels = max_pixels
        self._classifier = open_classifier(path, threads=threads)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self._classifier.classes

    def predict(self, images: Iterable[ImageLike], *, top_k: int = 3) -> list[Prediction]:
        """Return a prediction for each image, in order.

        Args:
            images: Paths, encoded images, PIL images, or arrays ``(height, width, 3)`` uint8 RGB.
            top_k: Classes to report; all of them where there are fewer.

        Raises:
            ImageError: An image cannot be used.
            ConfigError: ``top_k`` is below 1, or something is no image.
        """
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            raise ConfigError(
                "predict takes a list of images; put a single one in brackets: [image]."
            )
        predictions = []
        for prediction in self.predict_each(images, top_k=top_k):
            if prediction.error is not None:
                raise ImageError(prediction.image, prediction.error)
            predictions.append(prediction)
        return predictions

    def predict_each(self, images: Iterable[ImageLike], *, top_k: int = 3) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; one that cannot be used says why.

        The images of a list are read and decoded by threads ahead of the model, and neighbours of
        one size are run together; those of a generator are taken and answered one by one. Memory
        does not grow with their number.

        Args:
            images: As ``predict`` takes them.
            top_k: As ``predict`` takes it.

        Raises:
            ConfigError: As ``predict``.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1; got {top_k}.")
        waiting: list[_Decoded] = []
        for image in self._decoded(images):
            if waiting and not _fit_together(waiting, image):
                yield from self._run(waiting, top_k)
                waiting = []
            waiting.append(image)
            if not isinstance(images, Sequence):
                yield from self._run(waiting, top_k)
                waiting = []
        if waiting:
            yield from self._run(waiting, top_k)

    def _decoded(self, images: Iterable[ImageLike]) -> Iterator[_Decoded]:
        """Yield each image's pixels, or why there are none."""
        numbered, at_once = enumerate(images), _CHUNK if isinstance(images, Sequence) else 1
        while chunk := [(_name(image, i), image) for i, image in islice(numbered, at_once)]:
            yield from self._decoded_chunk(chunk)

    def _decoded_chunk(self, chunk: Sequence[tuple[str, ImageLike]]) -> Iterator[_Decoded]:
        def pixels(i: int) -> np.ndarray:
            return _pixels(chunk[i][1], chunk[i][0], self._max_pixels, self._classifier.preprocess)

        with closing(read_ahead(pixels, len(chunk))) as ahead:
            for (name, _), result in zip(chunk, ahead, strict=True):
                try:
                    yield _Decoded(name, result.result())
                except ImageError as err:
                    yield _Decoded(name, None, err.reason)

    def _run(self, batch: list[_Decoded], top_k: int) -> Iterator[Prediction]:
        """Yield the predictions of images of one size, or of a single one that has no pixels."""
        pixels = [image.pixels for image in batch if image.pixels is not None]
        if not pixels:
            yield from (Prediction(image.name, (), image.reason) for image in batch)
            return
        _, probabilities = self._classifier.run(np.stack(pixels))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
        for image, row, best in zip(batch, probabilities, order, strict=True):
            yield Prediction(image.name, tuple((self.classes[i], float(row[i])) for i in best))


class _Decoded(NamedTuple):
    """An image's pixels ``(height, width, 3)`` uint8, or the reason why there are none."""

    name: str
    pixels: np.ndarray | None
    reason: str | None = None


def _fit_together(batch: list[_Decoded], image: _Decoded) -> bool:
    """Return whether an image can be run with those before it: same size, and not too much."""
    first = batch[0].pixels
    if first is None or image.pixels is None or first.shape != image.pixels.shape:
        return False
    return len(batch) < _MAX_BATCH and (len(batch) + 1) * first.size <= _MAX_BATCH_BYTES


def _name(image: ImageLike, position: int) -> str:
    return str(image) if isinstance(image, (str, Path)) else f"image {position}"


def _pixels(image: ImageLike, name: str, max_pixels: int, preprocess: PreprocessSpec) -> np.ndarray:
    """Return an image's pixels, ``(height, width, 3)`` uint8, by the rules of ``images.decode``."""
    if isinstance(image, (str, Path)):
        image = read_image_file(image, sample_id=name)
    if isinstance(image, bytes):
        return decode_image(image, sample_id=name, max_pixels=max_pixels, preprocess=preprocess)
    if isinstance(image, Image.Image):
        return rgb_pixels(image, sample_id=name, max_pixels=max_pixels)
    if not isinstance(image, np.ndarray):
        raise ConfigError(f"{name}: expected a path, bytes, PIL image or array; got {type(image)}.")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ConfigError(
            f"{name}: expected pixels (height, width, 3) uint8; got {image.shape} {image.dtype}."
        )
    return pixels_of(image, sample_id=name, max_pixels=max_pixels)


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image files that ``paths`` name; a folder stands for all images below it.

    Raises:
        SourceError: A folder holds no images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # noqa: PTH112 never raises; a name too long is a bad image's
            found += [path / sample.sample_id for sample in open_source(str(path)).samples]
        else:
            found.append(path)
    return found
