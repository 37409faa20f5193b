"""From images to rows in the log: read and decode in threads, run the backbone, append."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from featx.errors import ImageError
from featx.features.file import SkippedImage
from featx.features.known import KnownRows
from featx.features.plan import Plan
from featx.features.records import Batch
from featx.features.values import require_finite, require_float16
from featx.images.decode import DIGEST_BYTES, content_digest, is_animated, pixels_of
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.read_ahead import read_ahead
from featx.images.sources import NO_FILE, ImageSource, Stamp
from featx.stages.extract.options import ExtractOptions

if TYPE_CHECKING:
    from featx.backbones.engines import TorchEngine

_LASTING = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO),
)
"""What the system says of a file that stays as it is until somebody changes it."""
_NO_DIGEST = bytes(DIGEST_BYTES)


@dataclass(frozen=True)
class _Prepared:
    """One image on its way: pixels ``(size, size, 3)`` uint8, or the reason why there are none."""

    position: int
    sample_id: str
    stamp: Stamp
    digest: bytes = _NO_DIGEST
    is_animated: bool = False
    pixels: np.ndarray | None = None
    reason: str = ""


def run_backbone(
    engine: TorchEngine,
    images: ImageSource,
    known: KnownRows,
    plan: Plan,
    *,
    preprocessing: PreprocessSpec,
    options: ExtractOptions,
    after_batch: Callable[[int], None],
) -> int:
    """Extract what the plan has left to do, note it in the log and in the plan.

    A batch is always the next ``batch_size`` images of what was to be done, whether they can be
    used or not. So a run that goes on after an interruption forms the same batches, and with them
    the same bits, as one that was never interrupted.

    Args:
        engine: Runs the backbone.
        images: The source.
        known: The rows so far; its log takes the new ones.
        plan: What is to be done; rows and skipped images are entered.
        preprocessing: From pixels to the network's input.
        options: Batch size, threads, limits, type of the stored features.
        after_batch: Called with the number of images of a batch once it is in the log; may raise.

    Returns:
        The number of animations and multi-page images.

    Raises:
        BackboneError: A feature is NaN or infinite.
        ConfigError: A feature does not fit the type.
        ArtifactError: The log cannot be written.
    """
    num_animated = 0
    with closing(_prepared(images, plan.todo(), preprocessing, options)) as prepared:
        while batch := list(islice(prepared, options.batch_size)):
            names = [image.sample_id for image in batch if image.pixels is not None]
            pixels = [image.pixels for image in batch if image.pixels is not None]
            features = np.empty((0, known.journal.num_features), dtype=np.float32)
            if pixels:
                features = engine.features(np.stack(pixels))
            require_finite(features, names)
            if options.dtype == "float16":
                require_float16(features, names)
            _enter(batch, features, known, plan)
            num_animated += sum(image.is_animated for image in batch)
            after_batch(len(batch))
    return num_animated


def _enter(batch: list[_Prepared], features: np.ndarray, known: KnownRows, plan: Plan) -> None:
    """Append a batch to the log, then note in the plan what became of its images."""
    row = known.next_row
    known.journal.append(
        Batch(
            sample_ids=tuple(image.sample_id for image in batch),
            stamps=np.array([image.stamp for image in batch], dtype=np.int64),
            digests=np.frombuffer(b"".join(image.digest for image in batch), np.uint8).reshape(
                -1, DIGEST_BYTES
            ),
            reasons=tuple(image.reason for image in batch),
            features=features,
        )
    )
    for image in batch:
        if image.reason:
            plan.skipped[image.position] = SkippedImage(image.sample_id, image.reason, image.stamp)
        else:
            plan.rows[image.position], row = row, row + 1


def _prepared(
    images: ImageSource, todo: np.ndarray, preprocessing: PreprocessSpec, options: ExtractOptions
) -> Generator[_Prepared, None, None]:
    """Yield the images to do, in source order."""
    ahead = read_ahead(
        lambda i: _prepare(images, int(todo[i]), preprocessing, options.max_pixels),
        len(todo),
        workers=options.workers,
        window=options.batch_size,
    )
    with closing(ahead):
        for future in ahead:
            yield future.result()


def _may_pass(err: ImageError) -> bool:
    """Return whether the system could not read a file for reasons that are not the file's."""
    cause = err.__cause__
    return isinstance(cause, OSError) and cause.errno not in (None, *_LASTING)


def _prepare(
    images: ImageSource, position: int, preprocessing: PreprocessSpec, max_pixels: int
) -> _Prepared:
    name = images.samples[position].sample_id
    stamp = images.stamp(position)  # before reading: a change in between shows next time
    digest = _NO_DIGEST
    try:
        content = images.read(position)
        digest = content_digest(content)
        pixels = pixels_of(content, sample_id=name, max_pixels=max_pixels)
        pixels = preprocess(pixels, preprocessing)
    except ImageError as err:
        stamp = NO_FILE if _may_pass(err) else stamp  # no file looks like that: it is tried again
        return _Prepared(position, name, stamp, digest, reason=err.reason)
    animated = isinstance(content, bytes) and is_animated(content)
    return _Prepared(position, name, stamp, digest, animated, pixels)
