r"""A feature file in parts: time and memory of index, open, check and one pass of train-head.

    python benchmarks/parts.py [--rows 20000000] [--features 256] [--parts 16] [--ray] [--write]

Makes parts of synthetic rows, of half as many and of all, and lets a process of its own write the
index, open, check and train on each: with ``--solver centroid``, which reads the features once.
Twice the rows should take twice the time, and memory grow by what the small columns take. The parts
of 20 million rows have 22 GB; they are made in ``--folder`` and deleted.

With ``--ray`` train-head runs instead on all parts in blocks, by itself and by a Ray cluster of one
node on this machine, and the table says what a cluster costs: to join it and have it checked, and
for each part of a pass. From this, and a stated speed of a machine's disk, follows how many bytes
of features a cluster of several machines is worth; one machine cannot show that.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
from memory import NUM_CLASSES, Made
from report import ROOT, table, write_measured

from featx.artifact.parts import part_path
from featx.extraction.part_rows import reading_on_cluster
from featx.features.blocks import FeatureRows
from featx.features.file import open_features
from featx.features.parts import PartsPlan
from featx.features.publish import publish_features
from featx.features.records import RowBlock
from featx.features.settle import complete_index
from featx.images.sources import Sample
from featx.stages.train import train_head

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from headers import complete_header
from part_files import ray_cluster

COMMANDS = {
    "index (`featx merge`)": ["-m", "featx", "merge", "{}", "--quiet"],
    "open, features not read": [
        "-c",
        "import sys; from featx import open_features as f; f(sys.argv[1], features_later=True)",
        "{}",
    ],
    "check (all bytes)": [
        "-c",
        "import sys, pathlib; from featx.features.file import verify_features as f; "
        "f(pathlib.Path(sys.argv[1]))",
        "{}",
    ],
    "train-head, features read once": [
        *("-m", "featx", "train-head", "{}", "-o", "{}/../head.safetensors", "--quiet"),
        *("--solver", "centroid", "--memory", "500MB"),
    ],
}


@dataclass(frozen=True)
class MadeRange(Made):
    """Rows from ``first`` on, with digests like those of contents."""

    first: int = 0

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], RowBlock]]:
        """Yield what makes rows."""
        with super().reading() as rows_at:

            def shifted(numbers: np.ndarray) -> RowBlock:
                block = rows_at(numbers)
                words = (numbers + self.first).astype(np.uint64)[:, None] + np.uint64(1)
                words = words * np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
                words ^= words >> np.uint64(31)
                block.digests[:] = words.view(np.uint8).reshape(-1, 16)
                return block

            yield shifted


def make(folder: Path, num_rows: int, num_features: int, num_parts: int) -> None:
    """Write all parts by featx's own writer."""
    folder.mkdir()
    plan = PartsPlan(num_parts, num_rows, "made up", "0" * 64, "0" * 64, {}, {"val_fraction": 0.2})
    plan.fix(folder)
    classes = [f"class {number}" for number in range(NUM_CLASSES)]
    for number in range(1, num_parts + 1):
        first, stop = plan.range(number)
        made = MadeRange(stop - first, num_features, first)
        samples = [
            Sample(f"photos/{first + row:010d}.jpg", label, "test" if row % 10 == 9 else "train")
            for row, label in enumerate(made.labels().tolist())
        ]
        own = {"number": number, "of": num_parts, "plan": plan.fingerprint, "skipped_at": []}
        header = complete_header(
            "features",
            {"backbone": "made up", "num_features": num_features},
            classes,
            {
                **{"part": own, "own_validation": False, "val_fraction": 0.2},
                **{"label_kind": "classes", "on_error": "fail", "max_bad": 1.0},
            },
        )
        publish_features(
            part_path(folder, number),
            header,
            made,  # type: ignore[arg-type]
            samples=samples,
            rows=np.arange(stop - first),
            verifier=SimpleNamespace(run=lambda _: None),  # type: ignore[arg-type]
        )


