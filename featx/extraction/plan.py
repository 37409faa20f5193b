"""The images of a source compared with the rows there are: what is left to do.

An image is the one that was seen before when its file's size, modification time and change time
are. Its content decides where these differ, where another image has the same three, or everywhere
if asked to. An image that could not be used is known by its content as well; where its content was
not the reason, it is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from featx.errors import ImageError
from featx.features.file import FeatureFile
from featx.features.publish import ExistingImages, ExistingRows
from featx.features.records import Batch
from featx.features.skipped import SkippedImage
from featx.images.decode import DIGEST_BYTES, NO_DIGEST
from featx.images.reading import read_digests
from featx.images.sources import (
    SPLITS,
    ImageSource,
    Sample,
    Stamp,
    group_numbers,
    own_splits,
)

_BLOCK_ROWS, _BLOCK_BYTES = 4096, 2**25
_NEW, _CHANGED, _KEPT, _SKIPPED, _TOUCHED = range(5)
_NO_KEY = 0
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_TRAIN, _VAL = SPLITS.index("train"), SPLITS.index("val")


@dataclass
class Plan:
    """The state of each of N samples; an extraction updates it.

    Attributes:
        rows: Number of each sample's row, -1 where it has none; ``(N,)`` int64.
        stamps: Of each sample's file, taken before it was read; ``(N, 3)`` int64.
        touched: Positions of samples whose content is that of their row, but not their stamp.
        skipped: Unusable samples, by position.
        num_removed: Rows and skipped images of the published file that the source has no more.
    """

    rows: np.ndarray
    stamps: np.ndarray
    touched: np.ndarray
    skipped: dict[int, SkippedImage] = field(default_factory=dict)
    num_new: int = 0
    num_changed: int = 0
    num_removed: int = 0

    def todo(self) -> np.ndarray:
        """Return the positions of samples that the backbone has to see, ascending, int64."""
        waiting = self.rows < 0
        waiting[list(self.skipped)] = False
        return np.flatnonzero(waiting)


def make_plan(
    images: ImageSource,
    existing: Iterable[ExistingImages],
    file: FeatureFile | None,
    *,
    verify_content: bool = False,
    retry_skipped: bool = False,
    workers: int | None = None,
) -> Plan:
    """Compare a source with images seen before, the oldest first, by their files' sizes and times.

    ``verify_content`` reads every file and compares its content hash. That, or ``retry_skipped``,
    tries the unusable ones again. The published file says what the source has no more.
    """
    comparison = _Comparison(images, trust_skipped=not (verify_content or retry_skipped))
    for block in existing:
        comparison.add(block)
    comparison.compare_content(everywhere=verify_content, workers=workers)
    return comparison.plan(file)


class _Comparison:
    """The state of each sample, updated by blocks of existing images."""

    def __init__(self, images: ImageSource, *, trust_skipped: bool) -> None:
        self._images = images
        self._trust_skipped = trust_skipped
        count = len(images.samples)
        self._stamps = np.empty((count, len(Stamp._fields)), dtype=np.int64)
        for index in range(count):
            self._stamps[index] = images.stamp(index)
        self._state = np.full(count, _NEW, dtype=np.uint8)
        self._rows = np.full(count, -1, dtype=np.int64)  # that the digests are of
        self._digests = np.zeros((count, DIGEST_BYTES), dtype=np.uint8)
        self._skipped: dict[int, SkippedImage] = {}
        self._has_stamp = np.zeros(count, dtype=bool)  # recorded with the digest
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []  # keys of stamps and contents

    @cached_property
    def _position(self) -> dict[str, int]:
        return {sample.sample_id: i for i, sample in enumerate(self._images.samples)}

    def add(self, block: ExistingImages) -> None:
        """Compare a block with the samples that no block before it matched."""
        found = np.array(
            [self._position.get(name, -1) for name in block.sample_ids], dtype=np.int64
        )
        there = np.flatnonzero(found >= 0)
        positions, has_row = found[there], block.rows[there] >= 0
        all_digests = np.asarray(block.digests.any(axis=1))
        contents = np.ascontiguousarray(block.digests[all_digests]).view(np.uint64)[:, 0]
        self._seen.append((_keys_of(block.stamps[all_digests]), contents))
        has_digest = all_digests[there]
        same = (self._stamps[positions] == block.stamps[there]).all(axis=1)
        has_stamp = same.copy()
        same &= (block.stamps[there, 0] >= 0) & (has_row | (has_digest & self._trust_skipped))
        open_ = self._state[positions] < _KEPT
        for state, chosen in (
            (_CHANGED, open_ & ~same),
            (_KEPT, open_ & same & has_row),
            (_SKIPPED, open_ & same & ~has_row),
        ):
            self._state[positions[chosen]] = state
        hashed = open_ & has_digest
        self._rows[positions[hashed]] = block.rows[there[hashed]]
        self._digests[positions[hashed]] = block.digests[there[hashed]]
        self._has_stamp[positions[hashed]] = has_stamp[hashed]
        for i in np.flatnonzero(open_ & ~has_row):
            number = int(there[i])
            self._skipped[int(positions[i])] = SkippedImage(
                block.sample_ids[number],
                block.reasons[number],
                Stamp(*block.stamps[number].tolist()),
                block.digests[number].tobytes(),
            )

    def compare_content(self, *, everywhere: bool, workers: int | None) -> None:
        """Read the files that look changed, or all, and see whether their content is."""
        doubtful = self._state == _CHANGED
        if self._seen:
            doubtful |= self._is_ambiguous()
        if everywhere:
            doubtful |= self._state == _KEPT
        has_digest = self._digests.any(axis=1)
        doubtful &= ~has_digest | (self._rows >= 0) | self._trust_skipped
        positions = np.flatnonzero(doubtful & (self._state != _NEW))
        with closing(read_digests(self._images, positions.tolist(), workers=workers)) as found:
            for position, digest in found:
                expected = self._digests[position].tobytes()
                if isinstance(digest, ImageError):
                    was_unread = expected == NO_DIGEST
                    is_same = was_unread and digest.reason == self._skipped[position].reason
                else:
                    is_same = digest == expected
                if not is_same:
                    self._state[position] = _CHANGED
                elif self._rows[position] < 0:
                    self._state[position] = _SKIPPED
                elif self._state[position] == _CHANGED:
                    self._state[position] = _KEPT if self._has_stamp[position] else _TOUCHED

    def _is_ambiguous(self) -> np.ndarray:
        """Return which images have a stamp that was seen with several contents; ``(N,)`` bool.

        Files of equal size, unpacked with their times within one tick of the file system's clock,
        can trade places without a change of stamps: with the folders they are in.
        """
        stamps, contents = map(np.concatenate, zip(*self._seen, strict=True))
        distinct = np.unique(np.column_stack([stamps, contents]), axis=0)
        keys, num_contents = np.unique(distinct[:, 0], return_counts=True)
        return np.isin(_keys_of(self._stamps), keys[(num_contents > 1) & (keys != _NO_KEY)])

    def plan(self, file: FeatureFile | None) -> Plan:
        has_row = np.isin(self._state, (_KEPT, _TOUCHED))
        seen: tuple[str, ...] = ()
        if file is not None:
            seen = (*file.sample_ids, *(image.sample_id for image in file.skipped))
        return Plan(
            rows=np.where(has_row, self._rows, -1),
            stamps=self._stamps,
            touched=np.flatnonzero(self._state == _TOUCHED),
            skipped={
                i: self._skipped[i]._replace(stamp=Stamp(*self._stamps[i].tolist()))
                for i in np.flatnonzero(self._state == _SKIPPED).tolist()
            },
            num_new=int((self._state == _NEW).sum()),
            num_changed=int((self._state == _CHANGED).sum()),
            num_removed=sum(name not in self._position for name in seen),
        )


def _keys_of(stamps: np.ndarray) -> np.ndarray:
    """Return a number for each stamp ``(n, 3)``, the same for the same: ``(n,)`` uint64.

    Different stamps hardly ever have the same; ``NEVER_CHANGES`` has ``_NO_KEY``.
    """
    return np.asarray((stamps.astype(np.uint64) * _FACTORS).sum(axis=1))


def require_views(plan: Plan, images: ImageSource, existing: ExistingRows, of: np.ndarray) -> None:
    """Leave what has no views to be done again: rows of the samples ``of``, ``(N,)`` bool.

    Where an interrupted run made such a row already, the sample gets that one.
    """
    lacking = np.flatnonzero(of & (plan.rows >= 0))
    has_views = existing.has_views
    lacking = lacking[~has_views[plan.rows[lacking]]]
    if not len(lacking):
        return
    digests, old = existing.digests(), plan.rows.copy()
    plan.touched = np.setdiff1d(plan.touched, lacking)
    plan.rows[lacking] = -1
    position = {images.samples[i].sample_id: i for i in lacking.tolist()}
    for block in existing.images():
        for number, (name, row) in enumerate(zip(block.sample_ids, block.rows, strict=True)):
            if row >= 0 and has_views[row] and (i := position.get(name)) is not None:
                same = np.array_equal(block.stamps[number], plan.stamps[i])
                if same and np.array_equal(digests[row], digests[old[i]]):
                    plan.rows[i] = row


def keep_touched(plan: Plan, images: ImageSource, existing: ExistingRows) -> None:
    """Note in the journal that files which look changed hold what they held."""
    layout = existing.journal.layout
    step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // (layout.row_bytes * (1 + layout.num_views))))
    has_views = existing.has_views[plan.rows[plan.touched]]
    with existing.reading() as rows_at:
        for touched in (plan.touched[has_views], plan.touched[~has_views]):
            for start in range(0, len(touched), step):
                chosen = touched[start : start + step]
                block = rows_at(plan.rows[chosen])
                first = existing.next_row
                existing.journal.append(
                    Batch(
                        sample_ids=tuple(images.samples[i].sample_id for i in chosen),
                        stamps=plan.stamps[chosen],
                        digests=block.digests,
                        reasons=("",) * len(chosen),
                        features=block.features,
                        views=block.views if block.has_views.all() else None,
                    )
                )
                plan.rows[chosen] = np.arange(first, first + len(chosen))
    plan.touched = plan.touched[:0]


def is_current(
    file: FeatureFile, plan: Plan, samples: Sequence[Sample], classes: Sequence[str]
) -> bool:
    """Return whether a plan would write the published file again as it is.

    The splits that featx chose are not compared: images keep them.
    """
    return (
        not (len(plan.todo()) or len(plan.touched) or plan.num_removed)
        and tuple(classes) == file.classes
        and np.array_equal(plan.rows[plan.rows >= 0], np.arange(len(file)))
        and set(plan.skipped.values()) == set(file.skipped)
        and num_relabelled(file, plan.rows, samples, classes) == 0
    )


def num_relabelled(
    file: FeatureFile,
    rows: np.ndarray,
    samples: Sequence[Sample],
    classes: Sequence[str],
    *,
    splits: np.ndarray | None = None,
) -> int:
    """Return how many rows of the file have another class, split or group in the source.

    Args:
        file: The file.
        rows: Of each sample, as in ``Plan``; those beyond the file's do not count.
        samples: Of the source.
        classes: Of the source.
        splits: Of the samples now, ``(N,)`` uint8; None takes those that the source gives, where
            an image for training may have become validation.
    """
    own = own_splits(samples) if splits is None else splits
    kept = np.flatnonzero((rows >= 0) & (rows < len(file)))
    rows, labels = rows[kept], np.array([samples[i].label for i in kept.tolist()], dtype=np.int64)
    other_split = file.splits[rows] != own[kept]
    if splits is None and not (own == _VAL).any():
        other_split &= (file.splits[rows] != _VAL) | (own[kept] != _TRAIN)
    numbers = {name: number for number, name in enumerate(classes)}
    renumbered = np.array([*(numbers.get(name, -2) for name in file.classes), -1])  # [-1] is -1
    other_group = _are_regrouped(
        file.groups[rows], group_numbers(samples[i] for i in kept.tolist())
    )
    return int(((renumbered[file.labels[rows]] != labels) | other_split | other_group).sum())


def _are_regrouped(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return which images have other images in their group now, ``(n,)`` bool.

    Groups ``(n,)`` are numbers that mean nothing by themselves, -1 for an image by itself.
    """
    if (before < 0).all() and (after < 0).all():
        return np.zeros(len(before), dtype=bool)
    size = int(after.max()) + 2
    pairs, pair_of = np.unique((before + 1) * size + after + 1, return_inverse=True)
    was, now = pairs // size, pairs % size  # 0 for an image by itself
    moved = (was == 0) != (now == 0)
    for numbers in (was, now):
        moved |= (numbers > 0) & (np.bincount(numbers)[numbers] > 1)  # goes with several others
    return np.asarray(moved[pair_of])
