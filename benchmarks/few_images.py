r"""Heads of few images for each class: what docs/heads.md says of them.

    python benchmarks/few_images.py one-shot digits.h5 cifar.h5 hymenoptera.h5
    python benchmarks/few_images.py many [--classes 10000] [--images 3] [--features 192]

``one-shot`` trains on one image of each class, again and again, at every strength: of all classes
of a feature file, and of two of them. It shows the mean log loss on all images, which decides the
strength that is taken where nothing can be held out, and the accuracy there, beside that of
features divided by their own deviation. ``many`` times train-head on made-up features of many
classes.
"""

import os
import resource
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
import numpy as np
from report import ROOT, table, write_measured

import featx
from featx.features.publish import publish_features
from featx.features.records import RowBlock, RowLayout
from featx.heads.head import apply_layers
from featx.heads.samples import data as training_data
from featx.heads.samples.data import TrainingData, standardisation
from featx.heads.samples.selection import draw_shots
from featx.heads.solvers.linear import FIXED_STRENGTH, STRENGTHS, fit_linear
from featx.heads.tasks.losses import log_loss
from featx.images.sources import Sample
from featx.stages.train import train_head

sys.path.insert(0, str(ROOT / "tests" / "helpers"))
from headers import complete_header


def own_deviation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each feature, 1 where it is constant."""
    deviation = features.std(axis=0, dtype=np.float64)
    return features.mean(axis=0, dtype=np.float64), np.where(deviation > 1e-7, deviation, 1)


def problems(path: Path, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return features and labels of all classes, and of two of them for each draw."""
    cache = featx.open_features(path)
    features, labels = cache.features, cache.labels
    every = [(features, labels)] * draws if len(cache.classes) > 2 else []
    for number in range(draws):
        two = np.random.default_rng(number).permutation(len(cache.classes))[:2]
        rows = np.isin(labels, two)
        every.append((features[rows], (labels[rows] == two[0]).astype(np.int64)))
    return every


def score(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Return log loss and accuracy at each strength, ``(num_strengths, 2)``."""
    rows = draw_shots(labels, 1, seed=(seed,))
    data = TrainingData(features[rows], labels[rows], labels.max() + 1, np.ones(len(rows)))
    scores = []
    for strength in STRENGTHS:
        logits = apply_layers(fit_linear(data, [strength]).layers, features)
        scores.append([log_loss(logits, labels), (logits.argmax(axis=1) == labels).mean()])
    return np.array(scores)


@click.group()
def main() -> None:
    """Measure heads of few images for each class."""


@main.command("one-shot")
@click.argument("features", nargs=-1, type=click.Path(path_type=Path))
@click.option("--draws", default=10, show_default=True)
@click.option("--write", is_flag=True, help="Put the tables into docs/heads.md.")
def one_shot(*, features: tuple[Path, ...], draws: int, write: bool) -> None:
    """Compare strengths, and scales of features, on one image of each class."""
    rows, losses = [], []
    for path in features:
        accuracy = []
        for scale in (standardisation, own_deviation):
            training_data.standardisation = scale  # type: ignore[attr-defined]
            scores = [score(*each, seed) for seed, each in enumerate(problems(path, draws))]
            accuracy.append(np.mean(scores, axis=0)[STRENGTHS.index(FIXED_STRENGTH), 1])
            if scale is standardisation:
                losses.append(np.mean(scores, axis=0)[:, 0])
        rows.append((path.stem, *(f"{value:.3f}" for value in accuracy)))
    means = zip(STRENGTHS, np.mean(losses, axis=0), strict=True)
    text = table(("features", "accuracy", "by own deviation"), rows)
    text += "\n" + table(("C", "log loss"), [(f"{c:g}", f"{loss:.3f}") for c, loss in means])
    print(text)
    if write:
        write_measured("docs/heads.md", text, name="one-shot")


@dataclass(frozen=True)
class Centres:
    """Rows around a centre for each class, for the writer of feature files.

    Attributes:
        labels: The class of each row.
        num_features: Length of a row.
    """

    labels: np.ndarray
    num_features: int

    @property
    def journal(self) -> Any:
        """Return the rows of a journal."""
        return SimpleNamespace(layout=RowLayout((self.num_features,)))

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], RowBlock]]:
        """Yield what makes rows."""
        shape = int(self.labels.max()) + 1, self.num_features
        centres = np.random.default_rng(0).standard_normal(shape, np.float32)

        def rows_at(numbers: np.ndarray) -> RowBlock:
            random = np.random.default_rng([2, int(numbers[0])])
            rows = random.standard_normal((len(numbers), self.num_features), np.float32)
            digests = np.zeros((len(numbers), 16), np.uint8)
            digests[:, :8] = (numbers + 1).astype("<i8").view(np.uint8).reshape(-1, 8)
            stamps = np.zeros((len(numbers), 3), np.int64)
            rows += centres[self.labels[numbers]]
            return RowBlock(rows, digests, stamps, np.zeros(len(numbers), bool))

        yield rows_at


def make(path: Path, labels: np.ndarray, num_features: int) -> None:
    """Write a feature file by featx's own writer; all rows train."""
    names = [f"class {number:05d}" for number in range(int(labels.max()) + 1)]
    publish_features(
        path,
        complete_header("features", {"backbone": "made up", "num_features": num_features}, names),
        Centres(labels, num_features),  # type: ignore[arg-type]
        samples=[Sample(f"{i:08d}.jpg", label, "train") for i, label in enumerate(labels.tolist())],
        rows=np.arange(len(labels)),
        verifier=SimpleNamespace(run=lambda _: None),  # type: ignore[arg-type]
    )


@main.command()
@click.option("--classes", default=10_000, show_default=True)
@click.option("--images", default=3, show_default=True, help="Of each class.")
@click.option("--features", default=192, show_default=True)
@click.option("--solver", type=click.Choice(["lbfgs", "ridge", "centroid", "sgd", "mlp"]))
@click.option("--write", is_flag=True, help="Put the figures into docs/heads.md.")
def many(*, classes: int, images: int, features: int, solver: str | None, write: bool) -> None:
    """Time train-head on made-up features of many classes."""
    labels = np.random.default_rng(1).permutation(np.arange(classes * images) % classes)
    options = featx.TrainOptions(head="mlp") if solver == "mlp" else None
    options = options or featx.TrainOptions(solver=solver)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.h5"
        make(path, labels, features)
        load, wall, cpu = os.getloadavg()[0], time.perf_counter(), time.process_time()
        report = train_head(path, Path(folder) / "head", options, step=print)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    text = (
        f"{classes:,} classes × {images} images, {features} features, `{solver or 'lbfgs'}`: "
        f"{wall:.0f} s and {cpu:.0f} s of CPU time on {os.cpu_count()} cores (load {load:.1f} at "
        f"the start), {used / 1e9:.1f} GB of memory; C = {report.choice.get('strength', 0):g}.\n"
    )
    print(text)
    if write:
        write_measured("docs/heads.md", text, name="many")


if __name__ == "__main__":
    main()
