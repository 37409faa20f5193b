"""Predictions, and lists of them as people see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.artifact.shown import Cells, FramedList, Picture, Shown
from featx.errors import ConfigError, counted
from featx.heads.tasks.single_label import best_classes
from featx.images.given import ImageLike
from featx.images.sources.labels import SEPARATOR
from featx.images.thumbnails import small_pictures

if TYPE_CHECKING:
    from featx.classifier.session import Classifier

Top = tuple[tuple[str, float], ...]
"""Classes or tags, best first, each with its probability."""

_NUM_PICTURES = 24
_MOST_CHARS = 36


@dataclass(frozen=True, repr=False)
class Prediction(Shown):
    """A classifier's answer for one image.

    Attributes:
        image: Its path; ``"image 3"`` for one without.
        top: The most probable classes or tags, best first, each with its probability in [0, 1];
            empty where the image could not be used, and of a regression.
        error: Why it could not be used; None if it could.
        tags: Those that it is given, each with a probability from its threshold on; None unless
            the classifier answers tags.
        values: Each target of a regression with its value; empty of others.
    """

    image: str
    top: Top
    error: str | None = None
    tags: tuple[str, ...] | None = None
    values: tuple[tuple[str, float], ...] = ()

    @property
    def label(self) -> str | None:
        """The most probable class; of tags those given, as ``"big|red"``, or ``"|"`` for none."""
        if self.tags is not None:
            return SEPARATOR.join(self.tags) or SEPARATOR
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Probability of the best class, in [0, 1]; None for tags, which have one each."""
        return self.top[0][1] if self.top and self.tags is None else None

    @property
    def answer(self) -> str:
        """The answer in words: classes with probabilities, tags, values, or the error."""
        if self.error is not None:
            return self.error
        pairs = [f"{name} {value:.4g}" for name, value in self.values]
        pairs = pairs or [f"{name} {probability:.3f}" for name, probability in self.top]
        return f"{self.label}: {', '.join(pairs)}" if self.tags is not None else ", ".join(pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return the prediction as JSON values; ``tags`` or ``values`` where there are any."""
        shown: dict[str, Any] = {"image": self.image}
        if self.tags is not None:
            shown |= {"label": self.label, "tags": list(self.tags)}
        if self.values:
            shown["values"] = dict(self.values)
        else:
            shown["top"] = [{"label": label, "probability": p} for label, p in self.top]
        return shown | {"error": self.error}

    def _lines(self) -> Iterator[str]:
        name = self.image if len(self.image) <= _MOST_CHARS else f"…{self.image[1 - _MOST_CHARS :]}"
        yield f"Prediction: {name}: {self.answer}"


class Predictions(FramedList):
    """The predictions of several images, in order; a list of ``Prediction``."""

    def __init__(
        self, predictions: Iterable[Prediction] = (), images: Sequence[ImageLike] = ()
    ) -> None:
        super().__init__(predictions)
        self._images = list(images[:_NUM_PICTURES])

    def _lines(self) -> Iterator[str]:
        yield f"{counted(len(self), 'prediction')}"

    def _cells(self) -> Cells | None:
        if self._images:
            return None
        return ["image", "answer"], [[each.image, each.answer] for each in self[:21]]

    def _pictures(self) -> Iterator[Picture]:
        jpegs = small_pictures((image, None) for image in self._images)
        for each, jpeg in zip(self, jpegs, strict=False):
            yield Picture(each.image, each.answer, jpeg)

    def _columns(self) -> dict[str, Sequence[Any]]:
        """Return image, label and probability, or a column for each value of a regression."""
        columns: dict[str, Sequence[Any]] = {"image": [each.image for each in self]}
        if names := next((each.values for each in self if each.values), None):
            rows = [dict(each.values) for each in self]
            return columns | {name: [row.get(name) for row in rows] for name, _ in names}
        columns |= {name: [getattr(each, name) for each in self] for name in ("label", "error")}
        if any(each.tags is not None for each in self):
            return columns
        tops = [[*each.top, ("", None)] for each in self]
        columns["probability"] = [each.probability for each in self]
        columns["second"] = [(top[1][0] or None) if len(top) > 1 else None for top in tops]
        return columns


def predictions_of(
    classifier: Classifier, outputs: Mapping[str, np.ndarray], *, top_k: int
) -> list[Prediction]:
    """Return the prediction of each image of a batch, without the image's name.

    Args:
        classifier: What answered.
        outputs: What its ``run`` returned, arrays of one row for each image.
        top_k: Classes or tags to report; as many as the file gives where these are fewer.
    """
    names = classifier.classes
    if classifier.task.activation is None:
        rows = outputs["values"].tolist()
        return [Prediction("", (), values=tuple(zip(names, row, strict=True))) for row in rows]
    thresholds = dict(zip(names, classifier.thresholds, strict=False))
    shown = len(names) if thresholds else top_k
    if classifier.gives_scores:
        found = outputs.get("probabilities")
        if found is None:
            found = classifier.task.probabilities(outputs["logits"])
        tops = best_classes(found, names, top_k=shown)
    else:
        tops = [
            tuple((names[i], float(p)) for i, p in zip(best, row, strict=True))[:shown]
            for best, row in zip(outputs["top_classes"], outputs["top_scores"], strict=True)
        ]
    if not thresholds:
        return [Prediction("", top) for top in tops]
    tags = given_tags(tops, thresholds)
    return [Prediction("", top[:top_k], tags=own) for top, own in zip(tops, tags, strict=True)]


def given_tags(tops: Sequence[Top], thresholds: Mapping[str, float]) -> list[tuple[str, ...]]:
    """Return the tags that each image is given, by name."""
    return [tuple(sorted(tag for tag, p in top if p >= thresholds[tag])) for top in tops]


def require_answers(classifier: Classifier) -> None:
    """Refuse a file that says nothing of classes, tags or numbers."""
    contract = classifier.contract
    if not (classifier.gives_scores or contract.top_k or "values" in contract.outputs):
        wanted = "classes" if contract.task.activation else "values"
        outputs = wanted.replace("classes", "probabilities")
        raise ConfigError(
            f"'{classifier.path}' gives {', '.join(contract.outputs)}, but no {wanted}; export it "
            f"with outputs='{outputs}'."
        )
