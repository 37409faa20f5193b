"""Findings about a feature file, joined and ranked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from featx.artifact.bars import drawing
from featx.classifier.tails import features_through
from featx.errors import require_choice
from featx.features.file import FeatureFile, open_features
from featx.features.marks import Mark, content_of, read_marks, require_same_images
from featx.heads.samples.data import Step
from featx.heads.tasks import TASKS
from featx.stages.audit.findings import AuditReport, Finding, FindingKind
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
        marks: A table of findings of the same file: pairs that it marks as different are not
            found again.
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
    different = _different(cache, marks)
    with drawing(progress if step is None else False) as draw:
        told = draw.steps(step, "Audit")
        judged = judge(cache, wanted=task, seed=seed, step=told)
        same = find_same(cache, {_pair(cache, each) for each in different}, source, told)
        odd = (
            *outlier_findings(cache, same.rows, same.neighbours),
            *(quality_findings(same.pictures) if same.pictures else ()),
        )
        of_classes = _of_classes(cache, judged.found, same, seed=seed, step=told)
    return AuditReport(
        path=Path(features),
        findings=tuple(_with_contents(cache, (*judged.findings, *same.findings, *odd))),
        num_judged=judged.num_judged,
        num_wrong=judged.num_wrong,
        confusions=judged.confusions,
        small_classes=judged.small,
        num_images=len(cache),
        seconds=time.perf_counter() - start,
        sequences=same.sequences,
        **of_classes,
        dismissed=tuple(_with_contents(cache, _dismissed(cache, different))),
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


def _different(cache: FeatureFile, marks: str | Path | None) -> list[Mark]:
    """Return the pairs that a table marks as different pictures."""
    if marks is None:
        return []
    found = read_marks(Path(marks))
    require_same_images(cache, found, Path(marks))
    names = set(cache.sample_ids)
    return [each for each in found if each.different and each.other in names]


def _pair(cache: FeatureFile, mark: Mark) -> tuple[int, int]:
    first, second = sorted(cache.sample_ids.index(name) for name in (mark.sample_id, mark.other))
    return first, second


def _dismissed(cache: FeatureFile, marks: Iterable[Mark]) -> Iterator[Finding]:
    for each in marks:
        split = cache.split_names[cache.splits[cache.sample_ids.index(each.sample_id)]]
        kind: FindingKind = each.kind  # type: ignore[assignment]
        yield Finding(each.sample_id, kind, split, each.given, score=0.0, other=each.other)


def _with_contents(cache: FeatureFile, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings with what tells their image's content in a table."""
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    for each in findings:
        yield each._replace(content=content_of(cache, rows[each.sample_id]))
