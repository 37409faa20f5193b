"""Batches of cached activations, from memory or from the file.

An epoch has each training image once, in one of its versions: as it is evaluated, or a view. Blocks
of consecutive images have the same version, so that no chunk of the file is read for one image
alone, and all versions have their turn before one repeats. Blocks from everywhere in the file are
read together and shuffled, always as many, so that the order does not depend on the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from featx.images.reading import map_ahead

_POOL_BYTES = 2**27
"""Activations that are shuffled together; several times as many are in memory while they come."""
_POOLS = 8
_BLOCK_BYTES = 2**23
"""Activations that are read at once where their order does not matter."""


class Source(Protocol):
    """Activations of a feature file."""

    @property
    def block_rows(self) -> int:
        """Consecutive training rows that are read together."""

    def read(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Return rows ``(n, …)`` in one version, 0 or the number of a view; rows ascend."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples."""

    activations: Tensor  # at the cut, (n, …) float32; at the input uint8
    targets: Tensor  # as the loss takes them, (n, …)
    weights: Tensor  # what each counts, (n,) float32
    numbers: np.ndarray  # which samples these are, (n,) int64


class _Piece(NamedTuple):
    values: np.ndarray  # (m, …)
    places: np.ndarray  # in values, of each sample, (n,)
    samples: np.ndarray  # (n,)


