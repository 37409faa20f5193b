from __future__ import annotations

import numpy as np
import pytest

from featx.images.edge_cases import edge_cases, rotated_by_exif
from featx.images.preprocess import MAX_ASPECT_RATIO

RNG = np.random.default_rng(0)


def _image(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (1, 1), (1, 90), (300, 20)])
def test_each_edge_case_is_what_it_says(shape):
    pixels = _image(*shape)
    found = edge_cases(pixels, image_size=32)
    for image in found.values():
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert max(image.shape[:2]) <= MAX_ASPECT_RATIO * min(image.shape[:2])
    grey = found["greyscale"]
    assert grey.shape == pixels.shape
    assert (grey == grey[..., :1]).all()
    np.testing.assert_array_equal(found["EXIF-rotated"], pixels)
    assert min(found["tiny"].shape[:2]) == 10  # a third of 32
    assert min(found["large"].shape[:2]) >= 2 * 32
    if "panoramic" in found:
        assert found["panoramic"].shape == (shape[0], 4 * shape[1], 3)


def test_a_strip_gets_no_panorama():
    cases = edge_cases(_image(2, 60), image_size=8)
    assert "panoramic" not in cases
    assert len(cases) == 4


def test_rotation_goes_through_a_file_that_lies_on_its_side(monkeypatch):
    from featx.images import decode

    pixels = _image(20, 30)
    monkeypatch.setattr(decode, "_TRANSPOSE", {})  # a reader that knows no EXIF
    np.testing.assert_array_equal(rotated_by_exif(pixels), np.rot90(pixels))
