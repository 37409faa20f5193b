"""Write the report of a head: one HTML page."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np

from featx.artifact import (
    describe_environment,
    fingerprint_of,
    publish,
    require_apart,
    require_replaceable,
    run_files,
)
from featx.artifact.keywords import by_keyword, record_of, require_types
from featx.artifact.shown import Shown
from featx.classifier.staleness import find_features, open_features_of
from featx.errors import ArtifactMissing, SourceError, require_at_least, require_choice
from featx.features.file import FeatureFile
from featx.heads.head import Head, open_head
from featx.heads.tasks import TASKS, Labels, Targets
from featx.heads.tasks.scores import Scores
from featx.images.sources import SPLITS, ImageSource, open_source
from featx.reporting.page import Answers, Page, is_page_of, render_page
from featx.reporting.plots import require_matplotlib
from featx.reporting.summary import MapKind
from featx.training.out_of_fold import out_of_fold
from featx.training.record import calibration_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows, and of which files.

    Attributes:
        features: The feature file; None takes the one that the head was trained on.
        source: The images; None takes those that the features were made from.
        split: Shown in detail; None takes validation, or else test, or else training.
        map: How the features are put on a plane: ``"pca"``, ``"tsne"`` or ``"none"``; of a head of
            classes.
        num_mistakes: Mistakes that are shown as pictures, of the split and of training images; of
            these by heads that were not trained on them.
        stale: Report on a head although the rows that trained it have changed; the page says so.
        overwrite: Has no effect: an earlier report is replaced anyway, another file never.
    """

    features: Path | None = None
    source: str | None = None
    split: str | None = None
    map: MapKind = "pca"
    num_mistakes: int = 24
    stale: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        require_choice("split", self.split, (None, *SPLITS))
        require_at_least("num_mistakes", self.num_mistakes, 0)


class ReportKeywords(TypedDict, total=False):
    """Options of ``ReportOptions`` by keyword."""

    features: str | Path | None
    source: str | None
    split: str | None
    map: MapKind
    num_mistakes: int
    stale: bool
    overwrite: bool


@dataclass(frozen=True, repr=False)
class ReportPage(Shown):
    """The result of a report.

    Attributes:
        path: The page.
        is_unchanged: The page there was made from the same with the same options, and was left as
            it is.
        replaced: What was replaced, in a few words; empty where nothing was.
    """

    path: Path
    is_unchanged: bool = False
    replaced: str = ""

    def _lines(self) -> tuple[str, ...]:
        state = f"replaced: was {self.replaced}" if self.replaced else "written"
        return f"ReportPage: {self.path}", "unchanged" if self.is_unchanged else state


@by_keyword(ReportOptions)
def write_report(
    head: str | Path,
    output: str | Path,
    options: ReportOptions | None = None,
    **keywords: Unpack[ReportKeywords],
) -> ReportPage:
    """Write one HTML page about a head, pictures included.

    An earlier report is replaced; one that was made from the same is left as it is.

    Args:
        head: The head file.
        output: The page.
        options: What it shows.
        keywords: The same by name: ``map="none"``.

    Raises:
        ArtifactError: Head or features cannot be used, do not belong together, or the output
            is something else than a report.
        ArtifactMismatch: The rows that trained the head have changed, and ``stale`` is not set.
        SourceError: There are no labelled images in the split.
        ConfigError: An option is out of range, or matplotlib is not installed.
    """
    options, output = record_of(ReportOptions, options, keywords), Path(output)
    require_matplotlib()
    trained = open_head(head)
    features = find_features(trained, Path(head), options.features)
    read = {f"the head '{head}'": Path(head), **run_files(features)}
    if options.source is not None:
        read[f"the source '{options.source}'"] = Path(options.source)
    require_apart({"the report": output}, read)
    if not features.exists():
        raise ArtifactMissing(
            features, f"The feature file '{features}' is not there. Give it by features=…."
        )
    cache, staleness = open_features_of(trained, features, allow_stale=options.stale)
    labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path))
    targets = TASKS[trained.task].read(labels, names=trained.classes)
    split, rows = _choose_split(cache, targets, options)
    exists = require_replaceable(output, "page")
    made_from = _made_from(trained, cache, options)
    if exists and is_page_of(output, made_from):
        return ReportPage(output, is_unchanged=True)
    left_out = _left_out(trained, cache, targets) if options.num_mistakes else None
    answers = Answers(rows, trained.logits(cache.features[rows]), targets.values[rows])
    metrics = _metrics(trained, cache, targets)
    scores = metrics[split]
    if split == "train" and left_out is not None:
        answers = left_out
        thresholds = trained.thresholds
        scores = (
            targets.task.measure(answers.outputs, answers.targets, thresholds=thresholds) or scores
        )
    page = Page(
        head=trained,
        cache=cache,
        staleness=staleness,
        metrics=metrics,
        split=split,
        answers=answers,
        scores=scores,
        left_out=left_out,
        images=_open_images(cache, options),
        map=options.map,
        num_mistakes=options.num_mistakes,
    )
    content = render_page(page, made_from=made_from)
    publish(output, content, overwrite=exists)
    return ReportPage(output, replaced="an earlier report" if exists else "")


def _made_from(head: Head, cache: FeatureFile, options: ReportOptions) -> str:
    """Return a fingerprint of everything that decides a page."""
    chosen = {name: str(value) for name, value in asdict(options).items() if name != "overwrite"}
    inputs = {"head": head.sha256, "features": cache.inputs_sha256, "options": chosen}
    return fingerprint_of(inputs | describe_environment("matplotlib"))


def _choose_split(
    cache: FeatureFile, targets: Targets, options: ReportOptions
) -> tuple[str, np.ndarray]:
    """Return the split that is shown in detail, and its labelled rows."""
    for split in (options.split,) if options.split else ("val", "test", "train"):
        rows = cache.rows(split)
        rows = rows[targets.labelled[rows]]
        if len(rows):
            return split, rows
    where = "any split" if options.split is None else f"its {options.split} split"
    raise SourceError(f"'{cache.path}' has no labelled images in {where}.")


def _left_out(head: Head, cache: FeatureFile, targets: Targets) -> Answers | None:
    """Return predictions for training images, by heads that were not trained on them.

    None where none can be left out, or the head's outputs or network are other ones.
    """
    if head.tail:
        return None
    try:
        strength, calibration = head.header.details["choice"].get("strength"), calibration_of(head)
        temperature = calibration.temperature if calibration else 1.0
        at = None if strength is None else (float(strength), temperature)
        found = out_of_fold(cache, targets.task, at=at)
    except SourceError:  # it cannot be trained again: its classes have changed
        return None
    if found is None or found.targets.names != head.classes:
        return None
    training = cache.splits[found.rows] == SPLITS.index("train")
    rows = found.rows[training]
    return Answers(rows, found.outputs[training], targets.values[rows]) if len(rows) else None


def _open_images(cache: FeatureFile, options: ReportOptions) -> ImageSource | None:
    """Return the source of the pictures; None where it is not there."""
    if not options.num_mistakes:
        return None
    try:
        return open_source(options.source or str(cache.header.details["source"]))
    except SourceError as err:
        if options.source:
            raise
        log.warning("No pictures: %s Give the images by source=….", err)
        return None


def _metrics(head: Head, cache: FeatureFile, targets: Targets) -> dict[str, Scores]:
    rows = np.flatnonzero(targets.labelled)
    outputs, values = head.logits(cache.features[rows]), targets.values[rows]
    return targets.task.measure_splits(
        outputs, values, cache.splits[rows], thresholds=head.thresholds
    )
