"""Kill extractions with SIGKILL at random moments, go on, and look for anything lost.

Each run is ``featx.extract`` in a process of its own, over the same images, with arithmetic in the
place of a network, so that hundreds of runs take minutes. Half of the kills fall on the way, half
while the file is published. After each kill every row that the run had said to have is looked for,
in the log or in the file. A chain of runs ends when one comes through: its file must have the bytes
of a run that nothing interrupted.

    python benchmarks/crashes.py --kills 200
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from report import table

from featx.artifact import partial_path
from featx.features.file import open_features
from featx.features.journal import Journal
from featx.features.records import RowLayout

NUM_FEATURES = 256
BATCH_SIZE = 8
MAX_CHAIN = 8


def features_of(pixels: np.ndarray) -> np.ndarray:
    """Return ``(n, NUM_FEATURES)`` float32 that depend on every pixel of ``(n, H, W, 3)``."""
    rows = [hashlib.shake_128(image.tobytes()).digest(NUM_FEATURES) for image in pixels]
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, NUM_FEATURES).astype(np.float32)


class Arithmetic:
    """An engine and a backbone at once."""

    device = "cpu"
    engine_name = name = "arithmetic"
    seconds = 0.0

    def spec(self) -> Any:
        """What its features mean."""
        from featx.backbones.spec import BackboneSpec
        from featx.images.preprocess import PreprocessSpec

        geometry = PreprocessSpec(
            image_size=16, resize=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
        return BackboneSpec("arithmetic", "0" * 64, "none", "none", NUM_FEATURES, geometry)

    def origin(self) -> str:
        """Where its weights are from."""
        return "random:0"

    def is_for_gpu(self) -> bool:
        """No."""
        return False

    def engine(self, _expected: Any) -> Arithmetic:
        """Itself."""
        return self

    def environment(self) -> dict[str, str]:
        """None."""
        return {}

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Return ``(n, NUM_FEATURES)`` float32, after the time a network would take at least."""
        time.sleep(0.002)
        return features_of(pixels)


def work(source: Path, output: Path) -> None:
    """Run one extraction; say how many images are done after each batch, and when it publishes."""
    from featx.extraction.options import ExtractOptions
    from featx.stages import extract as stage

    def publish(*args: Any, **options: Any) -> object:
        print("publishing", flush=True)
        return publish_features(*args, **options)

    publish_features, stage.publish_features = stage.publish_features, publish
    stage.LazyBackbone = lambda *_: Arithmetic()
    stage.extract(
        source,
        output,
        ExtractOptions(batch_size=BATCH_SIZE, on_error="skip", workers=1),
        progress=lambda done, _: print(done, flush=True),
    )
    print("through", flush=True)


def make_images(folder: Path, count: int) -> None:
    """Write small images, every twentieth of them damaged."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
        if number % 20 == 7:
            path.write_bytes(path.read_bytes()[:-30])


def known_rows(output: Path) -> dict[str, np.ndarray]:
    """Return every row that the file or the log holds; nothing for images without a row."""
    rows: dict[str, np.ndarray] = {}
    if output.exists():
        file = open_features(output)
        rows |= dict(zip(file.sample_ids, file.features, strict=True))
        rows |= {image.sample_id: np.empty(0) for image in file.skipped}
    if partial_path(output).exists():
        with Journal(output, layout=RowLayout((NUM_FEATURES,))) as journal:
            for batch in journal.batches():
                left = iter(batch.features)
                for name, reason in zip(batch.sample_ids, batch.reasons, strict=True):
                    rows[name] = np.empty(0) if reason else next(left)
    return rows


@dataclass(frozen=True)
class Run:
    """How one run ended: images it had said to be done, how far it was, seconds to each point."""

    acked: int
    publishing: float | None
    through: float | None


def run(source: Path, output: Path, *, kill_after: float | None = None, at: str = "start") -> Run:
    """Run an extraction; kill it some seconds after ``at``: its start, or its publishing."""
    command = [sys.executable, __file__, "--work", str(source), str(output)]
    start, acked, publishing, through = time.perf_counter(), 0, None, None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        timer = threading.Timer(kill_after or 0, process.kill)
        if kill_after is not None and at == "start":
            timer.start()
        for line in process.stdout or ():
            if line == "publishing\n":
                publishing = time.perf_counter() - start
                if kill_after is not None and at == "publishing":
                    timer.start()
            elif line == "through\n":
                through = time.perf_counter() - start
            elif line.endswith("\n"):
                acked = int(line)
        process.wait()
        timer.cancel()
    return Run(acked, publishing, through)


@dataclass
class Tally:
    """What was seen."""

    kills: int = 0
    kills_while_publishing: int = 0
    runs_through: int = 0
    rows_looked_for: int = 0
    rows_lost: int = 0
    rows_wrong: int = 0
    files_differing: int = 0

    def look(self, output: Path, expected: dict[str, np.ndarray], acked: list[str]) -> None:
        """Compare what is there after a kill with what the runs had said."""
        rows = known_rows(output)
        self.rows_looked_for += len(acked)
        self.rows_lost += sum(name not in rows for name in acked)
        self.rows_wrong += sum(not np.array_equal(row, expected[n]) for n, row in rows.items())


def chains(folder: Path, kills: int, images: int, seed: int) -> Tally:
    """Run chains of killed runs until there were so many kills."""
    source, tally, chance = folder / "images", Tally(), random.Random(seed)
    make_images(source, images)
    whole = run(source, folder / "whole.h5")
    assert whole.publishing
    assert whole.through
    reference, expected = (folder / "whole.h5").read_bytes(), known_rows(folder / "whole.h5")
    names, publishing = list(expected), whole.through - whole.publishing
    names = sorted(names)
    chain = 0
    while tally.kills < kills:
        output = folder / f"chain{chain}.h5"
        best = length = 0
        while True:
            on_the_way, length = chance.random() < 0.5, length + 1
            after = chance.uniform(0, whole.through if on_the_way else 1.2 * publishing)
            if length > MAX_CHAIN:  # on a machine that has become slower no run would come through
                after = None
            ended = run(
                source, output, kill_after=after, at="start" if on_the_way else "publishing"
            )
            best = max(best, ended.acked)
            tally.look(output, expected, names[:best])
            if ended.through is not None:
                break
            tally.kills += 1
            tally.kills_while_publishing += ended.publishing is not None
            sys.stderr.write(f"\r{tally.kills} kills")
        tally.runs_through += 1
        tally.files_differing += output.read_bytes() != reference
        left = sorted(p.name for p in folder.iterdir() if p.name.startswith(f"chain{chain}."))
        assert left == [output.name], f"left behind: {left}"
        output.unlink()
        chain += 1
    return tally


@click.command()
@click.option("--kills", default=200, show_default=True)
@click.option("--images", default=400, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--work", "working", type=click.Path(path_type=Path), nargs=2, hidden=True)
def main(kills: int, images: int, seed: int, working: tuple[Path, Path] | None) -> None:
    """Print what was seen, as a table; exit with 1 if anything was lost."""
    if working:
        work(*working)
        return
    with tempfile.TemporaryDirectory() as folder:
        tally = chains(Path(folder), kills, images, seed)
    sys.stderr.write("\n")
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in asdict(tally).items()]
    print(table(["", ""], rows), end="")
    sys.exit(bool(tally.rows_lost or tally.rows_wrong or tally.files_differing))


if __name__ == "__main__":
    main()
