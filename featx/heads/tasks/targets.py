"""What labels mean to a task: a class each, a row of tags, or a row of numbers.

A feature file keeps labels as their source has them. Tags and numbers are separated by ``|``; a
``|`` alone says that an image has none of the tags, an empty label that nobody looked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from featx.artifact import Header
from featx.errors import SourceError
from featx.heads.tasks.task import Task
from featx.images.sources.labels import parse_numbers, split_tags

_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels as a source has them.

    Attributes:
        classes: The different ones.
        index: Of each sample into ``classes``, ``(N,)``; -1 where unlabelled.
        sample_ids: Of each sample.
        origin: Where they come from, for messages.
    """

    classes: Sequence[str]
    index: np.ndarray
    sample_ids: Sequence[str]
    origin: str

    def first(self, among: np.ndarray) -> tuple[str, str]:
        """Return label and id of the first sample with one of some labels ``(n,)``."""
        row = int(np.flatnonzero(np.isin(self.index, among))[0])
        return self.classes[self.index[row]], self.sample_ids[row]


@dataclass(frozen=True, eq=False)
class Targets:
    """What a head is to answer.

    Attributes:
        task: How labels were read.
        names: Of the head's outputs: classes, tags or targets.
        values: Class indices ``(N,)`` int64, tags ``(N, num_tags)`` uint8, or numbers
            ``(N, num_targets)`` float64; they mean nothing where unlabelled.
        labelled: Who has a label, ``(N,)`` bool.
    """

    task: Task
    names: tuple[str, ...]
    values: np.ndarray
    labelled: np.ndarray


def read_targets(task: Task, labels: Labels, *, names: Sequence[str] | None = None) -> Targets:
    """Return what labels mean to a task.

    Args:
        task: How to read them.
        labels: As the source has them.
        names: Outputs of a head that is there already; None for those that the labels name.

    Raises:
        SourceError: A label cannot be read, or names what the head does not know.
    """
    labelled = labels.index >= 0
    if task == "multi-label":
        own = tuple(names) if names is not None else tag_names(labels.classes)
        return Targets(task, own, _tags(labels, own), labelled)
    if task == "regression":
        values = _numbers(labels, None if names is None else len(names))
        return Targets(task, value_names(values.shape[1]), values, labelled)
    if names is None:
        return Targets(task, tuple(labels.classes), labels.index.astype(np.int64), labelled)
    return Targets(task, tuple(names), _classes(labels, names), labelled)


def tag_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the different tags of labels, sorted."""
    return tuple(sorted({tag for label in classes for tag in split_tags(label)}))


def value_names(count: int) -> tuple[str, ...]:
    """Return names for so many targets of a regression.

    >>> value_names(2)
    ('value_1', 'value_2')
    """
    return ("value",) if count == 1 else tuple(f"value_{i}" for i in range(1, count + 1))


def header_as_read(task: Task, header: Header) -> Header:
    """Return a feature file's header with the names of a head's outputs in place of its labels."""
    if task == "multi-label":
        return replace(header, classes=tag_names(header.classes))
    if task == "regression":
        numbers = next((n for label in header.classes if (n := parse_numbers(label))), ())
        return replace(header, classes=value_names(len(numbers)))
    return header


def _classes(labels: Labels, names: Sequence[str]) -> np.ndarray:
    """Return each sample's index into a head's classes, joined by name; -1 where unlabelled.

    Raises:
        SourceError: A class is unknown to the head.
    """
    index = {name: position for position, name in enumerate(names)}
    own = np.array([index.get(name, -1) for name in labels.classes] or [-1])
    used = np.unique(labels.index[labels.index >= 0]).tolist()
    _require_known([labels.classes[i] for i in used if own[i] < 0], "classes", labels, names)
    indices: np.ndarray = np.where(labels.index >= 0, own[labels.index], -1)
    return indices


def _tags(labels: Labels, names: Sequence[str]) -> np.ndarray:
    """Return which tags each sample has, ``(N, num_tags)`` uint8.

    Raises:
        SourceError: A tag is unknown to the head.
    """
    index = {name: position for position, name in enumerate(names)}
    table = np.zeros((len(labels.classes) + 1, len(names)), np.uint8)  # the last: unlabelled
    used = np.unique(labels.index[labels.index >= 0]).tolist()
    unknown = set()
    for label in used:
        own = split_tags(labels.classes[label])
        unknown |= set(own) - index.keys()
        table[label, [index[tag] for tag in own if tag in index]] = 1
    _require_known(sorted(unknown), "tags", labels, names)
    tags: np.ndarray = table[labels.index]
    return tags


def _require_known(
    unknown: Sequence[str], things: str, labels: Labels, names: Sequence[str]
) -> None:
    if unknown:
        raise SourceError(
            f"'{labels.origin}' has {things} that the model does not know: "
            f"{', '.join(unknown[:_SHOWN])}. The model knows {', '.join(names[:10])}."
        )


def _numbers(labels: Labels, expected: int | None) -> np.ndarray:
    """Return the numbers of each sample, ``(N, num_targets)`` float64; NaN where unlabelled.

    Raises:
        SourceError: A label is no number, or they have different counts of them.
    """
    parsed = [parse_numbers(label) for label in labels.classes]
    bad = np.array([i for i, numbers in enumerate(parsed) if numbers is None], np.int64)
    if np.isin(labels.index, bad).any():
        label, name = labels.first(bad)
        raise SourceError(
            f"'{labels.origin}': the label '{label}' of '{name}' is no number to predict. Expected "
            "numbers like 3.5, finite and at most 1e30, several separated by |; correct the label, "
            "or leave it empty."
        )
    used = np.flatnonzero(labels.index >= 0)
    first = parsed[labels.index[used[0]]] if len(used) else None
    count = expected or len(first or (0,))
    odd = np.array([i for i, n in enumerate(parsed) if n is not None and len(n) != count], np.int64)
    if np.isin(labels.index, odd).any():
        label, name = labels.first(odd)
        raise SourceError(
            f"'{labels.origin}': the label '{label}' of '{name}' has "
            f"{label.count('|') + 1} numbers, expected {count} as "
            f"{'the model has' if expected else 'others have'}."
        )
    table = np.full((len(parsed) + 1, count), np.nan)  # the last: unlabelled
    for row, numbers in enumerate(parsed):
        if numbers is not None and len(numbers) == count:
            table[row] = numbers
    values: np.ndarray = table[labels.index]
    return values
