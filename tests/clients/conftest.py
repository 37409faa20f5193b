"""Small classifiers of every contract, and images that are hard on a resize."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

import featx

Export = Callable[..., Path]


@pytest.fixture(scope="session")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return a function that exports a head on tiny's features, each contract once."""
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(0)
    for number in range(12):
        path = folder / "photos" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 120, (40, 50, 3)) + 60 * (number % 3)
        Image.fromarray(noise.astype(np.uint8)).save(path)
    featx.extract(
        folder / "photos", folder / "f.h5", featx.ExtractOptions(backbone="tiny", val_fraction=0)
    )
    featx.train_head(folder / "f.h5", folder / "h.safetensors")

    @functools.cache
    def make(
        source: Literal["image", "crop", "tensor"],
        *outputs: str,
        image_shape: tuple[int, int] | None = None,
        batch: int | None = None,
    ) -> Path:
        path = folder / f"{source}-{'-'.join(outputs)}-{image_shape}-{batch}.onnx"
        options = featx.ExportOptions(
            input=source, outputs=outputs, image_shape=image_shape, batch=batch, verify=False
        )
        featx.export_onnx(folder / "h.safetensors", path, options)
        return path

    return make


@pytest.fixture(scope="session")
def photos_of_one_shape() -> list[np.ndarray]:
    """Smooth and noisy, 48 × 64 pixels."""
    rng, (rows, columns) = np.random.default_rng(2), np.mgrid[:48, :64]
    smooth = np.stack([rows * 5, columns * 4, rows * 2 + columns * 2], axis=-1)
    noise = rng.integers(0, 256, smooth.shape)
    mixed = np.where(rows[..., None] % 2, smooth, noise)
    return [each.astype(np.uint8) for each in (smooth, noise, mixed)]


@pytest.fixture(scope="session")
def images() -> list[np.ndarray]:
    """Smooth and noisy, of many shapes: shrunk, enlarged, panoramic, tiny, already of the size."""
    rng = np.random.default_rng(1)
    found = []
    for height, width in ((375, 500), (60, 80), (32, 32), (8, 9), (20, 900), (900, 21), (33, 32)):
        rows, columns = np.mgrid[:height, :width]
        smooth = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1)
        noise = rng.integers(0, 256, (height, width, 3))
        found.append(np.where(rows[..., None] % 2, smooth, noise).astype(np.uint8))
    return found
