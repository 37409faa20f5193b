"""Findings about labels: classes, tags and numbers that heads contradict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from featx.errors import ConfigError, FeatxError, counted, listed
from featx.features.file import FeatureFile
from featx.heads.samples.data import Step
from featx.heads.tasks import MULTI_LABEL, SINGLE_LABEL
from featx.heads.tasks.losses import sigmoid
from featx.images.sources.labels import SEPARATOR, parse_numbers, split_tags
from featx.stages.audit.evidence import with_evidence
from featx.stages.audit.findings import Confusion, Finding, FindingKind
from featx.stages.audit.labels import Doubts, doubts_of
from featx.training.options import TaskChoice
from featx.training.out_of_fold import OutOfFold, out_of_fold
from featx.training.samples import choose_task

SMALL_CLASS = 5
"""Training images below which a class is called small, and does not count for the estimate."""
_FAR = 4.0
"""Deviations from the median residual above which a number is an outlier."""
_NORMAL = 1.4826  # of a normal distribution, deviation by median absolute deviation


@dataclass(frozen=True, eq=False)
class Judged:
    """What heads say of the labels of a file.

    ``small`` are classes or tags of few training images; ``notes`` say what could not be judged;
    ``found`` is what heads say of classes, None of tags and numbers.
    """

    findings: tuple[Finding, ...] = ()
    num_judged: int = 0
    num_wrong: float = 0.0
    confusions: tuple[Confusion, ...] = ()
    small: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    found: OutOfFold | None = None


def judge(cache: FeatureFile, *, wanted: TaskChoice, seed: int, step: Step) -> Judged:
    """Return what heads that were not trained on an image say of its label."""
    labels = cache.labels[cache.labels >= 0]
    if not len(labels):
        return _not_judged("no image has a label")
    task = choose_task(cache, wanted)
    if task is SINGLE_LABEL and len(np.unique(labels)) < 2:
        return _not_judged(f"all images are of one class, {cache.classes[labels[0]]!r}")
    try:
        found = out_of_fold(cache, task, seed=seed, step=step)
    except ConfigError:
        raise
    except FeatxError as err:
        return _not_judged(str(err).rstrip("."))
    if found is None:
        return _not_judged("no training image can be left out")
    if task is SINGLE_LABEL:
        made = replace(_classes(cache, found), found=found)
    else:
        of_task = _tags if task is MULTI_LABEL else _numbers
        small = _small(cache, found) if task is MULTI_LABEL else ()
        made = Judged(tuple(of_task(cache, found)), len(found.rows), small=small)
    step("Neighbours")
    return replace(made, findings=with_evidence(cache, made.findings))


def label_of(cache: FeatureFile, row: int) -> str:
    """Return the label of a row as the source has it; empty where there is none."""
    label = int(cache.labels[row])
    return cache.classes[label] if label >= 0 else ""


def _not_judged(why: str) -> Judged:
    return Judged(notes=(f"Labels are not judged: {why}.",))


def _classes(cache: FeatureFile, found: OutOfFold) -> Judged:
    doubts = doubts_of(found)
    small = dict(_small(cache, found))
    doubt, likely = doubts.doubt, doubts.likely
    findings = (
        _finding(
            *(cache, int(doubts.rows[number]), "label", float(doubt[number])),
            likely=cache.classes[likely[number]],
        )
        for number in doubts.contradicted.tolist()
    )
    return Judged(
        tuple(findings),
        int(len(doubts.rows) if doubts.knows is None else doubts.knows.sum()),
        doubts.num_wrong(leave_out=[cache.classes.index(name) for name in small]),
        _confusions(cache, doubts),
        tuple(small.items()),
        tuple(_unknown(cache, doubts, small)),
    )


def _small(cache: FeatureFile, found: OutOfFold) -> tuple[tuple[str, int], ...]:
    """Return the classes or tags of few training images, with their number."""
    targets = found.targets
    rows = cache.rows("train")
    values = targets.values[rows[targets.labelled[rows]]]
    counts = [int(targets.task.has(values, i).sum()) for i in range(len(targets.names))]
    named = zip(targets.names, counts, strict=True)
    return tuple((name, count) for name, count in named if count < SMALL_CLASS)


def _unknown(cache: FeatureFile, doubts: Doubts, small: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence that names the classes without another training image to know them by."""
    known = doubts.rows if doubts.knows is None else doubts.rows[doubts.knows]
    unjudged = np.setdiff1d(np.flatnonzero(cache.labels >= 0), known)
    if len(unjudged):
        classes = np.unique(cache.labels[unjudged]).tolist()
        few = [(cache.classes[label], small.get(cache.classes[label])) for label in classes]
        names = [name if count is None else f"{name} ({count} for training)" for name, count in few]
        yield (
            f"{counted(len(unjudged), 'label is', 'labels are')} not judged, of classes too small "
            f"to be: {listed(names, 6)}."
        )


