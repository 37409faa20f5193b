r"""Training on features larger than memory: writes the table of docs/memory.md.

    python benchmarks/memory.py [--rows 2000000] [--features 1024] [--limit 2GB] [--write]

Makes a feature file of synthetic rows (64 hidden factors, noise, ReLU), trains the default head on
it in a process whose address space is limited, and deletes it. Needs a little more disk than the
file has bytes: 8.2 GB unless told otherwise.

Two speeds of plain reading are measured in the same run, each over the whole file: its bytes by
``readinto`` and its rows by h5py, block by block. The speed of training is the bytes of features
that it read, in all passes and with scoring, divided by its time from start to end; the checks of
the file are part of it. Before each, the file's pages are dropped from the system's cache, so that
a first pass comes from the disk; on a machine with more memory than the file has bytes, later
passes come from the cache. ``--all-cached`` reads the file once before each instead.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import h5py
import numpy as np
from report import ROOT, table, write_measured

from featx.features.publish import publish_features
from featx.features.records import RowBlock, RowLayout
from featx.images.sources import Sample
from featx.training.options import parse_memory

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from headers import complete_header

NUM_CLASSES, NUM_FACTORS = 10, 64
BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Made:
    """Rows that are made when they are asked for; stands in for a journal."""

    num_rows: int
    num_features: int

    @property
    def journal(self) -> Any:
        """What a log says of its rows."""
        return SimpleNamespace(layout=RowLayout((self.num_features,)))

    def labels(self) -> np.ndarray:
        """Return the class of each row."""
        return np.random.default_rng(1).integers(0, NUM_CLASSES, self.num_rows)

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], RowBlock]]:
        """Yield what makes rows."""
        fixed = np.random.default_rng(0)
        centres = 0.3 * fixed.standard_normal((NUM_CLASSES, NUM_FACTORS), np.float32)
        mixing = fixed.standard_normal((NUM_FACTORS, self.num_features), np.float32)
        mixing *= np.geomspace(1, 0.03, NUM_FACTORS, dtype=np.float32)[:, None]
        labels = self.labels()

        def rows_at(numbers: np.ndarray) -> RowBlock:
            random = np.random.default_rng([2, int(numbers[0])])
            factors = random.standard_normal((len(numbers), NUM_FACTORS), np.float32)
            rows = (factors + centres[labels[numbers]]) @ mixing
            rows += random.standard_normal(rows.shape, np.float32)
            np.maximum(rows, 0, out=rows)
            digests = np.zeros((len(numbers), 16), np.uint8)
            digests[:, :8] = numbers.astype("<i8").view(np.uint8).reshape(-1, 8)
            stamps = np.zeros((len(numbers), 3), np.int64)
            return RowBlock(rows, digests, stamps, np.zeros(len(numbers), bool))

        yield rows_at


def make(path: Path, num_rows: int, num_features: int) -> None:
    """Write a feature file by featx's own writer; one row in ten is of the test split."""
    made = Made(num_rows, num_features)
    splits = ["test" if row % 10 == 9 else "train" for row in range(10)]
    samples = [
        Sample(f"{row:08d}.jpg", label, splits[row % 10])
        for row, label in enumerate(made.labels().tolist())
    ]
    header = complete_header(
        "features",
        {"backbone": "made up", "num_features": num_features},
        [f"class {number}" for number in range(NUM_CLASSES)],
    )
    publish_features(
        path,
        header,
        made,  # type: ignore[arg-type]
        samples=samples,
        rows=np.arange(num_rows),
        verifier=SimpleNamespace(run=lambda _: None),  # type: ignore[arg-type]
    )


