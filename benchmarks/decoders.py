"""What else could decode and resize JPEGs on the CPU, into docs/images.md.

    PYTHONPATH=. .venv-bench/peers/bin/python benchmarks/decoders.py [--data ../shared/data]

Each way makes the square of 224 pixels, in one thread, from the content of the file. They take
turns photo by photo; of some rounds the fastest counts. Pixels are compared with those of Pillow,
which are those of torchvision's presets, and so are the features that SqueezeNet makes of them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from photos import enlarge, evenly, jpegs_of
from PIL import Image
from report import ROOT, machine, table, write_measured

from featx.backbones.catalog import default_preprocess
from featx.backbones.network import build_network
from featx.backbones.torch_engine import TorchEngine
from featx.backbones.weights import open_weights
from featx.images.decode import decoded
from featx.images.preprocess import crop_offset, preprocess, resized_shape

DATA = ROOT.parent / "shared" / "data"
SPEC = default_preprocess("resnet18")
Way = Callable[[bytes], np.ndarray]


def pillow(content: bytes) -> np.ndarray:
    """As featx does it."""
    return preprocess(decoded(content, sample_id=""), SPEC)


def pillow_box(content: bytes) -> np.ndarray:
    """Resize no more than what the crop keeps."""
    image = decoded(content, sample_id="")
    assert isinstance(image, Image.Image)
    height, width = resized_shape(image.height, image.width, SPEC)
    across, down = image.width / width, image.height / height
    left, top = crop_offset(width, SPEC.image_size), crop_offset(height, SPEC.image_size)
    side = SPEC.image_size
    box = (left * across, top * down, (left + side) * across, (top + side) * down)
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def with_simplejpeg(content: bytes) -> np.ndarray:
    """libjpeg-turbo without Pillow around it."""
    import simplejpeg

    pixels = simplejpeg.decode_jpeg(content, "RGB", fastdct=False, fastupsample=False)
    return preprocess(pixels, SPEC)


def with_opencv(content: bytes) -> np.ndarray:
    """Another one."""
    import cv2

    data = np.frombuffer(content, np.uint8)
    return preprocess(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB), SPEC)


def with_torchvision(content: bytes) -> np.ndarray:
    """Its own resize has vector instructions."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2 import functional

    encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    image = decode_jpeg(encoded, mode=ImageReadMode.RGB)
    small = functional.resize(image, [SPEC.resize], antialias=True)
    square = functional.center_crop(small, [SPEC.image_size])
    return np.ascontiguousarray(square.permute(1, 2, 0).numpy())


WAYS: dict[str, Way] = {
    "Pillow, as featx has it": pillow,
    "Pillow, resizing what the crop keeps": pillow_box,
    "simplejpeg, Pillow's resize": with_simplejpeg,
    "OpenCV, Pillow's resize": with_opencv,
    "torchvision, with its resize": with_torchvision,
}


def milliseconds(contents: list[bytes], rounds: int) -> dict[str, float]:
    """Return for each way the median over photos of the fastest of some rounds."""
    took = {name: [float("inf")] * len(contents) for name in WAYS}
    for _ in range(rounds):
        for number, content in enumerate(contents):
            for name, way in WAYS.items():
                start = time.perf_counter()
                way(content)
                took[name][number] = min(took[name][number], time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times) for name, times in took.items()}


def difference(way: Way, contents: list[bytes], engine: TorchEngine) -> list[str]:
    """Return by how many grey levels a way is off, in how many values, and features by how much."""
    found, exact = (np.stack([how(content) for content in contents]) for how in (way, pillow))
    levels = np.abs(found.astype(int) - exact)
    features, expected = engine.features(found), engine.features(exact)
    off = np.linalg.norm(features - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return [
        *(f"{levels.max()}", f"{100 * (levels > 0).mean():.2f} %"),
        *(f"{np.median(off):.0e}", f"{off.max():.0e}"),
    ]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--rounds", default=7, show_default=True)
@click.option("--write/--no-write", default=True, help="Put the table into docs/images.md.")
def main(data: Path, rounds: int, write: bool) -> None:
    """Measure and print the table."""
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    weights = open_weights("squeezenet1_1", str(data / "weights" / "squeezenet1_1-mango-c10.pth"))
    engine = TorchEngine(build_network("squeezenet1_1", weights, SPEC)[0], device="cpu")
    train = data / "hymenoptera_data" / "train"
    with tempfile.TemporaryDirectory() as folder:
        large = jpegs_of(enlarge(train, Path(folder), count=12))
        photos = [[path.read_bytes() for path in evenly(jpegs_of(train), 60)]]
        photos.append([path.read_bytes() for path in large])
    times = [milliseconds(contents, rounds) for contents in photos]
    rows = [
        [name, *(f"{some[name]:.2f} ms" for some in times), *difference(way, photos[0], engine)]
        for name, way in WAYS.items()
    ]
    columns = (
        *("decode and resize", "500×375", "4000×3000", "grey levels, at most", "values"),
        *("features, median", "largest"),
    )
    libraries = ("pillow", "simplejpeg", "opencv-python-headless", "torchvision")
    text = f"{machine(*libraries)}.\n\n{table(columns, rows)}"
    print(text)
    if write:
        write_measured("docs/images.md", text, name="decoders")


if __name__ == "__main__":
    main()
