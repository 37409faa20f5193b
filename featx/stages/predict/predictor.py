"""From images to predictions, on all cores, in bounded memory.

One image takes all cores. Of many images each core takes a few at a time, from their files to
their predictions, so that no core waits for another; ``backbones.engines`` tells why. That needs a
second session, of one thread, which is opened when the first long list comes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from featx.backbones.engines import OnnxEngine, default_batch_size
from featx.classifier.providers import Provider
from featx.classifier.session import Classifier, load_classifier, read_classifier
from featx.errors import ConfigError, ImageError
from featx.images.decode import MAX_PIXELS, check_max_pixels
from featx.images.preprocess import resized_square
from featx.images.read_ahead import map_ahead, num_cores
from featx.stages.predict.images import ImageLike, name_of, num_bytes_of, upright_image
from featx.stages.predict.prediction import Prediction, best_classes

_MANY = 32
"""From so many images on, what a session of one thread saves is more than opening it takes."""
_MAX_BATCH = 16
_MAX_BATCH_BYTES = 2**25
"""That images may take as they are given; a group of larger ones is smaller."""


class Predictor:
    """An exported classifier, ready to answer; several threads may ask it at the same time.

    Args:
        path: The ONNX file.
        providers: ONNX Runtime's execution providers, in the order they are tried, each a name or
            ``(name, options)``; None takes the CPU.
        threads: That work on an image, or on as many groups of images; None takes all cores.
        max_pixels: Height times width that an image may have.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a featx classifier, or is damaged.
        ConfigError: A provider is not here, or ``threads`` or ``max_pixels`` is out of range.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_max_pixels(max_pixels)
        self._max_pixels = max_pixels
        self._providers = providers
        self._threads = num_cores() if threads is None else threads
        self._path, self._content = Path(path), read_classifier(path)
        self._classifier = self._open(self._threads)
        self._own_thread: Classifier | None = None
        self._opening = threading.Lock()

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
        predictions = []
        for prediction in self.predict_each(images, top_k=top_k):
            if prediction.error is not None:
                raise ImageError(prediction.image, prediction.error)
            predictions.append(prediction)
        return predictions

    def predict_each(
        self, images: Iterable[ImageLike], *, top_k: int = 3, ahead: bool | None = None
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; one that cannot be used says why.

        Memory does not grow with the number of images.

        Args:
            images: As ``predict`` takes them.
            top_k: As ``predict`` takes it.
            ahead: Take images before those before them are answered, and work on several at once.
                None does so with a list; the images of a generator are taken and answered one by
                one, as it may wait for each of them.

        Raises:
            ConfigError: As ``predict``.
        """
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            raise ConfigError(
                "predict takes a list of images; put a single one in brackets: [image]."
            )
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1; got {top_k}.")
        named = (_Named(name_of(image, i), image) for i, image in enumerate(images))
        count = len(images) if isinstance(images, Sequence) else None
        if not (count is not None if ahead is None else ahead) or count == 1:
            answers = self._one_by_one(named)
        elif self._providers is None and self._threads > 1 and (count or _MANY) >= _MANY:
            answers = self._side_by_side(named)
        else:
            answers = self._together(named)
        return self._predictions(answers, top_k)

    def _one_by_one(self, images: Iterable[_Named]) -> Iterator[_Answered]:
        for image in images:
            yield self._answer(self._classifier, [self._prepare(image)])

    def _together(self, images: Iterable[_Named]) -> Iterator[_Answered]:
        """Prepare images in threads, and run them in batches one after the other."""
        size = self._batch_size
        with closing(map_ahead(self._prepare, images, workers=self._threads, window=size)) as ahead:
            while batch := list(islice(ahead, size)):
                yield self._answer(self._classifier, [future.result() for future in batch])

    def _side_by_side(self, images: Iterable[_Named]) -> Iterator[_Answered]:
        """Give each thread whole groups of images, from preparing them to the answers."""
        classifier = self._of_one_thread()

        def work(group: list[_Named]) -> _Answered:
            return self._answer(classifier, [self._prepare(image) for image in group])

        groups = _groups(images, self._batch_size)
        with closing(map_ahead(work, groups, workers=self._threads, window=1)) as ahead:
            for future in ahead:
                yield future.result()

    def _prepare(self, image: _Named) -> _Prepared:
        """Return what the graph takes of an image, or why there is nothing."""
        try:
            upright = upright_image(image.image, name=image.name, max_pixels=self._max_pixels)
        except ImageError as err:
            return _Prepared(image.name, None, err.reason)
        return _Prepared(image.name, resized_square(upright, self._classifier.preprocess))

    def _answer(self, classifier: Classifier, images: Sequence[_Prepared]) -> _Answered:
        """Run those of a batch that can be used."""
        pixels = [image.pixels for image in images if image.pixels is not None]
        probabilities = classifier.run(np.stack(pixels))[1] if pixels else None
        return _Answered(images, probabilities)

    def _predictions(self, batches: Iterable[_Answered], top_k: int) -> Iterator[Prediction]:
        for images, probabilities in batches:
            tops = iter(
                []
                if probabilities is None
                else best_classes(probabilities, self.classes, top_k=top_k)
            )
            for image in images:
                top = next(tops) if image.pixels is not None else ()
                yield Prediction(image.name, top, image.reason)

    @property
    def _batch_size(self) -> int:
        size = default_batch_size(OnnxEngine, self._classifier.preprocess.image_size)
        return min(size, _MAX_BATCH)

    def _of_one_thread(self) -> Classifier:
        """Return the same classifier with one thread for each batch; opened once."""
        with self._opening:
            if self._own_thread is None:
                self._own_thread = self._open(1, verify=False)
                self._content = b""
            return self._own_thread

    def _open(self, num_threads: int, *, verify: bool = True) -> Classifier:
        return load_classifier(
            self._content,
            path=self._path,
            threads=num_threads,
            providers=self._providers,
            verify=verify,
        )


class _Named(NamedTuple):
    """An image as it was given, and what it is called."""

    name: str
    image: ImageLike


class _Prepared(NamedTuple):
    """What the graph takes of an image, or the reason why there is nothing."""

    name: str
    pixels: np.ndarray | None
    reason: str | None = None


class _Answered(NamedTuple):
    """A batch, and the probabilities of those that can be used, ``(m, num_classes)``."""

    images: Sequence[_Prepared]
    probabilities: np.ndarray | None


def _groups(images: Iterable[_Named], size: int) -> Iterator[list[_Named]]:
    """Yield the images in lists of at most ``size``, and of a bounded number of bytes."""
    group: list[_Named] = []
    num_bytes = 0
    for named in images:
        group.append(named)
        num_bytes += num_bytes_of(named.image)
        if len(group) == size or num_bytes >= _MAX_BATCH_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group
