"""How fast featx serve answers beside Predictor on the same cores: tables of docs/serving.md.

    python benchmarks/serve.py [--seconds 60] [--clients 16] [--write]

A ResNet-18 with random weights, and JPEG photos. ``Predictor`` reads them from files, for half of
the time before the server runs and for half of it after. The clients are one process on the same
cores, which sends prepared bytes and reads the answers; what it takes counts against the server.
Each answer is compared with that of ``Predictor``. Memory is the proportional set size of all of
the server's processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
from photos import evenly, jpegs_of
from report import ROOT, machine, table, write_measured

import featx

DATA = Path(os.environ.get("FEATX_DATA", ROOT.parent / "shared" / "data"))
_CLOSE = 1e-3
_PAUSE = 0.1
"""Seconds after a 503 before a client asks again."""


@dataclass
class Load:
    """What clients saw: seconds of each answer, refusals, and answers that differ."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    wrong: int = 0
    failed: int = 0
    took: float = 0.0
    memory: list[float] = field(default_factory=list)

    @property
    def speed(self) -> float:
        return len(self.seconds) / self.took

    def at(self, share: float) -> str:
        return f"{1e3 * float(np.quantile(self.seconds, share)):.0f} ms"


def exported(folder: Path, photos: Sequence[Path]) -> Path:
    """Return a model of random weights with a head of two classes."""
    lines = [f"{path},{number % 2}" for number, path in enumerate(photos[:40])]
    (folder / "photos.csv").write_text("\n".join(["path,label", *lines]))
    options = featx.ExtractOptions(backbone="resnet18", weights="none")
    featx.extract(folder / "photos.csv", folder / "f.h5", options)
    featx.train_head(folder / "f.h5", folder / "h.safetensors")
    featx.export_onnx(folder / "h.safetensors", folder / "model.onnx")
    return folder / "model.onnx"


def of_files(predictor: featx.Predictor, photos: Sequence[Path], seconds: float) -> float:
    """Return how many images a second are answered from files."""
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        for each in predictor.predict_each(photos):
            count += each.error is None
    return count / (time.perf_counter() - start)


@contextmanager
def served(model: Path, *flags: str) -> Iterator[tuple[int, int]]:
    """Yield port and process id of a server."""
    command = [sys.executable, "-m", "featx", "serve", str(model), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = None
        for line in process.stdout or ():
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                port = int(found[1])
            if line.startswith("stop"):
                break
        if port is None:
            raise SystemExit("the server did not start")
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def memory_of(pid: int) -> float:
    """Return the memory of a process and its children in MB."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # of each thread
    children = [each for own in lists for each in own.read_text().split()]
    total = 0
    for each in (str(pid), *children):
        rollup = Path(f"/proc/{each}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+)", rollup, re.MULTILINE)[1])  # type: ignore[index]
    return total / 1000


async def ask(
    port: int,
    requests: Sequence[bytes],
    expected: Sequence[Mapping[str, float]],
    load: Load,
    *,
    first: int,
    end: float,
) -> None:
    """Be a client: ask with one image after the other, on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    number = first
    while (start := time.perf_counter()) < end:
        number = (number + 1) % len(requests)
        writer.write(requests[number])
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        body = await reader.readexactly(length)
        status = head.split(b" ", 2)[1]
        if status == b"503":
            load.refused += 1
            await asyncio.sleep(_PAUSE)
        elif status != b"200":
            load.failed += 1
        else:
            load.seconds.append(time.perf_counter() - start)
            for top in json.loads(body)["top"]:
                if abs(expected[number][top["label"]] - top["probability"]) > _CLOSE:
                    load.wrong += 1
    writer.close()
    await writer.wait_closed()


async def run_load(
    port: int,
    pid: int,
    photos: Sequence[Path],
    expected: Sequence[Mapping[str, float]],
    *,
    clients: int,
    seconds: float,
) -> Load:
    """Return what some clients saw that asked for so long."""
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    contents = [path.read_bytes() for path in photos]
    requests = [head % len(content) + content for content in contents]
    load, start = Load(), time.perf_counter()

    async def look() -> None:
        for _ in range(4):
            await asyncio.sleep(seconds / 4.2)
            load.memory.append(memory_of(pid))

    step = len(photos) // clients or 1
    asking = (
        ask(port, requests, expected, load, first=step * number, end=start + seconds)
        for number in range(clients)
    )
    await asyncio.gather(look(), *asking)
    load.took = time.perf_counter() - start
    return load


@click.command()
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--clients", default=16, show_default=True)
@click.option("--photos", "count", default=200, show_default=True)
@click.option("--write/--no-write", default=False, help="Put the tables into docs/serving.md.")
def main(seconds: float, clients: int, count: int, write: bool) -> None:
    """Measure, and print the tables."""
    photos = evenly(jpegs_of(DATA / "hymenoptera_data"), count)
    with tempfile.TemporaryDirectory() as name:
        model = exported(Path(name), photos)
        predictor = featx.Predictor(model)
        expected = [dict(each.top) for each in predictor.predict(photos)]
        before = of_files(predictor, photos, seconds / 2)
        with served(model) as (port, pid):
            load = asyncio.run(
                run_load(port, pid, photos, expected, clients=clients, seconds=seconds)
            )
        after = of_files(predictor, photos, seconds / 2)
        with served(model, "--queue", "32") as (port, pid):
            much = asyncio.run(run_load(port, pid, photos, expected, clients=64, seconds=10))
            alone = asyncio.run(run_load(port, pid, photos, expected, clients=1, seconds=2))
    files = (before + after) / 2
    rows = [
        ["`Predictor`, from files", f"{files:.0f}", "", "", "", "", "", ""],
        *(
            [
                what,
                f"{own.speed:.0f}",
                f"{own.speed / files:.2f} ×",
                own.at(0.5),
                own.at(0.99),
                f"{own.refused:,}",
                f"{own.wrong:,} of {len(own.seconds):,}",
                f"{own.memory[0]:.0f}, {own.memory[-1]:.0f} MB",
            ]
            for what, own in (
                (f"{clients} clients, {seconds:.0f} s", load),
                ("64 clients, `--queue 32`, 10 s", much),
                ("1 client, 2 s, right after", alone),
            )
        ),
    ]
    columns = ["ResNet-18", "images/s", "of `Predictor`", "half within", "99 % within", "503s"]
    text = table([*columns, "wrong", "memory after a quarter, at the end"], rows)
    versions = machine("onnxruntime", "uvicorn", "pillow")
    text = f"Measured by `benchmarks/serve.py`: {versions}.\n\n{text}"
    print(text)
    if write:
        write_measured("docs/serving.md", text)


if __name__ == "__main__":
    main()
