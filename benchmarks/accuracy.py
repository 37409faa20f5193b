"""Accuracy on real data, from images to the exported file: writes docs/measurements/accuracy.md.

    python benchmarks/accuracy.py [--data ../shared/data]

The data folder holds hymenoptera_data, cifar10_subset and weights/squeezenet1_1-mango-c10.pth, a
SqueezeNet fine-tuned from torchvision's ImageNet weights; lite0's come with the extra imagenet.
"""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import click
from report import ROOT, table, write_measured

import featx
from featx.heads.tasks.scores import Metrics


@dataclass(frozen=True)
class Case:
    """One row: a source, its backbone, and the split whose score counts."""

    name: str
    source: str
    options: featx.ExtractOptions
    split: str


def cases(data: Path) -> list[Case]:
    mango = str(data / "weights" / "squeezenet1_1-mango-c10.pth")
    squeezenet = featx.ExtractOptions(backbone="squeezenet1_1", weights=mango)
    small = featx.ExtractOptions(backbone="squeezenet1_1", weights=mango, image_size=96)
    whole = replace(small, val_fraction=0)
    cifar = f"cifar10:{data / 'cifar10_subset'}"
    lite0 = featx.ExtractOptions(backbone="lite0")
    tiny = featx.ExtractOptions(backbone="tiny")
    return [
        Case("digits, tiny, 32 px", "digits:", tiny, "val"),
        Case("hymenoptera, squeezenet1_1", str(data / "hymenoptera_data"), squeezenet, "val"),
        Case("hymenoptera, lite0", str(data / "hymenoptera_data"), lite0, "val"),
        Case("CIFAR-10 subset, squeezenet1_1, 96 px", cifar, small, "test"),
        Case("the same, `--val-fraction 0`", cifar, whole, "test"),
    ]


def measure(case: Case, folder: Path) -> dict[str, object]:
    features, head, model = folder / "f.h5", folder / "h.safetensors", folder / "m.onnx"
    extracted = featx.extract(case.source, features, case.options)
    trained = featx.train_head(features, head)
    exported = featx.export_onnx(head, model)
    evaluated = featx.evaluate(model, case.source)
    scores: Metrics = trained.metrics[case.split]
    assert exported.proof is not None
    return {
        "name": case.name,
        "images": extracted.num_images,
        "split": f"{case.split} ({scores.num_samples:,})",
        "head": scores.top1,
        "file": evaluated.metrics[case.split].top1,
        "difference": exported.proof.max_difference,
        "extract": extracted.seconds,
        "train": trained.seconds,
        "export": exported.seconds,
    }


def cells(row: dict[str, object]) -> list[str]:
    """Return one line of the table."""
    form = (
        "{name}|{images:,}|{split}|{head:.4f}|{file:.4f}|{difference:.1e}"
        "|{extract:.1f} s|{train:.1f} s|{export:.1f} s"
    )
    return form.format(**row).split("|")


COLUMNS = (
    *("data, backbone", "images", "split (images)", "top-1 of the head", "top-1 of the file"),
    *("largest logit difference", "extract", "train", "export"),
)


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=ROOT.parent / "shared" / "data")
def main(data: Path) -> None:
    """Measure and write docs/measurements/accuracy.md."""
    rows = []
    for case in cases(data):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(case, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    write_measured("docs/measurements/accuracy.md", table(COLUMNS, [cells(row) for row in rows]))


if __name__ == "__main__":
    main()
