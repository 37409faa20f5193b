"""Feature files without a backbone: what training needs of an extraction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from feature_files import publish_batch
from headers import complete_header

from featx.backbones.spec import BackboneSpec
from featx.features.records import Batch, RowLayout
from featx.images.preprocess import PreprocessSpec
from featx.images.sources import SPLITS, Sample
from featx.images.views import ViewsSpec


def write_cache(
    path: Path,
    features: np.ndarray,
    labels: np.ndarray,
    splits: np.ndarray,
    *,
    classes: tuple[str, ...] = ("ant", "bee", "wasp"),
    overwrite: bool = False,
    contents: np.ndarray | None = None,
    groups: tuple[str, ...] | None = None,
    views: np.ndarray | None = None,
    **details: Any,
) -> Path:
    """Write a feature file; ``splits`` are 0 train, 1 val, 2 test.

    ``contents`` are numbers above 0, the same for copies; they are unknown without it. ``views``
    are those of all rows, ``(N, num_views, num_features)``; the file keeps those of training rows.
    """
    num_views = 0 if views is None else views.shape[1]
    if num_views:
        details["views"] = ViewsSpec(num_views).to_dict()
    header = complete_header(
        kind="features",
        spec=BackboneSpec(
            backbone="tiny",
            weights_sha256="0" * 64,
            layer="flatten",
            pool="none",
            num_features=features.shape[1],
            preprocess=PreprocessSpec(32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop="none"),
        ).to_dict(),
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
    count = len(features)
    names = tuple(f"{row:04d}.jpg" for row in range(count))
    samples = [
        Sample(name, int(label), SPLITS[split], group=group)
        for name, label, split, group in zip(
            names, labels, splits, groups or ("",) * count, strict=True
        )
    ]
    stamps, digests = np.zeros((count, 3), dtype=np.int64), np.zeros((count, 16), dtype=np.uint8)
    if contents is not None:
        digests[:, -8:] = np.asarray(contents).astype(">u8").view(np.uint8).reshape(-1, 8)
    batch = Batch(names, stamps, digests, ("",) * count, features, views)
    layout = RowLayout((features.shape[1],), num_views=num_views)
    return publish_batch(path, header, samples, batch, layout, overwrite=overwrite)


def separable(num_rows: int = 150, num_features: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Make three overlapping classes in all three splits."""
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


def far_apart(num_rows: int = 240, seed: int = 0) -> dict[str, np.ndarray]:
    """Make three classes that hardly overlap."""
    random = np.random.default_rng(seed)
    labels, splits = np.arange(num_rows) % 3, np.arange(num_rows) % 4 % 3
    features = 10 * np.eye(3, 8)[labels] + random.normal(size=(num_rows, 8))
    return {
        "features": features.astype(np.float32),
        "labels": labels,
        "splits": splits.astype(np.uint8),
    }


def write_labels(path: Path, features: np.ndarray, labels: list[str], splits: np.ndarray) -> Path:
    """Write a feature file with labels as they stand in a manifest; "" is not a label."""
    classes = tuple(sorted(set(labels) - {""}))
    index = np.array([classes.index(label) if label else -1 for label in labels])
    return write_cache(path, features, index, splits.astype(np.uint8), classes=classes)
