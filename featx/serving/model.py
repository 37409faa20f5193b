"""A model that is being served, and whether another may take its place."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featx.backbones.seal import graph_sha256
from featx.classifier.prediction import require_answers
from featx.classifier.session import Classifier, load_classifier
from featx.errors import ArtifactInvalid, ArtifactMismatch, ConfigError, ImageError
from featx.images.given import decode_given
from featx.reporting.classify import PAGE_NAME, load_runtime, page_files

Image = bytes | np.ndarray
"""An encoded image, or pixels ``(height, width, 3)`` uint8, RGB."""
Row = Mapping[str, np.ndarray]
"""What the model gives for one image, by the names of its outputs."""


_TYPES = {".html": "text/html; charset=utf-8", ".wasm": "application/wasm"}
_BYTES = "application/octet-stream"


class ServedModel:
    """An opened model, its sha256, and the page that runs it in the browser.

    Args:
        content: Of the file, which is checked as predict checks it.
        path: For messages.
        max_pixels: Height times width that an image may have.
        threads: That an image may take which has them to itself; batches take one each.

    Raises:
        ArtifactInvalid: It is no classifier of featx, altered, or damaged.
        ConfigError: It gives features only.
    """

    def __init__(self, content: bytes, *, path: Path, max_pixels: int, threads: int = 1) -> None:
        self.content = content
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.classifier: Classifier = load_classifier(content, path=path, threads=1)
        require_answers(self.classifier)
        self._alone = self.classifier
        if threads > 1:
            self._alone = load_classifier(content, path=path, threads=threads, verify=False)
        self._max_pixels = max_pixels

    @property
    def batch_size(self) -> int:
        """Images that a batch has at most."""
        return self.classifier.batch_size

    def answer(self, images: Sequence[Image], *, is_alone: bool = False) -> list[Row | ImageError]:
        """Return the outputs for each image, or why it cannot be used, in one run of the model.

        With ``is_alone`` it takes all threads: nothing else is under way.
        """
        inputs = [self._prepared(image) for image in images]
        usable = [each for each in inputs if not isinstance(each, ImageError)]
        classifier = self._alone if is_alone else self.classifier
        outputs = classifier.run(np.stack(usable)) if usable else {}
        rows = iter(range(len(usable)))
        return [
            each
            if isinstance(each, ImageError)
            else {name: values[row] for row in (next(rows),) for name, values in outputs.items()}
            for each in inputs
        ]

    def _prepared(self, image: Image) -> np.ndarray | ImageError:
        spec = self.classifier.preprocess
        try:
            upright = decode_given("", image, spec, max_pixels=self._max_pixels)
            return self.classifier.prepare_resized(upright)
        except ImageError as err:
            return err

    def warm_up(self) -> None:
        """Run the model, so that the first request is as fast as the next ones."""
        shape = self.classifier.contract.image_shape or (64, 64)
        for is_alone in (False, True):
            (found,) = self.answer([np.zeros((*shape, 3), np.uint8)], is_alone=is_alone)
            if isinstance(found, ImageError):
                raise found

    @cached_property
    def page_files(self) -> Mapping[str, tuple[str, bytes]]:
        """The page and what it fetches: type and content by path.

        Raises:
            ConfigError: The model does not take whole images, or onnxruntime-web is not here.
        """
        files = page_files(self.classifier, self.content, load_runtime())
        found = {
            f"/{name}": (_TYPES.get(Path(name).suffix, _BYTES), own) for name, own in files.items()
        }
        return {"/": found.pop(f"/{PAGE_NAME}"), **found}

    def describe(self) -> dict[str, Any]:
        """Return what is said of the model at the start, as JSON values."""
        details = self.classifier.header.details
        return {
            "sha256": self.sha256,
            "task": self.classifier.task.name,
            "classes": self.classifier.classes,
            "backbone": self.classifier.header.spec["backbone"],
            "proof": details.get("proof"),
            "licence": details.get("licence"),
            "no_page": self._no_page(),
        }

    def _no_page(self) -> str | None:
        try:
            _ = self.page_files
        except ConfigError as err:
            return str(err)
        return None


def require_successor(new: ServedModel, old: ServedModel) -> None:
    """Refuse a model that may not take another's place while clients rely on it.

    Raises:
        ArtifactInvalid: It records no proof, or one that is older.
        ArtifactMismatch: Its classes, task, input or outputs are others.
    """
    path, proof = new.classifier.path, new.classifier.header.details.get("proof")
    if not proof:
        raise ArtifactInvalid(
            path, f"'{path}' records no proof; export it again without verify=False."
        )
    if proof.get("graph_sha256") != graph_sha256(new.content):
        raise ArtifactInvalid(
            path,
            f"'{path}' has another graph than the one that its proof is of; export it again with "
            "featx export.",
        )
    earlier = old.classifier.header.details.get("proof") or {}
    if (date := str(proof.get("date", ""))) < (served := str(earlier.get("date", ""))):
        raise ArtifactInvalid(
            path,
            f"'{path}' was proven on {date or 'an unknown date'}, before the model that is served "
            f"({served}); to go back to it, stop the server and start it again.",
        )
    for what, found, wanted in (
        ("classes", new.classifier.classes, old.classifier.classes),
        ("task", new.classifier.task.name, old.classifier.task.name),
        ("input", _input(new.classifier), _input(old.classifier)),
        ("outputs", _shapes(new.classifier), _shapes(old.classifier)),
    ):
        if found != wanted:
            raise ArtifactMismatch(
                path,
                f"'{path}' has other {what} than the model that is served; clients rely on them. "
                "Stop the server and start it again with the new model.",
            )


def _input(classifier: Classifier) -> tuple[Any, ...]:
    return classifier.contract.input, classifier.contract.image_shape


def _shapes(classifier: Classifier) -> list[tuple[Any, ...]]:
    return [(value.name, value.dtype, value.shape) for value in classifier.outputs]