def forget(path: Path) -> None:
    """Drop a file's pages from the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes(path: Path) -> None:
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def read_rows(path: Path) -> None:
    with h5py.File(path, "r", locking=False) as file:
        column = file["features"]
        step = max(1, BLOCK_BYTES // (4 * column.shape[1] * column.chunks[0])) * column.chunks[0]
        block = np.empty((step, column.shape[1]), column.dtype)
        for start in range(0, len(column), step):
            stop = min(start + step, len(column))
            column.read_direct(block[: stop - start], np.s_[start:stop])


@dataclass(frozen=True)
class Trained:
    """How a training went."""

    seconds: float
    peak_bytes: int
    report: dict[str, Any]


def train(path: Path, limit: int, arguments: list[str]) -> Trained:
    """Run ``featx train-head`` in a process with so much address space."""
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        command = [sys.executable, "-m", "featx", "train-head", str(path), "--json", *arguments]
        process = subprocess.Popen(
            [*command, "-o", str(path.with_suffix(".head"))],
            stdout=output,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),  # noqa: PLW1509
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"train-head failed: {process.returncode}")
        output.seek(0)
        return Trained(seconds, usage.ru_maxrss * 1024, json.loads(output.read()))


def measure(path: Path, limit: int, memory: str, *, cached: bool) -> list[tuple[str, ...]]:
    """Read, train, and return the rows of the table."""
    prepare = read_bytes if cached else forget
    with h5py.File(path) as file:
        num_bytes = file["features"].nbytes
    speeds = {}
    for name, read in (("`readinto`", read_bytes), ("h5py", read_rows)):
        prepare(path)
        start = time.perf_counter()
        read(path)
        speeds[name] = num_bytes / (time.perf_counter() - start)
        print(f"reading by {name}: {speeds[name] / 1e9:.2f} GB/s", flush=True)
    prepare(path)
    trained = train(path, limit, ["--memory", memory])
    choice = trained.report["choice"]
    passes = choice["in_blocks"]["bytes_read"] / num_bytes + 1  # scoring
    speed = passes * num_bytes / trained.seconds
    scores = trained.report["metrics"]["test"]
    return [
        ("features", f"{num_bytes / 1e9:.2f} GB"),
        ("address space, `--memory`", f"{limit / 1e9:.2f} GB, {memory}"),
        ("peak of resident memory", f"{trained.peak_bytes / 1e9:.2f} GB"),
        ("whole train-head, start-up and checks included", f"{trained.seconds:.0f} s"),
        ("passes over the features", f"{passes:.1f}"),
        ("speed of training", f"{speed / 1e9:.2f} GB/s"),
        *(
            (f"plain reading by {name}", f"{plain / 1e9:.2f} GB/s ({speed / plain:.2f})")
            for name, plain in speeds.items()
        ),
        ("chosen C, largest component of the gradient", _optimum(choice)),
        ("test top-1", f"{scores['top1']:.4f}"),
    ]


def _optimum(choice: dict[str, Any]) -> str:
    return f"{choice['strength']:g}, {choice['gradient_norm']:.0e}"


@click.command()
@click.option("--rows", default=2_000_000, show_default=True)
@click.option("--features", default=1024, show_default=True)
@click.option("--limit", default="2GB", show_default=True, help="Of the address space.")
@click.option("--memory", default="1GB", show_default=True, help="train-head's option.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to make the file.")
@click.option("--all-cached", is_flag=True, help="Read the file once before each measurement.")
@click.option("--write", is_flag=True, help="Put the table into docs/memory.md.")
def main(
    *,
    rows: int,
    features: int,
    limit: str,
    memory: str,
    folder: Path | None,
    all_cached: bool,
    write: bool,
) -> None:
    """Measure, print, and perhaps write docs/memory.md."""
    machine = (
        f"{rows:,} × {features:,}, {os.cpu_count()} cores, "
        f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB of memory, "
        f"load {os.getloadavg()[0]:.1f} at the start, the file "
        f"{'cached' if all_cached else 'not cached'} before each measurement."
    )
    print(machine, flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch) / "features.h5"
        start = time.perf_counter()
        make(path, rows, features)
        print(f"made in {time.perf_counter() - start:.0f} s", flush=True)
        measured = measure(path, parse_memory(limit), memory, cached=all_cached)
    text = f"{machine}\n\n{table(('what', 'measured'), measured)}"
    print(text)
    if write:
        write_measured("docs/memory.md", text)


if __name__ == "__main__":
    main()
