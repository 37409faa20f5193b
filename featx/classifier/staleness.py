"""Whether a head was trained on the rows that its feature file holds today."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import Header, fingerprint_of, require_same_features
from featx.classifier.tails import features_through
from featx.errors import ArtifactInvalid, ArtifactMismatch
from featx.features.blocks import reading_stored
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head
from featx.heads.provenance import (
    Changes,
    LabelDigests,
    Provenance,
    SomeRows,
    add_to_features,
    changes_since,
    digest_labels,
    digest_rows,
    outdated_splits,
)
from featx.heads.tasks import TASKS, Task

log = logging.getLogger(__name__)

_KEY = "provenance"
_COLUMNS = ("features", "labels", "splits", "digests", "views")


@dataclass(frozen=True)
class Staleness:
    """Differences between a feature file and what a head was trained on.

    Attributes:
        known: Whether the head records the rows that trained it; heads of earlier versions do not.
        changes: Of the rows that trained it; None where they are the same, or nothing is known.
        outdated: Splits whose rows changed, so that the head's recorded scores are not theirs.
    """

    known: bool = True
    changes: Changes | None = None
    outdated: tuple[str, ...] = ()

    @property
    def is_stale(self) -> bool:
        """Whether the rows that trained the head have changed."""
        return self.changes is not None


def record_provenance(
    cache: FeatureFile, task: Task, *, drawn: np.ndarray | None = None, with_views: bool = True
) -> dict[str, Any]:
    """Return the rows that trained a head as details of its header, for ``staleness_of``.

    Args:
        cache: The feature file.
        task: Reads its labels.
        drawn: Numbers of the rows, ``(n,)``, where they are not all labelled ones of the training
            split.
        with_views: Whether their views trained it, too.
    """
    rows = _row_digests(cache, task, with_views=with_views)
    chosen = None if drawn is None else rows[drawn]
    some = {split: SomeRows(rows, own) for split, own in _labelled(cache).items()}
    made = Provenance.of(some, chosen).to_dict()
    views = {"views": cache.views.fingerprint} if cache.views and with_views else {}
    return {_KEY: made | {"columns": _columns(cache)} | views}


def staleness_of(head: Head, cache: FeatureFile) -> Staleness:
    """Return how a feature file differs from what a head was trained on.

    Rows are read only where the file's header differs from the one that trained it.

    Raises:
        ArtifactMismatch: Its features are others: another backbone, preprocessing or classes.
        ArtifactInvalid: What the head recorded is damaged, or the feature file is.
    """
    require_same_features(head.header, header_as_read(head, cache), path=cache.path)
    recorded = head.header.details.get(_KEY)
    if recorded is None:
        return Staleness(known=False)
    try:
        then, columns = Provenance.from_dict(recorded), recorded.get("columns")
    except ValueError as err:
        raise ArtifactInvalid(cache.path, f"The head of '{cache.path}' is damaged: {err}.") from err
    if columns == _columns(cache):
        return Staleness()
    cache = cache.without(head.header.details.get("excluded", ()))
    rows = _row_digests(cache, TASKS[head.task], with_views="views" in recorded)
    now = _by_split(cache, rows)
    return Staleness(changes=changes_since(then, now), outdated=outdated_splits(then, now))


def header_as_read(head: Head, cache: FeatureFile) -> Header:
    """Return a feature file's header with the head's outputs in place of its labels."""
    names = TASKS[head.task].names_of(cache.header.classes)
    return replace(cache.header, classes=names)


def require_current(head: Head, cache: FeatureFile, *, allow_stale: bool) -> Staleness:
    """Return the staleness of a head that may be used with a feature file.

    Where only rows of other splits changed, or a stale head is allowed, a warning says so.

    Raises:
        ArtifactMismatch: The features are others, or rows that trained the head have changed and
            ``allow_stale`` is false.
    """
    found = staleness_of(head, cache)
    if found.changes and not allow_stale:
        raise ArtifactMismatch(
            cache.path,
            f"The head is stale beside '{cache.path}': {found.changes}. Run featx "
            f"{head.made_by} again, or use the head as it is with stale=True.",
        )
    if found.changes:
        log.warning("The head is stale: %s.", found.changes)
    elif found.outdated:
        log.warning(
            "The %s images changed since the head was trained: its recorded scores are not those "
            "of today. featx %s brings them up to date.",
            " and ".join(found.outdated),
            head.made_by,
        )
    return found


def find_features(head: Head, head_path: Path, given: str | Path | None = None) -> Path:
    """Return where a head's feature file should be.

    That is the given path, or the recorded one; where nothing is there, the file of that name
    beside the head, which has been moved along with it. Its content decides whether it is the right
    one.
    """
    if given is not None:
        return Path(given)
    recorded = Path(str(head.header.details["features"]))
    beside = head_path.with_name(recorded.name)
    return beside if beside.exists() and not recorded.exists() else recorded


def open_features_of(
    head: Head, path: Path, *, allow_stale: bool, weights: str | None = None
) -> tuple[FeatureFile, Staleness]:
    """Return a head's feature file, and how it differs from the one that trained it.

    It is opened and checked. At a cut its features are those of the head's network, where needed
    with ``weights``, as ``features_through`` takes them.
    """
    cache = open_features(path)
    staleness = require_current(head, cache, allow_stale=allow_stale)
    return features_through(head, cache, weights), staleness


def _row_digests(cache: FeatureFile, task: Task, *, with_views: bool) -> np.ndarray:
    """Return a digest of each row, at a cut of its stored activations.

    Views follow from an image's content and the network, so how they are drawn stands for them.
    Those that a file has got since a head was trained don't make it stale.
    """
    labels = LabelDigests(digest_labels(cache.classes, task), cache.labels)
    with reading_stored(cache) as stored:
        rows = digest_rows(np.asarray(cache.digests), labels, stored.blocks())
    if cache.views and with_views:
        train = cache.rows("train")
        rows[train] = add_to_features(rows[train], bytes.fromhex(cache.views.fingerprint))
    return rows


def _by_split(cache: FeatureFile, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows of each split that has labelled ones."""
    return {split: rows[own] for split, own in _labelled(cache).items()}


def _labelled(cache: FeatureFile) -> dict[str, np.ndarray]:
    """Return which rows are labelled ones of each split that has any, ``(N,)`` bool."""
    masks = {
        split: (cache.splits == number) & (cache.labels >= 0)
        for number, split in enumerate(cache.split_names)
    }
    return {split: own for split, own in masks.items() if own.any() or split == "train"}


def _columns(cache: FeatureFile) -> str:
    """Return a digest of all that a head can know of a file, from the header alone."""
    digests = cache.header.details["sha256"]
    own = {name: digests[name] for name in _COLUMNS if name in digests}
    return fingerprint_of(own | {"classes": list(cache.classes)})
