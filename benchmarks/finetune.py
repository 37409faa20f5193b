"""Probe, fine-tune or train from scratch: accuracy and seconds. Writes docs/guides/finetune.md.

    python benchmarks/finetune.py table [--data ../shared/data]    every way on three data sets
    python benchmarks/finetune.py table --only hymenoptera         the rows of one, others stay
    python benchmarks/finetune.py calibration                      calibrated with few images: seeds
    python benchmarks/finetune.py views                            what views bring, and fresh crops
    python benchmarks/finetune.py epoch                            an epoch beside a DataLoader's
    python benchmarks/finetune.py memory                           8 GB of activations within 2 GB

The data folder holds hymenoptera_data, cifar10_subset and weights/squeezenet1_1-mango-c10.pth, a
SqueezeNet fine-tuned from torchvision's ImageNet weights.
"""

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from memory import forget, read_bytes
from report import ROOT, machine, table, write_measured

import featx
from featx.backbones.catalog import default_preprocess
from featx.backbones.network import build_network
from featx.backbones.weights import open_weights
from featx.features.publish import publish_features
from featx.features.records import RowBlock, RowLayout
from featx.images.sources import Sample
from featx.training.finetune.outcome import Events

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from headers import complete_header

GUIDE = "docs/guides/finetune.md"


@dataclass(frozen=True)
class Way:
    """One row of the table: a way to train on a data set."""

    data: str
    name: str
    source: str
    extract: featx.ExtractOptions
    split: str
    finetune: featx.FinetuneOptions | None = None  # None for a probe


def ways(data: Path) -> list[Way]:
    mango = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    squeezenet = featx.ExtractOptions(backbone="squeezenet1_1", weights=mango)
    small = replace(squeezenet, image_size=96, val_fraction=0)
    cifar, bees = f"cifar10:{data / 'cifar10_subset'}", str(data / "hymenoptera_data")
    tiny = featx.ExtractOptions(backbone="tiny", val_fraction=0)
    tuned, scratch = featx.FinetuneOptions(), featx.FinetuneOptions(scratch=True)

    def at(options: featx.ExtractOptions, cut: str, views: int = 4) -> featx.ExtractOptions:
        return replace(options, cut=cut, views=views)

    return [
        Way("CIFAR-10, SqueezeNet 96 px", "probe", cifar, small, "test"),
        Way(
            "CIFAR-10, SqueezeNet 96 px",
            "from features.9",
            cifar,
            at(small, "features.9"),
            "test",
            tuned,
        ),
        Way(
            "CIFAR-10, SqueezeNet 96 px",
            "from features.6",
            cifar,
            at(small, "features.6"),
            "test",
            tuned,
        ),
        Way("CIFAR-10, tiny 32 px", "probe", cifar, tiny, "test"),
        Way("CIFAR-10, tiny 32 px", "last stage", cifar, at(tiny, "stage3"), "test", tuned),
        Way("CIFAR-10, tiny 32 px", "whole network", cifar, at(tiny, "input"), "test", tuned),
        Way("CIFAR-10, tiny 32 px", "from scratch", cifar, at(tiny, "input"), "test", scratch),
        Way("hymenoptera, SqueezeNet 224 px", "probe", bees, squeezenet, "val"),
        Way(
            "hymenoptera, SqueezeNet 224 px",
            "from features.11",
            bees,
            at(squeezenet, "features.11"),
            "val",
            tuned,
        ),
        Way(
            "hymenoptera, SqueezeNet 224 px",
            "from features.6",
            bees,
            at(squeezenet, "features.6"),
            "val",
            tuned,
        ),
        Way(
            "hymenoptera, SqueezeNet 224 px",
            "whole network",
            bees,
            at(squeezenet, "input"),
            "val",
            tuned,
        ),
        Way(
            "hymenoptera, SqueezeNet 224 px",
            "from scratch",
            bees,
            at(squeezenet, "input"),
            "val",
            scratch,
        ),
    ]


