"""Pictures that were changed a little are the same; others, and other pages of a form, are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps

from featx.images.alike import DETAIL, compare_details, compare_pictures, small_grey
from featx.images.quality import BLURRED_BELOW, CONSTANT_BELOW, measure


def photo(seed, size=(400, 300)):
    """Make a picture with coarse and fine structure."""
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", size)
    for cells, weight in ((5, 0.6), (20, 0.4), (80, 0.3)):
        noise = random.integers(0, 256, (cells * 3 // 4 + 1, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        picture = Image.blend(picture, layer, weight)
    return picture


def saved(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def captioned(image):
    image = image.copy()
    ImageDraw.Draw(image).rectangle((0, 275, 400, 300), fill="black")
    return image


CHANGES = {
    "saved": lambda image: saved(image, 50),
    "resized": lambda image: image.resize((200, 150)),
    "cropped": lambda image: image.crop((20, 15, 380, 285)),
    "flipped": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "captioned": captioned,
}


def compared(first, second):
    """Return scores and shared details of pictures pair by pair."""
    small, large = (
        [np.stack([small_grey(image, side) for image in images]) for images in (first, second)]
        for side in (32, DETAIL)
    )
    found = compare_pictures(*small)
    return found, compare_details(*large, found)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_picture_is_the_same(change):
    images = [photo(seed) for seed in range(12)]
    found, details = compared(images, [CHANGES[change](image) for image in images])
    assert (found.scores > 0.85).all()
    assert (details > 0.65).all()
    assert (found.flipped == (change == "flipped")).all()


def test_other_pictures_are_not_the_same():
    images = [photo(seed) for seed in range(40)]
    found, _ = compared(images[:20], images[20:])
    assert found.scores.max() < 0.75


def test_the_same_pixels_correlate_fully_and_flat_ones_with_nothing():
    small = np.stack([small_grey(photo(0)), np.zeros((32, 32), np.uint8)])
    scores = compare_pictures(small, small).scores
    assert scores[0] == pytest.approx(1, abs=1e-6)
    assert scores[1] < 0.5


def form(seed):
    """Draw a page of a form with text of its own."""
    random = np.random.default_rng(seed)
    page = Image.new("L", (620, 880), "white")
    draw = ImageDraw.Draw(page)
    draw.text((50, 50), "APPLICATION FORM 27B", fill="black", font=ImageFont.load_default(30))
    for top in range(110, 820, 120):
        draw.rectangle((30, top, 590, top + 100), outline="black", width=2)
        for line in range(4):
            letters = random.choice(list("abcdefghijklmno   "), random.integers(20, 55))
            font = ImageFont.load_default(14)
            draw.text((60, top + 10 + 20 * line), "".join(letters), fill="black", font=font)
    return page


def test_pages_of_one_form_with_other_text_share_too_little():
    pages = [form(seed) for seed in range(40)]
    _, details = compared(pages[:20], pages[20:])
    assert details.max() < 0.65
    _, same = compared(pages[:5], [saved(page, 60) for page in pages[:5]])
    assert same.min() > 0.65


def drawing():
    page = Image.new("RGB", (800, 600), "white")
    ImageDraw.Draw(page).line((100, 100, 700, 500), fill="black", width=2)
    return page


def product():
    page = Image.new("RGB", (800, 600), "white")
    ImageDraw.Draw(page).ellipse((300, 200, 500, 400), fill=(240, 240, 240))
    return page


def night():
    random = np.random.default_rng(0)
    pixels = np.clip(random.normal(8, 3, (600, 800, 3)), 0, 255).astype(np.uint8)
    pixels[100:110, 200:210] = 250
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    "make", [drawing, product, night, lambda: photo(0).resize((6000, 4000), Image.Resampling.BOX)]
)
def test_plain_white_dark_and_large_pictures_are_neither_blurred_nor_constant(make):
    found = measure(make())
    assert found.sharpness > BLURRED_BELOW
    assert found.range > CONSTANT_BELOW


def test_blurred_and_constant_pictures_are_known():
    assert measure(photo(0).filter(ImageFilter.GaussianBlur(9))).sharpness < BLURRED_BELOW
    assert measure(Image.new("RGB", (300, 200), (20, 90, 30))).range == 0
    assert np.isnan(measure(Image.new("RGB", (32, 32))).sharpness)  # too small to tell
