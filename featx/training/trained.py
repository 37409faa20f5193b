"""A head as training gives it: finished, and scored on every split."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from featx.features.file import FeatureFile
from featx.heads.head import Fitted, Layer, apply_layers
from featx.heads.samples.data import Blocks
from featx.heads.samples.folds import HeldOut
from featx.heads.tasks import Labels, Scorer, Targets, Task
from featx.heads.tasks.calibration import Calibration, fold_temperature
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.task import Encoding
from featx.images.sources import SPLITS
from featx.training.options import CrossValidated

log = logging.getLogger(__name__)

_VALUES_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class Trained:
    """A head that is ready to be written."""

    task: Task
    names: tuple[str, ...]  # of the outputs
    layers: tuple[Layer, ...]  # for raw features, with the temperature or unit folded in
    choice: dict[str, Any]  # chosen hyperparameters, JSON values
    calibration: Calibration | None  # None where it was left out or nothing was held out
    thresholds: tuple[float, ...]  # of tags
    unit: tuple[list[float], list[float]] | None  # mean and deviation of regression targets
    held_out: HeldOut | None
    seconds: float  # of fitting, with reading where features are read in blocks
    drawn: np.ndarray | None  # rows that trained it, (n,); None for the training split
    metrics: dict[str, Scores] = field(default_factory=dict)  # of splits with labelled samples
    cross_validated: CrossValidated | None = None  # where few images validate


def finish_head(
    fitted: Fitted,
    targets: Targets,
    encoding: Encoding,
    *,
    calibrate: bool,
    prior_samples: int = 0,
) -> Trained:
    """Return a head for all outputs, calibrated where something was held out; without scores.

    A temperature of 1 counts as ``prior_samples`` beside the held-out samples.
    """
    task, held_out = targets.task, fitted.held_out
    (*others, (weight, bias)), calibration = fitted.layers, None
    if held_out is not None:
        logits = held_out.logits
        if calibrate and task.calibrate:
            calibration = task.calibrate(held_out, prior_samples=prior_samples)
            weight, bias = fold_temperature(weight, bias, calibration.temperature)
            logits = logits / calibration.temperature
        logits, labels = encoding.decode(logits, held_out.labels)
        held_out = replace(held_out, logits=logits, labels=labels)
    return Trained(
        task=task,
        names=targets.names,
        layers=(*others, encoding.decode_layer(weight, bias)),
        choice=fitted.choice,
        calibration=calibration,
        thresholds=task.choose_thresholds(held_out, len(targets.names)),
        unit=encoding.unit,
        held_out=held_out,
        seconds=0.0,
        drawn=None,
    )


def cross_validated(head: Trained) -> CrossValidated | None:
    """Return the scores of samples that were left out in turn; of a single hold-out none."""
    held_out = head.held_out
    if held_out is None or held_out.num_folds == 1:
        return None
    scores = held_out_scores(head)
    return CrossValidated(scores, held_out.num_folds) if scores else None


def held_out_scores(head: Trained) -> Scores | None:
    """Return the scores of samples that were held out, None without any."""
    held_out = head.held_out
    if held_out is None:
        return None
    return head.task.measure(held_out.logits, held_out.labels, thresholds=head.thresholds)


def score_heads(
    heads: Sequence[Trained],
    cache: FeatureFile,
    targets: Targets,
    blocks: Blocks | Iterable[tuple[slice, np.ndarray]],
) -> list[dict[str, Scores]]:
    """Return each head's scores of each split that has labelled samples, by one pass.

    ``blocks`` are rows of the cache and their features ``(n, num_features)``.
    """
    work = _Scoring(tuple((head.task, head.layers, head.thresholds) for head in heads))
    columns = (cache.splits, targets.labelled, targets.values)
    if isinstance(blocks, Iterable):
        every, others = work(blocks, *columns), list[list[list[Scorer]]]()
    else:
        every, *others = blocks.each_part(work, *columns)
    for of_part in others:
        for scorer, own in zip(chain(*every), chain(*of_part), strict=True):
            scorer.merge(own)
    return [
        {
            split: found
            for split, own in zip(SPLITS, scorers, strict=True)
            if (found := own.scores())
        }
        for scorers in every
    ]


@dataclass(frozen=True, eq=False)
class _Scoring:
    """Scores heads on each split."""

    heads: Sequence[tuple[Task, Sequence[Layer], Sequence[float]]]  # with layers and thresholds

    def __call__(
        self,
        blocks: Blocks | Iterable[tuple[slice, np.ndarray]],
        splits: np.ndarray,
        labelled: np.ndarray,
        values: np.ndarray,
    ) -> list[list[Scorer]]:
        """Return a scorer of each split for each head, with the samples taken in."""
        found = [[Scorer(task, thresholds) for _ in SPLITS] for task, _, thresholds in self.heads]
        for where, features in blocks if isinstance(blocks, Iterable) else blocks.blocks():
            for (_, layers, _), scorers in zip(self.heads, found, strict=True):
                outputs = apply_layers(layers, features)
                for split, scorer in enumerate(scorers):
                    rows = (splits[where] == split) & labelled[where]
                    if rows.any():
                        scorer.add(outputs[rows], values[where][rows])
        return found


def note_scores_of_kept(head: Trained, cache: FeatureFile, named: Collection[str]) -> None:
    """Log the scores without the images of validation and test that are named.

    All of them were scored: without those that a head has wrong, scores are too good.

    Args:
        head: Scored on all images.
        cache: With the network behind its cut.
        named: Sample ids of images to leave out.
    """
    names, targets = (
        frozenset(named),
        head.task.read(
            Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path)), names=head.names
        ),
    )
    is_named = np.fromiter((each in names for each in cache.sample_ids), bool, len(cache))
    (column, *_) = (each for each in head.task.columns if each.is_main)
    for number, split in list(enumerate(cache.split_names))[1:]:
        labelled = targets.labelled & (cache.splits == number)
        rows = np.flatnonzero(labelled & ~is_named)
        if len(rows) in (0, int(labelled.sum())):
            continue
        with cache.reading() as rows_at:
            outputs = apply_layers(head.layers, rows_at(rows))
        scores = head.task.measure(outputs, targets.values[rows], thresholds=head.thresholds)
        log.info(
            "%s %s: %s on all %s images, %s without the %s named in exclude.",
            *(split, column.title, column.text(head.metrics[split]), f"{labelled.sum():,}"),
            *(column.text(scores), f"{int(labelled.sum()) - len(rows):,}"),
        )


def slices_of(features: np.ndarray, num_outputs: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield features in memory, so many at a time that their outputs fit beside them."""
    at_once = max(1024, _VALUES_AT_ONCE // num_outputs)
    for start in range(0, len(features), at_once):
        where = slice(start, min(start + at_once, len(features)))
        yield where, features[where]
