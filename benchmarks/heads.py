r"""How long heads take and how exact they are: writes the table of docs/heads.md.

    featx extract CIFAR10_JPEGS -b squeezenet1_1 --weights WEIGHTS --image-size 96 \
        --val-fraction 0 -o cifar.h5
    python benchmarks/heads.py cifar.h5 [--hymenoptera hymenoptera.h5] [--path] [--write]

Any feature file with a training and a test split will do. What is timed takes turns, so that a busy
moment of the machine does not fall on one alone; medians are shown. Imports are done before. The
reference objectives are scikit-learn's in float64 with tol 1e-8, on the features that featx
standardised, and take minutes; with ``--path`` so do all other strengths.
"""

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from report import table, write_measured
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

import featx
from featx.heads.head import Fitted
from featx.heads.samples.data import TrainingData, standardisation
from featx.heads.samples.folds import divide
from featx.heads.solvers.linear import fit_linear
from featx.heads.solvers.sgd import SGDOptions
from featx.heads.tasks.losses import log_loss
from featx.training.options import Solver

Rows = list[tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Data:
    """One split's features, standardised by the training split's, and labels."""

    path: Path
    raw: np.ndarray
    x: np.ndarray
    labels: np.ndarray
    num_classes: int
    test_x: np.ndarray
    test_labels: np.ndarray


def load(path: Path) -> Data:
    cache = featx.open_features(path)
    train, test = cache.rows("train"), cache.rows("test")
    raw = cache.features[train]
    mean, scale = standardisation(raw)
    x, test_x = (((part - mean) / scale).astype(np.float32) for part in (raw, cache.features[test]))
    labels, test_labels = cache.labels[train], cache.labels[test]
    return Data(path, raw, x, labels, len(cache.classes), test_x, test_labels)


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds.

    Attributes:
        wall: Seconds by the clock.
        cpu: Seconds that cores worked, all threads together; other jobs hardly show in them.
    """

    wall: float
    cpu: float


def timings_of(timed: dict[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Return how long each takes; they take turns."""
    measured: dict[str, list[Timing]] = {name: [] for name in timed}
    for number in range(rounds):
        for name, run in timed.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            took = Timing(time.perf_counter() - wall, time.process_time() - cpu)
            measured[name].append(took)
            print(f"round {number + 1}, {name}: {took.wall:.2f} s, {took.cpu:.2f} s", flush=True)
    return {
        name: Timing(
            statistics.median(took.wall for took in rounds_),
            statistics.median(took.cpu for took in rounds_),
        )
        for name, rounds_ in measured.items()
    }


def speed(data: Data, *, rounds: int, strength: float) -> Rows:
    """Time one scikit-learn fit and every kind of head."""
    with tempfile.TemporaryDirectory() as folder:

        def train(options: featx.TrainOptions | None = None) -> None:
            featx.train_head(data.path, Path(folder) / f"{time.perf_counter_ns()}", options)

        def linear(solver: Solver) -> Callable[[], None]:
            options = featx.TrainOptions(solver=solver, sgd=SGDOptions())
            return lambda: train(options)

        timed: dict[str, Callable[[], object]] = {
            "one fit by scikit-learn, float32, tol 1e-4": lambda: LogisticRegression(
                C=strength, tol=1e-4, max_iter=1000
            ).fit(data.x, data.labels),
            "opening and checking the feature file": lambda: (
                featx.open_features(data.path).features
            ),
            "the whole default train-head": train,
            "`--solver ridge`": linear("ridge"),
            "`--solver centroid`": linear("centroid"),
            "`--solver sgd`, 20 epochs": linear("sgd"),
            "`--head mlp`, 100 units, early stopping": lambda: train(
                featx.TrainOptions(head="mlp")
            ),
        }
        medians = timings_of(timed, rounds)
    one = next(iter(medians.values()))
    return [
        (
            name,
            f"{took.wall:.2f} s",
            f"{took.wall / one.wall:.2f}",
            f"{took.cpu:.2f} s",
            f"{took.cpu / one.cpu:.2f}",
        )
        for name, took in medians.items()
    ]


def exactness(data: Data, *, path: bool) -> Rows:
    """Compare objectives and accuracy with scikit-learn's optimum in float64."""
    fit = fit_linear(TrainingData(data.raw, data.labels, data.num_classes, np.ones(len(data.raw))))
    (layer,), strength = fit.layers, fit.choice["strength"]
    everything = data.x.astype(np.float64)
    model = _reference(None, everything, data.labels, strength)
    value = _objective(model, everything, data.labels, strength)
    mean, scale = standardisation(data.raw)
    weight = layer[0].astype(np.float64) * scale
    stored = _Layer(weight, layer[1] + layer[0].astype(np.float64) @ mean)
    own = _objective(stored, everything, data.labels, strength)
    test = data.test_x.astype(np.float64)
    right, expected = (
        float(((test @ m.coef_.T + m.intercept_).argmax(axis=1) == data.test_labels).mean())
        for m in (stored, model)
    )
    rows_ = [
        (f"objective at the chosen C = {strength:g}", f"{own:.6f}", f"{own / value - 1:.1e}"),
        ("test top-1, and scikit-learn's", f"{right:.4f}", f"{expected:.4f}"),
        ("largest component of the gradient there", f"{fit.choice['gradient_norm']:.0e}", ""),
    ]
    print(*rows_, sep="\n", flush=True)
    return rows_ + (_path_exactness(data, everything, fit) if path else [])


def _path_exactness(data: Data, everything: np.ndarray, fit: Fitted) -> Rows:
    """Compare every strength's objective on the samples that were not held out."""
    division = divide(data.labels)
    if len(division.held_out_folds) > 1:
        return []
    rows = division.fold != division.held_out_folds[0]
    trained, labels = everything[rows], data.labels[rows]
    off: list[float] = []
    before = None
    for point in fit.choice["path"]:
        before = _reference(before, trained, labels, point["strength"])
        best = _objective(before, trained, labels, point["strength"])
        off.append(point["objective"] / best - 1)
        print(f"C = {point['strength']:g}: objective {best:.6f}, off by {off[-1]:.1e}", flush=True)
    return [("objectives along the path, farthest off", "", f"{max(off):.1e}")]


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer under scikit-learn's names."""

    coef_: np.ndarray
    intercept_: np.ndarray


def _reference(
    warm: LogisticRegression | None, x: np.ndarray, labels: np.ndarray, strength: float
) -> LogisticRegression:
    model = warm or LogisticRegression(tol=1e-8, max_iter=3000, warm_start=True)
    model.set_params(C=strength)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels)


