"""Stage 1: run a frozen backbone once over the images of a source and cache its features."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from featx.artifact import Header, describe_environment, require_writable
from featx.backbones.catalog import BackboneSpec, Pool, default_preprocess
from featx.backbones.engines import TorchEngine
from featx.backbones.network import Network, build_network
from featx.backbones.weights import Weights, open_weights
from featx.errors import BackboneError, ConfigError, ImageError, SourceError
from featx.features.journal import Journal
from featx.features.publish import publish_features
from featx.images.decode import DIGEST_BYTES, content_digest, pixels_of
from featx.images.preprocess import Crop, PreprocessSpec, preprocess
from featx.images.read_ahead import read_ahead
from featx.images.sources import SPLITS, ImageSource, Sample, assign_validation, open_source

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
Progress = Callable[[int, int], None]
"""Called with the number of images done and the number of all."""


@dataclass(frozen=True)
class ExtractOptions:
    """What to extract and how.

    Attributes:
        backbone: Name in the catalog.
        weights: ``"default"``, ``"none"`` (seeded random), a torchvision weights name or a file.
        layer: Node of the backbone's graph; None takes the penultimate one.
        pool: How maps or tokens become a vector.
        image_size: Input of the backbone, pixels; None takes the weights' own.
        resize: Length of the shorter side before the crop, pixels; None takes the weights' own, or
            ``image_size`` where that is given.
        crop: ``"center"`` or ``"none"``; None takes the weights' own.
        val_fraction: Share of the training samples that become validation where the source brings
            none.
        on_error: ``"fail"`` stops at an image that cannot be used, ``"skip"`` leaves it out.
        device: ``"auto"``, ``"cpu"`` or ``"cuda[:i]"``.
        batch_size: Images per forward pass.
        workers: Threads that read and decode; None takes one per core.
        seed: Of random weights.
        overwrite: Replace the output.
        quiet: No download bar.
    """

    backbone: str = "resnet18"
    weights: str = "default"
    layer: str | None = None
    pool: Pool = "auto"
    image_size: int | None = None
    resize: int | None = None
    crop: Crop | None = None
    val_fraction: float = 0.2
    on_error: OnError = "fail"
    device: str = "auto"
    batch_size: int = 32
    workers: int | None = None
    seed: int = 0
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.on_error not in get_args(OnError):
            raise ConfigError(f"on_error must be 'fail' or 'skip'; got {self.on_error!r}.")
        if self.pool not in get_args(Pool):
            raise ConfigError(
                f"pool must be one of {', '.join(get_args(Pool))}; got '{self.pool}'."
            )
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name.replace('_', ' ')} must be at least 1; got {value}.")


@dataclass(frozen=True)
class ExtractReport:
    """What an extraction made.

    Attributes:
        path: The feature file.
        spec: What its features mean.
        classes: Class names in index order.
        split_sizes: Rows of each split that has any.
        num_unlabelled: Rows without a label.
        num_ignored: Files passed over because they are no images.
        skipped: ``(sample_id, reason)`` of images left out.
        seconds: From the first image to the published file.
        device: What the backbone ran on.
    """

    path: Path
    spec: BackboneSpec
    classes: tuple[str, ...]
    split_sizes: dict[str, int]
    num_unlabelled: int
    num_ignored: int
    skipped: tuple[tuple[str, str], ...]
    seconds: float
    device: str

    @property
    def num_images(self) -> int:
        """Rows of the feature file."""
        return sum(self.split_sizes.values())


def extract(
    source: str | Path,
    output: str | Path,
    options: ExtractOptions | None = None,
    *,
    progress: Progress | None = None,
) -> ExtractReport:
    """Write the features of a source's images to an HDF5 file.

    Args:
        source: Folder, ``.csv`` or ``.tsv`` manifest, ``cifar10:FOLDER`` or ``digits:``.
        output: The feature file.
        options: Backbone, preprocessing and the rest.
        progress: Called after each batch.

    Raises:
        SourceError: The source is missing, empty or malformed.
        ImageError: An image cannot be used (unless ``on_error="skip"``).
        BackboneError: Backbone or weights cannot be used.
        ConfigError: An option does not fit.
        ArtifactError: The output exists or cannot be written.
    """
    options, output = options or ExtractOptions(), Path(output)
    images = open_source(str(source))
    require_writable(output, overwrite=options.overwrite)
    samples = assign_validation(images.samples, options.val_fraction)
    network, spec, weights = open_backbone(options)
    engine = TorchEngine(network, device=options.device)
    start = time.perf_counter()
    with Journal(output, num_features=spec.num_features) as journal:
        rows = _fill(journal, images, spec.preprocess, engine, options, progress=progress)
        kept = [samples[index] for index in rows.indices]
        publish_features(
            output,
            _header(spec, weights, images, rows, options, device=str(engine.device)),
            journal,
            labels=np.array([sample.label for sample in kept], dtype=np.int64),
            splits=np.array([SPLITS.index(sample.split) for sample in kept], dtype=np.uint8),
            sample_ids=[sample.sample_id for sample in kept],
            digests=np.frombuffer(b"".join(rows.digests), np.uint8).reshape(-1, DIGEST_BYTES),
            overwrite=options.overwrite,
        )
    return ExtractReport(
        path=output,
        spec=spec,
        classes=images.classes,
        split_sizes=_split_sizes(kept),
        num_unlabelled=sum(sample.label < 0 for sample in kept),
        num_ignored=images.num_ignored,
        skipped=tuple(rows.skipped),
        seconds=time.perf_counter() - start,
        device=str(engine.device),
    )


def open_backbone(options: ExtractOptions) -> tuple[Network, BackboneSpec, Weights]:
    """Return the frozen network that the options ask for.

    Raises:
        BackboneError: Backbone or weights cannot be used.
        ConfigError: An option does not fit the backbone.
    """
    weights = open_weights(
        options.backbone, options.weights, seed=options.seed, progress=not options.quiet
    )
    scheme, _, name = weights.origin.partition(":")
    own = default_preprocess(options.backbone, name if scheme == "torchvision" else None)
    geometry = own.with_overrides(
        image_size=options.image_size, resize=options.resize, crop=options.crop
    )
    network, spec = build_network(
        options.backbone, weights, geometry, layer=options.layer, pool=options.pool
    )
    return network, spec, weights


@dataclass
class _Rows:
    """What went into the journal, row by row, and what did not."""

    indices: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Prepared:
    """One image, ready for the backbone: ``(size, size, 3)`` uint8, and its content hash."""

    index: int
    pixels: np.ndarray
    digest: bytes


def _fill(
    journal: Journal,
    images: ImageSource,
    spec: PreprocessSpec,
    engine: TorchEngine,
    options: ExtractOptions,
    *,
    progress: Progress | None,
) -> _Rows:
    """Append the features of every usable image to the journal, in source order."""
    rows, total = _Rows(), len(images.samples)
    with closing(_prepared(images, spec, options, rows)) as prepared:
        while batch := list(islice(prepared, options.batch_size)):
            features = engine.features(np.stack([image.pixels for image in batch]))
            _require_finite(features, [images.samples[image.index].sample_id for image in batch])
            journal.append(features)
            rows.indices += [image.index for image in batch]
            rows.digests += [image.digest for image in batch]
            if progress:
                progress(len(rows.indices) + len(rows.skipped), total)
    if not rows.indices:
        first = rows.skipped[0]
        raise SourceError(
            f"None of the {total} images of '{images.uri}' can be used; '{first[0]}': {first[1]}"
        )
    return rows


def _prepared(
    images: ImageSource, spec: PreprocessSpec, options: ExtractOptions, rows: _Rows
) -> Generator[_Prepared, None, None]:
    """Yield the usable images in source order; note the others in ``rows``."""
    ahead = read_ahead(
        lambda index: _prepare(images, index, spec),
        len(images.samples),
        workers=options.workers,
        window=options.batch_size,
    )
    with closing(ahead):
        for future in ahead:
            try:
                yield future.result()
            except ImageError as err:
                if options.on_error == "fail":
                    raise
                rows.skipped.append((err.sample_id, err.reason))


def _prepare(images: ImageSource, index: int, spec: PreprocessSpec) -> _Prepared:
    content = images.read(index)
    pixels = pixels_of(content, sample_id=images.samples[index].sample_id)
    return _Prepared(index, preprocess(pixels, spec), content_digest(content))


def _require_finite(features: np.ndarray, names: Sequence[str]) -> None:
    bad = [name for name, row in zip(names, features, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise BackboneError(
            f"The backbone gives NaN or infinite features for '{bad[0]}'"
            + (f" and {len(bad) - 1} more images of its batch" if len(bad) > 1 else "")
            + ". Check its weights."
        )


def _split_sizes(samples: Sequence[Sample]) -> dict[str, int]:
    sizes = {split: sum(sample.split == split for sample in samples) for split in SPLITS}
    return {split: size for split, size in sizes.items() if size}


def _header(
    spec: BackboneSpec,
    weights: Weights,
    images: ImageSource,
    rows: _Rows,
    options: ExtractOptions,
    *,
    device: str,
) -> Header:
    return Header(
        kind="features",
        spec=spec.to_dict(),
        classes=images.classes,
        details={
            "source": images.uri,
            "weights": weights.origin,
            "splits": list(SPLITS),
            "val_fraction": options.val_fraction,
            "num_ignored": images.num_ignored,
            "skipped": [list(item) for item in rows.skipped],
        },
        environment=describe_environment("torch", "torchvision", "pillow", "h5py")
        | {"device": device, "engine": "torch"},
    )
