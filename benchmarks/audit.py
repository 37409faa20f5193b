"""What ``featx audit`` finds where the answers are known: docs/guides/audit.md.

    python benchmarks/audit.py [--data ../shared/data] [--work FOLDER] [--only PART] [--write]

Features are extracted into the working folder once, which takes some minutes, and kept there.
Parts: copies, times, labels, planted-labels, planted-copies, planted-odd, similar, memory. What
each measured last is kept there, too; ``--write`` puts all of it into the guide. A false find is
one that the lists of known answers do not have: the lists of CIFAR-10's copies and label errors are
of those that their authors looked at.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from cleanlab.filter import find_label_issues
from PIL import Image, ImageOps
from planted import COPIES, ODD, encoded
from report import ROOT, machine, table, write_measured

import featx
from featx.errors import listed
from featx.features.file import FeatureFile, open_features
from featx.features.nearest import RowsInMemory, nearest_rows
from featx.features.search import nearest_neighbours, whitened
from featx.heads.tasks import SINGLE_LABEL
from featx.images.alike import compare_outlines, compare_pictures, outlines, small_grey
from featx.stages.audit.labels import doubts_of
from featx.training.out_of_fold import out_of_fold

DATA = ROOT.parent / "shared" / "data"
WEIGHTS = {
    "squeezenet1_1": "weights/squeezenet1_1-mango-c10.pth",
    "timm/tf_efficientnet_lite0": "weights/tf_efficientnet_lite0-imagenet.safetensors",
}
SUSPECTS, SEEDS, WRONG_SHARE = 275, range(5), 0.05
Line = tuple[str, str, str]


class Made:
    """Feature files, each extracted when it is first asked for."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data, self.folder = data, folder
        folder.mkdir(parents=True, exist_ok=True)

    def images(self) -> Path:
        """Return the folder of CIFAR-10's images."""
        folder = self.folder / "cifar10_jpeg"
        if not folder.exists():
            with tarfile.open(self.data / "cifar10_jpeg/cifar10_jpeg.tar.gz") as archive:
                archive.extractall(self.folder, filter="data")
        return folder

    def features(self, name: str, source: Path | str, backbone: str, size: int | None) -> Path:
        """Return a feature file, all images of whose source keep their split."""
        path = self.folder / f"{name}.h5"
        if not path.exists():
            options = featx.ExtractOptions(
                backbone=backbone,
                weights=str(self.data / WEIGHTS[backbone]) if backbone in WEIGHTS else "default",
                image_size=size,
                resize=size,
                val_fraction=0,
            )
            featx.extract(str(source), path, options)
        return path

    def photos(self, target: Path, side: int | None = None) -> list[Path]:
        """Copy hymenoptera's 397 photos, or make them small; return their paths below a folder."""
        photos = self.data / "hymenoptera_data"
        shutil.copytree(photos, target, ignore=shutil.ignore_patterns("*.gif"))
        paths = sorted(target.glob("*/*/*.jp*g"))
        if side is not None:
            for path in paths:
                with Image.open(path) as image:
                    path.write_bytes(encoded(ImageOps.contain(image, (2 * side, side)), 90))
        return [path.relative_to(target) for path in paths]

    def cifar10(self, backbone: str) -> Path:
        """Return the features of all 60,000 images."""
        size = 96 if backbone != "tiny" else None
        return self.features(f"cifar10-{backbone}", self.images(), backbone, size)

    def small(self) -> dict[str, Path]:
        """Return the features of hymenoptera and of the CIFAR-10 subset, of the SqueezeNet."""
        subset = f"cifar10:{self.data / 'cifar10_subset/cifar-10-batches-py'}"
        photos = self.data / "hymenoptera_data"
        return {
            "hymenoptera": self.features("hymenoptera", photos, "squeezenet1_1", None),
            "CIFAR-10 subset": self.features("subset", subset, "squeezenet1_1", 96),
        }


def column(path: Path, name: str, wanted: str) -> set[str]:
    """Return the paths of a table whose column has a value."""
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"] for row in csv.DictReader(file) if row[name] == wanted}


