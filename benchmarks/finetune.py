"""Probe, fine-tune or train from scratch: accuracy and seconds. Writes docs/guides/finetune.md.

    python benchmarks/finetune.py table [--data ../shared/data]    every way on three data sets
    python benchmarks/finetune.py views                            what views bring, and fresh crops
    python benchmarks/finetune.py epoch                            an epoch beside a DataLoader's

The data folder holds hymenoptera_data, cifar10_subset and weights/squeezenet1_1-mango-c10.pth, a
SqueezeNet fine-tuned from torchvision's ImageNet weights.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from report import ROOT, machine, table, write_measured

import featx

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
            features, head, way.finetune, on_epoch=lambda epoch, s, speed: per_epoch.append(s)
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
def every_way(data: Path) -> None:
    """Measure every way on three data sets."""
    rows = []
    for way in ways(data):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(way, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    text = table(COLUMNS, [cells(row) for row in rows])
    write_measured(GUIDE, f"{text}\n{machine('torch')}\n", name="table")


@main.command()
@DATA
def views(data: Path) -> None:
    """Measure what views bring: none, one, four and eight, and flips alone."""
    whole = next(way for way in ways(data) if way.name == "from features.6")
    rows = []
    for number, augment in (
        (0, ""),
        (1, "flip"),
        (1, "crop,flip"),
        (4, "crop,flip"),
        (8, "crop,flip"),
    ):
        options = replace(whole.extract, views=number, augment=augment or None)
        with tempfile.TemporaryDirectory() as folder:
            row = measure(replace(whole, extract=options), Path(folder))
        print(json.dumps(row), flush=True)
        rows.append([str(number), augment or "–", *cells(row)[3:]])
    write_measured(GUIDE, table(("views", "augment", *COLUMNS[3:]), rows), name="views")


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
                on_epoch=lambda epoch, s, speed, found=found: found.append(s),
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


if __name__ == "__main__":
    main()
