"""From images to rows of the journal.

reading threads       files → bytes and content hashes           a few batches ahead
the caller's thread   which contents are new, in order
workers               bytes → pixels → crops → features          a batch each
the caller's thread   features → checks → journal and plan
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from featx.backbones.engines import Engine, EngineName, default_batch_size
from featx.extraction.batches import Cluster, Computer, ImageBatch, Work, read_batch
from featx.extraction.crops import Decoders, Image, Spent
from featx.extraction.faster import Advice
from featx.extraction.options import Profile, ResolvedOptions
from featx.extraction.plan import Plan
from featx.extraction.resume import Settings
from featx.features.contents import RowsByContent
from featx.features.publish import ExistingRows
from featx.features.records import Batch, RowBlock
from featx.features.skipped import SkippedImage
from featx.images.decode import DIGEST_BYTES, NO_DIGEST
from featx.images.preprocess import PreprocessSpec
from featx.images.reading import map_ahead, num_cores
from featx.images.sources import ImageSource

_MIN_READERS = 2
_WAITING = 2  # batches between two steps
_PENDING = -1
_RECENT = 4096  # rows that enter the table at once


@dataclass(frozen=True)
class Extracted:
    """Counts and times of a run of the backbone, which computed ``num_rows``."""

    num_rows: int
    num_animated: int
    num_duplicates: int
    profile: Profile


@dataclass(frozen=True)
class Target:
    """An output that gets rows, and what it has left to do."""

    existing: ExistingRows
    plan: Plan

    def contents(self, *, with_views: bool) -> bytes:
        """Return the contents whose rows there are, all or those that have views, in order."""
        digests, which = _contents_of(self.existing, with_views=with_views)
        return np.unique(digests[which].view(f"V{DIGEST_BYTES}")).tobytes()


def start_decoders(
    num_images: int, preprocessing: PreprocessSpec, options: ResolvedOptions
) -> Decoders | None:
    """Start the processes that decode beside a GPU, unless the images are too few for them."""
    views = options.view_spec
    versions = 1 + (views.num_views if views else 0)
    batch_size = max(versions, _batch_size(options, preprocessing, "torch", "cuda"))
    workers = options.workers or num_cores()
    if num_images * versions <= workers * batch_size:
        return None
    return Decoders(
        preprocessing, options.max_pixels, batch_size=batch_size, workers=workers, views=views
    )


def run_backbone(
    engine: Engine,
    images: ImageSource,
    targets: Sequence[Target],
    todo: np.ndarray,
    *,
    settings: Settings,
    options: ResolvedOptions,
    decoders: Decoders | None,
    with_views: np.ndarray,
    after_batch: Callable[[int], None],
    cluster: Cluster | None = None,
) -> Extracted:
    """Extract what there is to do; enter rows and unusable images in journals and plans.

    With several outputs each image is read and decoded once, and each output gets its part of what
    the engine gives. They know the rows of the same contents.

    A batch is always the next ``batch_size`` images of what was to be done, whether they can be
    used or not; fewer where each has views, which count too. So a run that resumes after an
    interruption forms the same batches, and with them the same bits, as one that was never
    interrupted. Of images with the same content the backbone sees the first, however the threads
    run.

    Args:
        engine: Runs the backbone.
        images: The source.
        targets: What gets the rows, in the order in which the engine gives their parts.
        todo: Positions of the samples to be done, ascending, int64; every plan has them so.
        settings: Of the rows of the first output, from whose others only layers differ; with views,
            the images that have them come first.
        options: How to do it.
        decoders: Processes that decode; None decodes in threads.
        with_views: Which samples are to have views, ``(N,)`` bool.
        after_batch: Called with the number of images of a batch once it is in the journal.
        cluster: Reads and computes; None does so here.
    """
    start = time.perf_counter()
    views = settings.view_spec
    workers = cluster.num_threads if cluster else options.workers or num_cores()
    first = with_views[todo] if views else np.zeros(len(todo), dtype=bool)
    spent, counts = Spent(), np.zeros(4, dtype=np.int64)
    own, readers = work_for(engine, targets, settings, options), max(_MIN_READERS, workers)
    advice = Advice(
        *(images, todo, settings.spec, engine, own.size, workers, readers, options.max_pixels)
    )
    if decoders or views or cluster or len(targets) > 1:
        advice.close()
    parts = ((todo[first], views), (todo[~first], None))
    with closing(advice):
        for positions, drawn in parts:
            work = replace(own, views=drawn)
            computer = Computer(engine, work.maker(images, decoders), work)
            run = _Run(computer, tuple(targets), workers, cluster)
            for batch in run.batches(positions) if len(positions) else ():
                used = [image for image in batch.images if not image.reason]
                num_animated = sum(image.is_animated for image in used)
                num_copies = sum(not image.is_new for image in used)
                counts += len(batch.images), len(batch.rows), num_animated, num_copies
                spent.add(batch.spent)
                after_batch(len(batch.images))
                advice.after(int(counts[0]), spent)
    profile = Profile(spent.seconds, len(todo), workers, time.perf_counter() - start)
    _, num_rows, num_animated, num_duplicates = counts.tolist()
    return Extracted(num_rows, num_animated, num_duplicates, profile)


def work_for(
    engine: Engine, targets: Sequence[Target], settings: Settings, options: ResolvedOptions
) -> Work:
    """Return how rows of some outputs are made, with views where there are any."""
    preprocessing = settings.spec.preprocess
    layouts = [target.existing.journal.layout for target in targets]
    size = _batch_size(options, preprocessing, engine.name, engine.device)
    length = sum(layout.size for layout in layouts)
    dtype, cut = layouts[0].dtype, settings.spec.cut
    return Work(preprocessing, settings.view_spec, size, length, dtype, cut, options)


def _batch_size(
    options: ResolvedOptions, preprocessing: PreprocessSpec, engine: EngineName, device: str
) -> int:
    size = preprocessing.image_size
    return options.batch_size or default_batch_size(engine, size, device=device)


def _contents_of(existing: ExistingRows, *, with_views: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the rows there are, and which count: with views, if asked for."""
    digests = existing.digests()
    which = np.asarray(digests.any(axis=1))
    return digests, which & existing.has_views if with_views else which