def copies(made: Made) -> Iterator[Line]:
    """Yield copies of training images among CIFAR-10's test images."""
    path = made.cifar10("squeezenet1_1")
    listed = made.data / "cifar10_audit/near_duplicates.csv"
    near, similar = (column(listed, "kind", kind) for kind in ("near", "similar"))
    report = featx.audit(path)
    found = {each.sample_id for each in report.of_kind("leak") if each.split == "test"}
    halves = sorted(near)[::2], sorted(near)[1::2]
    yield (
        "CIFAR-10, copies across splits: findings",
        f"{len(found & near)} of {len(near)} ({len(found & near) / len(near):.0%}; of every second "
        f"one {len(found & set(halves[0]))} of {len(halves[0])}, of the others "
        f"{len(found & set(halves[1]))} of {len(halves[1])}), {len(found & similar)} of "
        f"{len(similar)} very similar ones, {len(found - near - similar)} that are not listed",
        "at least 60 %, at most one false for each true",
    )
    ranked = [name for name in by_score(open_features(path)) if name not in similar]
    is_true = np.array([name in near for name in ranked])
    true = np.cumsum(is_true)
    true = true[true >= np.arange(1, len(true) + 1) - true]
    yield (
        "CIFAR-10, copies across splits: by rank, one not listed for each listed one",
        f"{true.max()} of {len(near)} ({true.max() / len(near):.0%})",
        "at least 60 %",
    )


def times(made: Made) -> Iterator[Line]:
    """Yield the time of an audit of 60,000 images, and print that of each phase."""
    path = made.cifar10("squeezenet1_1")
    phases = Phases()
    featx.audit(path, step=phases)
    phases("")
    seconds, processor = (sum(each) for each in zip(*phases.seconds.values(), strict=True))
    for name, (own, of_processor) in phases.seconds.items():
        click.echo(f"  {name:20} {own:6.1f} s, {of_processor:6.1f} s of processors")
    yield (
        "audit of 60,000 images",
        f"{seconds:.0f} s, {processor:.0f} s of processors",
        "under 120 s",
    )


class Phases:
    """Takes the steps of an audit, and keeps the seconds of each: by the clock, of processors."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = {}
        self.name, self.since = "Opening", self.now()

    def now(self) -> tuple[float, float]:
        return time.perf_counter(), sum(os.times()[:4])  # processes included, once they have ended

    def __call__(self, text: str) -> None:
        name, _, _ = text.partition(",")
        name = "Strengths" if name.startswith("Strength ") else name
        name = "Parts left out" if name.startswith("Part ") else name
        if name != self.name:
            now = self.now()
            before = self.seconds.get(self.name, (0.0, 0.0))
            self.seconds[self.name] = tuple(  # type: ignore[assignment]
                own + end - start for own, start, end in zip(before, self.since, now, strict=True)
            )
            self.name, self.since = name, now


def by_score(cache: FeatureFile) -> list[str]:
    """Return the test images by how alike the most alike training image is."""
    images = featx_images(cache)
    found = nearest_neighbours(whitened(cache.features), 8)
    pairs = found.pairs()
    is_test = cache.splits == 2
    first, second = pairs[is_test[pairs].sum(axis=1) == 1].T
    lines = outlines(images)
    screened = compare_outlines(lines[first], lines[second])
    scores = compare_pictures(images[first], images[second], screened).scores
    best = np.full(len(cache), -1.0)
    np.maximum.at(best, np.where(is_test[first], first, second), scores)
    return [cache.sample_ids[row] for row in np.argsort(-best, kind="stable") if is_test[row]]


def featx_images(cache: FeatureFile) -> np.ndarray:
    """Return the small grey pictures of a feature file of a folder."""
    folder = Path(str(cache.header.details["source"]))
    return np.stack([small_grey(Image.open(folder / name)) for name in cache.sample_ids])


def labels(made: Made) -> Iterator[Line]:
    """Yield wrong labels of CIFAR-10's test images among as many suspects, beside cleanlab's."""
    wrong = column(made.data / "cifar10_audit/label_errors.csv", "wrong", "1")
    for backbone in ("squeezenet1_1", "tiny"):
        cache = open_features(made.cifar10(backbone))
        found = out_of_fold(cache, SINGLE_LABEL)
        assert found is not None
        doubts = doubts_of(found)
        suspects = doubts.rows[doubts.contradicted]
        ours = [cache.sample_ids[row] for row in suspects[cache.splits[suspects] == 2]]
        test = np.flatnonzero(cache.splits[found.rows] == 2)
        probabilities = doubts.probabilities[test]
        rows, given = found.rows[test], cache.labels[found.rows[test]]
        is_wrong = np.array([cache.sample_ids[row] in wrong for row in rows])
        orders = {"cleanlab": of_cleanlab(given, probabilities), **others(given, probabilities)}
        counts = [f"{name} {is_wrong[order[:SUSPECTS]].sum()}" for name, order in orders.items()]
        yield (
            f"CIFAR-10, wrong labels of test images, {backbone}",
            f"{sum(name in wrong for name in ours[:SUSPECTS])} of {len(wrong)} among {SUSPECTS}; "
            f"{', '.join(counts)}",
            "at least as many as cleanlab",
        )


def of_cleanlab(given: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return cleanlab's suspects by its usual way, the surest first, then all others."""
    order = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence")
    others = np.setdiff1d(np.arange(len(given)), order)
    own = probabilities[others, given[others]]
    return np.concatenate([order, others[np.argsort(own, kind="stable")]])


