"""Pictures that are put among photos to see whether an audit finds them: copies, and odd ones."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Random = np.random.Generator


def encoded(image: Image.Image, quality: int = 85) -> bytes:
    """Return an image as a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _captioned(image: Image.Image) -> Image.Image:
    """Return an image with a line of white text on a black strip, a tenth of its height."""
    image, top = image.copy(), round(0.9 * image.height)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, image.width, image.height), fill="black")
    draw.text((8, top + 4), "Copyright 2009, a caption", fill="white")
    return image


def _cropped(image: Image.Image) -> Image.Image:
    left, top = round(0.05 * image.width), round(0.05 * image.height)
    return image.crop((left, top, image.width - left, image.height - top))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "saved again": lambda image: encoded(image, 60),
    "resized": lambda image: encoded(image.resize((image.width // 2, image.height // 2))),
    "flipped": lambda image: encoded(ImageOps.mirror(image)),
    "cropped by 5 %": lambda image: encoded(_cropped(image)),
    "brightened": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.3)),
    "captioned": lambda image: encoded(_captioned(image)),
}


def _colour(random: Random, low: int = 0, high: int = 256) -> tuple[int, ...]:
    return tuple(random.integers(low, high, 3).tolist())


def _plain(image: Image.Image, random: Random) -> Image.Image:
    return Image.new("RGB", image.size, _colour(random))


def _nearly_empty(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("RGB", image.size, _colour(random, 200))
    left, top = (int(random.uniform(0.2, 0.8) * side) for side in image.size)
    ImageDraw.Draw(made).line((left, top, left + 9, top + 5), fill=_colour(random, 0, 60), width=2)
    return made


def _document(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("RGB", image.size, "white")
    draw, letters = ImageDraw.Draw(made), list("aeinorst lmd  ,.")
    for top in range(20, image.height - 20, 14):
        draw.text((20, top), "".join(random.choice(letters, image.width // 8)), fill="black")
    return made


def _screenshot(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("RGB", image.size, _colour(random, 225))
    draw, (width, height) = ImageDraw.Draw(made), image.size
    draw.rectangle((0, 0, width, 24), fill=_colour(random, 0, 120))
    draw.rectangle((0, 24, width // 5, height), fill=_colour(random, 190, 225))
    for top in range(36, height - 30, 32):
        draw.text((8, top), "Settings", fill="black")
        box = (width // 4, top, int(random.uniform(0.4, 0.95) * width), top + 20)
        draw.rectangle(box, fill="white", outline="grey")
        draw.text((box[0] + 6, top + 4), "Name of an entry", fill="black")
    return made


def _chart(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("RGB", image.size, "white")
    draw, (width, height) = ImageDraw.Draw(made), image.size
    draw.line((30, 10, 30, height - 30, width - 10, height - 30), fill="black", width=2)
    for left in range(45, width - 40, 40):
        top = int(random.uniform(20, height - 50))
        draw.rectangle((left, top, left + 26, height - 30), fill=_colour(random))
    return made


def _noise(image: Image.Image, random: Random) -> Image.Image:
    return Image.fromarray(random.integers(0, 256, (*image.size[::-1], 3), dtype=np.uint8))


def _border(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("RGB", image.size)
    made.paste(image.resize((image.width // 4, image.height // 4)), (image.width // 3, 60))
    return made


def _tiny(image: Image.Image, random: Random) -> Image.Image:
    return image.resize((28, 21))


def _blurred(image: Image.Image, random: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 20))


def _broken(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("RGB", image.size, (128, 128, 128))
    made.paste(image.crop((0, 0, image.width, image.height // 6)), (0, 0))
    return made


def _radiograph(image: Image.Image, random: Random) -> Image.Image:
    made = Image.new("L", image.size)
    draw = ImageDraw.Draw(made)
    for _ in range(12):
        left, top = (int(random.uniform(0.15, 0.65) * side) for side in image.size)
        width, height = random.integers(20, min(image.size) // 3, 2).tolist()
        grey = int(random.integers(60, 220))
        draw.ellipse((left, top, left + width, top + height), fill=grey)
    return made.filter(ImageFilter.GaussianBlur(6)).convert("RGB")


ODD: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "one colour": _plain,
    "nearly empty": _nearly_empty,
    "document": _document,
    "screenshot": _screenshot,
    "chart": _chart,
    "noise": _noise,
    "black border": _border,
    "tiny": _tiny,
    "blurred": _blurred,
    "broken": _broken,
    "radiograph": _radiograph,
    "negative": lambda image, _: ImageOps.invert(image),
}
"""What an odd picture is made of: a photo of the size and, for some, the motif."""
