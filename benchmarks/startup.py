"""How long commands take as whole processes, into docs/measurements/performance.md.

    python benchmarks/startup.py [--rounds 9]

The commands take turns, so that a busy moment of the machine does not fall on one of them alone.
The graph of ResNet-18 is at hand; its weights are random.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from PIL import Image
from report import machine, table, write_measured

import featx


def model_of(source: str | Path, backbone: str, weights: str, folder: Path) -> Path:
    """Return a model file on features of a source."""
    options = featx.ExtractOptions(backbone=backbone, weights=weights, device="cpu")
    featx.extract(source, folder / f"{backbone}.h5", options)
    featx.train_head(folder / f"{backbone}.h5", folder / f"{backbone}.safetensors")
    featx.export_onnx(folder / f"{backbone}.safetensors", folder / f"{backbone}.onnx")
    return folder / f"{backbone}.onnx"


def photos(folder: Path, count: int) -> Path:
    """Write photos of noise, half of them brighter, in two class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 128, (375, 500, 3), np.uint8) + np.uint8(127 * (number % 2))
        Image.fromarray(noise).save(path)
    return folder


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is timed; makes the models and images for it."""
    ten, many = photos(folder / "ten", 10), photos(folder / "many", 60)
    tiny = model_of("digits:", "tiny", "default", folder)
    resnet = model_of(many, "resnet18", "none", folder)
    python, run = sys.executable, [sys.executable, "-m", "featx"]
    photo = str(ten / "a" / "0.jpg")
    return {
        "`python -c pass`": [python, "-c", "pass"],
        "`python -c 'import torch'`, for comparison": [python, "-c", "import torch"],
        "`python -c 'import featx'`": [python, "-c", "import featx"],
        "`featx --help`": [*run, "--help"],
        "`featx predict`, `tiny`, one photo": [*run, "predict", str(tiny), photo],
        "`featx predict`, ResNet-18, one photo": [*run, "predict", str(resnet), photo],
        "`featx extract`, `tiny`, ten photos": [
            *(*run, "extract", str(ten), "-b", "tiny", "--restart"),
            *("-q", "-o", str(folder / "ten.h5")),
        ],
    }


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option(
    "--write/--no-write", default=True, help="Put the table into docs/measurements/performance.md."
)
def main(rounds: int, write: bool) -> None:
    """Time each command and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        timed = commands(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, command in timed.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    rows = [[name, f"{statistics.median(values):.2f} s"] for name, values in seconds.items()]
    columns = ("whole process", f"median of {rounds}")
    text = f"{machine('torch', 'onnxruntime')}.\n\n{table(columns, rows)}"
    print(text)
    if write:
        write_measured("docs/measurements/performance.md", text, name="startup")


if __name__ == "__main__":
    main()
