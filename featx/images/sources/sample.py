"""What every source gives: samples with stable ids, labels and splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from featx.errors import ConfigError

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Sample:
    """One image of a source.

    Attributes:
        sample_id: Unique and stable: the path relative to the source, with ``/``.
        label: Index into the source's classes; -1 where unlabelled.
        split: ``"train"``, ``"val"`` or ``"test"``.
    """

    sample_id: str
    label: int
    split: str


class ImageSource(Protocol):
    """A list of samples whose images can be read one by one, from several threads."""

    @property
    def uri(self) -> str:
        """What ``open_source`` takes to find the source again, with an absolute path."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order; they may include classes without images."""

    @property
    def samples(self) -> Sequence[Sample]:
        """All samples, in an order that does not depend on the file system."""

    @property
    def num_ignored(self) -> int:
        """Number of files passed over because they are no images (by name)."""

    def read(self, index: int) -> bytes | np.ndarray:
        """Return a sample's encoded image, or its pixels ``(H, W, 3)`` uint8 where it has no file.

        Raises:
            ImageError: The file cannot be read.
        """


def assign_validation(samples: Sequence[Sample], fraction: float) -> list[Sample]:
    """Return the samples with a validation split; a split the source brings is left alone.

    Otherwise each training sample is assigned by a hash of its id, so that it keeps its split as
    the data grows.

    Args:
        samples: Of one source.
        fraction: Share of the training samples that become validation, ``0 <= fraction < 1``.

    Raises:
        ConfigError: ``fraction`` is out of range.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"val fraction must be at least 0 and below 1; got {fraction}.")
    if any(sample.split == "val" for sample in samples):
        return list(samples)
    return [
        replace(sample, split="val")
        if sample.split == "train" and _position(sample.sample_id) < fraction
        else sample
        for sample in samples
    ]


def _position(sample_id: str) -> float:
    """Return a number in [0, 1) that depends on the id alone."""
    digest = hashlib.sha256(sample_id.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
