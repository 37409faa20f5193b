"""From an image's pixels to the crop that the backbone sees.

The geometry (resize, crop) runs here on uint8 pixels; the arithmetic (scale, mean, standard
deviation) runs next to the backbone, from the same spec. The exported graph repeats both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

import numpy as np
from PIL import Image

from featx.errors import ConfigError, ImageError, require_choice, require_number

Crop = Literal["center", "none", "squash", "border"]
Interpolation = Literal["bilinear", "bicubic"]
Decode = Literal["full", "scaled"]

MAX_ASPECT_RATIO = 100
"""A longer strip would be resized to an image of a hundred times the network's input."""

FILTERS: dict[Interpolation, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class PreprocessSpec:
    """How pixels become the backbone's input.

    Attributes:
        image_size: Height and width of the backbone's input, pixels.
        resize: Length that the shorter side is resized to before a centre crop, pixels; with
            ``crop="squash"`` that of both sides, with ``"border"`` that of the longer one. With
            ``crop="none"`` it equals ``image_size``.
        crop: ``"center"`` cuts out the middle; ``"none"`` resizes the whole image to the input's
            shape, so that nothing is cut off. As timm has them: ``"squash"`` resizes the whole
            image to a square and cuts out its middle, ``"border"`` lays it on the mean colour.
        interpolation: Filter of the (antialiased) resize.
        mean: Per channel R, G, B, for values in [0, 1].
        std: Per channel R, G, B, for values in [0, 1].
        decode: ``"full"``; or ``"scaled"``, where a JPEG much larger than the resize target is
            decoded at a half, a quarter or an eighth of its size (``draft_size``).
        pad: The centre crop may be larger than what it is cut from; the rest is black.

    Raises:
        ConfigError: A value is out of range.
    """

    image_size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: Crop = "center"
    interpolation: Interpolation = "bilinear"
    decode: Decode = "full"
    pad: bool = False

    def __post_init__(self) -> None:
        require_number("image_size", self.image_size, 1, 4096, whole=True, unit=" pixels")
        require_number("resize", self.resize, -math.inf, whole=True)
        require_choice("crop", self.crop, get_args(Crop))
        require_choice("interpolation", self.interpolation, get_args(Interpolation))
        require_choice("decode", self.decode, get_args(Decode))
        if self.crop == "none" and self.resize != self.image_size:
            raise ConfigError(
                f"without a crop the image is resized to {self.image_size} pixels; "
                f"a resize of {self.resize} cannot be kept. Leave out resize=…."
            )
        lowest = 1 if self.pad or self.crop == "border" else self.image_size
        if not lowest <= self.resize <= 4 * 4096:
            raise ConfigError(
                f"resize must be at least the image size ({self.image_size} pixels) and at most "
                f"{4 * 4096}; got {self.resize}."
            )
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if len(self.mean) != 3 or len(self.std) != 3 or not finite or min(self.std) <= 0:
            raise ConfigError(
                f"mean and std need three finite values, std above 0; got {self.mean}, {self.std}."
            )

    def with_overrides(
        self,
        *,
        image_size: int | None,
        resize: int | None,
        crop: Crop | None,
        decode: Decode | None = None,
    ) -> PreprocessSpec:
        """Return the spec with a user's geometry and way to decode; None leaves the spec's own.

        An image size given alone also becomes the resize, so that the shorter side just fills the
        crop.
        """
        new_crop = self.crop if crop is None else crop
        new_size = self.image_size if image_size is None else image_size
        follows = image_size is not None or new_crop == "none"
        default = new_size if follows else self.resize
        return replace(
            self,
            image_size=new_size,
            resize=default if resize is None else resize,
            pad=self.pad and new_crop == "center" and resize is None and not follows,
            crop=new_crop,
            decode=self.decode if decode is None else decode,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values, without what there was no other of once."""
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        if self.decode == "full":
            del values["decode"]
        if not self.pad:
            del values["pad"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the spec that ``to_dict`` described."""
        try:
            mean, std = tuple(values["mean"]), tuple(values["std"])
            return cls(**(dict(values) | {"mean": mean, "std": std}))
        except (KeyError, TypeError) as err:
            raise ConfigError(f"not a preprocessing spec ({err}).") from err


def check_aspect_ratio(height: int, width: int, *, sample_id: str) -> None:
    """Refuse an image so narrow that resizing its short side would make a huge one."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ImageError(
            sample_id,
            f"{width}×{height} pixels is too narrow; the longer side may be at most "
            f"{MAX_ASPECT_RATIO} times the shorter.",
        )


def resized_shape(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int]:
    """Return height and width after the resize, as torchvision's ``Resize`` has them.

    With ``crop="border"`` as timm's ``ResizeKeepRatio`` has them.

    >>> spec = PreprocessSpec(image_size=224, resize=256, mean=(0, 0, 0), std=(1, 1, 1))
    >>> resized_shape(375, 500, spec)
    (256, 341)
    """
    if spec.crop == "none":
        return spec.image_size, spec.image_size
    if spec.crop == "squash":
        return spec.resize, spec.resize
    if spec.crop == "border":
        ratio = max(height, width) / spec.resize
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    short = min(height, width)
    return spec.resize * height // short, spec.resize * width // short


def draft_size(height: int, width: int, spec: PreprocessSpec) -> tuple[int, int] | None:
    """Return the height and width below which a JPEG must not be scaled as it is decoded.

    That is twice what it is resized to, so that the resize still has two pixels for each of its own
    to filter. None where the spec wants it decoded in full.

    >>> spec = PreprocessSpec(224, 256, (0, 0, 0), (1, 1, 1), decode="scaled")
    >>> draft_size(3000, 4000, spec)
    (512, 682)
    """
    if spec.decode == "full":
        return None
    new_height, new_width = resized_shape(height, width, spec)
    return 2 * new_height, 2 * new_width


def crop_offset(length: int, image_size: int) -> int:
    """Return where a centre crop starts, in pixels, rounding halves to even.

    Below zero where the crop is larger; of an odd number of pixels the last one is beyond the end.
    """
    if length < image_size:
        return -((image_size - length) // 2)
    return round((length - image_size) / 2)


def resize(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return RGB pixels, ``(height, width, 3)`` uint8, at the size they are cropped from."""
    return np.asarray(_resized(Image.fromarray(pixels), spec))


def _resized(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    height, width = resized_shape(image.height, image.width, spec)
    if image.size == (width, height):
        return image
    return image.resize((width, height), FILTERS[spec.interpolation])


def preprocess(pixels: np.ndarray | Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """Return the crop that the backbone sees.

    Args:
        pixels: RGB, shape ``(height, width, 3)``, uint8; or a PIL image of mode RGB.
        spec: The geometry; its arithmetic is not applied here.

    Returns:
        RGB, shape ``(image_size, image_size, 3)``, uint8. Agrees with torchvision's presets on
        PIL images pixel for pixel, and with timm's transforms.
    """
    return _centre_crop(pixels, spec, side=spec.image_size)


def resized_square(pixels: np.ndarray | Image.Image, spec: PreprocessSpec) -> np.ndarray:
    """Return the resized image, cropped to a square from which the backbone's crop is cut.

    ``preprocess(resized_square(pixels, spec), spec)`` equals ``preprocess(pixels, spec)``, so a
    graph that does both has only the crop left to do, and images of all sizes get one size,
    ``(resize, resize, 3)`` uint8. Where the crop may be larger than what it is cut from, it is the
    resized image as it is, of any size.
    """
    if spec.pad or spec.crop == "border":
        return resize(np.asarray(pixels), spec)
    return _centre_crop(pixels, spec, side=spec.resize)


def _centre_crop(pixels: np.ndarray | Image.Image, spec: PreprocessSpec, side: int) -> np.ndarray:
    """Return the middle of the resized image, ``(side, side, 3)``."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image = _resized(image, spec)
    margin = crop_offset(side, spec.image_size)
    top = crop_offset(image.height, spec.image_size) - margin
    left = crop_offset(image.width, spec.image_size) - margin
    # Resizing the crop alone, by Pillow's "box", would be faster, but moves some values by one.
    box = (left, top, left + side, top + side)
    if box == (0, 0, *image.size):
        return np.asarray(image)
    if spec.crop == "border":
        canvas = Image.new("RGB", (side, side), border_colour(spec))
        canvas.paste(image, (-left, -top))
        return np.asarray(canvas)
    return np.asarray(image.crop(box))


def border_colour(spec: PreprocessSpec) -> tuple[int, int, int]:
    """Return R, G, B of what lies beyond the image."""
    if spec.crop != "border":
        return (0, 0, 0)
    red, green, blue = (round(255 * value) for value in spec.mean)
    return red, green, blue
