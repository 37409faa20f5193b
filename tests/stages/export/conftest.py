"""A head with its features and source, for the tests of export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from featx.extraction.options import ExtractOptions
from featx.stages.extract import extract
from featx.stages.train import train_head


class Trained:
    """A source with its features and head, in one folder."""

    def __init__(self, folder: Path, source: Path, **settings: object) -> None:
        self.folder, self.source = folder, source
        self.features, self.head = folder / "f.h5", folder / "h.safetensors"
        self.model = folder / "m.onnx"
        options = ExtractOptions(**({"backbone": "tiny"} | settings))  # type: ignore[arg-type]
        extract(source, self.features, options)
        train_head(self.features, self.head)


@pytest.fixture
def make_trained() -> type[Trained]:
    """Return the class itself, for other sources and settings."""
    return Trained


@pytest.fixture
def trained(photos: Callable[..., Path], tmp_path: Path) -> Trained:
    return Trained(tmp_path, photos({"ants": 8, "bees": 8}), val_fraction=0.4)
