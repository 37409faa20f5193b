"""The 1,797 handwritten digits that come with scikit-learn: a first run needs no download.

8×8 pixels in 16 greys, from the UCI "Optical Recognition of Handwritten Digits" test set.
"""

from __future__ import annotations

import numpy as np

from featx.images.sources.sample import ArraySource, Sample


def open_digits() -> ArraySource:
    """Return all digits, in scikit-learn's order, as one training split."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images / 16 * 255).astype(np.uint8)  # (1797, 8, 8)
    samples = tuple(
        Sample(f"digits/{row:04d}", int(label), "train") for row, label in enumerate(digits.target)
    )
    images = np.repeat(grey[..., None], 3, axis=3)
    return ArraySource("digits:", tuple("0123456789"), samples, images)
