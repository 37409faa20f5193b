"""How long commands take as whole processes: prints a table of medians.

    python benchmarks/startup.py [--rounds 9]

The commands take turns, so that a busy moment of the machine does not fall on one of them alone.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from PIL import Image

import featx


def commands(folder: Path) -> dict[str, list[str]]:
    """Return what is timed; makes the model and image that predict needs."""
    featx.extract("digits:", folder / "f.h5", featx.ExtractOptions(backbone="tiny"))
    featx.train_head(folder / "f.h5", folder / "h.safetensors")
    featx.export_onnx(folder / "h.safetensors", folder / "m.onnx")
    Image.new("RGB", (500, 375), (90, 120, 30)).save(folder / "photo.jpg")
    for number in range(10):
        path = folder / "photos" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (500, 375), (90, 20 * number, 30)).save(path)
    python, run = sys.executable, [sys.executable, "-m", "featx"]
    return {
        "python -c pass": [python, "-c", "pass"],
        "import featx": [python, "-c", "import featx"],
        "featx --help": [*run, "--help"],
        "featx predict, tiny, one photo": [
            *(*run, "predict", str(folder / "m.onnx"), str(folder / "photo.jpg"))
        ],
        "featx extract, tiny, ten photos": [
            *(*run, "extract", str(folder / "photos"), "-b", "tiny", "--restart"),
            *("-q", "-o", str(folder / "ten.h5")),
        ],
        "import torch, for comparison": [python, "-c", "import torch"],
    }


@click.command()
@click.option("--rounds", default=9, show_default=True)
def main(rounds: int) -> None:
    """Time each command and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        timed = commands(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(rounds):
            for name, command in timed.items():
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                seconds[name].append(time.perf_counter() - start)
    print("| command | median of", rounds, "|\n|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.2f} s |")


if __name__ == "__main__":
    main()
