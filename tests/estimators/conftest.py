"""Photos of two classes, and estimators with a cache of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Paths of 24 photos, and the label of each."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths, labels = [], []
    for number in range(24):
        pixels = rng.integers(0, 130, (30, 40, 3)) + 60 * (number % 2)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
        labels.append(("ant", "bee")[number % 2])
    return paths, labels


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def num_cached(cache: Path) -> int:
    """Return how many features were written to a cache."""
    return sum(path.stat().st_size for path in cache.glob("*/keys")) // 20
