"""Findings about labels: classes, tags and numbers that heads contradict.

Every labelled image gets outputs from a head that was not trained on it. The number of wrong labels
is estimated by confident learning (Northcutt et al. 2021): an image counts as one of class ``j``
where its probability is at least the mean of the images that are labelled so. Evidence are the
nearest images whose own label nobody doubts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from featx.errors import ConfigError, FeatxError, counted, listed
from featx.features.file import FeatureFile
from featx.features.shown import label_of
from featx.heads.samples.data import Step
from featx.heads.tasks import MULTI_LABEL, SINGLE_LABEL
from featx.heads.tasks.losses import sigmoid, softmax_in_place
from featx.images.sources.labels import SEPARATOR, parse_numbers, split_tags
from featx.stages.audit.findings import Confusion, Evidence, Finding, FindingKind
from featx.training.options import TaskChoice
from featx.training.out_of_fold import OutOfFold, out_of_fold
from featx.training.samples import choose_task


@dataclass(frozen=True, eq=False)
class Doubts:
    """What heads say about labels that did not train them.

    Attributes:
        rows: Of the images that were evaluated, ascending, ``(n,)``.
        given: Their labels, ``(n,)``.
        probabilities: Of the classes, ``(n, num_classes)``, each row sums to 1.
        num_folds: Parts of the training images that were left out in turn.
        knows: Whether the head was trained on other images of that label, ``(n,)`` bool; None
            where all were. A label that it does not know cannot be contradicted.
    """

    rows: np.ndarray
    given: np.ndarray
    probabilities: np.ndarray
    num_folds: int
    knows: np.ndarray | None = None

    @property
    def contradicted(self) -> np.ndarray:
        """The images whose label is not the most probable class, worst first, ``(n,)`` int64."""
        doubt, wrong = self.doubt, self.likely != self.given
        found = np.flatnonzero(wrong if self.knows is None else wrong & self.knows)
        return np.asarray(found[np.argsort(-doubt[found], kind="stable")])

    @property
    def likely(self) -> np.ndarray:
        """The most probable class of each image, ``(n,)``."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def doubt(self) -> np.ndarray:
        """One less the probability of the label by that of the likely class; ``(n,)``, [0, 1].

        Between many classes, the difference of the two would put those labels first whose likely
        class is clear, and leave behind those that are certainly not what they say.
        """
        own = self.probabilities[np.arange(len(self.given)), self.given]
        return np.asarray(1 - own / self.probabilities.max(axis=1))

    def confident_counts(self) -> np.ndarray:
        """Return how many images with label ``i`` count as class ``j``; ``(classes, classes)``.

        An image that is confidently none of the classes, or of classes without images, is not
        counted.
        """
        num_classes = self.probabilities.shape[1]
        counts = np.zeros((num_classes, num_classes), np.int64)
        own = self.probabilities[np.arange(len(self.given)), self.given]
        sizes = np.bincount(self.given, minlength=num_classes)
        sums = np.bincount(self.given, own, minlength=num_classes)
        bounds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
        confident = np.where(self.probabilities >= bounds, self.probabilities, -1.0)
        counted = confident.max(axis=1) >= 0
        np.add.at(counts, (self.given[counted], confident.argmax(axis=1)[counted]), 1)
        return counts

    def num_wrong(self, *, leave_out: Collection[int] = ()) -> float:
        """Return the estimated number of wrong labels, but for those of some classes."""
        counts = self.confident_counts().astype(float)
        counts[list(leave_out)] = 0
        sums = counts.sum(axis=1)
        sizes = np.bincount(self.given, minlength=len(counts))
        off = sums - np.diag(counts)
        return float((off * sizes / np.maximum(sums, 1)).sum())


def doubts_of(found: OutOfFold) -> Doubts:
    """Return what heads say of the classes of images."""
    given = found.targets.values[found.rows]
    probabilities = softmax_in_place(found.outputs.copy())
    knows = found.knows[np.arange(len(given)), given]
    return Doubts(found.rows, given, probabilities, found.num_folds, knows)


SMALL_CLASS = 5
"""Training images below which a class is called small, and does not count for the estimate."""
_FAR = 4.0
"""Deviations from the median residual above which a number is an outlier."""
_NORMAL = 1.4826  # of a normal distribution, deviation by median absolute deviation


@dataclass(frozen=True, eq=False)
class LabelFindings:
    """What heads say of the labels of a file.

    ``small`` are classes or tags of few training images; ``notes`` say what could not be evaluated;
    ``found`` is what heads say of classes, None of tags and numbers.
    """

    findings: tuple[Finding, ...] = ()
    num_evaluated: int = 0
    num_wrong: float = 0.0
    confusions: tuple[Confusion, ...] = ()
    small: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    found: OutOfFold | None = None


