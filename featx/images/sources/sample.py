"""Samples with stable ids, labels and splits; the sources that they come from."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from featx.images.decode import read_image_file

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of a source.

    Attributes:
        sample_id: Unique and stable: the path relative to the source, with ``/``.
        label: Index into the source's classes; -1 where unlabelled.
        split: ``"train"``, ``"val"`` or ``"test"``.
        group: Images of one patient, burst or plant share it, and stay in one split; ``""`` for
            an image by itself.
    """

    sample_id: str
    label: int
    split: str
    group: str = ""


class Stamp(NamedTuple):
    """Size and times of an image file, to recognise it without reading it.

    Attributes:
        size: Bytes.
        mtime_ns: When its content was last written, ns since 1970. Programs that copy set it.
        ctime_ns: When the file itself, or the link that leads to it, last changed, ns since 1970.
            Only the system sets it.

    Times before 1677 and after 2262 are the earliest and latest that 64 bits hold.
    """

    size: int
    mtime_ns: int
    ctime_ns: int


UNKNOWN_TIME = -1
"""The change time of a file that was recorded without one."""
NO_FILE = Stamp(-1, -1, -1)
"""The stamp of a file that cannot be looked up."""
NEVER_CHANGES = Stamp(0, 0, 0)
"""The stamp of a sample without a file."""


def stamp_of(path: str) -> Stamp:
    """Return the stamp of the file that a path leads to; ``NO_FILE`` where it leads nowhere."""
    try:
        status = os.lstat(path)  # a Path would take as long as the look-up itself
        changed = status.st_ctime_ns
        if stat.S_ISLNK(status.st_mode):
            status = os.stat(path)  # noqa: PTH116 as above
            changed = max(changed, status.st_ctime_ns)
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return NO_FILE
    return Stamp(status.st_size, _in_64_bits(status.st_mtime_ns), _in_64_bits(changed))


def _in_64_bits(value: int) -> int:
    return min(max(value, -(2**63)), 2**63 - 1)


def group_numbers(samples: Iterable[Sample]) -> np.ndarray:
    """Return the index of each sample's group in order of first appearance; ``(N,)`` int64.

    It is -1 where a sample has none.
    """
    numbers: dict[str, int] = {}
    return np.fromiter(
        (numbers.setdefault(each.group, len(numbers)) if each.group else -1 for each in samples),
        dtype=np.int64,
    )


def list_digest(samples: Sequence[Sample]) -> str:
    """Return the hash of samples' ids in their order."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(sample.sample_id.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def own_splits(samples: Sequence[Sample]) -> np.ndarray:
    """Return the splits that a source gives, indices into ``SPLITS``; ``(num_samples,)`` uint8."""
    numbers = {name: number for number, name in enumerate(SPLITS)}
    return np.fromiter((numbers[each.split] for each in samples), np.uint8, len(samples))


@dataclass(frozen=True)
class FileSource:
    """Image files, in a folder or named by a table; an ``ImageSource``."""

    uri: str
    folder: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    ignored: Mapping[str, int] = field(default_factory=dict)
    has_tags: bool = False

    def read(self, index: int) -> bytes:
        return read_image_file(self._path(index), sample_id=self.samples[index].sample_id)

    def stamp(self, index: int) -> Stamp:
        return stamp_of(self._path(index))

    def _path(self, index: int) -> str:
        sample_id = self.samples[index].sample_id
        return sample_id if sample_id.startswith("/") else f"{self.folder}/{sample_id}"


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images ``(N, H, W, 3)`` uint8 in memory; an ``ImageSource``.

    ``stamps`` are those of the files that they came in, by the first part of the sample ids.
    """

    uri: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    images: np.ndarray
    stamps: Mapping[str, Stamp] = field(default_factory=dict)
    ignored: Mapping[str, int] = field(default_factory=dict)
    has_tags: bool = False

    def read(self, index: int) -> np.ndarray:
        return np.ascontiguousarray(self.images[index])

    def stamp(self, index: int) -> Stamp:
        return self.stamps.get(self.samples[index].sample_id.partition("/")[0], NEVER_CHANGES)


class ImageSource(Protocol):
    """A list of samples whose images can be read one by one, from several threads."""

    @property
    def uri(self) -> str:
        """The address by which ``open_source`` finds the source again, with an absolute path."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order; they may include classes without images."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples, in an order that does not depend on the file system."""

    @property
    def has_tags(self) -> bool:
        """Whether ``|`` in a class name separates several tags of one image."""

    @property
    def ignored(self) -> Mapping[str, int]:
        """How many entries of folders were skipped as no images, by kind (``entries.Tree``)."""

    def read(self, index: int) -> bytes | np.ndarray:
        """Return a sample's encoded image, or its pixels ``(H, W, 3)`` uint8 where it has no file.

        Raises:
            ImageError: The file cannot be read.
        """

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a sample's file.

        ``NO_FILE`` where it cannot be looked up; ``NEVER_CHANGES`` where the sample has no file.
        """
