"""What each engine and precision gives: features, speed, accuracy, into docs/precision.md.

    python benchmarks/precision.py [--data ../shared/data] [--backbone NAME …] [--device cuda]

- Features of 64 validation photos of hymenoptera against plain torch: fp32, eager, one image at a
  time. int8 is calibrated as ``featx extract`` does it, with 128 training photos.
- Images a second of the forward pass alone: on the CPU of one thread, the fastest of many batches
  of 4; on a GPU of batches of 32, from the memory of the one to the memory of the other and back.
- The default head on fp32 and int8 features, with real weights.

Where there are no real weights, random ones: they change no time, but their features differ little
from photo to photo, so that their cosines say less.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from report import ROOT, machine, table, write_measured

import featx

DATA = ROOT.parent / "shared" / "data"
NUM_PHOTOS, BATCH, GPU_BATCH = 64, 4, 32
MANGO = "squeezenet1_1-mango-c10.pth"
BACKBONES = (
    *("tiny", "squeezenet1_1", "resnet18", "resnet50", "mobilenet_v3_small"),
    *("efficientnet_b0", "convnext_tiny", "vit_b_16"),
)


def weights_of(backbone: str, data: Path) -> str:
    own = {"tiny": "default", "squeezenet1_1": str(data / "weights" / MANGO)}
    return own.get(backbone, "none")


def photos(data: Path, split: str, spec: object, count: int) -> np.ndarray:
    """Return photos of a split, spread evenly, as ``featx extract`` prepares them."""
    from featx.extraction.backbone import calibration_pixels
    from featx.images.sources import open_source

    source = open_source(str(data / "hymenoptera_data" / split))
    pixels = calibration_pixels(source, spec, max_pixels=10**8)  # type: ignore[arg-type]
    return pixels[np.linspace(0, len(pixels) - 1, count).round().astype(int)]


def engines(
    backbone: str, data: Path, device: str
) -> Iterator[tuple[str, object, np.ndarray, np.ndarray]]:
    """Yield name, engine, pixels and the reference's features."""
    import torch

    from featx.backbones.catalog import default_preprocess
    from featx.backbones.engines import OnnxEngine
    from featx.backbones.int8 import calibrate, narrowed, quantize_graph
    from featx.backbones.network import build_network
    from featx.backbones.onnx_graph import build_graph
    from featx.backbones.torch_engine import TorchEngine
    from featx.backbones.weights import open_weights
    from featx.errors import BackboneError

    spec = default_preprocess(backbone)
    network, _ = build_network(backbone, open_weights(backbone, weights_of(backbone, data)), spec)
    pixels = photos(data, "val", spec, NUM_PHOTOS)
    with torch.inference_mode():
        exact = np.concatenate([network(torch.from_numpy(one[None])).numpy() for one in pixels])
    for precision in ("fp32", "bf16") if device == "cpu" else ("fp32", "tf32", "bf16", "fp16"):
        yield (
            f"torch {precision}",
            TorchEngine(network, device=device, precision=precision),
            pixels,
            exact,
        )
    if device != "cpu":
        return
    graph = build_graph(network, image_size=spec.image_size)
    yield "onnxruntime fp32", OnnxEngine(graph), pixels, exact
    seen = photos(data, "train", spec, 128)
    ranges = calibrate(graph, [seen])
    with contextlib.suppress(BackboneError):  # measured all the same, and called refused
        ranges = narrowed(graph, ranges, seen[::4], backbone)
    quantised = quantize_graph(graph, ranges)
    yield "onnxruntime int8", OnnxEngine(quantised), pixels, exact


def speed(engine: object, pixels: np.ndarray, seconds: float) -> float:
    """Return images a second of the fastest batch, on the CPU of processor time."""
    on_cpu = engine.device == "cpu"  # type: ignore[attr-defined]
    clock = time.process_time if on_cpu else time.perf_counter
    batch, end = pixels[: BATCH if on_cpu else GPU_BATCH], time.perf_counter() + seconds
    engine.features(batch)  # type: ignore[attr-defined]  # the first loads what runs it
    best = float("inf")
    while time.perf_counter() < end or best == float("inf"):
        start = clock()
        engine.features(batch)  # type: ignore[attr-defined]
        best = min(best, clock() - start)
    return len(batch) / best