def evaluate_labels(
    cache: FeatureFile, *, wanted: TaskChoice, seed: int, step: Step
) -> LabelFindings:
    """Return what heads that were not trained on an image say of its label."""
    labels = cache.labels[cache.labels >= 0]
    if not len(labels):
        return _not_evaluated("no image has a label")
    task = choose_task(cache, wanted)
    if task is SINGLE_LABEL and len(np.unique(labels)) < 2:
        return _not_evaluated(f"all images are of one class, {cache.classes[labels[0]]!r}")
    try:
        found = out_of_fold(cache, task, seed=seed, step=step)
    except ConfigError:
        raise
    except FeatxError as err:
        return _not_evaluated(str(err).rstrip("."))
    if found is None:
        return _not_evaluated("no training image can be left out")
    if task is SINGLE_LABEL:
        made = replace(_classes(cache, found), found=found)
    else:
        of_task = _tags if task is MULTI_LABEL else _numbers
        small = _small(cache, found) if task is MULTI_LABEL else ()
        made = LabelFindings(tuple(of_task(cache, found)), len(found.rows), small=small)
    step("Neighbours")
    return replace(made, findings=with_evidence(cache, made.findings))


def _not_evaluated(why: str) -> LabelFindings:
    return LabelFindings(notes=(f"Labels are not evaluated: {why}.",))


def _classes(cache: FeatureFile, found: OutOfFold) -> LabelFindings:
    doubts = doubts_of(found)
    small = dict(_small(cache, found))
    doubt, likely = doubts.doubt, doubts.likely
    findings = (
        Finding.of(cache, int(doubts.rows[number]), "label", float(doubt[number]))._replace(
            likely=cache.classes[likely[number]],
        )
        for number in doubts.contradicted.tolist()
    )
    return LabelFindings(
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
    unknown = np.setdiff1d(np.flatnonzero(cache.labels >= 0), known)
    if len(unknown):
        classes = np.unique(cache.labels[unknown]).tolist()
        few = [(cache.classes[label], small.get(cache.classes[label])) for label in classes]
        names = [name if count is None else f"{name} ({count} for training)" for name, count in few]
        yield (
            f"{counted(len(unknown), 'label is', 'labels are')} not evaluated, as no other picture "
            f"teaches a head their class: {listed(names, 6)}."
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
        label = {*split_tags(label_of(cache, row))} ^ {name}
        kind: FindingKind = "surplus" if given[number, tag] else "missing"
        yield Finding.of(cache, row, kind, float(doubt[number, tag]))._replace(
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
        yield Finding.of(cache, row, "value", float(worst[number]))._replace(
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


NUM_NEIGHBOURS = 5
_MOST = 1000
"""Findings that get evidence, the first ones."""
_BLOCK = 256


def with_evidence(cache: FeatureFile, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings with the nearest trusted images of the first 1,000.

    Trusted is a label that no finding is about; copies of an image and images of its group are left
    out, as they would only repeat it.
    """
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    doubted = np.array([rows[each.sample_id] for each in findings], np.int64)
    is_trusted = cache.labels >= 0
    is_trusted[doubted] = False
    trusted = np.flatnonzero(is_trusted & np.isfinite(cache.features).all(axis=1))
    if not len(findings) or not len(trusted):
        return tuple(findings)
    near = _nearest(cache, doubted[:_MOST], trusted)
    return tuple(
        each if number >= len(near) else each._replace(neighbours=_evidence(cache, near[number]))
        for number, each in enumerate(findings)
    )


def _nearest(cache: FeatureFile, rows: np.ndarray, trusted: np.ndarray) -> list[np.ndarray]:
    """Return the trusted rows nearest to each row by the cosine of features less their mean."""
    mean = cache.features[trusted].mean(axis=0, dtype=np.float64).astype(np.float32)
    units, contents = _units(cache.features[trusted] - mean), cache.digests[trusted]
    groups = cache.groups[trusted]
    found = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        cosines = _units(cache.features[block] - mean) @ units.T
        for row, own in zip(block.tolist(), cosines, strict=True):
            digest, group = cache.digests[row], cache.groups[row]
            if digest.any():
                own[(contents == digest).all(axis=1)] = -np.inf
            if group >= 0:
                own[groups == group] = -np.inf
            order = np.sort(
                np.argpartition(-own, min(NUM_NEIGHBOURS, len(own) - 1))[:NUM_NEIGHBOURS]
            )
            order = order[np.argsort(-own[order], kind="stable")]
            found.append(trusted[order[own[order] > -np.inf]])
    return found


def _evidence(cache: FeatureFile, rows: np.ndarray) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(cache.sample_ids[row], cache.classes[cache.labels[row]]) for row in rows.tolist()
    )


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30))
