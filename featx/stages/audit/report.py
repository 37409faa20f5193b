"""Findings about a feature file, joined and ranked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from featx.artifact.bars import drawing
from featx.classifier.tails import features_through
from featx.errors import require_choice
from featx.features.file import FeatureFile, open_features
from featx.features.marks import Mark, content_of, read_marks, require_same_images
from featx.heads.samples.data import Step
from featx.heads.tasks import TASKS
from featx.stages.audit.findings import AuditReport, Finding
from featx.stages.audit.given import with_labels
from featx.stages.audit.judged import judge
from featx.stages.audit.odd import outlier_findings, quality_findings
from featx.stages.audit.same import Same, find_same
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
    nothing on them, are known by their pixels. Labels are judged as classes, tags or numbers. What
    cannot be looked at is said in ``notes``.

    Args:
        features: The feature file.
        labels: To be judged in place of those of the file: a name for each image, in its order, in
            a list, NumPy array or pandas column, or whole numbers that index its classes; None,
            NaN, "" and -1 are no label.
        source: Where its images are now; None takes where they were. An image that has another
            content now is left out, and where there are none, so is all that needs pixels.
        marks: A table of findings of the same file: pairs that it marks as different and images
            that it marks to be kept are no findings; other marks are carried on.
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
    different = {_pair(cache, each) for each in marked if each.different}
    with drawing(progress if step is None else False) as draw:
        told = draw.steps(step, "Audit")
        judged = judge(cache, wanted=task, seed=seed, step=told)
        same = find_same(cache, different, source, told)
        odd = (
            *outlier_findings(cache, same.rows, same.neighbours),
            *(quality_findings(same.pictures) if same.pictures else ()),
        )
        of_classes = _of_classes(cache, judged.found, same, seed=seed, step=told)
    found = _with_contents(cache, (*judged.findings, *same.findings, *odd))
    findings, dismissed = _with_marks(cache, found, marked)
    return AuditReport(
        path=Path(features),
        findings=findings,
        num_judged=judged.num_judged,
        num_wrong=judged.num_wrong,
        confusions=judged.confusions,
        small_classes=judged.small,
        num_images=len(cache),
        seconds=time.perf_counter() - start,
        sequences=same.sequences,
        **of_classes,
        dismissed=dismissed,
        notes=(*judged.notes, *same.notes),
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


def _pair(cache: FeatureFile, mark: Mark) -> tuple[int, int]:
    first, second = sorted(cache.sample_ids.index(name) for name in (mark.sample_id, mark.other))
    return first, second


def _with_marks(
    cache: FeatureFile, findings: Iterable[Finding], marked: Sequence[Mark]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """Return findings with the marks of an earlier table, and what is none any more by them."""
    left = {(each.sample_id, each.kind, each.other): each for each in marked}
    kept, dismissed = list[Finding](), list[Finding]()
    for each in findings:
        mark = left.pop((each.sample_id, each.kind, each.other), None)
        cells = mark.cells if mark else each.marks
        is_right = mark is not None and mark.keep and mark.given == each.given
        (dismissed if is_right else kept).append(each._replace(marks=cells))
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    others = (
        Finding(
            sample_id=mark.sample_id,
            kind=mark.kind,  # type: ignore[arg-type]
            split=cache.split_names[cache.splits[rows[mark.sample_id]]],
            given=mark.given,
            score=0.0,
            other=mark.other,
            marks=mark.cells,
        )
        for mark in left.values()
    )
    return tuple(kept), (*dismissed, *_with_contents(cache, others))


def _with_contents(cache: FeatureFile, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings with what tells their image's content in a table."""
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    for each in findings:
        yield each._replace(content=content_of(cache, rows[each.sample_id]))