def measure(way: Way, folder: Path) -> dict[str, Any]:
    """Return one row: what the way came to, and what it cost."""
    features, head, model = folder / "f.h5", folder / "h.safetensors", folder / "m.onnx"
    extracted = featx.extract(way.source, features, way.extract)
    start = time.perf_counter()
    per_epoch, trained = [], 0
    if way.finetune is None:
        featx.train_head(features, head)
    else:
        tuned = featx.finetune(
            features,
            head,
            way.finetune,
            events=Events(on_epoch=lambda epoch, s, speed: per_epoch.append(s)),
        )
        trained = tuned.choice["parameters"]["trained"]
    seconds = time.perf_counter() - start
    exported = featx.export_onnx(head, model)
    scores = featx.open_head(head).header.details["metrics"][way.split]
    accuracy = exported.header.details["proof"]["accuracy"]
    assert accuracy is None or accuracy["file"] == accuracy["head"]
    return {
        "data": way.data,
        "way": way.name,
        "trained": trained,
        "top1": scores["top1"],
        "interval": [scores["top1_low"], scores["top1_high"]],
        "ece": scores["ece"],
        "extract": extracted.seconds,
        "epoch": statistics.median(per_epoch) if per_epoch else None,
        "num_epochs": len(per_epoch),
        "train": seconds,
        "disk": features.stat().st_size,
    }


def cells(row: dict[str, Any]) -> list[str]:
    """Return one line of the table."""
    epoch = f"{row['num_epochs']} × {row['epoch']:.1f} s" if row["epoch"] else "–"
    return [
        row["data"],
        row["way"],
        f"{row['trained'] / 1e6:.2f} M" if row["trained"] else "head only",
        f"{row['top1']:.4f}",
        "{:.3f}–{:.3f}".format(*row["interval"]),
        f"{row['ece']:.3f}",
        f"{row['extract']:.0f} s",
        epoch,
        f"{row['train']:.0f} s",
        f"{row['disk'] / 1e6:,.0f} MB",
    ]


COLUMNS = (
    *("data, backbone", "way", "parameters trained", "top-1", "95 %", "ECE", "extract", "epochs"),
    *("train, all in all", "feature file"),
)
DATA = click.option(
    "--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data"
)


@click.group()
def main() -> None:
    """Measure fine-tuning, and write it into the guide."""


