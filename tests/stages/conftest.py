"""Feature files without a backbone: what training needs of an extraction."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from headers import complete_header

from featx.backbones.spec import BackboneSpec
from featx.extraction import backbone
from featx.extraction.options import ResolvedOptions
from featx.features.existing import KnownRows
from featx.features.file import verify_features
from featx.features.journal import Journal
from featx.features.publish import publish_features
from featx.features.records import Batch
from featx.images.preprocess import PreprocessSpec
from featx.images.sources import SPLITS, Sample


class VerifyHere:
    """Stands in for the process that verifies a file: the same function, called in this one."""

    def __init__(self, _num_bytes: int = 0) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, path: Path) -> None:
        verify_features(path)


@functools.cache
def _built(options: ResolvedOptions, build: Callable[[ResolvedOptions], Any]) -> Any:
    return build(options)


@pytest.fixture(autouse=True)
def _fast_extraction(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify in this process, and build a backbone once, but for tests that ask for ``as_is``.

    To start a process that imports h5py takes about half a second, to trace a network the same,
    and these tests extract some hundred times. What the process is worth is what the tests of
    publishing look at; those of the command line have both as they are.
    """
    if "as_is" in request.fixturenames:
        return
    build = backbone.open_backbone

    def build_once(options: ResolvedOptions) -> Any:
        plain = ResolvedOptions(**vars(options.request) | {"quiet": True})
        return _built(plain, build)

    monkeypatch.setattr(backbone, "open_backbone", build_once)
    monkeypatch.setattr("featx.stages.extract.start_verifier", VerifyHere)


@pytest.fixture
def as_is() -> None:
    """Change nothing about an extraction."""


def cached(
    path: Path,
    features: np.ndarray,
    labels: np.ndarray,
    splits: np.ndarray,
    *,
    classes: tuple[str, ...] = ("ant", "bee", "wasp"),
    overwrite: bool = False,
    contents: np.ndarray | None = None,
    groups: tuple[str, ...] | None = None,
    **details: Any,
) -> Path:
    """Write a feature file; ``splits`` are 0 train, 1 val, 2 test.

    ``contents`` are numbers above 0, the same for copies; they are unknown without it.
    """
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
        digests[:, -1] = contents
    with Journal(path, num_features=features.shape[1]) as journal:
        journal.begin({})
        journal.append(Batch(names, stamps, digests, ("",) * count, features))
        publish_features(
            path,
            header,
            KnownRows(None, journal),
            samples=samples,
            rows=np.arange(count),
            verifier=VerifyHere(),
            overwrite=overwrite,
        )
        journal.remove()
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
