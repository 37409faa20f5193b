"""The images that int8 is calibrated with: the source's own."""

from __future__ import annotations

import numpy as np

from featx.errors import ImageError, SourceError
from featx.images.decode import decoded
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.read_ahead import read_ahead
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

    def pixels_of(number: int) -> np.ndarray | ImageError:
        name = samples[chosen[number]].sample_id
        try:
            content = images.read(chosen[number])
            image = decoded(content, sample_id=name, max_pixels=max_pixels, preprocess=spec)
            return preprocess(image, spec)
        except ImageError as err:
            return err

    found = [future.result() for future in read_ahead(pixels_of, len(chosen))]
    usable = [pixels for pixels in found if isinstance(pixels, np.ndarray)]
    if not usable:
        raise SourceError(
            f"'{images.uri}': none of the {len(chosen)} images to calibrate int8 with can be used. "
            f"{found[0]}"
        )
    return np.stack(usable)
