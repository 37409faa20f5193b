"""Training data: features in memory, or read block by block where they do not fit into it.

Features that do not fit are read once to learn their statistics and to keep a subsample; solvers
then read them in blocks. An array in memory is one block, and its own subsample. A reader of files
provides ``Blocks``; nothing here depends on files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol, Self, TypeVar

import numpy as np

from featx.heads.samples.folds import Division
from featx.heads.samples.statistics import Covariance, Moments, standardisation

T = TypeVar("T")
Step = Callable[[str], None]
"""Called with the step under way, in a few words."""


def no_step(step: str) -> None:
    """Ignore a step."""


Divide = Callable[..., Division | None]
"""Called with targets, ``groups`` and ``seed``."""


class Blocks(Protocol):
    """Features of samples, ``(N, num_features)``, read block by block."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of samples, and features of each."""

    @property
    def num_pieces(self) -> int:
        """Parts that can be read in any order."""

    @property
    def bytes_read(self) -> int:
        """Bytes of features read, by this and all others made from it."""

    def only(self, rows: np.ndarray) -> Self:
        """Return some samples; ``rows`` ``(n,)`` are ascending."""

    def blocks(self, order: np.ndarray | None = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield which samples these are, and their features ``(n, num_features)`` float32.

        Features may be changed in place, and hold until the next block is asked for.

        Args:
            order: Numbers of pieces; None for all from the first on, in blocks of several.
        """

    def each_part(
        self, work: Callable[..., T], *columns: np.ndarray, step: Step = no_step
    ) -> Iterator[T]:
        """Yield ``work(blocks, *columns)`` of each part of the samples, in order.

        Here that is of all samples at once; on a cluster of each file of features, where it is
        read. What is added up over parts is added in this order.

        Args:
            work: Called with the ``Blocks`` of the part, and the columns' values of its samples.
                It can be sent to another process, and so can what it returns.
            columns: Values of the samples, ``(N, …)``.
            step: Called with how many samples are done.
        """


@dataclass(frozen=True, eq=False)
class FirstPass:
    """Statistics and a subsample of features that are read in blocks."""

    mean: np.ndarray  # (num_features,) float64
    scale: np.ndarray  # regularised deviation, (num_features,) float64
    subsample: np.ndarray  # numbers of the samples that are kept in memory, ascending, (n,)
    features: np.ndarray  # theirs, raw, (n, num_features) float32
    correlation: np.ndarray  # (num_features, num_features) float64; empty where not needed


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Samples that train a head; their targets are as its loss takes them.

    A sample in memory may have several versions, which share its weight and are held out together.
    The first ``num_samples`` rows are the samples as they are scored; the second version of each
    follows in the same order, then the third.
    """

    features: np.ndarray | Blocks  # raw, finite, (N, num_features)
    targets: np.ndarray  # class indices (N,); tags or numbers (N, num_outputs)
    num_outputs: int
    weights: np.ndarray  # (N,), above 0
    groups: np.ndarray | None = None  # (num_samples,), -1 for none; held out as a whole
    first_pass: FirstPass | None = None  # of blocks
    pool_bytes: int = 0  # size of the features from blocks that are shuffled together
    num_versions: int = 1  # rows of each sample

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_samples(self) -> int:
        """Number of samples, whatever their versions."""
        return len(self) // self.num_versions

    @property
    def array(self) -> np.ndarray:
        """The features of samples in memory."""
        assert isinstance(self.features, np.ndarray)
        return self.features

    def mean(self) -> np.ndarray:
        """Return the mean of each feature, ``(num_features,)`` float64."""
        if self.first_pass:
            return self.first_pass.mean
        return np.asarray(self.array.mean(axis=0, dtype=np.float64))

    def standardisation(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and scale of each feature, ``(num_features,)`` float64 each."""
        if self.first_pass:
            return self.first_pass.mean, self.first_pass.scale
        return standardisation(self.array, num_versions=self.num_versions)

    def in_versions(self, features: np.ndarray) -> TrainingData:
        """Return the same samples in several versions; each has its part of the sample's weight.

        Args:
            features: Of all rows, ``(num_versions * num_samples, num_features)``.
        """
        count = len(features) // len(self)
        return replace(
            self,
            features=features,
            targets=np.concatenate([self.targets] * count),
            weights=np.tile(self.weights / count, count),
            num_versions=count,
        )

    def first_versions(self) -> TrainingData:
        """Return the samples in the version that is scored alone."""
        if self.num_versions == 1:
            return self
        first = slice(0, self.num_samples)
        return replace(
            self,
            features=self.array[first],
            targets=self.targets[first],
            weights=self.weights[first] * self.num_versions,
            num_versions=1,
        )

    def rows_of(self, samples: np.ndarray) -> np.ndarray:
        """Return the rows of samples ``(n,)`` in each version, ``(num_versions, n)``."""
        starts = self.num_samples * np.arange(self.num_versions)
        return np.asarray(starts[:, None] + samples)

    def divide(self, divide: Divide, *, seed: int) -> Division | None:
        """Return folds of the rows; all versions of a sample are in one, and the first is scored.

        ``divide`` is ``folds.divide``, or that of a loss.
        """
        targets = self.targets[: self.num_samples]
        division = divide(targets, groups=self.groups, seed=seed)
        return division.in_versions(self.num_versions) if division else None

    def each_part(
        self, work: Callable[..., T], *columns: np.ndarray, step: Step = no_step
    ) -> Iterator[T]:
        """Yield as ``Blocks.each_part``; ``work`` is called with the array where there is one."""
        if isinstance(self.features, np.ndarray):
            step(f"{len(self):,} samples")
            yield work(self.features, *columns)
        else:
            yield from self.features.each_part(work, *columns, step=step)

    def select(self, samples: np.ndarray) -> TrainingData:
        """Return some samples, ``(n,)``; of features read in blocks in ascending order."""
        if isinstance(self.features, np.ndarray):
            return self._select(samples, self.features[self.rows_of(samples).reshape(-1)])
        return self._select(samples, self.features.only(samples))

    def subsample(self) -> tuple[np.ndarray, TrainingData]:
        """Return numbers ``(n,)`` and data of the samples that are in memory."""
        if not self.first_pass:
            return np.arange(len(self)), self
        rows = self.first_pass.subsample
        return rows, replace(self._select(rows, self.first_pass.features), first_pass=None)

    def _select(self, samples: np.ndarray, features: np.ndarray | Blocks) -> TrainingData:
        groups = None if self.groups is None else self.groups[samples]
        rows = self.rows_of(samples).reshape(-1)
        return replace(
            self,
            features=features,
            targets=self.targets[rows],
            weights=self.weights[rows],
            groups=None if groups is None or (groups < 0).all() else groups,
        )


def blocks_of(features: np.ndarray | Blocks) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of the samples, and their features, which must not be changed."""
    if isinstance(features, np.ndarray):
        yield slice(0, len(features)), features
    else:
        yield from features.blocks()


def read_first_pass(
    blocks: Blocks, trained: np.ndarray, subsample: np.ndarray, *, correlate: bool = True
) -> tuple[FirstPass, np.ndarray]:
    """Return statistics of the training samples, and which of all samples are not finite.

    Args:
        blocks: All samples, those that do not train among them.
        trained: Numbers of those that train, ascending, ``(N,)``.
        subsample: Which of the training samples to keep, ascending: their places in ``trained``.
        correlate: Estimate correlations too.
    """
    trains, keeps = np.zeros((2, blocks.shape[0]), bool)
    trains[trained] = keeps[trained[subsample]] = True
    work = partial(_read_part, num_trained=len(trained), correlate=correlate)
    moments, covariances = Moments(blocks.shape[1]), list[Covariance]()
    kept, bad, done = list[np.ndarray](), list[np.ndarray](), 0
    with np.errstate(invalid="ignore"):  # the caller hears of what is not finite
        for own in blocks.each_part(work, trains, keeps):
            moments.merge(own.moments)
            covariances.append(own.covariance)
            kept.append(own.kept)
            bad.append(done + own.bad)
            done += own.num_samples
        mean, scale = moments.standardisation()
        correlation = Covariance.of_all(covariances)
        if correlation.size:
            correlation /= scale[:, None] * scale
    features = kept[0] if len(kept) == 1 else np.concatenate(kept)
    return FirstPass(mean, scale, subsample, features, correlation), np.concatenate(bad)


class _PartRead(NamedTuple):
    """What a first pass finds in some samples."""

    num_samples: int
    moments: Moments
    covariance: Covariance
    kept: np.ndarray  # raw, (n, num_features) float32
    bad: np.ndarray  # positions of those that are not finite


def _read_part(
    blocks: Blocks, trains: np.ndarray, keeps: np.ndarray, *, num_trained: int, correlate: bool
) -> _PartRead:
    moments, bad = Moments(blocks.shape[1]), [np.zeros(0, np.int64)]
    covariance = Covariance(blocks.shape[1] if correlate else 0, num_trained)
    kept, num_kept = np.empty((int(keeps.sum()), blocks.shape[1]), np.float32), 0
    with np.errstate(invalid="ignore"):
        for where, values in blocks.blocks():
            finite = np.isfinite(values).all(axis=1)
            bad.append(where.start + np.flatnonzero(~finite))
            own, some = trains[where], values[keeps[where]]
            kept[num_kept : num_kept + len(some)] = some
            num_kept += len(some)
            if own.any():
                some = values if own.all() else values[own]
                moments.add(some)
                covariance.add(some)
    return _PartRead(blocks.shape[0], moments, covariance, kept, np.concatenate(bad))


def shuffled_batches(
    data: TrainingData, size: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows ``(n,)`` and features ``(n, num_features)`` of all samples, in random order.

    Each sample comes once, in one of its versions, so that an epoch is as many steps with versions
    as without. As many blocks as fit into memory form a pool, in random order, and each pool is
    shuffled, so that a sample meets others from all over the file, whatever their order there.
    """
    features = data.features
    if isinstance(features, np.ndarray):
        rows = np.arange(data.num_samples)
        if data.num_versions > 1:  # by another generator, so that the order is that without
            drawn = random.spawn(1)[0].integers(data.num_versions, size=len(rows))
            rows += data.num_samples * drawn
        rows = rows[random.permutation(len(rows))]
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield batch, features[batch]
        return
    fitting = data.pool_bytes // (4 * features.shape[1] * size)  # whole batches
    for numbers, pool in pools_of(features, max(1, fitting) * size, random):
        order = random.permutation(len(numbers))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            yield numbers[batch], pool[batch]


def pools_of(
    features: Blocks, num_rows: int, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers ``(n,)`` and features ``(n, num_features)`` of samples, each once.

    Features hold until the next pool is asked for. The last pool has what is left.
    """
    num_rows = min(num_rows, features.shape[0])
    numbers = np.empty(num_rows, np.int64)
    pool = np.empty((num_rows, features.shape[1]), np.float32)
    filled = 0
    for where, values in features.blocks(random.permutation(features.num_pieces)):
        taken = 0
        while taken < len(values):
            count = min(len(values) - taken, num_rows - filled)
            pool[filled : filled + count] = values[taken : taken + count]
            first = where.start + taken
            numbers[filled : filled + count] = np.arange(first, first + count)
            filled, taken = filled + count, taken + count
            if filled == num_rows:
                yield numbers, pool
                filled = 0
    if filled:
        yield numbers[:filled], pool[:filled]
