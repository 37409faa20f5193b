"""Score an exported file on labelled images: raw images in, the table of train-head out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from featx.artifact import is_own, publish, without_folders
from featx.artifact.bars import drawing
from featx.artifact.cells import table_bytes
from featx.artifact.shown import Cells, Framed
from featx.classifier.prediction import answer_cells, answer_columns
from featx.classifier.references import references_of
from featx.classifier.session import Classifier, open_classifier, run_images
from featx.errors import (
    ArtifactError,
    ArtifactMismatch,
    BadImages,
    ImageError,
    SourceError,
    counted,
    listed,
    require_choice,
)
from featx.features.contents import HeldOut
from featx.heads.provenance import Provenance, digest_labelled, digest_labels, num_trained
from featx.heads.tasks import Labels
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.tables import main_column, score_cells, score_columns
from featx.images.decode import DIGEST_BYTES, MAX_PIXELS, check_max_pixels
from featx.images.reading import read_images
from featx.images.sources import SPLITS, ImageSource, open_source, own_splits
from featx.images.sources.entries import describe_ignored

log = logging.getLogger(__name__)

_MAX_FILES = 32
_TRAIN, _VAL = SPLITS.index("train"), SPLITS.index("val")
OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all."""


@dataclass(frozen=True, repr=False)
class EvaluateReport(Framed):
    """Scores of a classifier file.

    Attributes:
        metrics: Scores of each split; ``"all"`` where there is one and those of training are not
            known.
        classes: Of the model, in index order: classes, tags or targets.
        skipped: ``(sample_id, reason)`` of images that were left out.
        seconds: All in all.
        stale: How the source's training images differ from those that trained the head; None where
            they do not, or where that cannot be told.
    """

    _lines_are_rows = True
    metrics: dict[str, Scores]
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    stale: str | None = None

    def _lines(self) -> Iterator[str]:
        yield f"EvaluateReport: {listed(list(self.classes))}"
        for split, scores in self.metrics.items():
            column = main_column(scores)
            count = counted(scores.num_samples, "image")
            yield f"{split}: {column.title} {column.text(scores)} of {count}"
        if self.skipped:
            yield f"{counted(len(self.skipped), 'image')} left out, '{self.skipped[0][0]}' first"

    def _cells(self) -> Cells:
        return score_cells(self.metrics)

    def _columns(self) -> dict[str, Sequence[Any]]:
        return score_columns(self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        metrics = {split: scores.to_dict() for split, scores in self.metrics.items()}
        return asdict(self) | {"metrics": metrics}


def evaluate(
    model: str | Path,
    source: str | Path,
    *,
    on_error: OnError = "fail",
    max_pixels: int = MAX_PIXELS,
    stale: bool = False,
    table: str | Path | None = None,
    progress: Progress | bool | None = None,
) -> EvaluateReport:
    """Return the scores of a classifier file on a source's labelled images.

    Classes and tags are joined by name. On the source the head was trained from, the splits are
    those of training.

    Args:
        model: The ONNX file, or ``hf:USER/NAME[@REVISION]``.
        source: As ``extract`` takes it.
        on_error: ``"fail"`` tries all images and then names those that cannot be used;
            ``"skip"`` leaves them out.
        max_pixels: Height times width that an image may have.
        stale: Score a model on the source that trained it although images that trained it have
            changed since.
        table: A CSV to write, a row for each labelled image that can be used: its label, and the
            columns of ``answer_columns``. A table that is there is replaced.
        progress: Called after each image. None draws a bar in a terminal or notebook, False none.

    Raises:
        ArtifactError: The model cannot be used.
        ArtifactMismatch: Images that trained it have changed, and ``stale`` is false.
        SourceError: The source cannot be used, has no labels, or labels the model does not know.
        BadImages: Images cannot be used (with ``on_error="skip"``: none with a label can).
        ConfigError: An option is out of range.
    """
    require_choice("on_error", on_error, get_args(OnError))
    check_max_pixels(max_pixels)
    start = time.perf_counter()
    classifier, images = open_classifier(model), open_source(str(source))
    if images.ignored:
        log.info("'%s': skipped %s.", images.uri, describe_ignored(images.ignored))
    samples, labels = images.samples, _labels(images)
    targets = classifier.task.read(labels, names=classifier.classes)
    with drawing(progress) as draw:
        logits, content_digests, bad = _run(
            classifier,
            images,
            after_errors=on_error == "skip",
            max_pixels=max_pixels,
            progress=draw.bar(progress, "Evaluating"),
        )
    skipped = tuple((samples[index].sample_id, reason) for index, reason in bad.items())
    usable = np.ones(len(samples), bool)
    usable[list(bad)] = False
    usable &= targets.labelled
    if not usable.any():
        raise BadImages(skipped, len(samples), "None with a label is left.")
    if skipped and on_error == "fail":
        advice = "Repair or remove them, or leave them out with on_error='skip'."
        if classifier.contract.image_shape:
            advice += " A file that is exported without image_shape=… takes images of any shape."
        raise BadImages(skipped, len(samples), advice)
    splits, are_known = _find_splits(images, content_digests, classifier)
    trains = targets.labelled & (splits == _TRAIN) & are_known
    changes = _find_changes(classifier, labels, content_digests, trains)
    if changes:  # images that could not be used when the features were made have no part in it
        changes = _find_changes(classifier, labels, content_digests, trains & usable)
    if changes:
        _require_stale(stale, classifier, images, changes)
    metrics = classifier.task.measure_splits(
        *(logits[usable], targets.values[usable], splits[usable]), thresholds=classifier.thresholds
    )
    names = list(SPLITS)
    if len(metrics) == 1 and not are_known:
        metrics = {"all": next(iter(metrics.values()))}
        names = ["all"] * len(SPLITS)
    if table is not None:
        answers = answer_cells(
            *(classifier.task, classifier.classes, logits[usable]), classifier.thresholds
        )
        named = (
            [samples[i].sample_id, names[splits[i]], labels.classes[labels.index[i]]]
            for i in np.flatnonzero(usable).tolist()
        )
        _write_table(Path(table), classifier, zip(named, answers, strict=True))
    return EvaluateReport(
        metrics=metrics,
        classes=classifier.classes,
        skipped=skipped,
        seconds=time.perf_counter() - start,
        stale=changes,
    )


def _require_stale(stale: bool, classifier: Classifier, images: ImageSource, why: str) -> None:
    """Refuse a model whose training images have changed, or warn where that is wanted."""
    if not stale:
        raise ArtifactMismatch(
            classifier.path,
            f"'{classifier.path}' is stale beside '{images.uri}': {why}. Run featx extract, "
            "train-head and export again, or score the model as it is with stale=True.",
        )
    log.warning("The model is stale: %s.", why)


def _write_table(
    path: Path, classifier: Classifier, rows: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> None:
    """Write image, split and label of each row, then the columns of its answer."""
    columns = ["image", "split", "label", *answer_columns(classifier.task, classifier.classes)]
    publish(path, table_bytes(columns, ([*a, *b] for a, b in rows)), overwrite=True)


def _find_splits(
    images: ImageSource, content_digests: np.ndarray, classifier: Classifier
) -> tuple[np.ndarray, bool]:
    """Return the split of each image, ``(N,)`` uint8, and whether they are those of training."""
    details, splits = classifier.header.details, own_splits(images.samples)
    if not is_training_source(details, images.uri, content_digests):
        trained = _trained_among(classifier, content_digests)
        if trained is None:
            log.info(
                "Not the source that the head was trained from: images that trained it may be "
                "among these."
            )
        elif trained:
            log.warning("%s trained the model: scores are optimistic.", counted(trained, "image"))
        return splits, False
    if (splits == _VAL).any():
        return splits, True
    if "held_out" not in details:
        log.warning(
            "'%s' does not list the images that were held out: those that trained it are scored "
            "with them.",
            classifier.path,
        )
        return splits, False
    held_out = HeldOut.from_text(details["held_out"], path=classifier.path)
    splits[(splits == _TRAIN) & held_out.contains(content_digests)] = _VAL
    return splits, True


def _trained_among(classifier: Classifier, digests: np.ndarray) -> int | None:
    """Return how many images are known to have trained a model; None where nothing beside it says.

    That is its head, or the features that trained it; without the library of either, none is there.
    """
    for among in (_trained_by_head, _trained_by_features):
        with suppress(ModuleNotFoundError):
            if (found := among(classifier, digests)) is not None:
                return found
    return None


def _trained_by_head(classifier: Classifier, digests: np.ndarray) -> int | None:
    from featx.heads.head import open_head

    own = classifier.header.details.get("head_sha256")
    for path in sorted(classifier.path.parent.glob("*.safetensors"))[:_MAX_FILES]:
        if not is_own(path, "head"):
            continue
        with suppress(ArtifactError, ValueError, KeyError):
            details = open_head(path).header.details
            if details["sha256"] == own:
                return num_trained(Provenance.from_dict(details["provenance"]), digests)
    return None


def _trained_by_features(classifier: Classifier, digests: np.ndarray) -> int | None:
    from featx.features.file import open_features

    recorded = classifier.header.details.get("trained_on")
    if recorded is None:
        return None
    for path in sorted(classifier.path.parent.glob("*.h5"))[:_MAX_FILES]:
        with suppress(ArtifactError):
            cache = open_features(path, verify=False)
            rows = cache.rows("train")
            rows = rows[cache.labels[rows] >= 0]
            labels = digest_labels(cache.classes, classifier.task)[cache.labels[rows]]
            contents = np.asarray(cache.digests)[rows]
            if digest_labelled(contents, labels) == recorded["labels_sha256"]:
                known = {digest.tobytes() for digest in contents}
                return sum(digest.tobytes() in known for digest in digests)
    return None


def is_training_source(details: Mapping[str, Any], uri: str, digests: np.ndarray) -> bool:
    """Return whether a source holds nine in ten of a model's reference images.

    Its images are given by their digests ``(N, 16)`` uint8. For a model without any, the source's
    name decides.
    """
    references = references_of(details)
    if not references:
        return details.get("source") in (uri, without_folders(uri))
    there = {digest.tobytes() for digest in digests}
    return 10 * sum(own.digest in there for own in references) >= 9 * len(references)


def _find_changes(
    classifier: Classifier, labels: Labels, content_digests: np.ndarray, trains: np.ndarray
) -> str | None:
    """Return how training images differ from those that trained the head; None if not, or unknown.

    ``trains`` says which of the images train, ``(N,)`` bool.
    """
    recorded = classifier.header.details.get("trained_on")
    if recorded is None or not trains.any():
        return None
    digests = digest_labels(labels.classes, classifier.task)[labels.index]
    if digest_labelled(content_digests[trains], digests[trains]) == recorded["labels_sha256"]:
        return None
    then, now = recorded["num_rows"], int(trains.sum())
    if then == now:
        return "images that trained its head have changed, or have other labels"
    before = f"its head was trained on {counted(then, 'image')}"
    return f"{before}, and the source has {now:,} for training"


def _run(
    classifier: Classifier,
    images: ImageSource,
    *,
    after_errors: bool,
    max_pixels: int,
    progress: Progress | None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Return logits ``(N, num_classes)``, content digests ``(N, 16)``, and why images are bad.

    Without ``after_errors``, images after the first bad one are decoded, but not classified.
    """
    num_images, bad = len(images.samples), dict[int, str]()
    logits = np.zeros((num_images, len(classifier.classes)), np.float32)
    content_digests = np.zeros((num_images, DIGEST_BYTES), np.uint8)

    def answer(inputs: np.ndarray) -> np.ndarray:
        skip = bad and not after_errors
        return logits[: len(inputs)] if skip else classifier.logits(inputs)

    found = read_images(
        images,
        range(num_images),
        classifier.prepare_resized,
        preprocess=classifier.preprocess,
        max_pixels=max_pixels,
    )

    def inputs() -> Iterator[np.ndarray | ImageError]:
        for index, digest, image in found:
            content_digests[index] = np.frombuffer(digest, np.uint8)
            yield image

    with closing(found):
        rows = run_images(inputs(), answer, batch_size=classifier.batch_size)
        for index, row in enumerate(rows):
            if isinstance(row, ImageError):
                bad[index] = row.reason
            else:
                logits[index] = row
            if progress:
                progress(index + 1, num_images)
    return logits, content_digests, bad


def _labels(images: ImageSource) -> Labels:
    """Return the labels of a source; refuse one without any."""
    index = np.array([sample.label for sample in images.samples], np.int64)
    if not (index >= 0).any():
        raise SourceError(
            f"'{images.uri}' has no labels to score against: its images lie in no class folders. "
            "Use featx predict for unlabelled images."
        )
    ids = [sample.sample_id for sample in images.samples]
    return Labels(images.classes, index, ids, images.uri)
