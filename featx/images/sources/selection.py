"""Some samples of a source, as a source of their own that can be sent to another machine.

It says where each image lies and holds no pixels: a hundred bytes an image or so. Of sources in
memory, and of Parquet files, which are read a row group at a time, each machine opens its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import SourceError
from featx.images.sources import open_source
from featx.images.sources.members import Archive, ArchiveSource, Member
from featx.images.sources.objects import shared_remote
from featx.images.sources.relabelled import RelabelledSource
from featx.images.sources.remote import Entry
from featx.images.sources.sample import FileSource, ImageSource, Sample, Stamp, list_digest
from featx.images.sources.stores import StoreSource


@dataclass(frozen=True, eq=False)
class RangeSource:
    """Consecutive images of a source; an ``ImageSource`` with all of its classes."""

    whole: ImageSource
    samples: Sequence[Sample]
    first: int

    @property
    def uri(self) -> str:
        return self.whole.uri

    @property
    def classes(self) -> tuple[str, ...]:
        return self.whole.classes

    @property
    def has_tags(self) -> bool:
        return self.whole.has_tags

    @property
    def ignored(self) -> Mapping[str, int]:
        return self.whole.ignored

    @property
    def parallel_reads(self) -> int | None:
        return getattr(self.whole, "parallel_reads", None)

    def read(self, index: int) -> bytes | np.ndarray:
        return self.whole.read(self.first + index)

    def stamp(self, index: int) -> Stamp:
        return self.whole.stamp(self.first + index)


def select(source: ImageSource, positions: Sequence[int]) -> ImageSource:
    """Return a source of some samples, in the order of ``positions``, which can be pickled."""
    samples = tuple(source.samples[position] for position in positions)
    if isinstance(source, RangeSource):
        return select(source.whole, [source.first + position for position in positions])
    if isinstance(source, FileSource):
        return replace(source, classes=(), samples=samples, ignored={})
    if isinstance(source, ArchiveSource):
        return _Members(source.uri, samples, [source.places[position] for position in positions])
    if isinstance(source, StoreSource):
        entries = source.looked_up()
        return _Objects(
            source.uri,
            samples,
            source.remote.address,
            [source.address(position) for position in positions],
            [entries[position] for position in positions],
        )
    if isinstance(source, RelabelledSource):
        there = [own for position in positions if (own := source.positions[position]) >= 0]
        numbers = iter(range(len(there)))
        places = tuple(next(numbers) if source.positions[p] >= 0 else -1 for p in positions)
        origin = select(source.origin, there)
        return replace(source, classes=(), samples=samples, positions=places, origin=origin)
    whole: Any = source  # hashed by identity
    return _Opened(source.uri, samples, tuple(positions), _digest_of(whole))


@lru_cache(maxsize=2)
def _digest_of(source: ImageSource) -> str:
    return list_digest(source.samples)


@dataclass(frozen=True)
class _Selection:
    """What an ``ImageSource`` has beside its images."""

    uri: str
    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = field(default=(), init=False)
    ignored: dict[str, int] = field(default_factory=dict, init=False)
    has_tags: bool = field(default=False, init=False)


@dataclass(frozen=True)
class _Members(_Selection):
    places: Sequence[tuple[Archive, Member]]

    @property
    def parallel_reads(self) -> int | None:
        return ArchiveSource(self.uri, (), self.samples, self.places).parallel_reads

    def read(self, index: int) -> bytes:
        archive, member = self.places[index]
        source = ArchiveSource(self.uri, (), (self.samples[index],), [(_here(archive), member)])
        return source.read(0)

    def stamp(self, index: int) -> Stamp:
        return ArchiveSource(self.uri, (), self.samples, self.places).stamp(index)


def _here(archive: Archive) -> Archive:
    """Return an archive as this machine sees it: device and inode are numbers of its own."""
    if archive.remote:
        return archive
    try:
        here = Archive.of(Path(archive.path))
    except OSError:
        return archive  # reading it says what is wrong
    return here if here.identity[2:] == archive.identity[2:] else archive


@dataclass(frozen=True)
class _Objects(_Selection):
    remote: str
    addresses: Sequence[str]
    entries: list[Entry | None]

    @property
    def parallel_reads(self) -> int:
        return StoreSource.parallel_reads

    def read(self, index: int) -> bytes:
        return self._source().read(index)

    def stamp(self, index: int) -> Stamp:
        return self._source().stamp(index)

    def _source(self) -> StoreSource:
        remote = shared_remote(self.remote)
        return _Some(self.uri, remote, (), self.samples, self.addresses, self.entries)


class _Some(StoreSource):
    def _note_refused(self, index: int, reason: str) -> None:
        """Say nothing of the source, of which these are a few images."""


@dataclass(frozen=True)
class _Opened(_Selection):
    """Samples of a source that each process opens once."""

    positions: tuple[int, ...]
    digest: str

    def read(self, index: int) -> bytes | np.ndarray:
        return _open(self.uri, self.digest).read(self.positions[index])

    def stamp(self, index: int) -> Stamp:
        return _open(self.uri, self.digest).stamp(self.positions[index])


@lru_cache(maxsize=2)
def _open(uri: str, digest: str) -> ImageSource:
    source = open_source(uri)
    if list_digest(source.samples) != digest:
        raise SourceError(f"'{uri}' has other images on this machine than where it was listed.")
    return source
