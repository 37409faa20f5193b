"""Extraction speed beside the peers, in alternating rounds: docs/measurements/performance.md.

    python benchmarks/extraction.py [--case resnet18 --case photos …] [--rounds 5] [--share 0.2]

Each run is a process of its own, and they take turns. What is timed is extraction alone: the clock
starts when everything is imported and the network is built, and stops when all features are there.
featx's has then also opened the source, kept a log, and published and verified a file; the peers
keep theirs in memory (see peers.py and ours.py). The ceiling is the forward pass alone, over pixels
in memory, on all cores.

Weights are random: they change no time. Ratios are medians over rounds of the ratio within a round,
so that a busy moment of the machine counts on both sides. Processor time counts all processes and
threads, and hardly depends on what else the machine does. Memory is the proportional set size of
the process and its children, sampled in a round of its own, which is not timed.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from photos import enlarge, evenly, jpegs_of, repeated
from report import ROOT, machine, table, write_measured
from timed import READY

DATA = ROOT.parent / "shared" / "data"
HERE, PEER_FOLDER = Path(__file__).parent, ROOT / ".venv-bench"
PEERS = {
    "DataLoader": "DataLoader loop",
    "channels_last": "DataLoader loop, channels_last",
    "timm": "timm",
    "img2vec": "img2vec-pytorch",
    "thingsvision": "thingsvision",
    "DataLoader cuda": "DataLoader loop, channels_last, GPU",
    "DataLoader cuda bf16": "the same in bf16",
}
FEATX = {
    "featx onnxruntime": "featx",
    "featx onnxruntime scaled": "featx, `--decode scaled`",
    "featx onnxruntime int8": "featx, `--precision int8`",
    "featx onnxruntime int8 first": "the same, the first time: with calibration",
    "featx onnxruntime int8 scaled": "featx, `--precision int8 --decode scaled`",
    "featx torch": "featx, `--engine torch`",
    "featx torch bf16": "featx, `--precision bf16`",
    "featx torch cuda": "featx, GPU",
    "featx torch cuda bf16": "featx, GPU, `--precision bf16`",
}
NO_CEILING = ("scaled", "first")
"""Words of variants that run the graph of the same variant without the word."""
_SAMPLED_SECONDS = 0.1


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        name: By which it is chosen, and its marks in the document are known.
        title: Of the table.
        backbone: As torchvision names it.
        variants: Keys of ``PEERS`` and ``FEATX``.
        count: Most images.
        weights: As featx takes them.
    """

    name: str
    title: str
    backbone: str
    variants: Sequence[str]
    count: int
    weights: str = "none"


LOOPS = ("DataLoader", "channels_last")
USUAL = (*LOOPS, "timm", "thingsvision", "featx onnxruntime")
LARGE = (*USUAL, "featx onnxruntime int8", "featx torch bf16")
CASES = (
    Case(
        "resnet18",
        "ResNet-18, 224 px, {:,} photos of 500×375",
        "resnet18",
        (
            *(*LOOPS, "timm", "img2vec", "thingsvision"),
            *("featx onnxruntime", "featx onnxruntime int8", "featx onnxruntime int8 first"),
            *("featx torch", "featx torch bf16"),
        ),
        1000,
    ),
    Case(
        "photos",
        "ResNet-18, 224 px, {:,} photos of 4000×3000",
        "resnet18",
        (
            *(*LOOPS, "timm", "thingsvision", "featx onnxruntime", "featx onnxruntime scaled"),
            "featx onnxruntime int8 scaled",
        ),
        200,
    ),
    Case(
        "tiny",
        "`tiny`, {:,} CIFAR-10 JPEGs of 32×32",
        "tiny",
        (*LOOPS, "featx onnxruntime", "featx onnxruntime int8"),
        10000,
        "default",
    ),
    Case(
        "gpu",
        "ResNet-18 on a GPU, {:,} photos of 500×375",
        "resnet18",
        (
            *("DataLoader cuda", "DataLoader cuda bf16"),
            *("featx torch cuda", "featx torch cuda bf16"),
        ),
        9720,
    ),
    Case("mobilenet", "MobileNetV3-small, {:,} photos", "mobilenet_v3_small", USUAL, 1000),
    Case("efficientnet", "EfficientNet-B0, {:,} photos", "efficientnet_b0", USUAL, 120),
    Case("vit", "ViT-B/16, {:,} photos", "vit_b_16", LARGE, 64),
    Case("convnext", "ConvNeXt-tiny, {:,} photos", "convnext_tiny", LARGE, 64),
)


