"""Findings about a feature file, joined and ranked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact.bars import drawing
from featx.classifier.tails import features_through
from featx.errors import ConfigError, require_choice
from featx.features.file import FeatureFile, open_features
from featx.features.marks import Mark, read_marks, require_same_images
from featx.heads.samples.data import Step
from featx.heads.tasks import TASKS
from featx.stages.audit.copies import Same, find_same
from featx.stages.audit.findings import AuditReport, Finding
from featx.stages.audit.labels import evaluate_labels
from featx.stages.audit.odd import outlier_findings, quality_findings
from featx.stages.audit.worth import alike_classes, leaks_worth, learning_curve
from featx.training.options import TaskChoice
from featx.training.out_of_fold import OutOfFold


def audit(
    features: str | Path,
    *,
    labels: Any = None,
    source: str | None = None,
    marks: str | Path | None = None,
    task: TaskChoice = "auto",
    seed: int = 0,
    step: Step | None = None,
    progress: bool | None = None,
) -> AuditReport:
    """Return what may be wrong with the labels and images of a feature file.

    Nothing is changed. Images are read once: copies that are not the same file, and pictures with
    nothing on them, are known by their pixels. Labels are evaluated as classes, tags or numbers.
    What cannot be looked at is said in ``notes``.

    Args:
        features: The feature file.
        labels: To be evaluated in place of those of the file: a name for each image, in its order,
            in a list, NumPy array or pandas column, or whole numbers that index its classes; None,
            NaN, "" and -1 are not labels.
        source: Where its images are now; None takes where they were. An image that has another
            content now is left out, and where there are none, so is all that needs pixels.
        marks: A table of findings of the same file: pairs that it marks as different and images
            that it marks to be kept are not findings; other marks are carried on.
        task: What the labels are, as of ``TrainOptions``; numbers have to be said to be some.
        seed: Decides which training images are left out together.
        step: Called with the step under way, in a few words.
        progress: None shows the step in a terminal or notebook, unless there is ``step``; False
            does not.

    Raises:
        ArtifactError: The feature file cannot be used.
        SourceError: ``source`` is given and cannot be used.
        ConfigError: ``task`` is none, ``labels`` are none of these images, or ``marks`` are
            of another feature file.
    """
    start = time.perf_counter()
    require_choice("task", task, ("auto", *TASKS))
    cache = features_through(None, open_features(features, features_later=True))
    if labels is not None:
        cache = with_labels(cache, labels)
    marked = [] if marks is None else _marked(cache, Path(marks))
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    different = {
        _pair(rows[each.sample_id], rows[each.other])
        for each in marked
        if each.different and each.other
    }
    with drawing(progress if step is None else False) as draw:
        told = draw.steps(step, "Audit")
        of_labels = evaluate_labels(cache, wanted=task, seed=seed, step=told)
        same = find_same(cache, different, source, told)
        odd = (
            *outlier_findings(cache, same.rows, same.pictures),
            *(quality_findings(same.pictures) if same.pictures else ()),
        )
        of_classes = _of_classes(cache, of_labels.found, same, seed=seed, step=told)
    found = (*of_labels.findings, *same.findings, *odd)
    findings, dismissed = _with_marks(cache, rows, found, marked)
    return AuditReport(
        path=Path(features),
        findings=findings,
        num_evaluated=of_labels.num_evaluated,
        num_wrong=of_labels.num_wrong,
        confusions=of_labels.confusions,
        small_classes=of_labels.small,
        num_images=len(cache),
        seconds=time.perf_counter() - start,
        sequences=same.sequences,
        **of_classes,
        dismissed=dismissed,
        notes=(*of_labels.notes, *same.notes),
    )


def _of_classes(
    cache: FeatureFile, found: OutOfFold | None, same: Same, *, seed: int, step: Step
) -> dict[str, Any]:
    """Return what is said of classes as a whole, by the names of the report's fields."""
    if found is None:
        return {}
    curve, gains = learning_curve(cache, found, seed=seed, step=step)
    return {
        "leaks": tuple(leaks_worth(cache, found, same.leaked)),
        "alike": alike_classes(found),
        "curve": curve,
        "gains": gains,
    }


def _marked(cache: FeatureFile, table: Path) -> list[Mark]:
    """Return the rows of a table in which something is marked."""
    found = read_marks(table)
    require_same_images(cache, found, table)
    names = set(cache.sample_ids)
    return [each for each in found if any(each.cells) and (not each.other or each.other in names)]


def _pair(one: int, other: int) -> tuple[int, int]:
    return min(one, other), max(one, other)


def _with_marks(
    cache: FeatureFile,
    rows: Mapping[str, int],
    findings: Iterable[Finding],
    marked: Sequence[Mark],
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return findings with the marks of an earlier table, and what is none any more by them."""
    left = {each.key: each for each in marked}
    kept, dismissed = list[Finding](), list[Finding]()
    for each in findings:
        mark = left.pop(each.key, None)
        cells = mark.cells if mark else each.marks
        is_none = mark is not None and mark.different and each.kind == "sequence"
        is_right = mark is not None and mark.keep and mark.given == each.given
        (dismissed if is_right or is_none else kept).append(each._replace(marks=cells))
    others = (
        Finding.of(
            *(cache, rows[mark.sample_id], mark.kind, 0.0),  # type: ignore[arg-type]
        )._replace(given=mark.given, other=mark.other, note=mark.note, marks=mark.cells)
        for mark in left.values()
    )
    return tuple(kept), (*dismissed, *others)


def with_labels(cache: FeatureFile, labels: Any) -> FeatureFile:
    """Return a feature file with other labels, one for each of its images in its order.

    Args:
        cache: The feature file; its features are read.
        labels: A list, tuple, NumPy array or pandas column of names, or of whole numbers that index
            the classes; None, NaN, "" and -1 are not labels.

    Raises:
        ConfigError: It is something else, of another length, or a number is not an index.
    """
    if isinstance(labels, (str, bytes, dict)) or not isinstance(labels, Iterable):
        raise _refusal(f"labels of type {type(labels).__name__}")
    if (shape := getattr(labels, "shape", None)) is not None and len(shape) != 1:
        raise _refusal(f"labels of shape {tuple(shape)}")
    found = [_name(each, cache.classes) for each in labels]
    if len(found) != len(cache):
        raise ConfigError(f"labels has {len(found):,} values, but '{cache.path}' {len(cache):,}.")
    new = sorted(set(found).difference(cache.classes, [""]))
    classes = (*cache.classes, *new)
    index = {name: number for number, name in enumerate(classes)} | {"": -1}
    features = cache.features
    made = replace(
        cache,
        labels=np.array([index[name] for name in found], np.int64),
        header=replace(cache.header, classes=classes),
    )
    vars(made)["features"] = features  # the file has another header
    return made


def _name(label: Any, classes: tuple[str, ...]) -> str:
    if isinstance(label, str):
        return str(label)
    if label is None or type(label).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(label, (float, np.floating)) and np.isnan(label):
        return ""
    if isinstance(label, (int, np.integer)) and not isinstance(label, (bool, np.bool_)):
        if not -1 <= label < len(classes):
            raise ConfigError(f"labels has {label}; there are {len(classes)} classes, from 0.")
        return classes[label] if label >= 0 else ""
    raise _refusal(f"a label of type {type(label).__name__}")


def _refusal(got: str) -> ConfigError:
    return ConfigError(
        f"labels takes one name for each image, in a list, NumPy array or pandas column; got {got}."
    )
