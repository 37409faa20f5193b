"""Findings about a feature file, joined and ranked."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from featx.features.file import FeatureFile, open_features
from featx.features.marks import content_of
from featx.heads.samples.data import Step, no_step
from featx.heads.tasks import SINGLE_LABEL
from featx.stages.audit.copies import copies_of, is_conflict, is_leak
from featx.stages.audit.findings import AuditReport, Confusion, Finding, FindingKind
from featx.stages.audit.labels import Doubts, doubt_labels
from featx.training.samples import choose_task

log = logging.getLogger(__name__)

_OF_CONTENT: tuple[FindingKind, ...] = ("conflict", "leak", "copy")
_SMALL_CLASS = 5


def audit(features: str | Path, *, seed: int = 0, step: Step | None = None) -> AuditReport:
    """Return what may be wrong with the labels and images of a feature file.

    Nothing is changed, and nothing is read but the file: an image's content is known by its hash,
    so that only exact copies are found. Labels are judged where each image has one class.

    Args:
        features: The feature file.
        seed: Decides which training images are left out together.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: The feature file cannot be used.
        SourceError: Its labelled images cannot train a head.
    """
    start, step = time.perf_counter(), step or no_step
    cache = open_features(features, features_later=True)
    doubts = _doubts(cache, seed=seed, step=step)
    of_labels = list(_label_findings(cache, doubts)) if doubts else []
    of_content = list(_content_findings(cache))
    return AuditReport(
        path=Path(features),
        findings=tuple(_with_contents(cache, (*of_labels, *of_content))),
        num_judged=len(doubts.rows) if doubts else 0,
        num_wrong=doubts.num_wrong() if doubts else 0.0,
        confusions=_confusions(cache, doubts) if doubts else (),
        small_classes=_small_classes(cache),
        num_images=len(cache),
        seconds=time.perf_counter() - start,
    )


def _with_contents(cache: FeatureFile, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings with what tells their image's content in a table."""
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    for each in findings:
        yield each._replace(content=content_of(cache, rows[each.sample_id]))


def _doubts(cache: FeatureFile, *, seed: int, step: Step) -> Doubts | None:
    labels = cache.labels[cache.labels >= 0]
    if not len(labels):
        log.warning("'%s' has no labels: only copies are looked for.", cache.path)
        return None
    task = choose_task(cache, "auto")
    if task is not SINGLE_LABEL:
        log.warning("The labels are %s: only classes are judged, not these.", task.name)
        return None
    if len(np.unique(labels)) < 2:
        log.warning("All images are of one class: its labels cannot be judged.")
        return None
    doubts = doubt_labels(cache, seed=seed, step=step)
    if doubts is None:
        log.warning("No training images can be left out: labels cannot be judged.")
    return doubts


def _label_findings(cache: FeatureFile, doubts: Doubts) -> Iterator[Finding]:
    """Yield images whose label is not the most probable class, the most contradicted first."""
    margins, likely = doubts.margins, doubts.likely
    wrong = np.flatnonzero(likely != doubts.given)
    for number in wrong[np.argsort(margins[wrong], kind="stable")].tolist():
        row = int(doubts.rows[number])
        yield Finding(
            cache.sample_ids[row],
            "label",
            cache.split_names[cache.splits[row]],
            _label(cache, row),
            score=float(-margins[number]),
            likely=cache.classes[likely[number]],
        )


def _content_findings(cache: FeatureFile) -> Iterator[Finding]:
    """Yield copies: those with several labels, then those in several splits, then the others."""
    groups = [(rows, _kinds(cache, rows)) for rows in copies_of(cache)]
    for kind in _OF_CONTENT:
        for rows, kinds in groups:
            if kind in kinds:
                first, *others = rows.tolist()
                for row in others:
                    yield Finding(
                        cache.sample_ids[row],
                        kind,
                        cache.split_names[cache.splits[row]],
                        _label(cache, row),
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


def _confusions(cache: FeatureFile, doubts: Doubts) -> tuple[Confusion, ...]:
    counts = doubts.confident_counts()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return tuple(Confusion(cache.classes[i], cache.classes[j], int(counts[i, j])) for i, j in pairs)


def _small_classes(cache: FeatureFile) -> tuple[tuple[str, int], ...]:
    counts = Counter(cache.labels[cache.rows("train")].tolist())
    named = ((name, counts[number]) for number, name in enumerate(cache.classes))
    return tuple((name, count) for name, count in named if count < _SMALL_CLASS)


def _label(cache: FeatureFile, row: int) -> str:
    label = int(cache.labels[row])
    return cache.classes[label] if label >= 0 else ""