def run(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Return seconds, and the peak of resident memory in bytes, of a python process."""
    command = [sys.executable, *(each.replace("{}", str(folder)) for each in arguments)]
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def on_ray(parts: Path, num_rows: int, num_features: int, num_parts: int) -> str:
    """Return what training by a cluster of this machine costs, as a table and what follows."""
    size, cores = 4 * num_rows * num_features, os.cpu_count() or 1
    head, lines, seconds = parts.parent / "head.safetensors", [], list[float]()
    with ray_cluster(cores) as cluster:
        for name, more in (("one process", {}), ("Ray, one node", {"ray": str(cluster.address)})):
            tries = []
            for _ in range(2):  # the faster one
                start = time.perf_counter()
                options = {"memory": size // 4, "progress": False}
                report = train_head(parts, head, **options, **more)  # type: ignore[arg-type]
                tries.append(time.perf_counter() - start)
                head.unlink()
            seconds.append(min(tries))
            read = report.choice["in_blocks"]["bytes_read"]
            passes = read / size
            cells = (f"{seconds[-1]:.1f} s", f"{read / 1e9:.1f} GB", f"{passes:.0f}")
            lines.append((name, *cells, f"{read / 1e9 / seconds[-1]:.2f} GB/s"))
        cache, start = open_features(parts, features_later=True), time.perf_counter()
        with reading_on_cluster(cache, str(cluster.address)) as rows:
            joining = time.perf_counter() - start
            list(rows.each_part(_nothing))
            start = time.perf_counter()
            list(rows.each_part(_nothing))
            of_part = (time.perf_counter() - start) / num_parts
    titles = ("train-head, lbfgs", "time", "read", "passes over features", "a second")
    text = (
        f"{num_rows:,} rows of {num_features} features in {num_parts} parts, {NUM_CLASSES} "
        f"classes; {cores} cores, load {os.getloadavg()[0]:.1f}; files that the system has in "
        "memory:\n\n"
        f"{table(titles, lines)}\nTo join the cluster and have its node checked took "
        f"{joining:.1f} s, and a part of a pass {1000 * of_part:.0f} ms beside its work. A cluster "
        "has to save more than that. If each machine reads at a speed of its own, and features "
        f"come from there in each of {passes:.0f} passes, 16 parts a machine, it is faster from\n\n"
    )
    rows_of_table = []
    for disk in (0.2, 1.0, 4.0):
        sizes = []
        for machines in (2, 4, 16):
            lost = joining + passes * of_part * 16
            sizes.append(f"{lost * disk / passes / (1 - 1 / machines):.2f} GB")
        rows_of_table.append((f"{disk:g} GB/s", *sizes))
    return text + table(("a machine reads", "2 machines", "4", "16"), rows_of_table)


def _nothing(blocks: FeatureRows) -> int:
    return blocks.shape[0]


@click.command()
@click.option("--rows", default=20_000_000, show_default=True)
@click.option("--features", default=256, show_default=True)
@click.option("--parts", default=16, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Where to make the parts.")
@click.option("--ray", is_flag=True, help="Measure train-head on a Ray cluster of this machine.")
@click.option("--write", is_flag=True, help="Put the table into docs/scale.md.")
def main(
    *, rows: int, features: int, parts: int, folder: Path | None, ray: bool, write: bool
) -> None:
    """Measure, print, and perhaps write docs/scale.md."""
    if ray:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            make(Path(scratch) / "big.parts", rows, features, parts)
            complete_index(Path(scratch) / "big.parts")
            text = on_ray(Path(scratch) / "big.parts", rows, features, parts)
        print(text)
        if write:
            write_measured("docs/scale.md", text, name="training on ray")
        return
    sizes, found = (rows // 2, rows), []
    for count in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            place = Path(scratch) / "big.parts"
            make(place, count, features, parts)
            found.append([run(command, place) for command in COMMANDS.values()])
        print(count, found[-1], flush=True)
    lines = []
    for name, half, whole in zip(COMMANDS, *found, strict=True):
        grown = (whole[1] - half[1]) / (sizes[1] - sizes[0])
        lines.append(
            (
                name,
                *(f"{seconds:.1f} s, {peak / 1e9:.2f} GB" for seconds, peak in (half, whole)),
                f"{whole[0] / half[0]:.1f}",
                f"{grown:.0f} bytes",
            )
        )
    titles = ("what", *(f"{count:,} rows" for count in sizes), "time of twice the rows", "a row")
    text = (
        f"{parts} parts of {features} features; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; peaks of resident memory:\n\n{table(titles, lines)}"
    )
    print(text)
    if write:
        write_measured("docs/scale.md", text, name="parts")


if __name__ == "__main__":
    main()
