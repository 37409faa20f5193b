"""Extraction by a cluster: what commits alone, simulated workers, and Ray on one node.

    python benchmarks/scale.py [--rows 2000000] [--workers 1000] [--photos 400] [--rounds 3]

The numbers, and the arithmetic that follows from them, go into docs/scale.md.
"""

import hashlib
import heapq
import os
import random
import resource
import statistics
import tempfile
import threading
import time
import tracemalloc
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
from report import machine, table, write_measured
from startup import photos as write_photos

import featx
from featx.extraction.backbone import RemoteEngine
from featx.extraction.cluster import RayCluster
from featx.extraction.committer import Call, Done, Joined, Left
from featx.extraction.crops import Spent
from featx.extraction.options import ResolvedOptions
from featx.extraction.pipeline import Target, run_backbone
from featx.extraction.plan import Plan, make_plan
from featx.extraction.workers import Found, Rows
from featx.features.journal import Journal
from featx.features.publish import ExistingRows
from featx.features.records import RowLayout
from featx.images.sources import Sample, Stamp

DOLLARS = 0.04  # for an hour of a core
PHOTO_BYTES = 110_000
FEATURES = 2048
RATE, FAILING = 30.0, 0.01  # of a simulated worker: images a second; items that end it
START = 20.0  # seconds until another one has loaded the model
ITEMS, FEW_FEATURES = 50, 64  # of a simulated worker: many items, of rows that fill no disk


class Samples:
    """Samples without end, which take no memory."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"a/{index:09d}.jpg", 0, "train")


@dataclass
class FakePool:
    """Workers that answer at once or, with a rate, in a simulated time, and then fail as well."""

    most: int
    rate: float = 0.0
    failing: float = 0.0
    slots: int = 1
    num_features: int = FEATURES
    kinds: tuple[str, ...] = ()
    now: float = 0.0
    num_ended: int = 0
    kept: float = 0.0  # seconds of computing what was taken
    lost: float = 0.0  # and what ended with its worker
    events: list[Any] = field(default_factory=list)
    begun: list[Joined] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random, self.count, self.busy = random.Random(0), 0, dict[str, float]()
        self.ready = deque[Any]()
        self.begun = [self.start() for _ in range(self.most)]
        shape = 64, 1, self.num_features
        self.rows = np.random.default_rng(0).standard_normal(shape, np.float32)

    def start(self) -> Joined:
        self.count += 1
        self.busy[f"w{self.count}"] = self.now
        return Joined(f"w{self.count}", f"node {self.count % 16}")

    def begin(self, *_: object) -> None:
        """Take all that comes."""

    def joined(self) -> list[Joined]:
        return self.begun

    def later(self, at: float, event: Any, seconds: float = 0.0) -> None:
        self.count += 1
        heapq.heappush(self.events, (at, self.count, event, seconds))

    def submit(self, call: Call) -> None:
        positions = call.item.work.positions
        if call.step == "read":
            stamp, found = Stamp(1, 1, 1), []
            for each in positions:
                digest = hashlib.blake2b(each.to_bytes(8, "little"), digest_size=16).digest()
                found.append(Found(stamp, digest, False, "", True))
            done, takes = Done(call, found), 0.05
        else:
            rows = self.rows[: len(positions)].copy()
            rows[:, 0, 0] = positions
            done, takes = Done(call, Rows(rows, {}, Spent())), len(positions)
        if not self.rate:
            self.ready.append(done)
            return
        if call.step == "read":  # beside what the worker computes
            self.later(self.now + self.random.expovariate(1 / takes), done)
            return
        begin = max(self.now, self.busy.get(call.worker, 0.0))
        seconds = self.random.gammavariate(takes, 1 / self.rate)  # of as many images, which vary
        self.busy[call.worker] = begin + seconds
        is_last = self.random.random() < self.failing
        self.later(begin + seconds, Left(call.worker, "ended") if is_last else done, seconds)

    def wait(self, seconds: float) -> list[Any]:
        if not self.rate:
            found, self.ready = list(self.ready), deque()
            return found
        self.now, _, event, taken = heapq.heappop(self.events)
        name = event.call.worker if isinstance(event, Done) else getattr(event, "worker", None)
        if isinstance(event, Joined):
            return [event]
        if name not in self.busy:
            return []
        if isinstance(event, Left):
            self.num_ended, self.lost = self.num_ended + 1, self.lost + taken
            del self.busy[name]
            self.later(self.now + START, self.start())
        else:
            self.kept += taken
        return [event]


@dataclass(frozen=True)
class Committed:
    """What committing took."""

    num_rows: int
    seconds: float
    cpu_seconds: float
    early_mb: float  # memory after a tenth, with the rows that wait
    late_mb: float  # after nine tenths
    mb: float
    disk_bytes: int
    simulated: float  # seconds


def commit(pool: FakePool, num_rows: int, folder: Path) -> Committed:
    """Commit the rows of fake workers to a journal, and check that each is there once."""
    layout = RowLayout((pool.num_features,))
    images: Any = SimpleNamespace(samples=Samples(num_rows), uri="fake")
    plan = Plan(np.full(num_rows, -1, np.int64), np.zeros((0, 3), np.int64), np.zeros(0, np.int64))
    settings: Any = SimpleNamespace(
        spec=SimpleNamespace(preprocess=SimpleNamespace(image_size=224), cut=None), view_spec=None
    )
    marks = deque([num_rows // 10, 9 * num_rows // 10])
    memory: list[float] = []
    with Journal(folder / "f.h5", layout=layout) as journal:
        journal.begin({"num_samples": num_rows})
        target = Target(ExistingRows(None, journal), plan)

        def after(_: int) -> None:
            if marks and journal.num_rows >= marks[0]:
                marks.popleft()
                memory.append(memory_mb() - before)

        before, own = memory_mb(), time.process_time()
        start = time.perf_counter()
        run_backbone(
            RemoteEngine("onnxruntime", "cpu", b""),
            images,
            [target],
            np.arange(num_rows),
            settings=settings,
            options=ResolvedOptions(batch_size=2),
            decoders=None,
            with_views=np.zeros(num_rows, bool),
            after_batch=after,
            cluster=RayCluster(pool),  # type: ignore[arg-type]
        )
        seconds, own = time.perf_counter() - start, time.process_time() - own
        found = memory_mb()
        number = 0
        for batch in journal.batches():  # bytes and order, not sets
            length = len(batch.sample_ids)
            expected = np.arange(number, number + length, dtype=np.float32)
            assert (batch.features[:, 0] == expected).all()
            assert batch.sample_ids[0] == f"a/{number:09d}.jpg"
            number += length
        assert number == num_rows == journal.num_rows
        size = journal.path.stat().st_size
        journal.remove()
    return Committed(num_rows, seconds, own, *memory, found - before, size, pool.now)


def memory_mb() -> float:
    """Return the memory of this process that is not files'."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@dataclass(frozen=True)
