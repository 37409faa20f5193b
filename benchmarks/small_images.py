"""Small images decoded by all workers or one at a time: docs/measurements/performance.md.

    python benchmarks/small_images.py [--data ../shared/data] [--rounds 9]

Photos of hymenoptera, shrunk and encoded again, are extracted with ``tiny`` by as many workers as
there are cores. The two ways alternate; what counts is the run of the backbone, without opening
the source and publishing. Figures are medians of the rounds, the last one of their ratios.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import click
from photos import evenly, jpegs_of
from PIL import Image
from report import ROOT, machine, table, write_measured

import featx
from featx.extraction import crops

DATA = ROOT.parent / "shared" / "data"
SIDES = (32, 64, 96, 128, 160, 224)
PHOTOS, COPIES, QUALITY = 100, 20, 90
WAYS = {"all at once": 0, "one at a time": 2**62}
"""Up to how many bytes images count as small."""


def shrunk(paths: list[Path], folder: Path, side: int) -> list[int]:
    """Write the photos as square JPEGs, several times with other comments; return their sizes."""
    sizes = list[int]()
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((side, side))
        for copy in range(COPIES):
            target = folder / "ab"[number % 2] / f"{number}-{copy}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            small.save(target, quality=QUALITY, comment=str(copy).encode())
            sizes.append(target.stat().st_size)
    return sizes


def speed(source: Path, output: Path, small_bytes: int) -> float:
    """Return images a second of a run."""
    crops._SMALL_BYTES = small_bytes
    profile = featx.extract(
        source, output, featx.ExtractOptions(backbone="tiny", restart=True)
    ).profile
    assert profile
    return profile.num_images / profile.wall


def line(paths: list[Path], side: int, rounds: int) -> list[str]:
    """Return the line of images of a size."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "images", Path(folder) / "f.h5"
        sizes = shrunk(paths, source, side)
        speed(source, output, 0)
        seen = {way: list[float]() for way in WAYS}
        for _ in range(rounds):
            for way, small_bytes in WAYS.items():
                seen[way].append(speed(source, output, small_bytes))
    ratio = statistics.median(b / a for a, b in zip(*seen.values(), strict=True))
    return [
        *(f"{side}×{side}", f"{statistics.median(sizes) / 1024:.1f} kB"),
        *(f"{statistics.median(speeds):,.0f}" for speeds in seen.values()),
        f"{ratio:.2f} ×",
    ]


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--rounds", default=9, show_default=True)
@click.option(
    "--write/--no-write", default=True, help="Put the table into docs/measurements/performance.md."
)
def main(data: Path, rounds: int, write: bool) -> None:
    """Measure and print the table."""
    paths = evenly(jpegs_of(data / "hymenoptera_data" / "train"), PHOTOS)
    columns = ("JPEGs, `tiny`", "median size", *(f"{way}, images/s" for way in WAYS), "ratio")
    rows = [line(paths, side, rounds) for side in SIDES]
    text = (
        f"{machine('onnxruntime', 'pillow')}; medians of {rounds} rounds.\n\n{table(columns, rows)}"
    )
    print(text)
    if write:
        write_measured("docs/measurements/performance.md", text, name="small images")


if __name__ == "__main__":
    main()
