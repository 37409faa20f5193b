"""Tags and numbers larger than memory: heads as good as those that train in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import write_cache, write_labels

import featx.features.columns
from featx.errors import ArtifactInvalid
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.tasks import TASKS, Labels
from featx.heads.tasks.scores import MultiLabelMetrics, RegressionMetrics
from featx.stages.train import train_head
from featx.training.options import TrainOptions

_MLP = MLPOptions(hidden=(16,), max_epochs=12, learning_rate=0.01, batch_size=32)
LINEAR = TrainOptions()
MLP = TrainOptions(head="mlp", mlp=_MLP)
OPTIONS = pytest.mark.parametrize("options", [LINEAR, MLP], ids=["linear", "mlp"])
NUM_SAMPLES, NUM_FEATURES = 1200, 8


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], Path]:
    """Return a function that caches features, in several chunks, with labels of a manifest."""
    monkeypatch.setattr(featx.features.columns, "_CHUNK_BYTES", 1024)
    splits = np.random.default_rng(1).choice(3, NUM_SAMPLES, p=[0.6, 0.2, 0.2])
    return lambda labels: write_labels(
        tmp_path / "f.h5", drawn()[0], labels[:100] + [""] * 10 + labels[110:], splits
    )


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Features, and two scores that depend on them."""
    random = np.random.default_rng(0)
    features = random.normal(2, 3, (NUM_SAMPLES, NUM_FEATURES)).astype(np.float32)
    scores = features @ random.normal(size=(NUM_FEATURES, 2))
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    return features, scores + 0.4 * random.normal(size=scores.shape)


@pytest.fixture
def tags(write) -> Path:
    """Hot and wet depend on the features; all have seen."""
    _, scores = drawn()
    names = np.array(["hot", "wet"])
    labels = ["|".join([*names[row > [0, 1]], "seen"]) + "|" for row in scores]
    return write(labels)


@pytest.fixture
def numbers(write) -> Path:
    return write([f"{1000 * a + 5000:.3f}|{b / 1000:.6f}" for a, b in drawn()[1]])


def in_blocks(options: TrainOptions) -> TrainOptions:
    return replace(options, memory=20_000, overwrite=True)


def require_stored_scores(cache: Path, output: Path) -> None:
    """Check that the scores in a head are those of the head itself."""
    head, features = open_head(output), open_features(cache)
    labels = Labels(features.classes, features.labels, features.sample_ids, str(cache))
    targets = TASKS[head.task].read(labels, names=head.classes)
    for split, stored in head.header.details["metrics"].items():
        rows = features.rows(split)
        rows = rows[targets.labelled[rows]]
        outputs = head.logits(features.features[rows])
        scores = targets.task.measure(outputs, targets.values[rows], thresholds=head.thresholds)
        assert scores is not None
        expected = scores.to_dict()
        assert stored["num_samples"] == expected["num_samples"] == len(rows)
        for name, value in expected.items():
            if isinstance(value, float):
                assert stored[name] == pytest.approx(value, rel=1e-5, abs=1e-9)


@OPTIONS
def test_tags_do_as_well_as_from_memory(tags, tmp_path, options):
    whole = train_head(tags, tmp_path / "whole", options)
    blocked = train_head(tags, tmp_path / "blocked", in_blocks(options))
    assert "in_blocks" not in whole.choice
    assert blocked.choice["in_blocks"]["bytes_read"] >= 3 * NUM_SAMPLES * NUM_FEATURES * 4
    for split, theirs in whole.metrics.items():
        ours = blocked.metrics[split]
        assert isinstance(ours, MultiLabelMetrics)
        assert isinstance(theirs, MultiLabelMetrics)
        assert theirs.mean_average_precision > 0.9
        assert ours.mean_average_precision == pytest.approx(theirs.mean_average_precision, abs=0.02)
        assert ours.micro_f1 == pytest.approx(theirs.micro_f1, abs=0.03)
        assert ours.log_loss == pytest.approx(theirs.log_loss, abs=0.02)
    assert blocked.calibration is not None
    assert len(set(blocked.head.thresholds)) > 1, "nothing was chosen"
    seen = blocked.head.classes.index("seen")
    for part in (0, 1):  # a tag that all have is what it is in memory
        ours, theirs = (each.head.layers[-1][part][seen] for each in (blocked, whole))
        assert np.array_equal(ours, theirs)
    require_stored_scores(tags, tmp_path / "blocked")