def others(given: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return the images in the orders of other scores in use, the most doubtful first."""
    number = np.arange(len(given))
    own, rest = probabilities[number, given], probabilities.copy()
    rest[number, given] = -1
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(axis=1)
    scores = {
        "self-confidence": own,
        "margin": own - rest.max(axis=1),
        "weighted entropy": own / np.maximum(entropy, 1e-30),
    }
    return {name: np.argsort(each, kind="stable") for name, each in scores.items()}


def planted_labels(made: Made) -> Iterator[Line]:
    """Yield how many changed labels are among as many suspects, beside cleanlab's."""
    for name, path in made.small().items():
        cache = open_features(path)
        shares = np.array([planted_shares(cache, seed) for seed in SEEDS])
        means, low, high = shares.mean(axis=0), shares.min(axis=0), shares.max(axis=0)
        names = ("cleanlab", "self-confidence", "margin", "weighted entropy")
        rest = [f"{each} {mean:.1%}" for each, mean in zip(names, means[1:], strict=True)]
        yield (
            f"{name}, 5 % of labels changed, 5 seeds",
            f"{means[0]:.1%} ({low[0]:.0%} to {high[0]:.0%}) of them among as many suspects; "
            f"{', '.join(rest)}",
            "not below cleanlab's",
        )


def planted_shares(cache: FeatureFile, seed: int) -> tuple[float, ...]:
    """Return the shares of changed labels that featx, cleanlab and other scores find."""
    random = np.random.default_rng(seed)
    changed = random.choice(len(cache), round(WRONG_SHARE * len(cache)), replace=False)
    given = cache.labels.copy()
    given[changed] += random.integers(1, len(cache.classes), len(changed))
    given %= len(cache.classes)
    relabelled = with_given(cache, given)
    found = out_of_fold(relabelled, SINGLE_LABEL, seed=seed)
    assert found is not None
    doubts = doubts_of(found)
    ours = doubts.rows[doubts.contradicted]
    known = doubts.given, doubts.probabilities
    orders = [of_cleanlab(*known), *others(*known).values()]
    return tuple(
        float(np.isin(changed, each[: len(changed)]).mean())
        for each in (ours, *(found.rows[order] for order in orders))
    )


def with_given(cache: FeatureFile, given: np.ndarray) -> FeatureFile:
    from featx.stages.audit.report import with_labels

    return with_labels(cache, given)


HELD_TO = {"saved again": "all", "resized": "all", "flipped": "all"}


def planted_copies(made: Made) -> Iterator[Line]:
    """Yield how many changed copies of photos in the other split are found, and all other finds."""
    found, unplanted = found_copies(made, side=None)
    for change, count in found.items():
        held_to = HELD_TO.get(change, "at least 90 %")
        yield f"hymenoptera, copies {change}", f"{count} of 40", held_to
    yield "hymenoptera, finds that were not planted", unplanted, "none false"
    found, unplanted = found_copies(made, side=64)
    counts = ", ".join(f"{change} {count}" for change, count in found.items())
    yield (
        "hymenoptera at 64 pixels, copies",
        f"of 40 each: {counts}; not planted: {unplanted}",
        "at least 90 % each, none false",
    )


def found_copies(made: Made, *, side: int | None) -> tuple[dict[str, int], str]:
    """Return how many of 40 copies by each change are found, and which pairs are none of them.

    The photos are made as small as ``side`` before they are changed.
    """
    others = {"train": "val", "val": "train"}
    with tempfile.TemporaryDirectory() as folder:
        root, changes = Path(folder) / "photos", dict[frozenset[str], str]()
        photos = made.photos(root, side)
        chosen = np.random.default_rng(0).permutation(len(photos))
        for number, change in zip(chosen[: 40 * len(COPIES)], list(COPIES) * 40, strict=True):
            split, label, name = photos[number].parts
            copy = f"{others[split]}/{label}/copy {number}.jpg"
            with Image.open(root / photos[number]) as image:
                (root / copy).write_bytes(COPIES[change](image.convert("RGB")))
            changes[frozenset((copy, f"{split}/{label}/{name}"))] = change
        path = Made(made.data, Path(folder)).features("f", root, "squeezenet1_1", None)
        report = featx.audit(path)
    pairs = {
        frozenset((each.sample_id, each.other))
        for each in report.findings
        if each.kind in ("conflict", "leak", "copy")
    }
    counts = Counter(change for pair, change in changes.items() if pair in pairs)
    names = sorted(" and ".join(sorted(pair)) for pair in pairs - changes.keys())
    unplanted = f"{len(names)}{': ' if names else ''}{'; '.join(names)}"
    return {change: counts[change] for change in COPIES}, unplanted


OWN_KINDS = ("outlier", "constant", "empty", "tiny", "blurred")
ODD_OF_EACH = 2


def planted_odd(made: Made) -> Iterator[Line]:
    """Yield how many odd pictures among photos are found, and which photos are called odd."""
    with tempfile.TemporaryDirectory() as folder:
        root, planted = Path(folder) / "photos", dict[str, str]()
        photos, random = made.photos(root), np.random.default_rng(0)
        for kind in list(ODD) * ODD_OF_EACH:
            with Image.open(root / photos[random.integers(len(photos))]) as image:
                odd = ODD[kind](image.convert("RGB"), random)
            name = f"train/ants/odd {len(planted)}.jpg"
            (root / name).write_bytes(encoded(odd, 90))
            planted[name] = kind
        for backbone in (*WEIGHTS, "tiny"):
            features = Made(made.data, Path(folder)).features
            report = featx.audit(features(backbone.replace("/", " "), root, backbone, None))
            found = {each.sample_id for each in report.findings if each.kind in OWN_KINDS}
            first = {each.sample_id for each in report.of_kind("outlier")[: len(planted)]}
            missed = [kind for name, kind in planted.items() if name not in found]
            yield (
                f"hymenoptera, odd pictures, {backbone.rpartition('/')[2]}",
                f"{len(planted) - len(missed)} of {len(planted)}"
                f"{f' (not: {listed(missed)})' if missed else ''}, of the first "
                f"{len(first)} outliers {len(first & set(planted))}; other photos: "
                f"{listed(sorted(found - set(planted)), 6) or 'none'}",
                "at least 20, at most 1 % of the photos",
            )


def similar(made: Made) -> Iterator[Line]:
    """Yield how long one photo takes among 60,000, and whether its neighbours are right."""
    cache = open_features(made.cifar10("squeezenet1_1"))
    image = made.images() / cache.sample_ids[-1]
    featx.similar(cache.path, [image])  # the graph is built, and libraries are loaded
    start = time.perf_counter()
    found = featx.similar(cache.path, [image], k=9)
    seconds = time.perf_counter() - start
    query = featx.embed([image], cache=cache.path)
    rows, _ = nearest_rows(RowsInMemory(cache.features), query, 9)
    features = cache.features.astype(np.float64)
    mean = features.mean(axis=0)
    features -= mean
    own = query[0].astype(np.float64) - mean
    cosines = features @ own / np.linalg.norm(features, axis=1) / np.linalg.norm(own)
    expected = np.lexsort((np.arange(len(cosines)), -cosines))[:9]
    same = [each.sample_id for each in found[0]] == [cache.sample_ids[row] for row in expected]
    assert rows[0].tolist() == expected.tolist()
    yield (
        "similar, one photo in 60,000",
        f"{seconds:.2f} s; {'the same neighbours as' if same else 'other neighbours than'} brute "
        "force in float64",
        "under 1 s, the same",
    )


MEMORY = """
import resource, sys, time, numpy as np
from featx.features import search
from featx.features.search import nearest_neighbours, whitened
scored, score = [], search._cosines
def timed(*given):
    since = time.process_time()
    found = score(*given)
    scored.append(time.process_time() - since)
    return found
search._cosines = timed
count, width = 200_000, 512
random = np.random.default_rng(0)
features = random.standard_normal((count, width), dtype=np.float32)
resource.setrlimit(resource.RLIMIT_AS, (features.nbytes + 2**30,) * 2)
start = time.perf_counter(), time.process_time()
found = nearest_neighbours(whitened(features), 8)
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(time.perf_counter() - start[0], time.process_time() - start[1], sum(scored))
print(most, features.nbytes / 2**30)
"""


def memory(made: Made) -> Iterator[Line]:
    """Yield whether copies are searched among 200,000 rows in a GiB beside the features."""
    run = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False
    )
    what = "neighbours of 200,000 rows of 512 features, address space limited"
    held_to = "finishes in the features' size and 1 GiB"
    if run.returncode:
        yield what, run.stderr.strip().splitlines()[-1], held_to
        return
    seconds, processor, scores, most, size = map(float, run.stdout.split())
    measured = (
        f"{seconds:.0f} s, {processor:.0f} s of processors, {scores:.0f} s for the scores in "
        f"float64; {most:.2f} GiB at most"
    )
    yield what, f"{measured}, of which {size:.2f} are features", held_to


