"""A manifest that keeps together what belongs together: frames of one sequence, and copies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featx.features.file import TRAIN, FeatureFile, open_features
from featx.features.marks import write_manifest
from featx.features.shown import label_of
from featx.images.sources import SPLITS
from featx.stages.audit.findings import AuditReport

_VAL = SPLITS.index("val")


class GroupedImages(NamedTuple):
    """A manifest with a group for each sequence and each picture that there are copies of."""

    path: Path
    num_groups: int
    num_images: int  # in groups
    num_moved: int  # to another split: their group was in several


def write_groups(
    report: AuditReport, output: str | Path, *, overwrite: bool = False
) -> GroupedImages:
    """Write a manifest in which images that an audit found to belong together are one group.

    These are the images of a sequence, and copies of one picture; groups that the feature file has
    already stay together. ``extract`` with the manifest as the source runs no backbone, and from
    then on splits and folds keep groups together. Validation images that featx chose are chosen
    anew where a group was torn. Where the source has them, a group in several splits goes where
    most of its images are, of equally many to the split that comes first, training above all.

    Args:
        report: Of ``audit``. What was marked as different, or to be kept, makes no group.
        output: The manifest, a CSV.
        overwrite: Replace one that is there.

    Raises:
        ArtifactError: The feature file has gone, or the output exists already.
        ConfigError: The output is not a CSV, or one of the files that are read.
    """
    cache = open_features(report.path, verify=False)
    groups = _groups(cache, _together(report))
    splits = cache.splits.astype(np.int64)
    if not cache.header.details.get("own_validation"):
        splits[splits == _VAL] = TRAIN
    moved = 0
    for rows in groups:
        counts = np.bincount(splits[rows], minlength=len(SPLITS))
        moved += len(rows) - int(counts.max())
        splits[rows] = counts.argmax()
    group_of = {row: f"group {number}" for number, rows in enumerate(groups, 1) for row in rows}
    samples = (
        (name, label_of(cache, row), SPLITS[splits[row]], group_of.get(row, ""))
        for row, name in enumerate(cache.sample_ids)
    )
    path = write_manifest(cache, samples, Path(output), overwrite=overwrite)
    return GroupedImages(path, len(groups), len(group_of), moved)


def _together(report: AuditReport) -> Iterator[Sequence[str]]:
    """Yield images that belong together."""
    refused = {(each.sample_id, each.other) for each in report.dismissed}
    for sequence in report.sequences:
        names = sequence.sample_ids
        if (names[0], names[-1]) not in refused:
            yield names
    for kind in ("conflict", "leak", "copy"):
        for each in report.of_kind(kind):
            yield each.sample_id, each.other


def _groups(cache: FeatureFile, together: Iterable[Sequence[str]]) -> list[list[int]]:
    """Return the rows of each group of two images or more, in order of first appearance."""
    row_of = {name: row for row, name in enumerate(cache.sample_ids)}
    owner = list(range(len(cache)))

    def first_of(row: int) -> int:
        while owner[row] != row:
            owner[row] = row = owner[owner[row]]
        return row

    def join(rows: Iterable[int]) -> None:
        first, *others = sorted({first_of(row) for row in rows})
        for row in others:
            owner[row] = first

    numbers = cache.groups
    order = np.argsort(numbers, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        if len(rows) and numbers[rows[0]] >= 0:
            join(rows.tolist())
    for names in together:
        join(row_of[name] for name in names)
    found: dict[int, list[int]] = {}
    for row in range(len(cache)):
        found.setdefault(first_of(row), []).append(row)
    return [rows for rows in found.values() if len(rows) > 1]
