"""Score an exported file on labelled images: raw images in, the table of train-head out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from featx.classifier.references import is_training_source
from featx.classifier.session import Classifier, open_classifier
from featx.errors import BadImages, ConfigError, ImageError, SourceError
from featx.features.splits import HeldOut
from featx.heads.metrics import Scores, measure_for
from featx.heads.targets import Labels, Targets, read_targets
from featx.heads.task import task_of, thresholds_of
from featx.images.decode import (
    DIGEST_BYTES,
    MAX_PIXELS,
    check_max_pixels,
    content_digest,
    pixels_of,
)
from featx.images.read_ahead import read_ahead
from featx.images.sources import SPLITS, ImageSource, open_source, own_splits
from featx.images.sources.entries import describe_ignored

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all."""


@dataclass(frozen=True)
class EvaluateReport:
    """How a classifier did.

    Attributes:
        metrics: Scores of each split; ``"all"`` where the source has only one.
        classes: Of the model, in index order: classes, tags or targets.
        skipped: ``(sample_id, reason)`` of images that were left out.
        seconds: All in all.
    """

    metrics: dict[str, Scores]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "metrics": {split: scores.to_dict() for split, scores in self.metrics.items()},
            "classes": list(self.classes),
            "skipped": [list(image) for image in self.skipped],
            "seconds": self.seconds,
        }


def evaluate(
    model: str | Path,
    source: str | Path,
    *,
    on_error: OnError = "fail",
    max_pixels: int = MAX_PIXELS,
    progress: Progress | None = None,
) -> EvaluateReport:
    """Return the scores of a classifier file on a source's labelled images.

    Classes and tags are joined by name. On the source the head was trained from, the splits are
    those of training.

    Args:
        model: The ONNX file.
        source: As ``extract`` takes it.
        on_error: ``"fail"`` looks at all images and then names those that cannot be used;
            ``"skip"`` leaves them out.
        max_pixels: Height times width that an image may have.
        progress: Called after each image.

    Raises:
        ArtifactError: The model cannot be used.
        SourceError: The source cannot be used, has no labels, or labels the model does not know.
        BadImages: Images cannot be used (with ``on_error="skip"``: none with a label can).
        ConfigError: An option is out of range.
    """
    if on_error not in get_args(OnError):
        raise ConfigError(f"on_error must be 'fail' or 'skip'; got {on_error!r}.")
    check_max_pixels(max_pixels)
    start = time.perf_counter()
    classifier, images = open_classifier(model), open_source(str(source))
    if images.ignored:
        log.info("'%s': skipped %s.", images.uri, describe_ignored(images.ignored))
    samples, held_out = images.samples, _held_out(images, classifier, Path(model))
    targets = _targets(images, classifier)
    logits, digests, bad = _run(
        classifier, images, go_on=on_error == "skip", max_pixels=max_pixels, progress=progress
    )
    skipped = tuple((samples[index].sample_id, reason) for index, reason in bad.items())
    usable = np.ones(len(samples), bool)
    usable[list(bad)] = False
    usable &= targets.labelled
    if not usable.any():
        raise BadImages(skipped, len(samples), "None with a label is left.")
    if skipped and on_error == "fail":
        advice = "Repair or remove them, or leave them out with --on-error skip."
        raise BadImages(skipped, len(samples), advice)
    splits = own_splits(samples)
    if held_out:
        is_val = (splits == SPLITS.index("train")) & held_out.contains(digests)
        splits[is_val] = SPLITS.index("val")
    return EvaluateReport(
        metrics=_score(classifier, logits, targets, splits, usable),
        classes=classifier.classes,
        skipped=skipped,
        seconds=time.perf_counter() - start,
    )


def _run(
    classifier: Classifier,
    images: ImageSource,
    *,
    go_on: bool,
    max_pixels: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return logits, content hashes, and why images cannot be used, by row.

    Logits are ``(num_samples, num_classes)`` float32, content hashes ``(num_samples, 16)`` uint8.
    The logits of a bad image mean nothing; nor, unless the run is to ``go_on``, do those after the
    first: the rest is decoded, to find all that are bad, but not classified.
    """
    samples, bad = images.samples, dict[int, str]()
    logits = np.zeros((len(samples), len(classifier.classes)), np.float32)
    digests = np.zeros((len(samples), DIGEST_BYTES), np.uint8)

    def decode(index: int) -> np.ndarray:
        sample_id, content = samples[index].sample_id, images.read(index)
        digests[index] = np.frombuffer(content_digest(content), np.uint8)
        return pixels_of(
            content,
            sample_id=sample_id,
            max_pixels=max_pixels,
            preprocess=classifier.preprocess,
        )

    with closing(read_ahead(decode, len(samples))) as ahead:
        for index, decoded in enumerate(ahead):
            try:
                pixels = decoded.result()
                if go_on or not bad:
                    logits[index] = classifier.logits(classifier.prepare(pixels)[None])[0]
            except ImageError as err:
                bad[index] = err.reason
            if progress:
                progress(index + 1, len(samples))
    return logits, digests, bad


def _score(
    classifier: Classifier,
    logits: np.ndarray,
    targets: Targets,
    splits: np.ndarray,
    usable: np.ndarray,
) -> dict[str, Scores]:
    """Return the scores of each split that has labelled images; of an only one, as ``"all"``."""
    thresholds = thresholds_of(classifier.header.details, len(classifier.classes))
    scores: dict[str, Scores] = {}
    for number, split in enumerate(SPLITS):
        rows = usable & (splits == number)
        if rows.any() and (
            metrics := measure_for(
                targets.task, logits[rows], targets.values[rows], thresholds=thresholds
            )
        ):
            scores[split] = metrics
    return {"all": next(iter(scores.values()))} if len(scores) == 1 else scores


def _held_out(images: ImageSource, classifier: Classifier, model: Path) -> HeldOut | None:
    """Return which of the images were held out if this is the source that the head is from.

    None where that is not known, and where the source itself has a validation split.

    Raises:
        ArtifactInvalid: The model does not list them as featx does.
    """
    details = classifier.header.details
    if not is_training_source(details, images):
        log.info(
            "Not the source that the head was trained from: images that trained it may be among "
            "these."
        )
        return None
    if any(sample.split == "val" for sample in images.samples):
        return None
    if "held_out" not in details:
        log.warning(
            "'%s' does not list the images that were held out: those that trained it are scored "
            "with them.",
            model,
        )
        return None
    return HeldOut.from_text(details["held_out"], path=model)


def _targets(images: ImageSource, classifier: Classifier) -> Targets:
    """Return what the source's labels mean to the model.

    Raises:
        SourceError: No sample is labelled, or a label is unknown to the model.
    """
    samples = images.samples
    index = np.array([sample.label for sample in samples], np.int64)
    if not (index >= 0).any():
        raise SourceError(
            f"'{images.uri}' has no labels to score against: its images lie in no class folders. "
            "Use featx predict for unlabelled images."
        )
    ids = [sample.sample_id for sample in samples]
    labels = Labels(images.classes, index, ids, images.uri)
    return read_targets(task_of(classifier.header.details), labels, names=classifier.classes)
