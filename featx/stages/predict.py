"""Stage 4: answer for new images with an exported file; ONNX Runtime, numpy and Pillow only.

Pixels are resized and cropped by ``images.preprocess``, as in extraction, not by the graph: that is
exact, and images of any size go to the graph in one batch. One image takes all cores; of many, each
core takes a few at a time from file to prediction, with a session of one thread.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from featx.artifact import MAX_HEADER_BYTES, Header, tensor_metadata
from featx.artifact.shown import Shown
from featx.backbones.seal import SEAL_BYTES
from featx.classifier.hub import local_model
from featx.classifier.prediction import (
    Prediction,
    Predictions,
    predictions_of,
    require_answers,
)
from featx.classifier.providers import Provider
from featx.classifier.session import (
    Classifier,
    load_classifier,
    read_classifier,
    run_images,
)
from featx.errors import (
    ArtifactInvalid,
    ConfigError,
    ImageError,
    counted,
    listed,
    require_at_least,
)
from featx.heads.tasks import TaskName
from featx.images.decode import MAX_PIXELS, check_max_pixels
from featx.images.given import ImageLike, decode_given, name_of, read_ahead
from featx.images.reading import map_ahead, num_cores

log = logging.getLogger(__name__)

Named = tuple[str, ImageLike | ImageError]
"""An image, after what it is called."""

_HEAD, _MAX_HEADS = "head.safetensors", 32
_MANY = 32
"""From so many images on, what a session of one thread saves is more than opening it takes."""
_OPTIONS = ("_providers", "_threads", "_max_pixels")
_MAX_BATCH_BYTES = 2**25
"""That images may take as they are given; a group of larger ones is smaller."""


class Predictor(Shown):
    """An exported classifier, ready to answer; several threads may ask it at the same time.

    A process that was forked opens its sessions again at the first call; threads of ONNX
    Runtime do not follow into it. A copy or what is unpickled opens the file at the first call, and
    refuses one that has changed.

    Args:
        path: The ONNX file, or ``hf:USER/NAME[@REVISION]`` for one of Hugging Face's hub.
        providers: ONNX Runtime's execution providers, in the order they are tried, each a name or
            ``(name, options)``; None takes the CPU.
        threads: That work on an image, or on as many groups of images; None takes all cores.
        max_pixels: Height times width that an image may have.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a featx classifier, or is damaged.
        ConfigError: A provider is not here, ``threads`` or ``max_pixels`` is out of range, or the
            file gives features only.
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
        self._path = local_model(path)
        self._content = read_classifier(self._path)
        self._seal = self._content[-SEAL_BYTES:]
        self._opened: Classifier | None = self._open(self._threads)
        require_answers(self._opened)
        _warn_of_another_head(self._opened)
        if providers is not None:
            log.info("'%s' runs on %s.", self._path, ", ".join(self._opened.providers))
        self._own_thread: Classifier | None = None
        self._opening, self._process = threading.Lock(), os.getpid()

    def _lines(self) -> Iterator[str]:
        yield f"Predictor: {self._path}"
        if opened := self._opened:  # a copy is opened when it is first asked
            names = opened.classes
            yield f"{opened.task.name}, {counted(len(names), 'output')}: {listed(list(names))}"

    def __getstate__(self) -> dict[str, Any]:
        """Return the file's place and seal, and the options; no session can be copied."""
        own = {"_path": self._path.absolute(), "_seal": self._seal}
        return own | {name: getattr(self, name) for name in _OPTIONS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _content=b"", _opened=None, _own_thread=None)
        self._process = os.getpid()
        self._opening = threading.Lock()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self._classifier.classes

    @property
    def task(self) -> TaskName:
        """Task of the head: classes, tags or numbers."""
        return self._classifier.task.name

    @property
    def unknown_below(self) -> float | None:
        """The probability that 95 % of the right answers to held-out images reached at export.

        None where the file does not say: of tags and numbers, or with too few images.
        """
        found = self._classifier.header.details.get("unknown_below")
        return None if found is None else float(found)

    def predict(self, images: Iterable[ImageLike], *, top_k: int = 3) -> Predictions:
        """Return a prediction for each image, in order.

        Args:
            images: Paths, encoded images, PIL images, or arrays ``(height, width, 3)`` uint8 RGB.
            top_k: Classes to report; as many as the file gives where these are fewer.

        Raises:
            ImageError: An image cannot be used.
            ConfigError: ``top_k`` is below 1, or something is not an image.
        """
        predictions = Predictions(images=images if isinstance(images, Sequence) else ())
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
            ConfigError: As ``predict``; or a forked process continues what its parent began.
        """
        if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            raise ConfigError(
                "predict takes a list of images; put a single one in brackets: [image]."
            )
        require_at_least("top_k", top_k, 1)
        given = ((name_of(image, i), image) for i, image in enumerate(images))
        count = len(images) if isinstance(images, Sequence) else None
        named: Iterable[Named] = read_ahead(given, images) if count else given
        if ahead is None:
            ahead = count is not None
        if not ahead or count == 1:
            return self._one_by_one(named, top_k)
        if self._providers is None and self._threads > 1 and (count or _MANY) >= _MANY:
            return _in_one_process(self._side_by_side(named, top_k))
        return _in_one_process(self._together(named, top_k))

    @property
    def _classifier(self) -> Classifier:
        """The classifier, with a session of this process."""
        if self._process != os.getpid():
            self._opening = threading.Lock()  # a forked one may be held for ever
            self._opened, self._process = None, os.getpid()
        opened = self._opened
        return self._open_again() if opened is None else opened

    def _open_again(self) -> Classifier:
        with self._opening:
            if self._opened is None:
                self._content = read_classifier(self._path)
                if self._content[-SEAL_BYTES:] != self._seal:
                    raise ArtifactInvalid(
                        self._path,
                        f"'{self._path}' was replaced since this predictor was made. Open it "
                        "again with featx.Predictor.",
                    )
                self._own_thread, self._opened = None, self._open(self._threads)
            return self._opened

    def _one_by_one(self, images: Iterable[Named], top_k: int) -> Iterator[Prediction]:
        for image in images:
            yield from self._predict_batch(self._classifier, [image], top_k)

    def _together(self, images: Iterable[Named], top_k: int) -> Iterator[Prediction]:
        """Prepare images in threads, and run them in batches one after the other."""
        size, names = self._classifier.batch_size, deque[str]()

        def named() -> Iterator[Named]:
            for image in images:
                names.append(image[0])
                yield image

        ahead = map_ahead(self._prepare, named(), workers=self._threads, window=size)
        with closing(ahead):
            answer = partial(self._answers, self._classifier, top_k)
            for row in run_images(ahead, answer, batch_size=size):
                yield _prediction(names.popleft(), row)

    def _side_by_side(self, images: Iterable[Named], top_k: int) -> Iterator[Prediction]:
        """Process groups of images in threads, each from preparation to answers."""
        classifier = self._of_one_thread()
        groups = _groups(images, classifier.batch_size)

        def work(group: list[Named]) -> list[Prediction]:
            return self._predict_batch(classifier, group, top_k)

        with closing(map_ahead(work, groups, workers=self._threads, window=1)) as ahead:
            for predictions in ahead:
                yield from predictions

    def _predict_batch(
        self, classifier: Classifier, images: Sequence[Named], top_k: int
    ) -> list[Prediction]:
        answer = partial(self._answers, classifier, top_k)
        rows = run_images(map(self._prepare, images), answer, batch_size=len(images))
        return [_prediction(name, row) for (name, _), row in zip(images, rows, strict=True)]

    def _prepare(self, named: Named) -> np.ndarray | ImageError:
        """Return the graph's input for an image, or its error."""
        try:
            upright = decode_given(*named, self._classifier.preprocess, max_pixels=self._max_pixels)
            return self._classifier.prepare_resized(upright)
        except ImageError as err:
            return err

    def _answers(self, classifier: Classifier, top_k: int, inputs: np.ndarray) -> list[Prediction]:
        """Return the prediction of each input, without the image's name."""
        return predictions_of(classifier, classifier.run(inputs), top_k=top_k)

    def _of_one_thread(self) -> Classifier:
        """Return the same classifier with one thread for each batch; opened once."""
        _ = self._classifier  # of this process, as the content below
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


