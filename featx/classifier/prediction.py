"""Predictions as records, as lists that show themselves, and as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.artifact.shown import Cells, FramedList, Picture, Shown
from featx.errors import ConfigError, counted
from featx.heads.tasks.losses import log_softmax
from featx.heads.tasks.single_label import best_classes
from featx.heads.tasks.task import Task
from featx.images.given import ImageLike
from featx.images.sources.labels import SEPARATOR
from featx.images.thumbnails import small_pictures

if TYPE_CHECKING:
    from featx.classifier.session import Classifier

Top = tuple[tuple[str, float], ...]
"""Classes or tags, best first, each with its probability."""

_NUM_PICTURES = 24
_MOST_CHARS = 36
_KEPT, _FEWEST = 0.95, 20


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


# --- rows of a table ------------------------------------------------------------------------------


def answer_columns(task: Task, classes: Sequence[str]) -> list[str]:
    """Return the columns of a table of answers, after those that name the image.

    Classes have prediction, probability, margin (over the next best) and next best; tags a
    probability each; numbers their values.
    """
    if task.name == "regression":
        return list(classes)
    if task.name == "multi-label":
        return ["prediction", *(f"p({name})" for name in classes)]
    return ["prediction", "probability", "margin", "next_best"]


def answer_cells(
    task: Task, classes: Sequence[str], logits: np.ndarray, thresholds: Sequence[float] = ()
) -> list[list[str]]:
    """Return the cells of ``answer_columns`` for each row of logits, or of values, ``(n, k)``."""
    if task.name == "regression":
        return [[f"{value:.9g}" for value in row] for row in logits]
    rows = []
    for row in task.probabilities(logits.astype(np.float64)):
        if task.name == "multi-label":
            limits = thresholds or [0.5] * len(classes)
            has = [name for name, p, t in zip(classes, row, limits, strict=True) if p >= t]
            rows.append([SEPARATOR.join(has) or SEPARATOR, *(f"{p:.6f}" for p in row)])
        else:
            order = np.argsort(-row, kind="stable")[:2]
            rows.append(class_cells([(classes[i], float(row[i])) for i in order]))
    return rows


def class_cells(best: Sequence[tuple[str, float]]) -> list[str]:
    """Return the cells of ``answer_columns`` for classes, from the two best with probabilities."""
    (name, probability), *others = best
    if not others:
        return [name, f"{probability:.6f}", "", ""]
    return [name, f"{probability:.6f}", f"{probability - others[0][1]:.6f}", others[0][0]]


def choose_unknown_below(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the probability that 95 % of the right answers to held-out images reach.

    Below it an answer of classes is taken for unknown: of images like these, one right answer in
    twenty is lost. It needs no image that is none of the classes, as in Hendrycks and Gimpel (2017,
    https://arxiv.org/abs/1610.02136), whose score it limits.

    Args:
        logits: Of the exported file, ``(n, num_classes)``.
        labels: Class indices, ``(n,)``.

    Returns:
        A probability in [0, 1]; None with fewer than 20 right answers.
    """
    right = logits.argmax(axis=1) == labels
    if right.sum() < _FEWEST:
        return None
    best = np.exp(log_softmax(logits.astype(np.float64))).max(axis=1)
    return float(np.quantile(best[right], 1 - _KEPT, method="lower"))
