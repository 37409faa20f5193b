"""What the cache costs and saves: prints tables.

    python benchmarks/cache.py unchanged     over 60,000 images again, unchanged and 600 changed
    python benchmarks/cache.py hashing       what another change time of every file costs
    python benchmarks/cache.py overhead      the log's and the publishing's share of an extraction
    python benchmarks/cache.py footprint     peak memory at 20,000 and at 2,000,000 rows

The first needs the CIFAR-10 JPEGs (``--data``), the third the hymenoptera photos.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import click
import numpy as np
from PIL import Image
from report import ROOT, table

from featx.extraction.plan import make_plan
from featx.features.journal import Journal
from featx.features.publish import ExistingImages, ExistingRows, publish_features, start_verifier
from featx.features.records import Batch, RowLayout
from featx.images.decode import content_digest
from featx.images.sources import Sample, open_source

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from headers import complete_header

DATA = ROOT.parent / "shared" / "data"

# Runs featx as a process of its own, counting which files of the source Python opens.
WATCHED = """
import sys
source, opened = sys.argv.pop(1), set()
def watch(event, arguments):
    if event == "open" and str(arguments[0]).startswith(source):
        opened.add(arguments[0])
sys.addaudithook(watch)
from featx.cli import main
try:
    main(standalone_mode=False)
finally:
    print("opened", len(opened), file=sys.stderr)
"""


def run_watched(source: Path, *arguments: str) -> tuple[float, int, str]:
    """Return seconds, files of the source that were opened, and what was printed."""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, f"{source}/", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if result.returncode:
        raise SystemExit(result.stderr)
    return seconds, int(result.stderr.split()[-1]), result.stdout


@click.group()
def main() -> None:
    """What the cache costs and saves."""


@main.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--rounds", default=5, show_default=True)
def unchanged(data: Path, rounds: int) -> None:
    """Time running again over 60,000 images."""
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder).resolve() / "cifar10_jpeg", Path(folder) / "f.h5"
        with tarfile.open(data / "cifar10_jpeg" / "cifar10_jpeg.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        extract = ("extract", str(source), "-b", "tiny", "-o", str(output), "-q")
        first = run_watched(source, *extract)
        again = [run_watched(source, *extract) for _ in range(rounds)]
        checks = [run_watched(source, "check", str(output)) for _ in range(rounds)]
        images = sorted(source.rglob("*.jpg"))
        images[0].unlink()
        publishing = run_watched(source, *extract)
        changed = images[1::100][:600]
        for path in changed:
            Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        update = run_watched(source, *extract)
    runs = {
        "first run": first,
        f"again, nothing changed (median of {rounds})": median(again),
        f"`featx check` (median of {rounds})": median(checks),
        "again, one image removed: publishing alone": publishing,
        f"again, {len(changed)} images changed": update,
    }
    rows = [[name, f"{run[0]:.2f} s", f"{run[1]:,}"] for name, run in runs.items()]
    print(table([f"{len(images):,} CIFAR-10 JPEGs, tiny", "seconds", "images opened"], rows))
    print(update[2])


@main.command()
def hashing() -> None:
    """Time the comparison of a source whose files all have another change time than recorded."""
    rows = []
    for count, size in ((20_000, 3_000), (4_000, 100_000)):
        with tempfile.TemporaryDirectory() as folder:
            for number in range(count):
                path = Path(folder) / "ab"[number % 2] / f"{number}.jpg"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(os.urandom(size))
            images = open_source(folder)
            digests = [list(content_digest(images.read(i))) for i in range(count)]
            stamps = np.array([images.stamp(i) for i in range(count)])
            names = tuple(sample.sample_id for sample in images.samples)
            seconds = []
            for shift in (0, 1):
                known = ExistingImages(
                    names,
                    np.arange(count),
                    stamps - [0, 0, shift],
                    np.array(digests, np.uint8),
                    ("",) * count,
                )
                start = time.perf_counter()
                plan = make_plan(images, [known], None)
                seconds.append(time.perf_counter() - start)
                assert len(plan.touched) == shift * count
        rows.append([f"{count:,} of {size // 1000} kB", *(f"{each:.2f} s" for each in seconds)])
    print(table(["files, all in memory", "same times", "other change times"], rows))


def median(runs: Sequence[tuple[float, int, str]]) -> tuple[float, int, str]:
    return statistics.median(run[0] for run in runs), max(run[1] for run in runs), ""


@main.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--copies", default=4, show_default=True, help="Of the photos, as a longer source.")
def overhead(data: Path, copies: int) -> None:
    """Time the log and the publishing within an extraction with resnet18 at 224 px."""
    from featx.extraction.options import ExtractOptions
    from featx.features import journal
    from featx.stages import extract as stage
    from featx.stages.extract import extract

    spent = {"log": 0.0, "publishing": 0.0}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.perf_counter() - start

        return call

    journal.Journal.append = timed("log", journal.Journal.append)  # type: ignore[method-assign]
    stage.publish_features = timed("publishing", publish_features)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photos"
        for copy in range(copies):
            for photo in (data / "hymenoptera_data").rglob("*.jpg"):
                path = source / photo.parent.name / f"{copy}-{photo.name}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(photo.read_bytes() + bytes(copy))  # no duplicates
        report = extract(
            source, Path(folder) / "f.h5", ExtractOptions(backbone="resnet18", weights="none")
        )
    rows = [
        [name, f"{seconds:.2f} s", f"{seconds / report.seconds:.2%}"]
        for name, seconds in (*spent.items(), ("both", sum(spent.values())))
    ]
    rows.append(["extraction", f"{report.seconds:.1f} s", "100%"])
    print(table([f"resnet18, 224 px, {report.num_images:,} photos", "seconds", "share"], rows))


class Names(Sequence[Sample]):
    """So many samples, made when asked for: a list of them would be what is measured."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        assert isinstance(index, int)
        return Sample(f"class-{index % 1000:03d}/image-{index:08d}.jpg", 0, "train")


