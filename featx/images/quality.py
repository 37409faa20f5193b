"""Defects of a single picture: one colour, next to nothing on it, or blurred.

All is measured on the whole image squeezed into one size, so that large photos, whose single pixels
are always soft, and small ones are compared alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 256
"""Side of the picture that is measured, pixels; smaller images are not enlarged."""
LEAST_SIDE = 128
"""Least shorter side, pixels, for which sharpness is measured."""
CONSTANT_BELOW = 8.0
EMPTY_ABOVE = 0.998
BLURRED_BELOW = 0.25
_CLOSE = 0.05
_REACH = 4


class Quality(NamedTuple):
    """Measures of one picture."""

    range: float  # of the channel that varies most, grey levels, [0, 255]
    plain: float  # share of pixels within a twentieth of the range of the commonest colour, [0, 1]
    sharpness: float  # steepest rise in one pixel, of the rise around it, (0, 1]; NaN where small
    shorter_side: int  # of the image as it was decoded, pixels


def measure(image: Image.Image | np.ndarray) -> Quality:
    """Return the measures of an RGB image."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    shorter = min(picture.size)
    size = (min(picture.width, SIDE), min(picture.height, SIDE))
    picture = picture if picture.mode == "RGB" else picture.convert("RGB")
    picture = picture if picture.size == size else picture.resize(size, Image.Resampling.BOX)
    pixels = np.asarray(picture)
    counts = np.array(picture.histogram()).reshape(3, 256)
    levels = np.arange(256)
    reach = np.where(counts > 0, levels, np.array([[[256]], [[-1]]]))
    span = float((reach[1].max(axis=1) - reach[0].min(axis=1)).max())
    middle = counts.argmax(axis=1, keepdims=True)
    close = np.abs(levels - middle) <= max(_CLOSE * span, 1)
    near = close[0][pixels[..., 0]] & close[1][pixels[..., 1]] & close[2][pixels[..., 2]]
    plain = np.count_nonzero(near) / near.size
    is_large = shorter >= LEAST_SIDE
    sharpness = _sharpness(pixels.mean(axis=2, dtype=np.float32)) if is_large else float("nan")
    return Quality(span, plain, sharpness, shorter)


def _sharpness(grey: np.ndarray) -> float:
    """Return how much of a rise is made in one pixel where the picture is sharpest.

    A picture with one sharp edge is sharp, however plain or dark the rest; noise below a tenth of
    the picture's range is not an edge. One grey level of each step is left out: it may be rounding,
    which is much of a rise where a picture is pale.
    """
    found = []
    for picture in (grey, grey.T):
        steps = np.abs(np.diff(picture, axis=1))
        high, low = picture.copy(), picture.copy()
        for shift in range(1, _REACH + 1):
            for own, other in (
                (slice(shift, None), slice(None, -shift)),
                (slice(None, -shift), slice(shift, None)),
            ):
                np.maximum(high[:, own], picture[:, other], out=high[:, own])
                np.minimum(low[:, own], picture[:, other], out=low[:, own])
        rise = (high - low)[:, :-1]
        edges = rise >= 0.1 * max(float(np.ptp(picture)), 1.0)
        found.append(np.maximum(steps[edges] - 1, 0) / rise[edges])
    ratios = np.concatenate(found)
    return float(np.percentile(ratios, 99)) if len(ratios) else 1.0
