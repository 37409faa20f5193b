"""The images that int8 is calibrated with: the source's own."""

from __future__ import annotations

import numpy as np

from featx.errors import SourceError
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.reading import read_images
from featx.images.sources import ImageSource

NUM_IMAGES = 128


def calibration_pixels(images: ImageSource, spec: PreprocessSpec, *, max_pixels: int) -> np.ndarray:
    """Return the pixels of at most 128 images, spread evenly over the source's training images.

    The same source gives the same pixels, whatever its labels: they are read before it is settled
    which of the training images are held out for validation. Images that cannot be used are left
    out.

    Args:
        images: The source; all images count where none is for training.
        spec: From pixels to the network's input.
        max_pixels: Images with more are not used.

    Returns:
        ``(n, size, size, 3)`` uint8, ``1 <= n <= 128``.

    Raises:
        SourceError: None of them can be used.
    """
    samples = images.samples
    own = [number for number, sample in enumerate(samples) if sample.split == "train"]
    own = own or list(range(len(samples)))
    spread = np.linspace(0, len(own) - 1, min(NUM_IMAGES, len(own))).round().astype(int)
    chosen = [own[number] for number in spread.tolist()]

    found = [
        image
        for _, _, image in read_images(
            images,
            chosen,
            lambda image: preprocess(image, spec),
            preprocess=spec,
            max_pixels=max_pixels,
        )
    ]
    usable = [crop for crop in found if isinstance(crop, np.ndarray)]
    if not usable:
        raise SourceError(
            f"'{images.uri}': none of the {len(chosen)} images to calibrate int8 with can be used. "
            f"{found[0]}"
        )
    return np.stack(usable)
