"""The stage itself: open, look, draw, write."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from featx.artifact import publishing, require_same_features, require_writable
from featx.errors import ArtifactMissing, ConfigError, SourceError
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head, open_head
from featx.heads.metrics import Metrics, measure
from featx.images.sources import SPLITS, ImageSource, open_source
from featx.stages.report.look import (
    MapKind,
    View,
    confused_pairs,
    map_features,
    reliability,
    view,
    worst_mistakes,
)
from featx.stages.report.page import render
from featx.stages.report.plots import (
    MAX_CONFUSION_CLASSES,
    plot_confusion,
    plot_map,
    plot_path,
    plot_reliability,
    require_matplotlib,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes:
        features: The feature file; None takes the one that the head was trained on.
        source: The images; None takes those that the features were made from.
        split: The one to look at closely; None takes validation, or else test, or else training.
        map: How the features are put on a plane: ``"pca"``, ``"tsne"`` or ``"none"``.
        num_mistakes: Mistakes that are shown as pictures.
        overwrite: Replace the output.
    """

    features: Path | None = None
    source: str | None = None
    split: str | None = None
    map: MapKind = "pca"
    num_mistakes: int = 24
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.split not in (None, *SPLITS):
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}; got '{self.split}'.")
        if self.map not in get_args(MapKind):
            raise ConfigError(
                f"map must be one of {', '.join(get_args(MapKind))}; got '{self.map}'."
            )
        if self.num_mistakes < 0:
            raise ConfigError(f"num mistakes must be at least 0; got {self.num_mistakes}.")


def write_report(
    head: str | Path, output: str | Path, options: ReportOptions | None = None
) -> Path:
    """Write one HTML page about a head, pictures included, and return its path.

    Args:
        head: The head file.
        output: The page.
        options: What it shows.

    Raises:
        ArtifactError: Head or features cannot be used, do not belong together, or the output
            exists.
        SourceError: There are no labelled images in the split.
        ConfigError: An option is out of range, or matplotlib is not installed.
    """
    options, output = options or ReportOptions(), Path(output)
    require_matplotlib()
    trained = open_head(head)
    cache = _open_features(trained, options)
    seen = _choose_view(trained, cache, options)
    require_writable(output, overwrite=options.overwrite)
    images = _open_images(cache, options)
    page = render(
        trained.header,
        metrics=_metrics(trained, cache),
        split=seen.split,
        figures=list(_figures(trained, cache, seen, options)),
        pairs=confused_pairs(seen, trained.classes),
        mistakes=worst_mistakes(seen, cache, images, most=options.num_mistakes),
        num_mistakes=int((seen.labels != seen.predicted).sum()),
    )
    with publishing(output, overwrite=options.overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output


def _open_features(head: Head, options: ReportOptions) -> FeatureFile:
    path = Path(options.features or head.header.details["features"])
    if not path.exists():
        raise ArtifactMissing(
            path, f"The feature file '{path}' is not there. Give it with --features."
        )
    cache = open_features(path)
    require_same_features(head.header, cache.header, path=path)
    return cache


def _choose_view(head: Head, cache: FeatureFile, options: ReportOptions) -> View:
    for split in (options.split,) if options.split else ("val", "test", "train"):
        if seen := view(head, cache, split):
            return seen
    raise SourceError(f"'{cache.path}' has no labelled images in its {options.split} split.")


def _open_images(cache: FeatureFile, options: ReportOptions) -> ImageSource | None:
    """Return where the pictures come from; a report can do without."""
    if not options.num_mistakes:
        return None
    try:
        return open_source(options.source or str(cache.header.details["source"]))
    except SourceError as err:
        if options.source:
            raise
        log.warning("No pictures: %s Give the images with --source.", err)
        return None


def _metrics(head: Head, cache: FeatureFile) -> dict[str, Metrics]:
    scores = {}
    for split in SPLITS:
        rows = cache.rows(split)
        if measured := measure(head.logits(cache.features[rows]), cache.labels[rows]):
            scores[split] = measured
    return scores


def _figures(
    head: Head, cache: FeatureFile, seen: View, options: ReportOptions
) -> Iterator[tuple[str, str]]:
    """Yield each figure and its caption."""
    if len(head.classes) <= MAX_CONFUSION_CLASSES:
        yield (
            plot_confusion(seen, head.classes),
            "Each row is a class; the shade is the share of its images.",
        )
    yield (
        plot_reliability(reliability(seen)),
        "Probabilities that can be trusted lie on the dashed line. Bars below it: too sure.",
    )
    choice = head.header.details["choice"]
    if len(choice.get("path", ())) > 1:
        yield (
            plot_path(choice["path"], choice["strength"]),
            f"Chosen by the held-out log loss: C = {choice['strength']:g}.",
        )
    if plane := map_features(cache, seen, kind=options.map):
        how = (
            f"The two directions of most variance ({plane.explained:.0%} of it)"
            if plane.explained is not None
            else "t-SNE: neighbours stay neighbours, distances between groups mean little"
        )
        yield plot_map(plane, seen, head.classes), f"{how}. Rings are mistakes."
