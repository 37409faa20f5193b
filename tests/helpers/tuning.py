"""Feature files with a cut: activations of ``tiny`` for images that are made up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from feature_files import publish_batch
from headers import complete_header

from featx.backbones.network import Network, build_network
from featx.backbones.spec import BackboneSpec
from featx.backbones.weights import Weights, open_origin
from featx.features.records import Batch, RowLayout
from featx.images.preprocess import PreprocessSpec
from featx.images.sources import SPLITS, Sample
from featx.images.views import ViewsSpec

_SIZE = 32


@cache
def tiny_weights() -> Weights:
    return open_origin("tiny", "bundled:tiny")


@cache
def tiny_stem(cut: str) -> tuple[Network, BackboneSpec]:
    preprocess = PreprocessSpec(_SIZE, _SIZE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), crop="none")
    return build_network("tiny", tiny_weights(), preprocess, cut=cut)


def patterned(
    labels: np.ndarray, *, contrast: float = 40.0, noise: float = 60.0, seed: int = 0
) -> np.ndarray:
    """Return images of classes that differ in a pattern of blocks, ``(N, 32, 32, 3)`` uint8."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).normal(size=(int(labels.max()) + 1, 8, 8, 3))
    images = 128 + contrast * patterns.repeat(4, axis=1).repeat(4, axis=2)[labels]
    images = images + noise * random.normal(size=images.shape)
    return np.clip(images, 0, 255).astype(np.uint8)


def write_activations(
    path: Path,
    images: np.ndarray,
    labels: Sequence[str],
    splits: np.ndarray,
    *,
    cut: str = "stage3",
    num_views: int = 0,
    groups: Sequence[str] | None = None,
) -> Path:
    """Write a feature file of images ``(N, 32, 32, 3)`` at a cut; "" is not a label.

    Views are the image mirrored, or shifted by a few pixels. ``splits`` are 0 train, 1 val, 2 test.
    """
    stem, spec = tiny_stem(cut)
    dtype = "uint8" if cut == "input" else "float16"

    def activations(pixels: np.ndarray) -> np.ndarray:
        if cut == "input":
            return pixels.reshape(len(pixels), -1)
        with torch.inference_mode():
            maps = stem(torch.from_numpy(np.ascontiguousarray(pixels))).numpy()
        return np.asarray(maps.reshape(len(maps), -1).astype(np.float16))

    views = [
        activations(images[:, :, ::-1] if view % 2 else np.roll(images, view, axis=1))
        for view in range(1, num_views + 1)
    ]
    count, classes = len(images), tuple(sorted(set(labels) - {""}))
    names = tuple(f"{row:04d}.jpg" for row in range(count))
    samples = [
        Sample(name, classes.index(label) if label else -1, SPLITS[split], group=group)
        for name, label, split, group in zip(
            names, labels, splits.tolist(), groups or [""] * count, strict=True
        )
    ]
    details = {
        "source": "/photos",
        "weights": "bundled:tiny",
        "splits": ["train", "val", "test"],
        "val_fraction": 0.2,
        "num_ignored": 0,
        "skipped": [],
        "dtype": dtype,
    }
    if num_views:
        details["views"] = ViewsSpec(num_views).to_dict()
    header = complete_header(kind="features", spec=spec.to_dict(), classes=classes, details=details)
    batch = Batch(
        names,
        np.zeros((count, 3), np.int64),
        np.zeros((count, 16), np.uint8),
        ("",) * count,
        activations(images),
        np.stack(views, axis=1) if views else None,
    )
    return publish_batch(path, header, samples, batch, RowLayout(spec.row_shape, dtype, num_views))