def _confusions(cache: FeatureFile, doubts: Doubts) -> tuple[Confusion, ...]:
    counts = doubts.confident_counts()
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[: np.count_nonzero(counts)]
    pairs = zip(*np.unravel_index(order, counts.shape), strict=True)
    return tuple(Confusion(cache.classes[i], cache.classes[j], int(counts[i, j])) for i, j in pairs)


def _tags(cache: FeatureFile, found: OutOfFold) -> Iterator[Finding]:
    """Yield tags that are likely and not given, or given and unlikely, the surest first."""
    given = found.targets.values[found.rows] > 0
    own = sigmoid(found.outputs)
    doubt = np.where(found.knows, np.where(given, 1 - 2 * own, 2 * own - 1), 0.0)
    numbers, tags = np.nonzero(doubt > 0)
    order = np.argsort(-doubt[numbers, tags], kind="stable")
    for number, tag in zip(numbers[order].tolist(), tags[order].tolist(), strict=True):
        row, name = int(found.rows[number]), found.targets.names[tag]
        is_given = bool(given[number, tag])
        label = {*split_tags(label_of(cache, row))} ^ {name}
        yield _finding(
            *(cache, row, "surplus" if is_given else "missing", float(doubt[number, tag])),
            likely=SEPARATOR.join(sorted(label)) or SEPARATOR,
            note=name,
        )


def _numbers(cache: FeatureFile, found: OutOfFold) -> Iterator[Finding]:
    """Yield labels of numbers that are far from what heads say, the farthest first."""
    residuals = found.targets.values[found.rows] - found.outputs
    off = np.abs(residuals - np.median(residuals, axis=0))
    scale = _NORMAL * np.median(off, axis=0)
    off /= np.where(scale > 0, scale, np.inf)
    worst, names = off.max(axis=1), found.targets.names
    far = np.flatnonzero(worst > _FAR)
    for number in far[np.argsort(-worst[far], kind="stable")].tolist():
        column, row = int(off[number].argmax()), int(found.rows[number])
        yield _finding(
            *(cache, row, "value", float(worst[number])),
            likely=_near_numbers(label_of(cache, row), found.outputs[number]),
            limit=_FAR,
            note=names[column] if len(names) > 1 else "",
        )


def _near_numbers(label: str, values: np.ndarray) -> str:
    """Return what heads say in as many digits as matter beside the label's own numbers."""
    own = parse_numbers(label) or ()
    size = max((abs(each) for each in (*own, *values.tolist())), default=1.0)
    digits = max(0, 3 - int(np.floor(np.log10(size or 1.0))) - 1)
    return SEPARATOR.join(f"{value:.{digits}f}" for value in values.tolist())


def _finding(
    cache: FeatureFile,
    row: int,
    kind: FindingKind,
    score: float,
    *,
    likely: str,
    limit: float | None = None,
    note: str = "",
) -> Finding:
    return Finding(
        *(cache.sample_ids[row], kind, cache.split_names[cache.splits[row]], label_of(cache, row)),
        score=score,
        likely=likely,
        limit=limit,
        note=note,
    )
