"""Opening sources of many images, and reading Parquet, into docs/measurements/performance.md.

    python benchmarks/sources.py [--images 50000] [--groups 2] [--no-write]

Each source is opened in a process of its own; times are those of its processor, so that a busy
machine does not matter. The images are bytes of noise: nothing is decoded.
"""

import json
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from io import BytesIO
from pathlib import Path

import click
import numpy as np
from report import machine, table, write_measured

from featx.images.sources import open_source

GROUP_IMAGES, GROUP_BYTES = 3000, 150 * 10**6


def peak_mb() -> int:
    """Return the most memory that this process had so far, MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1000  # ru_maxrss is the parent's, too


def measure(uri: str, *, reads: bool) -> dict[str, float]:
    """Open a source, and read all its images if asked."""
    before, start = peak_mb(), time.process_time()
    source = open_source(uri)
    opened = time.process_time() - start
    for index in range(len(source.samples) if reads else 0):
        source.read(index)
    return {"before": before, "seconds": opened, "peak": peak_mb(), "images": len(source.samples)}


def in_a_process(uri: str, *, reads: bool = False) -> dict[str, float]:
    """Return what ``measure`` says in a new process."""
    command = [sys.executable, __file__, "--source", uri, *(["--reads"] if reads else [])]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return found


def make_archives(folder: Path, count: int) -> list[Path]:
    """Write a zip, a tar and a shard of so many images."""
    paths = [folder / name for name in ("photos.zip", "photos.tar", "shard.tar")]
    with (
        zipfile.ZipFile(paths[0], "w") as packed,
        tarfile.open(paths[1], "w") as tar,
        tarfile.open(paths[2], "w") as shard,
    ):
        for number in range(count):
            name = f"{'ab'[number % 2]}/{number:06d}"
            packed.writestr(f"{name}.jpg", name)
            for file, full, content in (
                (tar, f"{name}.jpg", name),
                (shard, f"{name}.jpg", name),
                (shard, f"{name}.cls", name[0]),
            ):
                info = tarfile.TarInfo(full)
                info.size = len(content)
                file.addfile(info, BytesIO(content.encode()))
    return paths


def make_parquet(path: Path, groups: int) -> None:
    """Write row groups of 3,000 images and 150 MB each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng, size = np.random.default_rng(0), GROUP_BYTES // GROUP_IMAGES
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    with pq.ParquetWriter(path, pa.schema([("image", kind), ("label", pa.int64())])) as writer:
        for _ in range(groups):
            images = [{"bytes": rng.bytes(size), "path": None} for _ in range(GROUP_IMAGES)]
            columns = [pa.array(images, kind), pa.array([0, 1] * (GROUP_IMAGES // 2))]
            writer.write_table(pa.table(columns, ["image", "label"]), row_group_size=GROUP_IMAGES)


@click.command()
@click.option("--images", default=50_000, show_default=True, help="In each archive.")
@click.option("--groups", default=2, show_default=True, help="Row groups of the Parquet file.")
@click.option("--source", help="Measure this one in this process, and print JSON.")
@click.option("--reads", is_flag=True, help="Read its images, too.")
@click.option("--write/--no-write", default=True, help="Put the tables into the document.")
def main(images: int, groups: int, source: str | None, reads: bool, write: bool) -> None:
    """Measure each source and print the tables."""
    if source:
        print(json.dumps(measure(source, reads=reads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = {path.name: in_a_process(str(path)) for path in make_archives(Path(folder), images)}
        path = Path(folder) / "photos.parquet"
        make_parquet(path, groups)
        found[path.name] = in_a_process(str(path))
        read = in_a_process(str(path), reads=True)
    rows = [
        [f"`{name}`", f"{it['images']:,}", f"{it['seconds']:.2f} s"] for name, it in found.items()
    ]
    opened = table(("opened", "images", "processor time"), rows)
    memory = (
        f"Reading all images of {groups} row groups of {GROUP_BYTES / 10**6:.0f} MB: at most "
        f"{read['peak']:,} MB in the process, of which {read['before']:,} MB were there before.\n"
    )
    text = f"{machine('pyarrow')}.\n\n{opened}\n{memory}"
    print(text)
    if write:
        write_measured("docs/measurements/performance.md", text, name="sources")


if __name__ == "__main__":
    main()
