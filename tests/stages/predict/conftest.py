"""A classifier of the ten digits, exported once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from featx.extraction.options import ExtractOptions
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.train import train_head


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head of the ten digits on tiny's features."""
    out = tmp_path_factory.mktemp("head")
    extract("digits:", out / "f.h5", ExtractOptions(backbone="tiny"))
    train_head(out / "f.h5", out / "h.safetensors")
    return out / "h.safetensors"


@pytest.fixture(scope="session")
def model(head: Path) -> Path:
    export_onnx(head, head.parent / "m.onnx")
    return head.parent / "m.onnx"


@pytest.fixture(scope="session")
def exported(head: Path) -> Callable[..., Path]:
    """Return a function that exports the head with other inputs and outputs, each once."""

    @functools.cache
    def export(source: Literal["image", "crop", "tensor"], *outputs: str) -> Path:
        path = head.parent / f"{source}-{'-'.join(outputs)}.onnx"
        export_onnx(head, path, ExportOptions(input=source, outputs=outputs, verify=False))
        return path

    return export


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    """Two threads, however many cores there are."""
    return Predictor(model, threads=2)


@pytest.fixture
def images(photos: Callable[..., Path]) -> list[Path]:
    """Forty images: of many sizes, then of one."""
    folder = photos({"ants": 22, "bees": 18})
    same = sorted((folder / "bees").iterdir())
    for path in same:
        with Image.open(path) as image:
            image.resize((40, 30)).save(path)
    return sorted((folder / "ants").iterdir()) + same
