"""Findings about a feature file, joined and ranked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from featx.classifier.tails import features_through
from featx.errors import require_choice
from featx.features.file import FeatureFile, open_features
from featx.features.marks import content_of
from featx.heads.samples.data import Step, no_step
from featx.heads.tasks import TASKS
from featx.stages.audit.copies import copies_of, is_conflict, is_leak
from featx.stages.audit.findings import AuditReport, Finding, FindingKind
from featx.stages.audit.judged import judge, label_of
from featx.training.options import TaskChoice

_OF_CONTENT: tuple[FindingKind, ...] = ("conflict", "leak", "copy")


def audit(
    features: str | Path,
    *,
    task: TaskChoice = "auto",
    seed: int = 0,
    step: Step | None = None,
) -> AuditReport:
    """Return what may be wrong with the labels and images of a feature file.

    Nothing is changed, and nothing is read but the file: an image's content is known by its hash,
    so that only exact copies are found. Labels are judged as classes, tags or numbers; what cannot
    be judged is said in ``notes``.

    Args:
        features: The feature file.
        task: What the labels are, as of ``TrainOptions``; numbers have to be said to be some.
        seed: Decides which training images are left out together.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: The feature file cannot be used.
        ConfigError: ``task`` is none.
    """
    start, step = time.perf_counter(), step or no_step
    require_choice("task", task, ("auto", *TASKS))
    cache = features_through(None, open_features(features, features_later=True))
    judged = judge(cache, wanted=task, seed=seed, step=step)
    of_content = list(_content_findings(cache))
    return AuditReport(
        path=Path(features),
        findings=tuple(_with_contents(cache, (*judged.findings, *of_content))),
        num_judged=judged.num_judged,
        num_wrong=judged.num_wrong,
        confusions=judged.confusions,
        small_classes=judged.small,
        num_images=len(cache),
        seconds=time.perf_counter() - start,
        notes=judged.notes,
    )


def _with_contents(cache: FeatureFile, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings with what tells their image's content in a table."""
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    for each in findings:
        yield each._replace(content=content_of(cache, rows[each.sample_id]))


def _content_findings(cache: FeatureFile) -> Iterator[Finding]:
    """Yield copies: those with several labels, then those in several splits, then the others."""
    groups = [(rows, _kinds(cache, rows)) for rows in sorted(copies_of(cache), key=len)]
    for kind in _OF_CONTENT:
        for rows, kinds in groups:
            if kind in kinds:
                first, *others = rows.tolist()
                for row in others:
                    yield Finding(
                        cache.sample_ids[row],
                        kind,
                        cache.split_names[cache.splits[row]],
                        label_of(cache, row),
                        score=1.0,
                        other=cache.sample_ids[_opposite(cache, kind, row, rows, first)],
                    )


def _kinds(cache: FeatureFile, rows: np.ndarray) -> tuple[FindingKind, ...]:
    found: list[FindingKind] = []
    if is_conflict(cache, rows):
        found.append("conflict")
    if is_leak(cache, rows):
        found.append("leak")
    return tuple(found) or ("copy",)


def _opposite(cache: FeatureFile, kind: FindingKind, row: int, rows: np.ndarray, first: int) -> int:
    """Return the first copy of an image that shows what kind it is: another label or split."""
    values = {"conflict": cache.labels, "leak": cache.splits}.get(kind)
    if values is None:
        return first
    others = rows[values[rows] != values[row]]
    return int(others[0]) if len(others) else first