@OPTIONS
def test_numbers_do_as_well_as_from_memory(numbers, tmp_path, options):
    options = replace(options, task="regression")
    whole = train_head(numbers, tmp_path / "whole", options)
    blocked = train_head(numbers, tmp_path / "blocked", in_blocks(options))
    assert "in_blocks" not in whole.choice
    assert blocked.choice["in_blocks"]["bytes_read"] >= 3 * NUM_SAMPLES * NUM_FEATURES * 4
    closely = 0.05 if options.head == "mlp" else 1e-4
    for split, theirs in whole.metrics.items():
        ours = blocked.metrics[split]
        assert isinstance(ours, RegressionMetrics)
        assert isinstance(theirs, RegressionMetrics)
        for own, other in zip(ours.per_target, theirs.per_target, strict=True):
            assert other.r2 > 0.7
            assert own.r2 == pytest.approx(other.r2, abs=closely)
            assert own.mae == pytest.approx(other.mae, rel=2 * closely)
    assert blocked.head.header.details["unit"] == whole.head.header.details["unit"]
    if options.head == "linear":
        assert blocked.choice["strength"] == whole.choice["strength"]
    require_stored_scores(numbers, tmp_path / "blocked")


@OPTIONS
@pytest.mark.parametrize("memory", [None, 20_000])
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_the_same_twice_gives_the_same_bytes(request, tmp_path, task, memory, options):
    cache = request.getfixturevalue("tags" if task == "multi-label" else "numbers")
    for name in "ab":  # the same output again would be up to date
        train_head(cache, tmp_path / name, replace(options, task=task, memory=memory))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tags_without_calibration_still_have_thresholds(tags, tmp_path):
    options = in_blocks(TrainOptions(calibrate=False, strengths=(0.01,)))
    report = train_head(tags, tmp_path / "head", options)
    assert report.calibration is None
    assert len(set(report.head.thresholds)) > 1


@OPTIONS
@pytest.mark.parametrize("task", ["multi-label", "regression"])
def test_memory_is_what_is_said(tmp_path, task, options):
    """31 MB of features; besides what is allowed there are blocks, and names of samples."""
    random = np.random.default_rng(0)
    features = random.normal(size=(30_000, 256)).astype(np.float32)
    classes = ("a|", "b|", "a|b", "|") if task == "multi-label" else ("1|2", "2|1", "5|5", "0|3")
    labels = (features[:, 0] > 0) + 2 * (features[:, 1] > 0)
    splits = np.where(np.arange(30_000) % 10, 0, 2).astype(np.uint8)
    path = write_cache(tmp_path / "f.h5", features, labels, splits, classes=classes)
    del features
    options = replace(options, task=task, strengths=(1e-3, 1e-2), memory="12MB")
    options = replace(options, mlp=MLPOptions(hidden=(8,), max_epochs=1))
    tracemalloc.start()
    try:
        train_head(path, tmp_path / "head", options)
        assert tracemalloc.get_traced_memory()[1] < 12e6 + 36 * 2**20
    finally:
        tracemalloc.stop()


def test_features_that_are_no_numbers_are_named(tmp_path, tags):
    features = open_features(tags)
    values = features.features.copy()
    values[7] = np.inf
    path = write_cache(
        *(tmp_path / "bad.h5", values, features.labels, features.splits),
        classes=features.classes,
    )
    with pytest.raises(ArtifactInvalid, match=r"NaN or infinite.*'0007\.jpg' first"):
        train_head(path, tmp_path / "head", in_blocks(LINEAR))
    assert not (tmp_path / "head").exists()