class Extraction:
    """One extraction, start-up aside."""

    rate: float  # images a second, all cores together
    share: float  # of its processor time in all workers' time, of the process that commits


def extraction(source: Path, output: Path, workers: int, address: str | None = None) -> Extraction:
    """Extract with ResNet-18, and measure from the first batch that is committed to the last."""
    times: list[tuple[float, float, int]] = []

    def progress(done: int, _: int) -> None:
        times.append((time.perf_counter(), time.process_time(), done))

    options: dict[str, Any] = {"backbone": "resnet18", "weights": "none", "restart": True}
    where = {"ray": address, "ray_workers": workers} if address else {"workers": workers}
    featx.extract(source, output, progress=progress, overwrite=True, **options, **where)
    (begin, own, first), (end, own_end, last) = times[0], times[-1]
    wall = end - begin
    return Extraction((last - first) / wall, (own_end - own) / (workers * wall))


@contextmanager
def store_watched(address: str) -> Iterator[list[float]]:
    """Look at the object store of a cluster ten times a second; yield MB used in a list."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    used, is_over = list[float](), threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            with suppress(Exception):  # not connected yet, or no more
                stats = get_memory_info_reply(get_state_from_address(address)).store_stats
                used.append(stats.object_store_bytes_used / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield used
    finally:
        is_over.set()
        thread.join()


def on_one_node(num_photos: int, rounds: int, folder: Path) -> tuple[Extraction, Extraction, float]:
    """Return the medians of plain extraction and of Ray's, which take turns, and MB stored.

    To look at the store takes processor time; that is done in an extraction of its own.
    """
    from ray.cluster_utils import Cluster

    source, workers = write_photos(folder / "photos", num_photos), len(os.sched_getaffinity(0))
    plain, own = folder / "plain.h5", folder / "ray.h5"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": workers, "include_dashboard": False}
    )
    try:
        address = str(cluster.address)
        with store_watched(address) as used:
            extraction(source, own, workers, address)
        found = [
            (extraction(source, plain, workers), extraction(source, own, workers, address))
            for _ in range(rounds)
        ]
        assert own.read_bytes() == plain.read_bytes()
    finally:
        cluster.shutdown()
    of_plain, of_ray = (
        Extraction(
            statistics.median(each.rate for each in side),
            statistics.median(each.share for each in side),
        )
        for side in zip(*found, strict=True)
    )
    return of_plain, of_ray, max(used)


def listed_bytes(count: int = 100_000) -> float:
    """Return the bytes of an image in the list of images and in the plan."""
    tracemalloc.start()
    samples = tuple(Sample(f"photos/{i:09d}.jpg", 0, "train") for i in range(count))
    images: Any = SimpleNamespace(samples=samples, stamp=lambda i: Stamp(1, i, i))
    plan = make_plan(images, [], None)
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(plan.rows) == count
    return size / count


def arithmetic(core: float, alone: Committed) -> str:
    """Return what many images take, from the rates."""
    rows, row_bytes = [], alone.disk_bytes / alone.num_rows
    limit = alone.num_rows / alone.seconds
    for count, cores in ((1e8, 256), (1e8, 1024), (1e9, 1024), (1e9, 8192)):
        rate = min(cores * core, limit)
        hours = count / rate / 3600
        rows.append(
            [
                f"{count:,.0f}",
                f"{cores:,}",
                f"{rate:,.0f}/s" + (" (who commits)" if rate == limit else ""),
                f"{hours:,.0f} h",
                f"{rate * PHOTO_BYTES / 1e9:,.1f} GB/s",
                f"{count * row_bytes / 1e12:,.1f} TB",
                f"${cores * hours * DOLLARS / count * 1e6:,.2f}",
            ]
        )
    columns = ["images", "cores", "images", "time", "photos read", "journal", "a million"]
    return (
        f"A core does {core:.0f} images a second of ResNet-18 at 224 pixels, photos of 500 × 375 "
        f"included; a row of {FEATURES:,} features takes {row_bytes:,.0f} bytes in the journal. "
        f"With photos of {PHOTO_BYTES // 1000} kB and a core for ${DOLLARS} an "
        f"hour:\n\n{table(columns, rows)}"
    )


def committing(rows: int, workers: int, folder: Path) -> str:
    """Return what committing takes whatever else the machine does: memory, and a simulation."""
    lean = commit(FakePool(64, num_features=FEW_FEATURES), rows, folder)
    per_content, listed = 1e6 * (lean.late_mb - lean.early_mb) / (0.8 * rows), listed_bytes()
    pool = FakePool(workers, rate=RATE, failing=FAILING, num_features=FEW_FEATURES)
    many = commit(pool, ITEMS * 64 * workers, folder)
    whole, starting = workers * many.simulated, pool.num_ended * START
    waiting = whole - pool.kept - starting - pool.lost
    rows_of = [
        [f"memory after a tenth of {rows:,} rows", f"{lean.early_mb:,.0f} MB"],
        ["after nine tenths", f"{lean.late_mb:,.0f} MB"],
        ["a content, where duplicates are found", f"{per_content:,.0f} bytes"],
        ["an image, in the list of images and the plan", f"{listed:,.0f} bytes"],
        ["100 million images, in all", f"{(per_content + listed) / 10:,.0f} GB"],
        [
            f"{workers:,} simulated workers, {RATE:.0f} images/s each; {FAILING:.0%} of items end "
            "theirs",
            f"{many.num_rows:,} rows, each once, in order; {pool.num_ended:,} workers ended",
        ],
        ["their time: computing rows that are committed", f"{pool.kept / whole:.0%}"],
        [f"their time: starting another, {START:.0f} s", f"{starting / whole:.0%}"],
        ["their time: computing what is lost with them", f"{pool.lost / whole:.0%}"],
        ["their time: waiting, for the last rows as well", f"{waiting / whole:.0%}"],
        ["processor time of committing, of a core", f"{many.cpu_seconds / many.simulated:.0%}"],
    ]
    return f"Rows of {FEW_FEATURES} features:\n\n" + table(["committing", ""], rows_of)


def speeds(rows: int, photos: int, rounds: int, folder: Path) -> str:
    """Return what a machine does that does nothing else."""
    alone = commit(FakePool(64), rows, folder)
    plain, own, store_mb = on_one_node(photos, rounds, folder)
    rows_of = [
        [
            f"rows committed alone, {FEATURES:,} features",
            f"{alone.num_rows / alone.seconds:,.0f}/s",
        ],
        ["ResNet-18, one machine", f"{plain.rate:,.1f} images/s"],
        [
            "ResNet-18, Ray on one node",
            f"{own.rate:,.1f} images/s ({own.rate / plain.rate - 1:+.1%})",
        ],
        ["processor time of committing, of the workers' time", f"{own.share:.2%}"],
        ["object store, at most", f"{store_mb:,.1f} MB"],
    ]
    text = f"{machine('ray', 'onnxruntime', 'numpy')}; {photos} photos, start-up aside.\n\n"
    text += table(["measured", ""], rows_of) + "\n"
    return text + arithmetic(plain.rate / len(os.sched_getaffinity(0)), alone)


@click.command()
@click.option("--rows", default=2_000_000, show_default=True, help="Rows that are committed.")
@click.option("--workers", default=1000, show_default=True, help="Workers that are simulated.")
@click.option("--photos", default=400, show_default=True, help="0 measures no speed.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--write/--no-write", default=True, help="Put the tables into docs/scale.md.")
def main(rows: int, workers: int, photos: int, rounds: int, write: bool) -> None:
    """Measure, and print the tables."""
    short: Any = tempfile.TemporaryDirectory(prefix="fx", dir="/tmp", ignore_cleanup_errors=True)
    with tempfile.TemporaryDirectory() as name, short as for_ray:
        os.environ["RAY_TMPDIR"] = for_ray  # names of sockets in it may have 107 characters
        texts = {"committing": committing(rows, workers, Path(name))}
        if photos:
            texts["ray"] = speeds(rows, photos, rounds, Path(name))
    for block, text in texts.items():
        print(text)
        if write:
            write_measured("docs/scale.md", text, name=block)


if __name__ == "__main__":
    main()
