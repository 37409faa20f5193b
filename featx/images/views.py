"""Views: augmented versions of an image, drawn from its content and the number of the view.

What is drawn depends on nothing else, so a run that is resumed, distributed or repeated has the
same pixels. The random numbers are featx's own; those of a library may change with its version.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from PIL import Image, ImageEnhance

from featx.artifact import fingerprint_of
from featx.errors import ConfigError, counted, require_number
from featx.images.preprocess import FILTERS, PreprocessSpec

AUGMENTATIONS = ("crop", "flip", "color")
MAX_VIEWS = 1000
_VERSION = 1
_TRIES = 10


@dataclass(frozen=True)
class ViewsSpec:
    """How views are drawn.

    Attributes:
        num_views: Of each training image, beside the evaluation view.
        augment: Any of ``"crop"``, ``"flip"`` and ``"color"``; empty for identical views.
        scale: Smallest and largest share of the image's area that a crop covers.
        ratio: Smallest and largest width divided by height of a crop.
        jitter: Brightness, contrast and saturation change by a factor of ``1 ± jitter``.
        version: Of the way that numbers are drawn.
    """

    num_views: int
    augment: tuple[str, ...] = ("crop", "flip")
    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: float = 0.4
    version: int = _VERSION

    def __post_init__(self) -> None:
        require_number("views", self.num_views, 1, MAX_VIEWS, whole=True)
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown or len(set(self.augment)) != len(self.augment):
            raise ConfigError(
                f"augment takes each of {', '.join(AUGMENTATIONS)} at most once, or none; "
                f"got '{','.join(self.augment)}'."
            )
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale must be two shares above 0, ascending; got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f"ratio must be two numbers above 0, ascending; got {self.ratio}.")
        require_number("jitter", self.jitter, 0, 1, ends="[)")
        if self.version != _VERSION:
            raise ConfigError(f"this featx draws views of version {_VERSION}, not {self.version}.")

    @property
    def fingerprint(self) -> str:
        """The spec's identity, 64 hexadecimal digits."""
        return fingerprint_of(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the spec that ``to_dict`` described.

        Raises:
            ConfigError: A value is missing, unknown or out of range.
        """
        try:
            lists = {name: tuple(values[name]) for name in ("augment", "scale", "ratio")}
            return cls(**(dict(values) | lists))
        except (KeyError, TypeError) as err:
            raise ConfigError(f"not a spec of views ({err}).") from err


def describe_views(spec: ViewsSpec) -> str:
    """Return number, augmentations and the version of the generator in words.

    >>> describe_views(ViewsSpec(4))
    '4 views of each training image (random crop, flip; generator 1)'
    """
    changes = f"random {', '.join(spec.augment)}; " if spec.augment else "no change; "
    of = f"{changes}generator {spec.version}"
    return f"{counted(spec.num_views, 'view')} of each training image ({of})"


@dataclass(frozen=True)
class View:
    """One augmented version of an image.

    Attributes:
        box: Left, top, right and bottom of the crop, pixels; None for the evaluation view's own.
        flip: Mirrored left to right.
        factors: For brightness, contrast and saturation.
    """

    box: tuple[int, int, int, int] | None = None
    flip: bool = False
    factors: tuple[float, float, float] | None = None


def draw_view(spec: ViewsSpec, digest: bytes, number: int, *, height: int, width: int) -> View:
    """Return the view of an image by its number, the same on every machine.

    Args:
        spec: What is drawn, and from which ranges.
        digest: Of the image's content.
        number: In ``[1, num_views]``; 0 is the evaluation view.
        height: Of the decoded image, pixels.
        width: Of the decoded image, pixels.
    """
    if not 1 <= number <= spec.num_views:
        raise ValueError(f"view {number} of {spec.num_views}")
    numbers = _uniform(digest, number)
    flipped = next(numbers) < 0.5
    low, high = 1 - spec.jitter, 1 + spec.jitter
    factors = tuple(low + (high - low) * next(numbers) for _ in range(3))
    return View(
        box=_draw_box(spec, numbers, height, width) if "crop" in spec.augment else None,
        flip=flipped and "flip" in spec.augment,
        factors=factors if "color" in spec.augment else None,  # type: ignore[arg-type]
    )


def render_view(
    image: Image.Image | np.ndarray, view: View, preprocess: PreprocessSpec
) -> np.ndarray:
    """Return the pixels of a view, ``(image_size, image_size, 3)`` uint8.

    Args:
        image: Of mode RGB, or its pixels ``(height, width, 3)`` uint8.
        view: Drawn for an image of this size.
        preprocess: Gives the size and the filter; without a crop, also the geometry.
    """
    from featx.images.preprocess import preprocess as evaluation_view

    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    if view.box is None:
        image = Image.fromarray(evaluation_view(image, preprocess))
    else:
        size = (preprocess.image_size, preprocess.image_size)
        image = image.resize(size, FILTERS[preprocess.interpolation], box=view.box)
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if view.factors is not None:
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, view.factors, strict=True):
            image = enhancer(image).enhance(factor)
    return np.asarray(image)


def _uniform(digest: bytes, number: int) -> Iterator[float]:
    """Yield numbers in ``[0, 1)``: 53 bits each of BLAKE2b in counter mode."""
    for block in range(2**32):
        content = digest + number.to_bytes(4, "little") + block.to_bytes(4, "little")
        for value in np.frombuffer(hashlib.blake2b(content, person=b"featx views").digest(), "<u8"):
            yield int(value >> np.uint64(11)) / 2**53


def _draw_box(
    spec: ViewsSpec, numbers: Iterator[float], height: int, width: int
) -> tuple[int, int, int, int]:
    """Return a box of a random area and shape, as Szegedy et al. 2015 crop.

    Where ten boxes in a row do not fit, it is the middle of the image, as near to its own shape as
    the ratios allow.
    """
    logs = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    for _ in range(_TRIES):
        area = height * width * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * next(numbers))
        ratio = math.exp(logs[0] + (logs[1] - logs[0]) * next(numbers))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        left, top = next(numbers), next(numbers)
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            return x, y, x + w, y + h
    ratio = min(max(width / height, spec.ratio[0]), spec.ratio[1])
    w, h = min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h
