"""Two models of the ten digits, photos, and a server in this process."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import Client, in_this_process

from featx.extraction.options import ExtractOptions
from featx.stages.export import ExportOptions, export_onnx
from featx.stages.extract import extract
from featx.stages.predict import Predictor
from featx.stages.train import train_head
from featx.training.options import TrainOptions


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of the same classes; the second was proven a day later."""
    out = tmp_path_factory.mktemp("served")
    extract("digits:", out / "f.h5", ExtractOptions(backbone="tiny"))
    paths = []
    with pytest.MonkeyPatch.context() as patch:
        for number, solver in enumerate(("lbfgs", "centroid")):
            patch.setenv("SOURCE_DATE_EPOCH", str(1_700_000_000 + 86_400 * number))
            head = out / f"{solver}.safetensors"
            train_head(out / "f.h5", head, TrainOptions(solver=solver))
            export_onnx(head, out / f"{solver}.onnx")
            paths.append(out / f"{solver}.onnx")
    return paths[0], paths[1]


@pytest.fixture(scope="session")
def model(models: tuple[Path, Path]) -> Path:
    return models[0]


@pytest.fixture(scope="session")
def predictor(model: Path) -> Predictor:
    return Predictor(model, threads=1)


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Forty encoded images of several formats and sizes."""
    rng, found = np.random.default_rng(0), []
    for number in range(40):
        low = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(low).resize((40 + number, 90 - number), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, ("JPEG", "PNG", "WEBP")[number % 3])
        found.append(buffer.getvalue())
    return found


@pytest.fixture(scope="module")
def client(model: Path) -> Iterator[Client]:
    """A client of a server with small limits."""
    with in_this_process(model, threads=2, max_bytes=2_000_000, max_pixels=1_000_000) as (own, _):
        yield own


@pytest.fixture(scope="session")
def exported_of(models: tuple[Path, Path]) -> Callable[[str], bytes]:
    """Return a function that gives the content of models that may not take the first's place."""
    folder = models[0].parent

    @functools.cache
    def export(kind: str) -> bytes:
        head, path = folder / "lbfgs.safetensors", folder / f"{kind}.onnx"
        options = ExportOptions(verify=False)
        if kind == "outputs":
            options = ExportOptions(outputs=("probabilities",))
        elif kind.partition(" ")[0] in ("image", "crop", "tensor"):
            source, outputs = kind.split(" ")
            options = ExportOptions(input=source, outputs=tuple(outputs.split(",")), verify=False)
        if kind == "classes":
            rng = np.random.default_rng(0)
            for number in range(40):
                image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                image[..., number % 2] //= 4
                place = folder / "photos" / ("ants", "bees")[number % 2] / f"{number}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place)
            extract(folder / "photos", folder / "g.h5", ExtractOptions(backbone="tiny"))
            head, options = folder / "g.safetensors", ExportOptions()
            train_head(folder / "g.h5", head)
        export_onnx(head, path, options)
        return path.read_bytes()

    return export