@dataclass(eq=False)
class CachedData:
    """Labelled training images of a feature file: most train, some are held out."""

    source: Source  # their activations
    rows: np.ndarray  # in the file, ascending, (N,) int64
    positions: np.ndarray  # among the rows of the training split, by which blocks are counted, (N,)
    targets: Tensor  # as the loss takes them, (N, …)
    weights: Tensor  # what each counts, (N,) float32
    is_held_out: np.ndarray  # (N,) bool
    names: Sequence[str]  # of the images, for messages
    num_views: int  # versions beside the one that is evaluated
    row_bytes: int  # of an image's activations
    memory: int  # bytes that they may take
    device: torch.device  # where batches go
    _values: np.ndarray | None = field(default=None, init=False)  # of all versions, where they fit
    _held_out: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._trained = np.flatnonzero(~self.is_held_out)
        self._is_read = np.zeros((1 + self.num_views) * len(self._trained), bool)

    @property
    def num_samples(self) -> int:
        """Number of training samples."""
        return len(self._trained)

    def name_of(self, number: int) -> str:
        """Return the image of a sample."""
        return self.names[number]

    @property
    def pool_rows(self) -> int:
        """Samples that are shuffled together; the order of an epoch depends on it."""
        usual = min(_POOL_BYTES, 1 << max(0, (self.memory // _POOLS).bit_length() - 1))
        return max(1, usual // self.row_bytes)

    @property
    def fits_into_memory(self) -> bool:
        """Whether all versions are kept; else only what is held out, where that fits."""
        num_rows = len(self._is_read) + int(self.is_held_out.sum())
        return num_rows * self.row_bytes <= self.memory

    def batches(self, *, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield each training sample once, in an order that ``epoch`` and ``seed`` decide."""
        blocks = self.positions[self._trained] // self.source.block_rows
        bounds = np.append(np.flatnonzero(np.diff(blocks, prepend=-1)), len(blocks))
        of_blocks = versions_of(len(bounds) - 1, self.num_views, epoch=epoch, seed=seed)
        versions = np.repeat(of_blocks, np.diff(bounds))
        pieces = order_of(bounds, epoch=epoch, seed=seed, at_once=self.pool_rows)
        load = self._load_kept if self.fits_into_memory else self._load
        with closing(
            map_ahead(lambda order: load(order, versions[order]), pieces, workers=1, window=1)
        ) as loaded:
            for values, samples in _in_batches(loaded, len(blocks), batch_size):
                yield self._batch(values, samples)

    def held_out(self, *, batch_size: int) -> Iterator[Batch]:
        """Yield the held-out samples as they are evaluated, ascending."""
        samples = np.flatnonzero(self.is_held_out)
        blocks = read_blocks(self.source, self.rows[samples], self.row_bytes)
        if len(samples) and len(samples) * self.row_bytes <= self.memory // 2:
            if self._held_out is None:
                self._held_out = np.concatenate([values for _, values in blocks])
            blocks = iter([(slice(0, len(samples)), self._held_out)])
        for where, values in blocks:
            for start in range(0, len(values), batch_size):
                part = slice(start, start + batch_size)
                yield self._batch(values[part], samples[where][part])

    def _load(self, order: np.ndarray, versions: np.ndarray) -> _Piece:
        """Return samples in a shuffled order, given as places among those that train."""
        ranks = np.empty(len(order), np.int64)  # of each sample among the values as they are read
        parts, start = [], 0
        for version in np.unique(versions):
            chosen = np.flatnonzero(versions == version)
            chosen = chosen[np.argsort(order[chosen])]
            ranks[chosen] = np.arange(start, start + len(chosen))
            parts.append(self._read(order[chosen], version))
            start += len(chosen)
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return _Piece(values, ranks, self._trained[order])

    def _load_kept(self, order: np.ndarray, versions: np.ndarray) -> _Piece:
        """Return the same from values in memory, where those that are missing are added."""
        places = versions * len(self._trained) + order
        missing = ~self._is_read[places]
        for version in np.unique(versions[missing]):
            chosen = np.sort(order[missing & (versions == version)])
            values = self._read(chosen, version)
            if self._values is None:
                self._values = np.empty((len(self._is_read), *values.shape[1:]), values.dtype)
            self._values[version * len(self._trained) + chosen] = values
        self._is_read[places] = True
        assert isinstance(self._values, np.ndarray)
        return _Piece(self._values, places, self._trained[order])

    def _read(self, places: np.ndarray, version: int) -> np.ndarray:
        return self.source.read(self.rows[self._trained[places]], int(version))

    def _batch(self, values: np.ndarray, samples: np.ndarray) -> Batch:
        numbers = torch.from_numpy(samples)
        return Batch(
            to_device(values, self.device),
            self.targets[numbers].to(self.device),
            self.weights[numbers].to(self.device),
            samples,
        )


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Return activations ``(n, …)`` as the tail takes them: float32, pixels as they are."""
    tensor = torch.from_numpy(values).to(device)
    if tensor.dtype == torch.uint8:
        return tensor
    if tensor.ndim == 4:
        return tensor.to(torch.float32, memory_format=torch.channels_last)
    return tensor.to(torch.float32)


def read_blocks(
    source: Source, rows: np.ndarray, row_bytes: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows ``(n,)`` of a file as they are evaluated, ascending: which, and ``(n, …)``."""
    at_once = max(1, _BLOCK_BYTES // row_bytes)
    parts = [slice(start, start + at_once) for start in range(0, len(rows), at_once)]

    def read(part: slice) -> tuple[slice, np.ndarray]:
        return part, source.read(rows[part], 0)

    with closing(map_ahead(read, parts, workers=1, window=1)) as blocks:
        yield from blocks


def versions_of(num_blocks: int, num_views: int, *, epoch: int, seed: int) -> np.ndarray:
    """Return the version of each block in an epoch, ``(num_blocks,)``, in [0, ``num_views``].

    Each has all of its versions in ``1 + num_views`` epochs, in an order of its own.
    """
    turn, place = divmod(epoch - 1, 1 + num_views)
    every = np.tile(np.arange(1 + num_views), (num_blocks, 1))
    orders = np.random.default_rng([seed, turn, 1]).permuted(every, axis=1)
    return np.asarray(orders[:, place])


def order_of(bounds: np.ndarray, *, epoch: int, seed: int, at_once: int) -> Iterator[np.ndarray]:
    """Yield an epoch's order in pieces: samples of some blocks that are read together, shuffled.

    Blocks of consecutive samples are read whole, so that no chunk of a file is read twice; many
    blocks from everywhere in the file share a piece, so that a file sorted by class is mixed.
    ``bounds`` ``(B + 1,)`` are the first sample of each block, and the number of samples; a piece
    has at most ``at_once`` samples, but for a block that is larger.
    """
    random = np.random.default_rng([seed, epoch])
    blocks = random.permutation(len(bounds) - 1)
    ends = np.cumsum(np.diff(bounds)[blocks])
    first = 0
    while first < len(blocks):
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + at_once, side="right")))
        rows = [np.arange(bounds[block], bounds[block + 1]) for block in blocks[first:last]]
        yield random.permutation(np.concatenate(rows))
        first = last


def num_steps(num_samples: int, batch_size: int) -> int:
    """Return the batches of an epoch; a single image left over joins the one before.

    Batch norms cannot be trained on one value.
    """
    return max(1, -(-(num_samples - 1) // batch_size))


def _in_batches(
    pieces: Iterator[_Piece], count: int, size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield activations ``(n, …)`` and samples ``(n,)``; what is left of a piece joins the next."""
    rest: list[tuple[np.ndarray, np.ndarray]] = []
    for values, places, samples in pieces:
        start = 0
        while start < len(places):
            wanted = count if count <= size + 1 else size
            missing = wanted - sum(len(each) for _, each in rest)
            part = slice(start, start + missing)
            rest.append((values[places[part]], samples[part]))
            start += missing
            if sum(len(each) for _, each in rest) == wanted:
                activations, numbers = zip(*rest, strict=True)
                whole = len(rest) == 1
                yield (
                    activations[0] if whole else np.concatenate(activations),
                    numbers[0] if whole else np.concatenate(numbers),
                )
                rest, count = [], count - wanted
