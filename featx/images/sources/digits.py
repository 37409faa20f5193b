"""The 1,797 handwritten digits that come with scikit-learn: a first run needs no download.

8×8 pixels in 16 greys, from the UCI "Optical Recognition of Handwritten Digits" test set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from featx.images.sources.sample import NEVER_CHANGES, Sample, Stamp


@dataclass(frozen=True, eq=False)
class DigitsSource:
    """The digits as grey RGB images; ids are ``digits/0042``."""

    samples: tuple[Sample, ...]
    images: np.ndarray
    uri: str = "digits:"
    classes: tuple[str, ...] = tuple("0123456789")
    has_tags: bool = False
    ignored: Mapping[str, int] = field(default_factory=dict)

    def read(self, index: int) -> np.ndarray:
        """Return a sample's pixels, ``(8, 8, 3)`` uint8."""
        return np.repeat(self.images[index][:, :, None], 3, axis=2)

    def stamp(self, index: int) -> Stamp:
        """Return ``NEVER_CHANGES``: the digits are no files of their own."""
        return NEVER_CHANGES


def open_digits() -> DigitsSource:
    """Return all digits, in scikit-learn's order, as one training split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images / 16 * 255).astype(np.uint8)  # (1797, 8, 8)
    samples = [
        Sample(f"digits/{row:04d}", int(label), "train") for row, label in enumerate(digits.target)
    ]
    return DigitsSource(tuple(samples), images)