def _objective(
    model: LogisticRegression | _Layer, x: np.ndarray, labels: np.ndarray, strength: float
) -> float:
    penalty = float((model.coef_**2).sum()) / (2 * strength * len(labels))
    return log_loss(x @ model.coef_.T + model.intercept_, labels) + penalty


def hymenoptera(path: Path) -> Rows:
    """Time the default head on a small file."""
    with tempfile.TemporaryDirectory() as folder:
        featx.train_head(path, Path(folder) / "warm")
        report = featx.train_head(path, Path(folder) / "h")
        start = time.perf_counter()
        featx.train_head(path, Path(folder) / "again")
        seconds = time.perf_counter() - start
    scores = report.metrics["val"]
    return [
        ("hymenoptera, the whole default train-head", f"{seconds:.2f} s", ""),
        ("hymenoptera, validation top-1", f"{scores.top1:.4f}", ""),
    ]


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.option("--hymenoptera", "small", type=click.Path(path_type=Path))
@click.option("--rounds", default=5, show_default=True)
@click.option("--strength", default=0.01, show_default=True, help="Of the one scikit-learn fit.")
@click.option("--path", is_flag=True, help="Check every strength too; takes many minutes.")
@click.option("--write", is_flag=True, help="Put the table into docs/heads.md.")
def main(
    features: Path, small: Path | None, *, rounds: int, strength: float, path: bool, write: bool
) -> None:
    """Measure, print, and perhaps write docs/heads.md."""
    data = load(features)
    machine = (
        f"{data.raw.shape[0]:,} × {data.raw.shape[1]}, {os.cpu_count()} cores, "
        f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads, load {os.getloadavg()[0]:.1f}"
    )
    print(machine)
    timed = speed(data, rounds=rounds, strength=strength)
    columns = ("what", f"median of {rounds}", "ratio to the first", "CPU time", "ratio of it")
    text = table(columns, timed)
    print(text, flush=True)
    rows = hymenoptera(small) if small else []
    rows += exactness(data, path=path)
    text = f"{machine} at the start.\n\n{text}\n" + table(
        ("what", "measured", "off, relative / reference"), rows
    )
    print(text)
    if write:
        write_measured("docs/heads.md", text)


if __name__ == "__main__":
    main()