PARTS: dict[str, Callable[[Made], Iterator[Line]]] = {
    "copies": copies,
    "times": times,
    "labels": labels,
    "planted-labels": planted_labels,
    "planted-copies": planted_copies,
    "planted-odd": planted_odd,
    "similar": similar,
    "memory": memory,
}


@click.command(help=__doc__)
@click.option("--data", type=click.Path(path_type=Path), default=DATA)
@click.option("--work", type=click.Path(path_type=Path), default=Path("artifacts/audit-benchmark"))
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True)
@click.option("--write", is_flag=True, help="Put the table into the guide.")
def main(data: Path, work: Path, only: tuple[str, ...], write: bool) -> None:
    made, kept = Made(data, work), work / "measured.json"
    measured = json.loads(kept.read_text()) if kept.exists() else {}
    for name in only or PARTS:
        measured[name] = []
        for line in PARTS[name](made):
            click.echo(f"{line[0]}: {line[1]} (held to: {line[2]})")
            measured[name].append(line)
        kept.write_text(json.dumps(measured))
    if write:
        if missing := [name for name in PARTS if name not in measured]:
            raise click.UsageError(f"the table needs all parts; not in {kept}: {missing}")
        lines = [line for name in PARTS for line in measured[name]]
        text = f"{table(['what', 'measured', 'held to'], lines)}\n{machine('numpy', 'cleanlab')}.\n"
        write_measured("docs/guides/audit.md", text)


if __name__ == "__main__":
    main()