def _in_one_process(predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Yield what threads prepare; a process that is forked meanwhile has none of them."""
    process = os.getpid()
    for prediction in predictions:
        yield prediction
        if os.getpid() != process:
            raise ConfigError(
                "predictions that a parent process began cannot be continued in a forked one; "
                "call predict_each again there."
            )


def _warn_of_another_head(classifier: Classifier) -> None:
    """Warn where a file was exported from none of the heads beside it."""
    path = classifier.path
    beside = sorted(path.parent.glob("*.safetensors"), key=lambda head: head.name != _HEAD)
    heads = {head: _head_sha256(head) for head in beside[:_MAX_HEADS]}
    found = [head for head, sha256 in heads.items() if sha256]
    own = classifier.header.details.get("head_sha256")
    if own and found and own not in heads.values():
        log.warning(
            "'%s' was exported from another head than '%s' beside it; run featx export.",
            path,
            found[0].name,
        )


def _head_sha256(path: Path) -> str | None:
    """Return the sha256 in a head's header; None where it is not a head, or is damaged."""
    try:
        text = tensor_metadata(path, most=2 * MAX_HEADER_BYTES)["featx"] if path.is_file() else ""
        header = Header.from_json(text, path=path, kind="head")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return str(header.details["sha256"])


def _prediction(name: str, row: Prediction | ImageError) -> Prediction:
    if isinstance(row, ImageError):
        return Prediction(name, (), row.reason)
    return replace(row, image=name)


def _groups(images: Iterable[Named], size: int) -> Iterator[list[Named]]:
    """Yield the images in lists of at most ``size``, and of a bounded number of bytes."""
    group: list[Named] = []
    num_bytes = 0
    for named in images:
        group.append(named)
        num_bytes += num_bytes_of(named[1])
        if len(group) == size or num_bytes >= _MAX_BATCH_BYTES:
            yield group
            group, num_bytes = [], 0
    if group:
        yield group


def num_bytes_of(image: ImageLike | ImageError) -> int:
    """Return the bytes that an image takes in memory; 0 for a path."""
    if isinstance(image, Image.Image):
        return 4 * image.width * image.height
    if isinstance(image, np.ndarray):
        return image.nbytes
    return len(image) if isinstance(image, bytes) else 0
