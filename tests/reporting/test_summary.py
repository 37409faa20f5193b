"""Pictures of mistakes keep shape and colour."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from featx.images.thumbnails import thumbnail


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(480, 640, (160, 120)), (640, 480, (120, 160)), (8, 8, (80, 80)), (100, 100, (100, 100))],
)
def test_it_fits_and_keeps_its_shape(height, width, shown):
    pixels = np.full((height, width, 3), (200, 30, 90), np.uint8)
    with Image.open(io.BytesIO(thumbnail(pixels))) as image:
        assert image.format == "JPEG"
        assert image.size == shown
        assert np.abs(np.asarray(image).astype(int) - (200, 30, 90)).max() <= 4


def test_a_line_stays_visible():
    with Image.open(io.BytesIO(thumbnail(np.zeros((1, 3000, 3), np.uint8)))) as image:
        assert image.size == (160, 1)