def source_of(case: Case, data: Path, folder: Path, share: float) -> Path:
    """Return a folder of a case's images."""
    photos, count = data / "hymenoptera_data" / "train", max(8, round(share * case.count))
    if case.name == "photos":
        return enlarge(photos, folder / "large", count=count)
    if case.name == "tiny":
        return unpacked(data / "cifar10_jpeg" / "cifar10_jpeg.tar.gz", folder / "cifar10", count)
    if case.name == "gpu":
        return repeated(photos, folder / "many", count=count)
    if count >= len(jpegs_of(photos)):
        return photos
    for path in evenly(jpegs_of(photos), count):
        target = folder / case.name / path.relative_to(photos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder / case.name


def unpacked(archive: Path, folder: Path, count: int) -> Path:
    """Return a folder of the first images of an archive, spread over its classes."""
    with tarfile.open(archive) as opened:
        members = sorted(
            (member for member in opened.getmembers() if member.name.endswith(".jpg")),
            key=lambda member: Path(member.name).name,
        )
        opened.extractall(folder, members=members[:count], filter="data")
    return folder


def interpreter(variant: str) -> str | None:
    """Return the Python that has what a variant needs; None where it is not installed."""
    if variant.split(maxsplit=1)[0] in LOOPS or variant not in PEERS:
        return sys.executable
    name = "thingsvision" if variant == "thingsvision" else "peers"
    python = PEER_FOLDER / name / "bin" / "python"
    return str(python) if python.is_file() else None


def run_one(variant: str, case: Case, source: Path, *, sampled: bool = False) -> dict[str, float]:
    """Run a variant in a process of its own; with its peak memory in MB where that is sampled."""
    python = interpreter(variant)
    assert python
    count = str(len(jpegs_of(source)))
    if variant in PEERS:
        command = [python, str(HERE / "peers.py"), variant, str(source), case.backbone]
    else:
        own = [variant, str(source), case.backbone, case.weights, count]
        command = [python, str(HERE / "ours.py"), *own]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OMP_") and (python == sys.executable or name != "PYTHONPATH")
    }
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        assert process.stdout
        lines = iter(process.stdout.readline, "")
        ready = any(line.strip() == READY for line in lines)
        memory = Memory(process.pid) if sampled and ready else None
        rest = list(lines)
        if process.wait() or not ready:
            errors.seek(0)
            raise SystemExit(f"{variant} failed:\n{errors.read()[-4000:]}")
        seen: dict[str, float] = json.loads(rest[-1])
    return seen if memory is None else seen | {"memory": memory.stop()}


class Memory:
    """Samples how much memory a process and its children take, from a thread.

    Pages that several of them share count in equal parts.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the most there was, MB."""
        self._over.set()
        self._thread.join()
        return self._peak / 1e6

    def _sample(self) -> None:
        while not self._over.is_set():
            self._peak = max(self._peak, sum(map(_memory_of, _family(self._pid))))
            time.sleep(_SAMPLED_SECONDS)


def _family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    for parent in found:
        for tasks in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, tasks.read_text().split())
            except OSError:
                continue  # ended meanwhile
    return found


