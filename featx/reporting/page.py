"""The report page: HTML that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import PAGE_SIGN, without_folders
from featx.classifier.staleness import Staleness
from featx.errors import counted
from featx.features.file import FeatureFile
from featx.heads.describe import describe_training
from featx.heads.head import Head
from featx.heads.tasks import TASKS, TaskName
from featx.heads.tasks.losses import sigmoid
from featx.heads.tasks.scores import Scores
from featx.images.sources import ImageSource
from featx.reporting.plots import (
    MAX_CONFUSION_CLASSES,
    Drawing,
    plot_confusion,
    plot_map,
    plot_path,
    plot_reliability,
    plot_values,
)
from featx.reporting.summary import (
    ClassPredictions,
    MapKind,
    Mistake,
    confused_pairs,
    map_features,
    predict_classes,
    reliability,
    with_pictures,
    worst_classes,
    worst_tags,
    worst_values,
)
from featx.reporting.templates import render

_MAX_SCATTERS = 6


@dataclass(frozen=True, eq=False)
class Answers:
    """Predictions of heads for some labelled images, and their labels."""

    rows: np.ndarray  # of the feature file, (n,) int64
    outputs: np.ndarray  # (n, num_outputs)
    targets: np.ndarray  # labels, as the task reads them


@dataclass(frozen=True, eq=False)
class Page:
    """The content of a page."""

    head: Head
    cache: FeatureFile
    staleness: Staleness
    metrics: Mapping[str, Scores]  # of each split
    split: str  # shown in detail
    answers: Answers  # for its labelled images
    scores: Scores  # of these
    left_out: Answers | None  # for training images, by heads that were not trained on them
    images: ImageSource | None  # None: it is not there, or no mistakes are shown
    map: MapKind
    num_mistakes: int


def render_page(page: Page, *, made_from: str) -> str:
    """Return the HTML of a page.

    It notes ``made_from`` for ``is_page_of``; not where a picture is missing, so that the page is
    made again when that may be there.
    """
    header, task, scores = page.head.header, TASKS[page.head.task], page.scores
    outputs = counted(len(page.head.classes), task.output, task.outputs)
    found, num_mistakes = _mistakes(page, page.answers)
    of_training, num_of_training = _mistakes(page, page.left_out) if page.left_out else ([], 0)
    pictured = with_pictures([*found, *of_training], page.cache, page.images)
    mistakes, of_training = pictured[: len(found)], pictured[len(found) :]
    return render(
        f"{page.head.task}.html",
        {
            "title": without_folders(header.details["source"]).removesuffix(":"),
            "outputs": outputs[:1].upper() + outputs[1:],
            "versions": header.environment.items(),
            "task": task,
            "sign": PAGE_SIGN,
            "made_from": made_from if all(each.picture for each in pictured) else "",
            "stale": page.staleness.changes,
            "spec": header.spec,
            "choice": header.details["choice"],
            "training": describe_training(header.details["choice"]),
            "weights": without_folders(header.details["weights"]),
            "source": without_folders(header.details["source"]),
            "calibration": header.details.get("calibration"),
            "classes": page.head.classes,
            "metrics": page.metrics,
            "split": page.split,
            "scores": scores,
            "output_scores": getattr(scores, task.scores[2]),
            "mistakes": mistakes,
            "num_mistakes": num_mistakes,
            "of_training": of_training,
            "num_of_training": num_of_training,
            "out_of_fold": page.split == "train" and page.left_out is page.answers,
            **_CONTENT[page.head.task](page),
        },
    )


def is_page_of(path: Path, made_from: str) -> bool:
    """Return whether a page notes these inputs, and is whole."""
    try:
        page = path.read_bytes()
    except OSError:
        return False
    noted = f'{PAGE_SIGN}; {made_from}">'.encode()
    return bool(made_from) and noted in page[:1024] and page.endswith(b"</html>\n")


def _mistakes(page: Page, answers: Answers) -> tuple[list[Mistake], int]:
    """Return the mistakes that are shown as pictures, the worst first, and how many there are."""
    head, most = page.head, page.num_mistakes
    if head.task == "single-label":
        seen = predict_classes(answers.outputs, answers.targets, answers.rows)
        return worst_classes(seen, head.classes, most=most)
    outputs = answers.outputs.astype(np.float64)
    if head.task == "multi-label":
        given = (sigmoid(outputs), head.thresholds, answers.targets > 0)
        return worst_tags(answers.rows, *given, head.classes, most=most)
    worst = worst_values(answers.rows, outputs, answers.targets, head.classes, most=most)
    return worst, len(answers.rows)


def _classes(page: Page) -> dict[str, Any]:
    seen = predict_classes(page.answers.outputs, page.answers.targets, page.answers.rows)
    return {
        "pairs": confused_pairs(seen, page.head.classes),
        "figures": list(_class_figures(page, seen)),
    }


def _class_figures(page: Page, seen: ClassPredictions) -> Iterator[Drawing]:
    classes = page.head.classes
    if len(classes) <= MAX_CONFUSION_CLASSES:
        yield Drawing(
            "Confusion matrix",
            plot_confusion(seen.confusion, classes),
            "Each row is a class; the shade is the share of its images.",
            large=len(classes) > MAX_CONFUSION_CLASSES // 2,
        )
    yield Drawing(
        "How far probabilities can be trusted",
        plot_reliability(reliability(seen.confidence, seen.labels == seen.predicted)),
        "Probabilities that can be trusted lie on the dashed line. Bars below it: too sure.",
    )
    yield from plot_path(page.head.header.details["choice"])
    if plane := map_features(page.cache, seen.rows, kind=page.map):
        how = (
            f"The two directions of most variance ({plane.explained:.0%} of it)"
            if plane.explained is not None
            else "t-SNE: neighbours stay neighbours, distances between groups mean little"
        )
        yield Drawing(
            "Map of the features", plot_map(plane, seen, classes), f"{how}. Rings are mistakes."
        )


def _tags(page: Page) -> dict[str, Any]:
    tagged = page.answers.targets > 0
    probabilities = sigmoid(page.answers.outputs.astype(np.float64))
    trust = plot_reliability(reliability(probabilities.reshape(-1), tagged.reshape(-1)))
    caption = "All tags of all images. Probabilities that can be trusted lie on the dashed line."
    return {
        "figures": [
            Drawing("How far probabilities can be trusted", trust, caption),
            *plot_path(page.head.header.details["choice"]),
        ]
    }


def _numbers(page: Page) -> dict[str, Any]:
    head, values = page.head, page.answers.outputs.astype(np.float64)
    caption = "On the dashed line the head is right."
    scatters = [
        Drawing(
            name, plot_values(page.answers.targets[:, column], values[:, column], name), caption
        )
        for column, name in enumerate(head.classes[:_MAX_SCATTERS])
    ]
    return {"figures": [*scatters, *plot_path(head.header.details["choice"])]}


_CONTENT: dict[TaskName, Callable[[Page], dict[str, Any]]] = {
    "single-label": _classes,
    "multi-label": _tags,
    "regression": _numbers,
}
