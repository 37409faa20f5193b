"""Compare heads and tuned heads on the same images: scores, paired differences, cost."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from featx.artifact.bars import drawing
from featx.artifact.shown import Framed
from featx.backbones.spec import PENULTIMATE
from featx.classifier.session import open_classifier
from featx.classifier.staleness import find_features, open_features_of
from featx.errors import ArtifactMismatch, ConfigError, counted
from featx.features.file import FeatureFile
from featx.heads.head import Head, open_head
from featx.heads.samples.data import Step
from featx.heads.tasks import TASKS, Labels
from featx.heads.tasks.multi_label import given_tags
from featx.heads.tasks.scores import Difference, Scores, paired_differences
from featx.heads.tasks.tables import main_column, score_columns
from featx.stages.compare.same_images import (
    choose_split,
    images_of,
    require_effect,
    require_same_images,
    require_several,
)
from featx.training.finetune.outcome import Comparison

_ROWS_AT_ONCE = 256
_RUNS, _SECONDS = 30, 2.0
"""A model is run so often, or for so long, on one image."""

Export = Callable[[Path, Path], object]
"""Writes the model of a head file to a path."""


@dataclass(frozen=True)
class Timing:
    """Seconds that a head took, and one epoch of its training; None where they are not known."""

    extraction: float | None = None
    training: float | None = None
    epoch: float | None = None

    @property
    def total(self) -> float | None:
        """Both together."""
        if self.extraction is None or self.training is None:
            return None
        return self.extraction + self.training


@dataclass(frozen=True)
class ComparedHead:
    """Scores and cost of a head.

    Attributes:
        path: The head file.
        backbone: Its name in the catalog.
        image_size: Input of the backbone, pixels.
        layer: Node of the backbone that the features, or those of the tail, are from.
        cut: Behind which the network was trained too; ``"penultimate"`` for a head alone.
        start: ``"pretrained"`` or ``"scratch"``.
        num_trained: Parameters that were trained, the head's among them.
        metrics: Scores of the split that is compared.
        comparison: Paired with the first head: of the images that only one has right, of tags all
            of them; None for the first, and for numbers.
        differences: How far it is above the first head, which has none: log loss and calibration
            error, of numbers the mean absolute error, each with a p value of a paired test.
        timing: Seconds of extraction and training.
        num_bytes: Size of the ONNX file; None where it was not measured.
        milliseconds: Of the ONNX file for one image of the network's input size, the median.
    """

    path: Path
    backbone: str
    image_size: int
    layer: str
    cut: str
    start: str
    num_trained: int
    metrics: Scores
    comparison: Comparison | None
    timing: Timing
    differences: Mapping[str, Difference] = field(default_factory=dict)
    num_bytes: int | None = None
    milliseconds: float | None = None

    @property
    def difference(self) -> float | None:
        """Share of the images that it has right more than the first head."""
        if self.comparison is None:
            return None
        more = self.comparison.num_only_tuned - self.comparison.num_only_probe
        return more / self.metrics.num_samples

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        paired = self.comparison and {
            "difference": self.difference,
            "num_only_first": self.comparison.num_only_probe,
            "num_only_this": self.comparison.num_only_tuned,
            "p_value": self.comparison.p_value,
        }
        return asdict(self) | {
            "path": str(self.path),
            "metrics": self.metrics.to_dict(),
            "comparison": paired,
            "differences": {name: own._asdict() for name, own in self.differences.items()},
            "timing": asdict(self.timing) | {"total": self.timing.total},
        }


@dataclass(frozen=True, repr=False)
class CompareHeadsReport(Framed):
    """Scores and cost of several heads on the same images.

    Attributes:
        split: The split that was compared.
        heads: In the order that they were given in, or the best first; each is compared with the
            first of them.
    """

    _lines_are_rows = True
    split: str
    heads: tuple[ComparedHead, ...]

    def _lines(self) -> Iterator[str]:
        yield f"CompareHeadsReport: {counted(len(self.heads), 'head')} on {self.split}"
        for each in self.heads:
            column = main_column(each.metrics)
            yield f"{each.path.name}: cut {each.cut}, {column.title} {column.text(each.metrics)}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        names = (
            *("path", "backbone", "image_size", "cut", "start", "num_trained", "difference"),
            *("num_bytes", "milliseconds"),
        )
        own = {name: [getattr(each, name) for each in self.heads] for name in names}
        own["path"] = [str(path) for path in own["path"]]
        own["seconds"] = [each.timing.total for each in self.heads]
        scores = score_columns({str(i): each.metrics for i, each in enumerate(self.heads)})
        return own | {name: values for name, values in scores.items() if name != "split"}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"split": self.split, "heads": [head.to_dict() for head in self.heads]}


def compare_heads(
    heads: Sequence[str | Path],
    *,
    split: str | None = None,
    weights: str | None = None,
    export: Export | None = None,
    timings: Mapping[Path, Timing] | None = None,
    best_first: bool = False,
    progress: Step | bool | None = None,
) -> CompareHeadsReport:
    """Return scores and cost of several heads, with and without a trained tail.

    Each is scored on the features or activations that it was trained on, which must be of the same
    images in the same splits.

    Args:
        heads: Two head files or more.
        split: The split to compare; None for validation, or test where there is no validation.
        weights: Of heads at a cut without a trained tail: where the pretrained weights are now,
            where they have moved.
        export: Writes a model, as ``export_onnx`` does; None leaves its size and speed out.
        timings: Seconds of those heads where they are known.
        best_first: Order them by their scores.
        progress: Called with the step under way. None shows it in a terminal or notebook, False
            nowhere.

    Raises:
        ConfigError: There is nothing to compare, no such split, or ``weights`` has no effect.
        BackboneError: The weights are missing, or others than those of a head.
        ArtifactError: A file cannot be used.
        ArtifactMismatch: Two heads are of other images, labels, splits or tasks; or one is stale.
    """
    paths = require_several(heads, "heads")
    first: dict[str, Any] = {}
    compared: list[tuple[ComparedHead, _Paired]] = []
    uses_weights = False
    with drawing(progress) as draw:
        tell = draw.steps(progress, "Compare")
        for number, path in enumerate(paths, start=1):
            tell(f"Scoring {path.name} ({number} of {len(paths)})")
            head = open_head(path)
            needs_weights = head.cut is not None and not head.tail
            uses_weights |= needs_weights
            cache, _ = open_features_of(
                head,
                find_features(head, path),
                allow_stale=False,
                weights=weights if needs_weights else None,
            )
            if not first:
                split, first = choose_split(cache, split), images_of(cache)
                task, where = head.task, cache.path
            require_same_images(cache, first, where)
            if head.task != task:
                raise ArtifactMismatch(
                    path, f"'{path}' is for {head.task}, '{paths[0]}' for {task}."
                )
            metrics, paired = _score(head, cache, split or "")
            timing = (timings or {}).get(path, Timing())
            row = _describe(path, head, metrics, timing)
            if export:
                tell(f"Exporting {path.name} ({number} of {len(paths)})")
                row = _with_model(row, path, export)
            compared.append((row, paired))
            del cache  # its features, before the next one's are read
    require_effect(weights, has_cut=uses_weights or export is not None)
    if best_first:
        compared.sort(key=lambda pair: TASKS[task].rank(pair[0].metrics))
    (first_row, reference), *others = compared
    rows = (own.paired_with(reference, row) for row, own in others)
    return CompareHeadsReport(split or "", (first_row, *rows))


class _Paired(NamedTuple):
    """What is compared with another head, image by image."""

    is_right: np.ndarray | None  # class, or all tags, (n,) bool; None for numbers
    statistics: np.ndarray  # of the task, (n, k)

    def paired_with(self, first: _Paired, row: ComparedHead) -> ComparedHead:
        """Return a row with what the comparison with the first head gives."""
        comparison = None
        if self.is_right is not None and first.is_right is not None:
            comparison = Comparison.of(first.is_right, self.is_right)
        differences = paired_differences(first.statistics, self.statistics)
        return replace(row, comparison=comparison, differences=differences)


def _score(head: Head, cache: FeatureFile, split: str) -> tuple[Scores, _Paired]:
    """Return a split's scores, and what is compared of its labelled images."""
    rows = cache.rows(split)
    rows = rows[cache.labels[rows] >= 0]
    task = TASKS[head.task]
    labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path))
    targets = task.read(labels, names=head.classes).values[rows]
    with cache.reading() as rows_at:
        outputs = np.concatenate(
            [
                head.logits(rows_at(rows[start : start + _ROWS_AT_ONCE]))
                for start in range(0, len(rows), _ROWS_AT_ONCE)
            ]
        )
    scores = task.measure(outputs, targets, thresholds=head.thresholds)
    if scores is None:
        raise ConfigError(f"'{cache.path}' has no labelled images in its {split} split.")
    is_right = outputs.argmax(axis=1) == targets if task.has_classes else None
    if task.name == "multi-label":
        is_right = (given_tags(outputs, head.thresholds) == targets).all(axis=1)
    return scores, _Paired(is_right, task.statistics(outputs, targets))


def _describe(path: Path, head: Head, metrics: Scores, timing: Timing) -> ComparedHead:
    spec, choice = head.header.spec, head.header.details["choice"]
    of_head = sum(weight.size + bias.size for weight, bias in head.layers)
    trained = choice.get("parameters", {}).get("trained", of_head)
    return ComparedHead(
        path=path,
        backbone=str(spec["backbone"]),
        image_size=int(spec["preprocess"]["image_size"]),
        layer=str(spec["layer"]),
        cut=(head.cut if head.tail else None) or PENULTIMATE,
        start="scratch" if choice.get("scratch") else "pretrained",
        num_trained=int(trained),
        metrics=metrics,
        comparison=None,
        timing=timing,
    )


def _with_model(row: ComparedHead, path: Path, export: Export) -> ComparedHead:
    """Return a row with size and speed of the model, exported into a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        export(path, model)
        size = model.stat().st_size
        classifier = open_classifier(model)
    side = row.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    taken: list[float] = []
    classifier.run(image)  # the first run plans
    begin = time.perf_counter()
    while len(taken) < _RUNS and time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        classifier.run(image)
        taken.append(1e3 * (time.perf_counter() - start))
    return replace(row, num_bytes=size, milliseconds=statistics.median(taken))