@main.command("table")
@DATA
@click.option("--resume", type=click.Path(path_type=Path), help="Rows measured before, JSON lines.")
@click.option("--only", default="", help="Data sets with this in their name; others stay.")
def every_way(data: Path, resume: Path | None, only: str) -> None:
    """Measure every way on three data sets."""
    rows = [json.loads(line) for line in resume.read_text().splitlines()] if resume else []
    chosen = [way for way in ways(data) if only in way.data]
    for way in chosen[len(rows) :]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(way, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    measured = {(row["data"], row["way"]): cells(row) for row in rows}
    before = (line.strip("| ").split(" | ") for line in (ROOT / GUIDE).read_text().splitlines())
    measured = {(line[0], line[1]): line for line in before if len(line) == len(COLUMNS)} | measured
    text = table(COLUMNS, [measured[way.data, way.name] for way in ways(data)])
    write_measured(GUIDE, f"{text}\n{machine('torch')}\n", name="table")


NUM_SEEDS = 5
PAIRED = ("points", "p", "log loss", "less the probe's", "p", "ECE", "less the probe's", "p")


@main.command()
@DATA
def calibration(data: Path) -> None:
    """Compare probe and tuned head of a few images, paired: top-1, log loss, calibration error."""
    way = next(way for way in ways(data) if way.name == "from features.11")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        features, probe = Path(folder) / "f.h5", Path(folder) / "probe.safetensors"
        featx.extract(way.source, features, way.extract)
        featx.train_head(features, probe, featx.TrainOptions(use_views=False))
        for seed in range(NUM_SEEDS):
            head = Path(folder) / f"{seed}.safetensors"
            tuned = featx.finetune(features, head, featx.FinetuneOptions(seed=seed))
            best, found = tuned.choice["best_epoch"], tuned.calibration
            kept = f"epoch {best}" if best else "probe"
            row = [str(seed), kept, f"{found.temperature if found else 1:.2f}"]
            rows.append(row + against_the_probe(probe, head, way.split))
            print(json.dumps(rows[-1]), flush=True)
    columns = ("seed", "kept", "temperature", *PAIRED)
    write_measured(GUIDE, table(columns, rows), name="calibration")


def against_the_probe(probe: Path, tuned: Path, split: str) -> list[str]:
    """Return the cells of ``PAIRED``: scores, how far they are from the probe's, and p values."""
    _, own = featx.compare_heads([probe, tuned], split=split, progress=False).heads
    assert own.comparison is not None
    assert own.difference is not None
    cells = [f"{100 * own.difference:+.1f}", f"{own.comparison.p_value:.2g}"]
    for name, apart in own.differences.items():
        score = getattr(own.metrics, name)
        cells += [f"{score:.3f}", f"{apart.value:+.3f}", f"{apart.p_value:.2g}"]
    return cells


@main.command()
@DATA
def views(data: Path) -> None:
    """Measure what views bring: none, one, four, a fresh one in each epoch, and flips alone."""
    whole = next(way for way in ways(data) if way.name == "from features.6")
    rows = []
    for number, augment in (
        (0, ""),
        (1, "flip"),
        (1, "crop,flip"),
        (4, "crop,flip"),
        (11, "crop,flip"),  # with 12 epochs no version comes twice, as with fresh crops
    ):
        options = replace(whole.extract, views=number, augment=augment or None)
        with tempfile.TemporaryDirectory() as folder:
            row = measure(replace(whole, extract=options), Path(folder))
        print(json.dumps(row), flush=True)
        epochs = str(row["num_epochs"])
        rows.append([str(number), augment or "–", *cells(row)[3:6], epochs, cells(row)[-1]])
    titles = ("views", "augment", *COLUMNS[3:6], "epochs", COLUMNS[-1])
    write_measured(GUIDE, table(titles, rows), name="views")


def loader_epoch(data: Path) -> float:
    """Return the seconds of an epoch of the whole network, as the tutorials write it."""
    import torch
    import torchvision
    from torch.utils.data import DataLoader
    from torchvision import transforms

    pixels = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images = torchvision.datasets.ImageFolder(data / "hymenoptera_data" / "train", pixels)
    loader = DataLoader(images, batch_size=64, shuffle=True, num_workers=2)
    model = torchvision.models.resnet18(num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()
    start = time.perf_counter()
    for batch, targets in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(batch), targets).backward()
        optimizer.step()
    return time.perf_counter() - start


@main.command()
@DATA
@click.option("--rounds", default=5, show_default=True)
def epoch(data: Path, rounds: int) -> None:
    """Time epochs from the cut and through a DataLoader, in turn."""
    options = featx.ExtractOptions(backbone="resnet18", weights="none", cut="layer4", views=4)
    recipe = featx.FinetuneOptions(lr=1e-4, max_epochs=3, patience=99)
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        features, head = Path(folder) / "f.h5", Path(folder) / "h.safetensors"
        featx.extract(data / "hymenoptera_data", features, options)
        for number in range(rounds):
            found: list[float] = []
            featx.finetune(
                features,
                head,
                replace(recipe, seed=number),
                events=Events(on_epoch=lambda epoch, s, speed, found=found: found.append(s)),
            )
            ours.append(statistics.median(found))
            theirs.append(loader_epoch(data))
            print(json.dumps({"ours": ours[-1], "theirs": theirs[-1]}), flush=True)
    fast, slow = statistics.median(ours), statistics.median(theirs)
    rows = [
        ["whole network, `DataLoader`", f"{slow:.1f} s", "1"],
        ["from `layer4`, cached", f"{fast:.2f} s", f"{slow / fast:.1f}"],
    ]
    write_measured(GUIDE, table(("", "an epoch", "times as fast"), rows), name="epoch")


NUM_ROWS, SHAPE = 160_000, (512, 7, 7)


class Noise:
    """Activations that are made when they are asked for; stands in for a journal."""

    next_row = NUM_ROWS
    journal = SimpleNamespace(layout=RowLayout(SHAPE, "float16"))

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], RowBlock]]:
        """Yield what makes rows: the same maps again and again, each shifted a little."""
        random = np.random.default_rng(0)
        maps = np.maximum(random.standard_normal((64, math.prod(SHAPE)), np.float32), 0)

        def rows_at(numbers: np.ndarray) -> RowBlock:
            rows = maps[numbers % 64] + (numbers[:, None] % 10 / 10)
            digests = np.zeros((len(numbers), 16), np.uint8)
            digests[:, :8] = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)
            none = np.zeros(len(numbers), bool)
            stamps = np.zeros((len(numbers), 3), np.int64)
            return RowBlock(rows.astype(np.float16), digests, stamps, none)

        yield rows_at