def agreement(backbone: str, data: Path, seconds: float, device: str) -> list[list[str]]:
    """Return the lines of a backbone."""
    from featx.backbones.int8 import MIN_COSINE, MIN_MEAN_COSINE, cosine
    from featx.backbones.onnx_graph import relative_error

    plain = "onnxruntime fp32" if device == "cpu" else "torch fp32"
    rows, speeds = [], dict[str, float]()
    for name, engine, pixels, exact in engines(backbone, data, device):
        starts = range(0, len(pixels), BATCH)
        found = np.concatenate([engine.features(pixels[i : i + BATCH]) for i in starts])  # type: ignore[attr-defined]
        cosines = cosine(found, exact)
        speeds[name] = fast = speed(engine, pixels, seconds)
        refused = cosines.mean() < MIN_MEAN_COSINE or cosines.min() < MIN_COSINE
        rows.append(
            [
                backbone,
                name + (" (refused)" if refused else ""),
                f"{relative_error(found, exact):.1e}",
                f"{cosines.mean():.5f}",
                f"{cosines.min():.5f}",
                f"{fast:,.0f}" if fast >= 10 else f"{fast:.1f}",
            ]
        )
    for row, fast in zip(rows, speeds.values(), strict=True):
        row.append(f"{fast / speeds[plain]:.2f} ×")
    return rows


def accuracy(data: Path) -> list[list[str]]:
    """Return the lines of the two data sets, fp32 beside int8."""
    plain = featx.ExtractOptions(backbone="squeezenet1_1", weights=str(data / "weights" / MANGO))
    small = replace(plain, image_size=96)
    cases = (
        ("hymenoptera", str(data / "hymenoptera_data"), plain, "val"),
        ("CIFAR-10 subset, 96 px", f"cifar10:{data / 'cifar10_subset'}", small, "test"),
    )
    rows = []
    for name, source, options, split in cases:
        scores = []
        with tempfile.TemporaryDirectory() as folder:
            for precision in ("fp32", "int8"):
                features = Path(folder) / f"{precision}.h5"
                featx.extract(source, features, replace(options, precision=precision))
                head = featx.train_head(features, features.with_suffix(".safetensors"))
                scores.append(head.metrics[split])
        one, other = scores
        points = f"{100 * (other.top1 - one.top1):+.2f}"
        counted = f"{split} ({one.num_samples:,})"
        rows.append([name, counted, f"{one.top1:.4f}", f"{other.top1:.4f}", points])
    return rows


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--backbone", "backbones", multiple=True, default=BACKBONES, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of timing, each.")
@click.option("--accuracy/--no-accuracy", "with_accuracy", default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--write/--no-write", default=True, help="Put the tables into docs/precision.md.")
def main(
    *,
    data: Path,
    backbones: tuple[str, ...],
    seconds: float,
    with_accuracy: bool,
    device: str,
    write: bool,
) -> None:
    """Measure and print the tables."""
    import torch

    if device == "cpu":
        torch.set_num_threads(1)
    parts = [machine("torch", "onnxruntime") + ".\n"]
    columns = ("backbone", "engine, precision", "largest relative error", "mean cosine")
    rows = [row for backbone in backbones for row in agreement(backbone, data, seconds, device)]
    more = (
        ("smallest cosine", "images/s, one thread", "against ONNX Runtime fp32")
        if device == "cpu"
        else ("smallest cosine", "images/s", "against fp32")
    )
    parts.append(table((*columns, *more), rows))
    if with_accuracy and device == "cpu":
        names = ("data", "split (images)", "top-1, fp32", "top-1, int8", "points")
        parts.append(table(names, accuracy(data)))
    text = "\n".join(parts)
    print(text)
    if write:
        write_measured("docs/precision.md", text, name="" if device == "cpu" else "gpu")


if __name__ == "__main__":
    main()
