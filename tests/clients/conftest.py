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
    def make(source: Literal["image", "crop", "tensor"], *outputs: str) -> Path:
        path = folder / f"{source}-{'-'.join(outputs)}.onnx"
        options = featx.ExportOptions(input=source, outputs=outputs, verify=False)
        featx.export_onnx(folder / "h.safetensors", path, options)
        return path

    return make


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
