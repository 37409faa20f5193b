"""Images in order and in batches, with a bad one's error in its place."""

from __future__ import annotations

import numpy as np
import pytest

from featx.classifier.session import run_images
from featx.errors import ImageError


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
@pytest.mark.parametrize("bad", [(), (0,), (1, 2, 3), range(7)], ids=str)
def test_answers_come_in_order_and_errors_in_their_place(batch_size, bad):
    inputs = [
        ImageError(f"{i}.png", "bad") if i in bad else np.full(2, i, np.uint8) for i in range(7)
    ]
    sizes: list[int] = []

    def answer(batch: np.ndarray) -> list[int]:
        sizes.append(len(batch))
        return [int(one[0]) for one in batch]

    found = list(run_images(inputs, answer, batch_size=batch_size))
    assert found == [inputs[i] if i in bad else i for i in range(7)]
    assert sum(sizes) == 7 - len(bad)
    assert all(0 < size <= batch_size for size in sizes)


def test_images_of_all_sizes_form_one_batch(classifier):
    images = [np.full((height, 20, 3), 40 * height % 256, np.uint8) for height in (10, 15, 30)]
    inputs = [classifier.prepare_resized(image) for image in images]
    found = list(run_images(inputs, classifier.logits, batch_size=classifier.batch_size))
    alone = np.concatenate([classifier.logits(image[None]) for image in images])
    np.testing.assert_allclose(found, alone, atol=1e-3 * np.abs(alone).max())
