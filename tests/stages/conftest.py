"""Feature files without a backbone: what training needs of an extraction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featx.artifact import Header
from featx.features.journal import Journal
from featx.features.publish import publish_features


def cached(
    path: Path,
    features: np.ndarray,
    labels: np.ndarray,
    splits: np.ndarray,
    *,
    classes: tuple[str, ...] = ("ant", "bee", "wasp"),
    overwrite: bool = False,
    **details: Any,
) -> Path:
    """Write a feature file; ``splits`` are 0 train, 1 val, 2 test."""
    header = Header(
        kind="features",
        spec={"backbone": "tiny", "num_features": features.shape[1]},
        classes=classes,
        details={
            "source": "/photos",
            "weights": "builtin:tiny",
            "splits": ["train", "val", "test"],
            "val_fraction": 0.2,
            "num_ignored": 0,
            "skipped": [],
        }
        | details,
    )
    with Journal(path, num_features=features.shape[1]) as journal:
        journal.append(features)
        publish_features(
            path,
            header,
            journal,
            labels=labels,
            splits=splits,
            sample_ids=[f"{row:04d}.jpg" for row in range(len(features))],
            digests=np.zeros((len(features), 16), dtype=np.uint8),
            overwrite=overwrite,
        )
    return path


@pytest.fixture
def write_cache() -> Callable[..., Path]:
    return cached


@pytest.fixture
def separable() -> Callable[..., dict[str, np.ndarray]]:
    """Make three overlapping classes in all three splits."""

    def make(num_rows: int = 150, num_features: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        labels = random.integers(0, 3, num_rows)
        labels[:9] = np.arange(9) % 3
        splits = random.choice(3, num_rows, p=[0.6, 0.2, 0.2])
        splits[:9] = np.arange(9) // 3
        centres = 2 * np.random.default_rng(99).normal(size=(3, num_features))
        features = centres[labels] + random.normal(size=(num_rows, num_features))
        return {
            "features": (3 * features + 10).astype(np.float32),
            "labels": labels,
            "splits": splits.astype(np.uint8),
        }

    return make
