"""Findings about a feature file: joined, ranked, and written as a table."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from featx.artifact import publishing, require_apart, run_files
from featx.features.file import FeatureFile, open_features
from featx.heads.samples.data import Step, no_step
from featx.heads.tasks import SINGLE_LABEL
from featx.stages.audit.copies import copies_of, is_conflict, is_leak
from featx.stages.audit.labels import Doubts, doubt_labels
from featx.training.samples import choose_task

log = logging.getLogger(__name__)

FindingKind = Literal["label", "conflict", "leak", "copy"]
COLUMNS = ("sample_id", "kind", "other", "split", "given", "likely", "score", "drop")
_SMALL_CLASS = 5


class Finding(NamedTuple):
    """One image that should be looked at.

    ``kind`` is ``"label"`` where other images contradict its label, ``"conflict"`` where an image
    of the same content has another label, ``"leak"`` where one is in another split, and ``"copy"``
    where one is in the same. ``other`` is that image.
    """

    sample_id: str
    kind: FindingKind
    split: str
    given: str  # its label; empty without one
    score: float  # of a label the margin by which it is contradicted, (0, 1]; 1 for content
    other: str = ""
    likely: str = ""


class Confusion(NamedTuple):
    """How many images labelled as one class seem to be of another, at a guess."""

    given: str
    likely: str
    num_images: int


@dataclass(frozen=True)
class AuditReport:
    """What may be wrong with the images of a feature file.

    Attributes:
        path: The feature file.
        findings: What to look at: labels first, those most contradicted first, then content.
        num_judged: Labelled images whose label was compared with what heads say that were not
            trained on them; 0 where labels cannot be judged.
        num_wrong: Estimated number of wrong labels among them.
        confusions: Pairs of classes of that estimate, the most frequent first.
        small_classes: Classes of fewer than five training images, with their number.
        num_images: Of the file.
        seconds: All in all.
    """

    path: Path
    findings: tuple[Finding, ...]
    num_judged: int
    num_wrong: float
    confusions: tuple[Confusion, ...]
    small_classes: tuple[tuple[str, int], ...]
    num_images: int
    seconds: float

    def of_kind(self, kind: FindingKind) -> tuple[Finding, ...]:
        """Return the findings of one kind, in their order."""
        return tuple(each for each in self.findings if each.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        findings = [each._asdict() for each in self.findings]
        confusions = [each._asdict() for each in self.confusions]
        small = dict(self.small_classes)
        changed = {"path": str(self.path), "findings": findings, "confusions": confusions}
        return asdict(self) | changed | {"small_classes": small}


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
        findings=(*of_labels, *of_content),
        num_judged=len(doubts.rows) if doubts else 0,
        num_wrong=doubts.num_wrong() if doubts else 0.0,
        confusions=_confusions(cache, doubts) if doubts else (),
        small_classes=_small_classes(cache),
        num_images=len(cache),
        seconds=time.perf_counter() - start,
    )


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
    for kind in get_args(FindingKind)[1:]:
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


def write_findings(report: AuditReport, output: str | Path, *, overwrite: bool = False) -> None:
    """Write one line for each finding as CSV, to be marked in its column ``drop``.

    Args:
        report: Of ``audit``.
        output: The table.
        overwrite: Replace a file that is there, and the marks in it.

    Raises:
        ArtifactExists: The file is there already.
        ConfigError: It is the feature file, or one beside it.
    """
    output = Path(output)
    require_apart({"the table": output}, run_files(report.path))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    table.writerows(map(_cells, report.findings))
    with publishing(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))


def _cells(each: Finding) -> Sequence[str]:
    score = f"{each.score:.4f}"
    return (
        *(each.sample_id, each.kind, each.other, each.split, each.given, each.likely),
        *(score, ""),
    )
