"""Score an exported file on labelled images: raw images in, the table of train-head out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.classifier.session import Classifier, open_classifier
from featx.errors import SourceError
from featx.heads.metrics import Metrics, measure
from featx.images.decode import pixels_of
from featx.images.read_ahead import read_ahead
from featx.images.sources import ImageSource, Sample, assign_validation, open_source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluateReport:
    """How a classifier did.

    Attributes:
        metrics: Scores of each split; ``"all"`` where the source has only one.
        seconds: All in all.
    """

    metrics: dict[str, Metrics]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "metrics": {split: scores.to_dict() for split, scores in self.metrics.items()},
            "seconds": self.seconds,
        }


def evaluate(
    model: str | Path,
    source: str | Path,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluateReport:
    """Return the scores of a classifier file on a source's labelled images.

    Classes are joined by name. On the source the head was trained from, the splits are those of
    training.

    Args:
        model: The ONNX file.
        source: As ``extract`` takes it.
        progress: Called after each image with the number done and the number of all.

    Raises:
        ArtifactError: The model cannot be used.
        SourceError: The source cannot be used, has no labels, or a class the model does not know.
        ImageError: An image cannot be used.
    """
    start = time.perf_counter()
    classifier, images = open_classifier(model), open_source(str(source))
    samples = _split(images, classifier)
    labels = _labels_by_name(images, samples, classifier)
    logits = np.empty((len(samples), len(classifier.classes)), np.float32)

    def decode(index: int) -> np.ndarray:
        return pixels_of(images.read(index), sample_id=samples[index].sample_id)

    with closing(read_ahead(decode, len(samples))) as ahead:
        for index, pixels in enumerate(ahead):
            logits[index] = classifier.run(pixels.result()[None])[0][0]
            if progress:
                progress(index + 1, len(samples))
    splits = np.array([sample.split for sample in samples])
    names = [name for name in ("train", "val", "test") if (splits == name).any()]
    metrics = {name: measure(logits[splits == name], labels[splits == name]) for name in names}
    scored = {name: scores for name, scores in metrics.items() if scores}
    if len(scored) == 1:
        scored = {"all": next(iter(scored.values()))}
    return EvaluateReport(scored, time.perf_counter() - start)


def _split(images: ImageSource, classifier: Classifier) -> list[Sample]:
    """Return the samples, with training's validation split if this is training's source."""
    details = classifier.header.details
    if images.uri == details.get("source"):
        return assign_validation(images.samples, float(details["val_fraction"]))
    log.info(
        "Not the source that the head was trained from: images that trained it may be among these."
    )
    return list(images.samples)


def _labels_by_name(
    images: ImageSource, samples: list[Sample], classifier: Classifier
) -> np.ndarray:
    """Return each sample's index into the model's classes, -1 where unlabelled.

    Raises:
        SourceError: No sample is labelled, or a class is unknown to the model.
    """
    index = {name: position for position, name in enumerate(classifier.classes)}
    used = sorted({sample.label for sample in samples if sample.label >= 0})
    if not used:
        raise SourceError(
            f"'{images.uri}' has no labels to score against: its images lie in no class folders. "
            "Use featx predict for unlabelled images."
        )
    unknown = [images.classes[label] for label in used if images.classes[label] not in index]
    if unknown:
        raise SourceError(
            f"'{images.uri}' has classes that the model does not know: {', '.join(unknown[:5])}. "
            f"The model knows {', '.join(classifier.classes[:10])}."
        )
    own = np.array([index.get(name, -1) for name in images.classes])
    labels = np.array([sample.label for sample in samples])
    return np.where(labels >= 0, own[labels], -1)
