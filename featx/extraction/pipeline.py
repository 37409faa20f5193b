"""From images to rows in the log: batches come with their features; check them, append, note."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from featx.backbones.engines import Engine, EngineName, default_batch_size
from featx.extraction.batches import ImageBatch, Loader
from featx.extraction.crops import SquareMaker
from featx.extraction.deduplication import Contents, Failure
from featx.extraction.image import Image
from featx.extraction.options import ResolvedOptions
from featx.extraction.plan import Plan
from featx.extraction.profile import Profile, Spent
from featx.features.existing import KnownRows, RowBlock
from featx.features.file import SkippedImage
from featx.features.records import Batch
from featx.features.values import require_finite, require_float16, require_no_underflow
from featx.images.cores import num_cores
from featx.images.decode import DIGEST_BYTES
from featx.images.decoders import Decoders
from featx.images.preprocess import PreprocessSpec
from featx.images.sources import ImageSource


@dataclass(frozen=True)
class Extracted:
    """What a run of the backbone came to.

    Attributes:
        num_animated: Animations and multi-page images.
        num_duplicates: Images that got the row of another with the same content.
        profile: Where the time went.
    """

    num_animated: int
    num_duplicates: int
    profile: Profile


def start_decoders(
    num_images: int, preprocessing: PreprocessSpec, options: ResolvedOptions
) -> Decoders | None:
    """Start the processes that decode beside a GPU, unless the images are too few for them.

    That takes them some tenths of a second, as long as it takes to bring the network to the GPU.

    Args:
        num_images: To be extracted.
        preprocessing: From pixels to the network's input.
        options: Batch size, processes, limits.

    Raises:
        SourceError: A process does not start, or there is no memory to share.
    """
    batch_size = _batch_size(options, preprocessing, "torch", "cuda")
    workers = options.workers or num_cores()
    if num_images <= workers * batch_size:
        return None
    return Decoders(preprocessing, options.max_pixels, batch_size=batch_size, workers=workers)


def run_backbone(
    engine: Engine,
    images: ImageSource,
    known: KnownRows,
    plan: Plan,
    *,
    preprocessing: PreprocessSpec,
    options: ResolvedOptions,
    decoders: Decoders | None,
    after_batch: Callable[[int], None],
) -> Extracted:
    """Extract what the plan has left to do, note it in the log and in the plan.

    A batch is always the next ``batch_size`` images of what was to be done, whether they can be
    used or not. So a run that goes on after an interruption forms the same batches, and with them
    the same bits, as one that was never interrupted. Of images with the same content the backbone
    sees the first, however the threads run.

    Args:
        engine: Runs the backbone.
        images: The source.
        known: The rows so far; its log takes the new ones.
        plan: What is to be done; rows and skipped images are entered.
        preprocessing: From pixels to the network's input.
        options: Batch size, threads, limits, type of the stored features.
        decoders: Make the squares, where the threads do not.
        after_batch: Called with the number of images of a batch once it is in the log; may raise.

    Raises:
        BackboneError: A feature is NaN or infinite, or the engine fails.
        ConfigError: A feature does not fit the type, or fp16 loses them all.
        ArtifactError: The log cannot be written.
        SourceError: A process that decodes images is gone.
    """
    start, todo = time.perf_counter(), plan.todo()
    batch_size = _batch_size(options, preprocessing, engine.name, engine.device)
    workers = options.workers or num_cores()
    maker = SquareMaker(images, preprocessing, options.max_pixels, decoders)
    loader = Loader(engine, images, maker, batch_size=batch_size, workers=workers)
    num_animated, num_duplicates, spent, contents = 0, 0, Spent(), Contents(known)
    with known.reading() as rows_at, closing(loader.batches(todo, contents)) as batches:
        for batch in batches:
            computed = _checked(batch, known.journal.num_features, options)
            with batch.spent.on("journal"):
                rows = _rows(batch.images, computed, known.next_row, contents, rows_at)
                _enter(batch.images, rows, known, plan)
            used = [image for image in batch.images if not image.reason]
            num_animated += sum(image.is_animated for image in used)
            num_duplicates += sum(not image.is_new for image in used)
            spent.add(batch.spent)
            after_batch(len(batch.images))
    wall = time.perf_counter() - start
    profile = Profile(spent.seconds, len(todo), loader.workers, wall)
    return Extracted(num_animated, num_duplicates, profile)


def _batch_size(
    options: ResolvedOptions, preprocessing: PreprocessSpec, engine: EngineName, device: str
) -> int:
    size = preprocessing.image_size
    return options.batch_size or default_batch_size(engine, size, device=device)


def _checked(batch: ImageBatch, num_features: int, options: ResolvedOptions) -> np.ndarray:
    """Return what the backbone made of a batch, ``(m, num_features)`` float32."""
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
    contents: Contents,
    rows_at: Callable[[np.ndarray], RowBlock],
) -> np.ndarray:
    """Return the rows of a batch, ``(n, num_features)``: computed, or those of the same content.

    Args:
        images: Of the batch; a duplicate of an image that cannot be used gets its reason.
        computed: Rows of the new ones that can be used.
        first: The number that the batch's first row will have.
        contents: Learns what became of the new ones.
        rows_at: Reads earlier rows.
    """
    sources: list[int] = []  # of each row: its own number, or that of the row it is a copy of
    for image in images:
        number = first + len(sources)
        if image.is_new:
            failure = Failure(image.reason, image.is_permanent) if image.reason else None
            contents.settle(image.digest, failure or number)
        elif isinstance(outcome := contents.outcome(image.digest), Failure):
            image.reason, image.is_permanent = outcome
        else:
            number = outcome
        if not image.reason:
            sources.append(number)
    numbers = np.array(sources, dtype=np.int64)
    own = numbers == first + np.arange(len(numbers))
    rows = np.empty((len(numbers), computed.shape[1]), dtype=np.float32)
    rows[own] = computed
    earlier, here = numbers < first, ~own & (numbers >= first)
    if earlier.any():
        rows[earlier] = rows_at(numbers[earlier]).features
    rows[here] = rows[numbers[here] - first]
    return rows


def _enter(images: Sequence[Image], rows: np.ndarray, known: KnownRows, plan: Plan) -> None:
    """Append a batch to the log, then note in the plan what became of its images."""
    row = known.next_row
    known.journal.append(
        Batch(
            sample_ids=tuple(image.sample_id for image in images),
            stamps=np.array([image.stamp for image in images], dtype=np.int64),
            digests=np.frombuffer(
                b"".join(image.recorded_digest for image in images), np.uint8
            ).reshape(-1, DIGEST_BYTES),
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
