"""How fast images become features: rounds in turn, medians into docs/performance.md.

    python benchmarks/extraction.py [--data ../shared/data] [--rounds 5]

- featx, with each of its engines: what ``featx.extract`` takes, from opening the source to the
  published file.
- A loop over torch's DataLoader, as one writes it by hand, and as one does who knows that
  convolutions are faster with ``channels_last``; it keeps nothing on the disk.
- The ceiling of each engine: the forward passes alone, over pixels that are in memory.

Each is a process of its own. The clock starts after the imports, and after the graph was built.
Weights are random: they change no time. Ratios are medians over rounds of the ratio within a round,
so that a busy moment of the machine counts on both sides. Processor time counts all processes and
threads, and hardly depends on what else the machine does.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from report import ROOT, table, write_measured

DATA = ROOT.parent / "shared" / "data"
LOADER, LOADER_CL = "DataLoader loop", "DataLoader loop, channels_last"
ORT, TORCH = "featx, onnxruntime", "featx, torch"
CEILINGS = {ORT: "ceiling, onnxruntime", TORCH: "ceiling, torch"}
VARIANTS = (LOADER, LOADER_CL, ORT, CEILINGS[ORT], TORCH, CEILINGS[TORCH])


@dataclass(frozen=True)
class Case:
    """What is run: a backbone over the photos of a folder."""

    title: str
    source: Path
    backbone: str
    weights: str
    ceiling_images: int


def images_of(source: Path) -> list[Path]:
    return sorted(source.rglob("*.jpg"))


def extraction(engine: str, case: Case, folder: Path) -> Callable[[], int]:
    """Return featx, its graph built."""
    from featx.stages.extract import ExtractOptions, extract

    options = ExtractOptions(backbone=case.backbone, weights=case.weights, engine=engine)  # type: ignore[arg-type]
    first = images_of(case.source)[0]
    (folder / "one" / "a").mkdir(parents=True)
    (folder / "one" / "a" / first.name).write_bytes(first.read_bytes())
    extract(folder / "one", folder / "one.h5", options)
    return lambda: extract(case.source, folder / "f.h5", options).num_images


def forward_only(engine: str, case: Case, _folder: Path) -> Callable[[], int]:
    """Return forward passes over random pixels, as many at once as the engine takes."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from featx.backbones.engines import default_batch_size
    from featx.images.read_ahead import num_cores
    from featx.stages.extract import ExtractOptions
    from featx.stages.extract.backbone import LazyBackbone

    backbone = LazyBackbone(
        ExtractOptions(backbone=case.backbone, weights=case.weights, engine=engine)  # type: ignore[arg-type]
    )
    spec = backbone.spec()
    runner, size = backbone.engine(spec), spec.preprocess.image_size
    batch = default_batch_size(runner, size)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    rounds = -(-case.ceiling_images // batch)
    runner.features(pixels)

    def run() -> int:
        if runner.is_parallel:
            with ThreadPoolExecutor(num_cores()) as pool:
                list(pool.map(lambda _: runner.features(pixels), range(rounds)))
        else:
            for _ in range(rounds):
                runner.features(pixels)
        return rounds * batch

    return run


def data_loader(case: Case, *, memory_format: str) -> Callable[[], int]:
    """Return a loop as one writes it by hand."""
    import numpy as np
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import models, transforms

    from featx.backbones.tiny import MEAN, STD, Tiny

    if case.backbone == "tiny":
        model: Any = Tiny()
        model.head = torch.nn.Identity()
        steps = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    else:
        model = models.get_model(case.backbone, weights=None)
        model.fc = torch.nn.Identity()
        normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        square = [transforms.Resize(256), transforms.CenterCrop(224)]
        steps = [*square, transforms.ToTensor(), normalize]
    layout = getattr(torch, memory_format)
    model.eval().to(memory_format=layout)
    transform, paths = transforms.Compose(steps), images_of(case.source)

    class Photos(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            tensor: torch.Tensor = transform(Image.open(paths[index]).convert("RGB"))
            return tensor

    workers = len(os.sched_getaffinity(0))
    loader = DataLoader(Photos(), batch_size=32, num_workers=workers)

    def run() -> int:
        features = []
        with torch.inference_mode():
            for images in loader:
                batch = images.to(memory_format=layout)
                features.append(model(batch).numpy())
        return len(np.concatenate(features))

    return run


def prepared(variant: str, case: Case, folder: Path) -> Callable[[], int]:
    """Return what is timed; it returns the number of images."""
    if variant in (LOADER, LOADER_CL):
        layout = "contiguous_format" if variant == LOADER else "channels_last"
        return data_loader(case, memory_format=layout)
    make = forward_only if variant.startswith("ceiling") else extraction
    return make(variant.partition(", ")[2], case, folder)


def processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


@click.group(invoke_without_command=True)
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--rounds", default=5, show_default=True)
@click.option("--images", default=4000, show_default=True, help="Of CIFAR-10.")
@click.option("--write/--no-write", default=True, help="Put the tables into docs/performance.md.")
@click.pass_context
def main(context: click.Context, data: Path, rounds: int, images: int, write: bool) -> None:
    """Time all variants in turn and print the tables."""
    if context.invoked_subcommand:
        return
    with tempfile.TemporaryDirectory() as folder:
        photos = data / "hymenoptera_data" / "train"
        cases = [
            Case("ResNet-18, 224 px, {:,} photos of 500×375", photos, "resnet18", "none", 200),
            Case(
                "`tiny`, {:,} CIFAR-10 JPEGs of 32×32",
                unpacked(data, Path(folder), images),
                "tiny",
                "default",
                4000,
            ),
        ]
        text = "\n".join([described(rounds), *(measured(case, rounds) for case in cases)])
    print(text)
    if write:
        write_measured("docs/performance.md", text)


def unpacked(data: Path, folder: Path, count: int) -> Path:
    """Return a folder of the first images of the archive, spread over its classes."""
    source = folder / "cifar10"
    with tarfile.open(data / "cifar10_jpeg" / "cifar10_jpeg.tar.gz") as archive:
        members = sorted(
            (member for member in archive.getmembers() if member.name.endswith(".jpg")),
            key=lambda member: Path(member.name).name,
        )
        archive.extractall(source, members=members[:count], filter="data")
    return source


def described(rounds: int) -> str:
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "onnxruntime", "pillow")
    )
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores, {platform.machine()}, Python {platform.python_version()}, {versions}; "
        f"medians of {rounds} rounds.\n"
    )


