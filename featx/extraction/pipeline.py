"""From images to rows of the journal.

reading threads       files → bytes and content hashes           a few batches ahead
the caller's thread   which contents are new, in order
workers               bytes → pixels → crops → features          a batch each
the caller's thread   features → checks → journal and plan
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from featx.backbones.engines import Engine, EngineName, default_batch_size
from featx.errors import ImageError
from featx.extraction.crops import KEPT_BYTES, CropMaker, Decoders, Image, Spent
from featx.extraction.options import Profile, ResolvedOptions
from featx.extraction.plan import Plan
from featx.features.file import SkippedImage
from featx.features.publish import ExistingRows
from featx.features.records import (
    Batch,
    RowBlock,
    require_finite,
    require_float16,
    require_no_underflow,
)
from featx.images.decode import DIGEST_BYTES, NO_DIGEST, content_digest, is_animated
from featx.images.preprocess import PreprocessSpec
from featx.images.reading import map_ahead, num_cores
from featx.images.sources import ImageSource

_MIN_READERS = 2
_WAITING = 2  # batches between two steps
_PENDING = -1

_Outcomes = dict[bytes, int | Image]
"""The row of each content, or the first image with it where it cannot be used; some 200 bytes each.

Pixels that come without a file have one shape in a source, so that those with the same hash are
the same."""


@dataclass(frozen=True)
class Extracted:
    """Counts and times of a run of the backbone, which computed ``num_rows``."""

    num_rows: int
    num_animated: int
    num_duplicates: int
    profile: Profile


@dataclass
class _ImageBatch:
    """Images in source order, and the features ``(m, D)`` of those that are new and usable."""

    images: list[Image]
    features: np.ndarray | None = None
    spent: Spent = field(default_factory=Spent)


def start_decoders(
    num_images: int, preprocessing: PreprocessSpec, options: ResolvedOptions
) -> Decoders | None:
    """Start the processes that decode beside a GPU, unless the images are too few for them."""
    batch_size = _batch_size(options, preprocessing, "torch", "cuda")
    workers = options.workers or num_cores()
    if num_images <= workers * batch_size:
        return None
    return Decoders(preprocessing, options.max_pixels, batch_size=batch_size, workers=workers)


def run_backbone(
    engine: Engine,
    images: ImageSource,
    existing: ExistingRows,
    plan: Plan,
    *,
    preprocessing: PreprocessSpec,
    options: ResolvedOptions,
    decoders: Decoders | None,
    after_batch: Callable[[int], None],
) -> Extracted:
    """Extract what the plan has left to do; enter rows and unusable images in journal and plan.

    A batch is always the next ``batch_size`` images of what was to be done, whether they can be
    used or not. So a run that resumes after an interruption forms the same batches, and with them
    the same bits, as one that was never interrupted. Of images with the same content the backbone
    sees the first, however the threads run.

    ``after_batch`` is called with the number of images of a batch once it is in the journal.
    """
    start, todo = time.perf_counter(), plan.todo()
    size = _batch_size(options, preprocessing, engine.name, engine.device)
    workers = options.workers or num_cores()
    maker = CropMaker(images, preprocessing, options.max_pixels, decoders)
    chunks = [todo[i : i + size].tolist() for i in range(0, len(todo), size)]
    num_rows, num_animated, num_duplicates = 0, 0, 0
    spent, outcomes = Spent(), _outcomes_of(existing)
    with (
        existing.reading() as rows_at,
        closing(_computed(chunks, engine, maker, outcomes, workers)) as batches,
    ):
        for batch in batches:
            computed = _checked(batch, existing.journal.layout.size, options)
            with batch.spent.on("journal"):
                rows = _rows(batch.images, computed, existing.next_row, outcomes, rows_at)
                _enter(batch.images, rows, existing, plan)
            used = [image for image in batch.images if not image.reason]
            num_rows += len(computed)
            num_animated += sum(image.is_animated for image in used)
            num_duplicates += sum(not image.is_new for image in used)
            spent.add(batch.spent)
            after_batch(len(batch.images))
    profile = Profile(spent.seconds, len(todo), workers, time.perf_counter() - start)
    return Extracted(num_rows, num_animated, num_duplicates, profile)


def _batch_size(
    options: ResolvedOptions, preprocessing: PreprocessSpec, engine: EngineName, device: str
) -> int:
    size = preprocessing.image_size
    return options.batch_size or default_batch_size(engine, size, device=device)


def _outcomes_of(existing: ExistingRows) -> _Outcomes:
    outcomes: _Outcomes = {}
    for block in existing.images():
        for digest, row in zip(block.digests, block.rows.tolist(), strict=True):
            if row >= 0:
                outcomes[digest.tobytes()] = row
    outcomes.pop(NO_DIGEST, None)
    return outcomes


def _computed(
    chunks: Sequence[Sequence[int]],
    engine: Engine,
    maker: CropMaker,
    outcomes: _Outcomes,
    workers: int,
) -> Generator[_ImageBatch, None, None]:
    """Yield a batch for each chunk of positions, with the features of its new images."""
    read = map_ahead(
        partial(_read, maker.source),
        chunks,
        workers=max(_MIN_READERS, workers),
        window=_WAITING,
    )

    def marked() -> Iterator[_ImageBatch]:
        for batch in read:
            for image in batch.images:
                image.is_new = image.digest not in outcomes
                if image.digest != NO_DIGEST:
                    outcomes.setdefault(image.digest, _PENDING)
            yield batch

    def compute(batch: _ImageBatch) -> _ImageBatch:
        wanted = [image for image in batch.images if image.is_new and not image.reason]
        crops = maker.crops(wanted, batch.spent)
        for image in batch.images:
            image.content = None
        if len(crops):
            with batch.spent.on("inference"):
                batch.features = engine.features(crops)
        return batch

    computed = map_ahead(compute, marked(), workers=workers, window=_WAITING)
    with closing(read), closing(computed):
        yield from computed


def _read(source: ImageSource, positions: Sequence[int]) -> _ImageBatch:
    batch, left = _ImageBatch([]), KEPT_BYTES
    with batch.spent.on("read"):
        for position in positions:
            # The stamp comes before the content: a change in between shows next time.
            stamp = source.stamp(position)
            image = Image(position, source.samples[position].sample_id, stamp)
            batch.images.append(image)
            try:
                content = source.read(position)
            except ImageError as err:
                image.fail(err)
                continue
            image.digest = content_digest(content)
            if isinstance(content, bytes):  # an array is of what is in memory already
                image.is_animated = is_animated(content)
                left -= len(content)
            image.content = content if left >= 0 else None
    return batch


def _checked(batch: _ImageBatch, num_features: int, options: ResolvedOptions) -> np.ndarray:
    """Return the features of a batch, ``(m, num_features)`` float32, fit to be stored."""
    if batch.features is None:
        return np.empty((0, num_features), dtype=np.float32)
    names = [image.sample_id for image in batch.images if image.is_new and not image.reason]
    require_finite(batch.features, names)
    if options.precision == "fp16":
        require_no_underflow(batch.features)
    if options.dtype == "float16":
        require_float16(batch.features, names)
    return batch.features


def _rows(
    images: Sequence[Image],
    computed: np.ndarray,
    first: int,
    outcomes: _Outcomes,
    rows_at: Callable[[np.ndarray], RowBlock],
) -> np.ndarray:
    """Return the rows of a batch, ``(n, num_features)``: computed, or those of the same content."""
    sources: list[int] = []  # of each row: its own number, or that of the row it is a copy of
    for image in images:
        number = first + len(sources)
        if image.is_new:
            if image.digest != NO_DIGEST:
                outcomes[image.digest] = image if image.reason else number
        elif isinstance(outcome := outcomes[image.digest], Image):
            image.reason, image.is_permanent = outcome.reason, outcome.is_permanent
        else:
            number = outcome
        if not image.reason:
            sources.append(number)
    numbers = np.array(sources, dtype=np.int64)
    own = numbers == first + np.arange(len(numbers))
    rows = np.empty((len(numbers), computed.shape[1]), dtype=np.float32)
    rows[own] = computed
    before, here = numbers < first, ~own & (numbers >= first)
    if before.any():
        rows[before] = rows_at(numbers[before]).features
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
            features=rows,
        )
    )
    for image in images:
        if image.reason:
            plan.skipped[image.position] = SkippedImage(
                image.sample_id, image.reason, image.stamp, image.recorded_digest
            )
        else:
            plan.rows[image.position], row = row, row + 1