class _Outcomes:
    """The row of each content, or the first image with it where it cannot be used.

    Pixels that come without a file have one shape in a source, so that those with the same hash
    are the same.
    """

    def __init__(self, existing: ExistingRows, *, with_views: bool) -> None:
        self._rows = RowsByContent()
        self._rows.add(*_contents_of(existing, with_views=with_views))
        self._recent: dict[bytes, int | Image] = {}  # of images under way and unusable ones too
        self._entered: list[tuple[bytes, bool]] = []  # rows that are not in the table yet

    def mark(self, batch: ImageBatch) -> None:
        """Mark the images of the next batch whose content comes first here."""
        for image, row in zip(batch.images, self._in_table(batch.images), strict=True):
            image.is_new = row < 0 and image.digest not in self._recent
            if image.is_new and image.digest != NO_DIGEST:
                self._recent[image.digest] = _PENDING

    def enter(self, images: Sequence[Image], first: int) -> np.ndarray:
        """Give the usable images of a batch the next rows; others that are copies get their reason.

        Returns:
            Of each row, its own number or that of the row it is a copy of, ``(n,)`` int64.
        """
        sources = list[int]()
        copies = iter(self._in_table([image for image in images if not image.is_new]))
        for image in images:
            number = first + len(sources)
            if image.is_new:
                if image.digest != NO_DIGEST:
                    self._recent[image.digest] = image if image.reason else number
            else:
                outcome = self._recent.get(image.digest, next(copies))
                if isinstance(outcome, Image):
                    image.reason, image.is_permanent = outcome.reason, outcome.is_permanent
                else:
                    number = outcome
            if not image.reason:
                sources.append(number)
                self._entered.append((image.digest, image.is_new and image.digest != NO_DIGEST))
        if len(self._entered) >= _RECENT:
            self._settle()
        return np.array(sources, dtype=np.int64)

    def _in_table(self, images: Sequence[Image]) -> list[int]:
        """Return the row of each image's content, -1 of what is recent or new."""
        if not images:
            return []
        found: list[int] = self._rows.find(_joined([image.digest for image in images])).tolist()
        return found

    def _settle(self) -> None:
        digests, which = zip(*self._entered, strict=True)
        self._rows.add(_joined(digests), np.array(which))
        for digest, is_first in self._entered:
            if is_first:
                del self._recent[digest]
        self._entered.clear()