def _memory_of(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measured(case: Case, source: Path, rounds: int) -> str:
    """Return the table of one case."""
    variants = [v for v in case.variants if interpreter(v)]
    ceilings = {
        f"ceiling{v.removeprefix('featx')}": v
        for v in variants
        if v in FEATX and not set(v.split()) & set(NO_CEILING)
    }
    ran = [*variants, *ceilings]
    memory = dict[str, float]()  # not on a GPU, whose driver maps much that nobody uses
    seen = {variant: list[dict[str, float]]() for variant in ran}
    for variant in [variant for variant in ran if "cuda" not in variant.split()]:
        if variant in FEATX:
            run_one(variant, case, source)  # builds the graph
        memory[variant] = run_one(variant, case, source, sampled=True)["memory"]
    for number in range(rounds):
        turn = number % len(ran)
        for variant in ran[turn:] + ran[:turn]:
            seen[variant].append(run_one(variant, case, source))
            print(f"{case.name}, round {number + 1}, {variant}: {seen[variant][-1]}", flush=True)
    fastest = max((v for v in variants if v in PEERS), key=lambda v: _median(seen[v], "speed"))
    rows = [_row(variant, seen, memory.get(variant), fastest, ceilings) for variant in ran]
    rows += [[PEERS[v], "not installed", *[""] * 4] for v in case.variants if v not in variants]
    columns = [
        case.title.format(len(jpegs_of(source))),
        *("images/s", "against the fastest peer", "of its ceiling"),
        *("processor time an image", "peak memory"),
    ]
    return f"{described(rounds)}\n\n{table(columns, rows)}"


def _row(
    variant: str,
    seen: dict[str, list[dict[str, float]]],
    memory: float | None,
    fastest: str,
    ceilings: dict[str, str],
) -> list[str]:
    own = {made: ceiling for ceiling, made in ceilings.items()}
    ceiling = own.get(" ".join(word for word in variant.split() if word not in NO_CEILING))
    name = PEERS.get(variant) or FEATX.get(variant) or f"ceiling of {FEATX[ceilings[variant]]}"
    return [
        name,
        f"{_median(seen[variant], 'speed'):,.{0 if _median(seen[variant], 'speed') >= 10 else 1}f}",
        f"{ratio(seen, variant, fastest):.2f} ×",
        f"{ratio(seen, variant, ceiling):.2f}" if ceiling else "",
        f"{_median(seen[variant], 'processor'):.1f} ms",
        "" if memory is None else f"{memory:,.0f} MB",
    ]


def _median(runs: Sequence[dict[str, float]], name: str) -> float:
    return statistics.median(run[name] for run in runs)


def ratio(seen: dict[str, list[dict[str, float]]], one: str, other: str) -> float:
    """Return the median over rounds of the ratio of two speeds."""
    pairs = zip(seen[one], seen[other], strict=True)
    return statistics.median(a["speed"] / b["speed"] for a, b in pairs)


def described(rounds: int) -> str:
    """Return the machine, its load and the versions, in a sentence."""
    return (
        f"{machine('torch', 'onnxruntime', 'pillow')}; medians of {rounds} rounds; load of the "
        f"machine after them {os.getloadavg()[1]:.1f}."
    )


@click.command()
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option(
    "--case",
    "names",
    multiple=True,
    type=click.Choice([case.name for case in CASES]),
    help="Which to run; all by default, that of a GPU where there is one.",
)
@click.option("--rounds", default=5, show_default=True)
@click.option("--share", default=1.0, show_default=True, help="Of each case's images.")
@click.option(
    "--write/--no-write", default=True, help="Put the tables into docs/measurements/performance.md."
)
def main(data: Path, names: tuple[str, ...], rounds: int, share: float, write: bool) -> None:
    """Time all variants in turn, print the tables, and write them into the docs."""
    import torch

    left_out = () if torch.cuda.is_available() else ("gpu",)
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if case.name in names or (not names and case.name not in left_out):
                text = measured(case, source_of(case, data, Path(folder), share), rounds)
                print(text, flush=True)
                if write:
                    write_measured("docs/measurements/performance.md", text, name=case.name)


if __name__ == "__main__":
    main()