def batches(count: int, num_features: int, size: int) -> Iterator[Batch]:
    """Yield synthetic rows."""
    rng, names = np.random.default_rng(0), Names(count)
    rows = rng.standard_normal((size, num_features), dtype=np.float32)
    for start in range(0, count, size):
        n = min(size, count - start)
        yield Batch(
            sample_ids=tuple(names[i].sample_id for i in range(start, start + n)),
            stamps=np.full((n, 3), start, dtype=np.int64),
            digests=np.full((n, 16), start % 251, dtype=np.uint8),
            reasons=("",) * n,
            features=np.roll(rows, start)[:n],
        )


@main.command(hidden=True)
@click.argument("count", type=int)
@click.argument("num_features", type=int)
def stream(count: int, num_features: int) -> None:
    """Stream synthetic rows through log and publishing; print seconds and peak memory."""
    seconds = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        start_verifier() as verifier,
        Journal(Path(folder) / "f.h5", layout=RowLayout((num_features,))) as journal,
    ):
        journal.begin({"synthetic": True})
        start = time.perf_counter()
        for batch in batches(count, num_features, 32):
            journal.append(batch)
        seconds["log"] = time.perf_counter() - start
        start = time.perf_counter()
        publish_features(
            journal.output,
            complete_header("features", {"num_features": num_features}, ("a",)),
            ExistingRows(None, journal),
            samples=Names(count),
            rows=np.arange(count),
            verifier=verifier,
        )
        seconds["publish"] = time.perf_counter() - start
        size = journal.output.stat().st_size
    own, child = (
        resource.getrusage(who).ru_maxrss * 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(json.dumps({**seconds, "memory": own, "verifier": child, "size": size}))


@main.command()
@click.option("--rows", type=int, multiple=True, default=(20_000, 2_000_000), show_default=True)
@click.option("--num-features", default=512, show_default=True)
def footprint(rows: tuple[int, ...], num_features: int) -> None:
    """Compare the peak memory of small and large extractions, without a backbone."""
    lines = []
    for count in rows:
        command = [sys.executable, __file__, "stream", str(count), str(num_features)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        seen = json.loads(result.stdout)
        lines.append(
            [
                f"{count:,}",
                f"{seen['size'] / 1e9:.2f} GB",
                f"{seen['memory'] / 1e6:.0f} MB",
                f"{seen['verifier'] / 1e6:.0f} MB",
                f"{seen['log']:.1f} s",
                f"{seen['publish']:.1f} s",
            ]
        )
    columns = ["rows", "file", "peak memory", "of the verifying process", "log", "publish"]
    print(table(columns, lines))


if __name__ == "__main__":
    main()