def run_one(variant: str, case: Case) -> dict[str, float]:
    """Run a variant in a process of its own."""
    values = [case.title, str(case.source), case.backbone, case.weights, str(case.ceiling_images)]
    command = [sys.executable, __file__, "one", variant, *values]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    seen: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return seen


def measured(case: Case, rounds: int) -> str:
    """Return the table of one case."""
    seen: dict[str, list[dict[str, float]]] = {variant: [] for variant in VARIANTS}
    run_one(ORT, case)  # builds the graph
    for number in range(rounds):
        turn = VARIANTS[number % len(VARIANTS) :] + VARIANTS[: number % len(VARIANTS)]
        for variant in turn:
            seen[variant].append(run_one(variant, case))
    rows = []
    for variant in VARIANTS:
        ceiling = CEILINGS.get(variant)
        rows.append(
            [
                variant,
                f"{statistics.median(run['speed'] for run in seen[variant]):,.0f}",
                f"{ratio(seen, 'speed', variant, LOADER):.2f} ×",
                "" if ceiling is None else f"{ratio(seen, 'speed', variant, ceiling):.2f}",
                f"{statistics.median(run['processor'] for run in seen[variant]):.2f} ms",
                "" if ceiling is None else f"{ratio(seen, 'processor', ceiling, variant):.2f}",
                f"{max(run['memory'] for run in seen[variant]):,.0f} MB",
            ]
        )
    columns = [
        case.title.format(len(images_of(case.source))),
        *("images/s", "against the loop", "of its ceiling", "processor time an image"),
        *("of its ceiling", "peak memory"),
    ]
    return table(columns, rows)


def ratio(seen: dict[str, list[dict[str, float]]], name: str, one: str, other: str) -> float:
    """Return the median over rounds of ``one / other``."""
    pairs = zip(seen[one], seen[other], strict=True)
    return statistics.median(a[name] / b[name] for a, b in pairs)


@main.command(hidden=True)
@click.argument("variant")
@click.argument("title")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("backbone")
@click.argument("weights")
@click.argument("ceiling_images", type=int)
def one(variant: str, **values: Any) -> None:
    """Run one variant once and print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        run = prepared(variant, Case(**values), Path(folder))
        processor, start = processor_seconds(), time.perf_counter()
        count = run()
        seconds = time.perf_counter() - start
        processor = processor_seconds() - processor
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "speed": count / seconds,
                "processor": 1e3 * processor / count,
                "memory": memory / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main()