def write_noise(path: Path) -> None:
    """Write 8 GB of activations that enter ResNet-18's average pooling, by featx's own writer."""
    weights, preprocess = open_weights("resnet18", "none"), default_preprocess("resnet18")
    _, spec = build_network("resnet18", weights, preprocess, cut="avgpool")
    classes = [f"class {number}" for number in range(10)]
    header = complete_header("features", spec.to_dict(), classes)
    details = dict(header.details) | {"dtype": "float16", "weights": weights.origin}
    publish_features(
        path,
        replace(header, details=details),
        Noise(),  # type: ignore[arg-type]
        samples=[Sample(f"{row:08d}.jpg", row % 10, "train") for row in range(NUM_ROWS)],
        rows=np.arange(NUM_ROWS),
        verifier=SimpleNamespace(run=lambda _: None),  # type: ignore[arg-type]
    )


ALLOWED = "1GB"
TRAINING = """
import json, resource, sys, tempfile, pathlib, featx
from featx.training.finetune.outcome import Events
found = []
recipe = featx.FinetuneOptions(lr=1e-3, max_epochs=3, patience=9, memory=sys.argv[2])
events = Events(on_epoch=lambda epoch, seconds, speed: found.append(seconds))
with tempfile.TemporaryDirectory() as place:
    featx.finetune(sys.argv[1], pathlib.Path(place) / "h.safetensors", recipe, events=events)
print(json.dumps([found, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), help="Where 8 GB are free.")
def memory(folder: Path | None) -> None:
    """Train on 8 GB of activations in a process of less than 2 GB, and compare with reading them.

    The process that trains is one of its own, so that its peak is that of training alone.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        features = Path(place) / "f.h5"
        write_noise(features)
        forget(features)
        start = time.perf_counter()
        read_bytes(features)
        reading = time.perf_counter() - start
        forget(features)
        command = [sys.executable, "-c", TRAINING, str(features), ALLOWED]
        ended = subprocess.run(command, check=True, capture_output=True, text=True)
        found, peak = json.loads(ended.stdout.splitlines()[-1])
        size = features.stat().st_size
    print(json.dumps({"reading": reading, "epochs": found, "bytes": size, "peak": peak}))
    trained = 0.9 * size / statistics.median(found)  # a tenth is held out
    write_measured(
        GUIDE,
        f"{size / 1e9:.1f} GB of activations with `--memory {ALLOWED}`: an epoch reads "
        f"{trained / 1e9:.2f} GB/s, the file alone {size / reading / 1e9:.2f} GB/s when it is not "
        f"in the system's cache; the process takes {peak / 1e9:.1f} GB at most.\n",
        name="memory",
    )


if __name__ == "__main__":
    main()
