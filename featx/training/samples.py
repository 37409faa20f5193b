"""Samples of a feature file to train on, checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact.cells import table_rows
from featx.errors import ArtifactInvalid, ConfigError, SourceError, counted
from featx.features.contents import number_contents
from featx.features.file import FeatureFile, open_features
from featx.features.marks import CONTENT, is_marked, read_marks, read_table, require_same_images
from featx.features.splits import owners_of
from featx.heads.tasks import MULTI_LABEL, SINGLE_LABEL, TASKS, Labels, Targets, Task
from featx.images.sources import SPLITS
from featx.images.sources.labels import has_tags, look_like_numbers
from featx.training.options import TaskChoice

log = logging.getLogger(__name__)


def warn_of_leaks(cache: FeatureFile) -> None:
    """Warn where images that score a head have the content of images that train it."""
    digests = np.asarray(cache.digests)
    numbers, firsts = number_contents(digests)
    held_out = (cache.splits != SPLITS.index("train")) & digests.any(axis=1)
    trains = np.zeros(len(firsts), bool)
    trains[numbers[~held_out]] = True
    leaks = np.flatnonzero(held_out & trains[numbers])
    if len(leaks):
        log.warning(
            "%s the content of a training image ('%s' first): scores on copies are too good.",
            counted(len(leaks), "validation or test image has", "validation or test images have"),
            cache.sample_ids[leaks[0]],
        )


def warn_of_random_weights(cache: FeatureFile, effect: str) -> None:
    """Warn where the network behind a cut has never learnt anything, and what that means."""
    if cache.cut is not None and str(cache.header.details.get("weights")).startswith("random:"):
        log.warning(
            "The weights that '%s' was made with are random, and %s. For pretrained ones extract "
            "again with weights='default' and overwrite=True.",
            *(cache.path, effect),
        )


def exclude(cache: FeatureFile, sample_ids: Sequence[str]) -> FeatureFile:
    """Return the file as training sees it, without some images of its training split.

    Raises:
        ConfigError: A name is not in the file.
    """
    if not sample_ids:
        return cache
    splits = dict(zip(cache.sample_ids, cache.splits.tolist(), strict=True))
    if unknown := [each for each in sample_ids if each not in splits]:
        known = next(iter(cache.sample_ids), "")
        raise ConfigError(
            f"{counted(len(unknown), 'excluded image is', 'excluded images are')} not in "
            f"'{cache.path}', '{unknown[0]}' first; its images have names like '{known}'."
        )
    training = [each for each in sample_ids if splits[each] == SPLITS.index("train")]
    others = len(set(sample_ids)) - len(set(training))
    log.info(
        "%s left out of training as asked%s.",
        counted(len(set(training)), "image is", "images are"),
        f"; {counted(others, 'other')} of validation or test stay" if others else "",
    )
    return cache.without(training)


def with_excluded(keywords: Mapping[str, Any], features: str | Path | None) -> dict[str, Any]:
    """Return options by keyword, with the names in a file where ``exclude`` is its path."""
    excluded = keywords.get("exclude")
    if not isinstance(excluded, (str, Path)):
        return dict(keywords)
    own = None if features is None else Path(features)
    return {**keywords, "exclude": read_excluded(Path(excluded), own)}


def read_excluded(path: Path, features: Path | None = None) -> tuple[str, ...]:
    """Return the sample ids in a file, each once.

    That is a text file with one on each line; or a CSV with the column ``path`` or ``sample_id``,
    where a column ``drop`` chooses the rows in which it is true.

    Args:
        path: The file.
        features: The feature file that a table of findings has to be of; None does not compare.

    Raises:
        ConfigError: It cannot be read, has no such column, ``drop`` holds something else, or it is
            of other images than ``features``.
    """
    text = read_table(path)
    columns, table = table_rows(text)
    named = next((name for name in ("path", "sample_id") if name in columns), None)
    if named is None:
        if path.suffix.lower() == ".csv":
            raise ConfigError(
                f"'{path}' has the columns {', '.join(columns)}; expected path or sample_id, the "
                "images to leave out."
            )
        lines = text.replace("\r\n", "\n").split("\n")
        return tuple(dict.fromkeys(line for line in lines if line.strip()))
    if {"kind", CONTENT} <= set(columns):
        marks = [mark for mark in read_marks(path) if mark.drop]
        if features is not None and marks and features.exists():
            require_same_images(open_features(features, verify=False), marks, path)
        return tuple(dict.fromkeys(mark.sample_id for mark in marks))
    rows = [row for row in table if is_marked(row.get("drop", "true"), path)]
    return tuple(dict.fromkeys(row[named] for row in rows if row[named]))


def choose_task(cache: FeatureFile, wanted: TaskChoice) -> Task:
    """Return the task of the labels; warn where it is doubtful."""
    if wanted != "auto":
        return TASKS[wanted]
    labelled = int((cache.labels >= 0).sum())
    if look_like_numbers(cache.classes, labelled):
        log.warning(
            "The labels are %s different numbers, taken for names. Are they measured? Then train "
            "with task='regression'.",
            f"{len(cache.classes):,}",
        )
    kind = cache.header.details.get("label_kind")  # files of earlier versions do not say
    tagged = kind == "tags" if kind else has_tags(cache.classes)
    return MULTI_LABEL if tagged else SINGLE_LABEL


def targets_of(cache: FeatureFile, task: Task) -> Targets:
    """Return the labels as a task reads them."""
    if not (cache.labels >= 0).any():
        raise SourceError(
            f"'{cache.path}' has no labels: its images lie in no class folders. Sort them into one "
            "folder per class, or give their labels in a CSV manifest, and extract again."
        )
    labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path))
    return task.read(labels)


def training_rows(cache: FeatureFile, targets: Targets) -> np.ndarray:
    """Return the labelled training rows, checked, ``(n,)`` int64."""
    rows: np.ndarray = cache.rows("train")
    unlabelled = int((cache.labels[rows] == -1).sum())  # and not left out by name
    rows = rows[targets.labelled[rows]]
    if not len(rows):
        raise SourceError(f"'{cache.path}' has no labelled images in its training split.")
    if unlabelled:
        log.warning(
            "%s no label: left out.",
            counted(unlabelled, "training image has", "training images have"),
        )
    targets.task.require_trainable(targets.values[rows], targets.names, str(cache.path))
    return rows


def groups_of(cache: FeatureFile, rows: np.ndarray) -> np.ndarray | None:
    """Return the group of each of some rows, ``(n,)`` int64, -1 for none; None without groups.

    Images of one group are held out together, and so are images of the same content.
    """
    digests, groups = np.asarray(cache.digests)[rows], cache.groups[rows]
    contents, firsts = number_contents(digests)
    if len(firsts) == len(rows) and (groups < 0).all():
        return None
    unknown = ~digests.any(axis=1)
    contents = np.where(unknown, len(rows) + np.arange(len(rows)), contents)
    owners = owners_of(contents, 2 * len(rows), groups)[contents]
    groups = np.where(np.bincount(owners)[owners] > 1, owners, -1)
    return groups if (groups >= 0).any() else None


def require_finite(cache: FeatureFile, bad: np.ndarray) -> None:
    """Refuse a file with rows ``bad``, ``(n,)``, whose features are NaN or infinite."""
    if len(bad):
        raise ArtifactInvalid(
            cache.path,
            f"'{cache.path}' has NaN or infinite features in {counted(len(bad), 'row')}, "
            f"'{cache.sample_ids[bad[0]]}' first. Extract again with other weights.",
        )