def _joined(digests: Sequence[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


@dataclass(frozen=True)
class _Run:
    """Makes rows of images that all have as many views, and enters them."""

    computer: Computer
    targets: tuple[Target, ...]
    workers: int
    cluster: Cluster | None = None

    def batches(self, positions: np.ndarray) -> Generator[ImageBatch, None, None]:
        """Yield batches of these images, in order, once journals and plans have them."""
        work, source = self.computer.work, self.computer.maker.source
        with_views = work.views is not None
        outcomes = [_Outcomes(each.existing, with_views=with_views) for each in self.targets]
        ends = np.cumsum([each.existing.journal.layout.size for each in self.targets])[:-1]
        mark = outcomes[0].mark
        if self.cluster:
            found = self.cluster.batches(source, positions, work, mark)
        else:
            found = self._computed(source, positions, mark)
        with ExitStack() as stack:
            rows_at = [stack.enter_context(each.existing.reading()) for each in self.targets]
            computed = stack.enter_context(closing(found))
            for batch in computed:
                with batch.spent.on("journal"):
                    parts = np.split(batch.rows, ends, axis=2)
                    for number, target in enumerate(self.targets):
                        first = target.existing.next_row
                        part = replace(batch, rows=parts[number])
                        sources = outcomes[number].enter(batch.images, first)
                        rows = _rows(part, first, sources, rows_at[number])
                        _enter(batch.images, rows, target.existing, target.plan)
                yield batch

    def _computed(
        self,
        source: ImageSource,
        positions: np.ndarray,
        mark: Callable[[ImageBatch], None],
    ) -> Generator[ImageBatch, None, None]:
        """Yield batches with the rows of their new images."""
        step = self.computer.work.step
        starts = range(0, len(positions), step)
        read = map_ahead(
            partial(read_batch, source),
            (positions[start : start + step].tolist() for start in starts),
            workers=max(_MIN_READERS, self.workers),
            window=_WAITING,
        )

        def marked() -> Iterator[ImageBatch]:
            for batch in read:
                mark(batch)
                yield batch

        compute = self.computer.compute
        computed = map_ahead(compute, marked(), workers=self.workers, window=_WAITING)
        with closing(read), closing(computed):
            yield from computed


def _rows(
    batch: ImageBatch,
    first: int,
    numbers: np.ndarray,
    rows_at: Callable[[np.ndarray], RowBlock],
) -> np.ndarray:
    """Return the rows of a batch, computed or copied as ``numbers`` ``(n,)`` says.

    They are ``(n, num_versions, size)``.
    """
    own = numbers == first + np.arange(len(numbers))
    computed = batch.rows
    if own.all():
        return computed
    rows = np.empty((len(numbers), *computed.shape[1:]), dtype=computed.dtype)
    rows[own] = computed
    before, here = numbers < first, ~own & (numbers >= first)
    if before.any():
        block = rows_at(numbers[before])
        rows[before, 0] = block.features
        if computed.shape[1] > 1:
            rows[before, 1:] = block.views
    rows[here] = rows[numbers[here] - first]
    return rows


def _enter(images: Sequence[Image], rows: np.ndarray, existing: ExistingRows, plan: Plan) -> None:
    """Append a batch to the journal, then enter its images in the plan."""
    row = existing.next_row
    digests = b"".join(image.recorded_digest for image in images)
    existing.journal.append(
        Batch(
            sample_ids=tuple(image.sample_id for image in images),
            stamps=np.array([image.stamp for image in images], dtype=np.int64),
            digests=np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
            reasons=tuple(image.reason for image in images),
            features=rows[:, 0],
            views=rows[:, 1:] if rows.shape[1] > 1 else None,
        )
    )
    plan.rows[[image.position for image in images if not image.reason]] = np.arange(
        row, existing.next_row
    )
    for image in images:
        if image.reason:
            plan.skipped[image.position] = SkippedImage(
                image.sample_id, image.reason, image.stamp, image.recorded_digest
            )
