"""Training larger than memory: the same heads, within the memory that was given."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import separable, write_cache
from scores import measure_classes

import featx.features.blocks
import featx.features.columns
from featx.errors import ArtifactInvalid, ConfigError
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import EpochScores, SGDOptions
from featx.stages.train import train_head
from featx.training.fitting import COPIES, fit_heads
from featx.training.options import TrainOptions, free_memory, parse_memory

KINDS = {
    "lbfgs": TrainOptions(strengths=(1e-3, 1e-2, 0.1)),
    "balanced": TrainOptions(strengths=(0.01,), class_weight="balanced"),
    "ridge": TrainOptions(solver="ridge"),
    "centroid": TrainOptions(solver="centroid"),
    "sgd": TrainOptions(
        solver="sgd", sgd=SGDOptions(learning_rate=0.003, epochs=8, batch_size=16, step_size=6)
    ),
    "mlp": TrainOptions(
        head="mlp", mlp=MLPOptions(hidden=(8,), max_epochs=12, learning_rate=0.01, batch_size=32)
    ),
    "few-shot": TrainOptions(strengths=(0.01,), few_shot=FewShot(12, 3)),
}


@pytest.fixture(params=KINDS)
def options(request) -> TrainOptions:
    return KINDS[request.param]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several chunks, some rows without a label."""
    monkeypatch.setattr(featx.features.columns, "_CHUNK_BYTES", 1024)
    columns = separable(1200)
    columns["labels"][100:110] = -1
    return write_cache(tmp_path / "features.h5", **columns)


def in_blocks(options: TrainOptions) -> TrainOptions:
    return replace(options, memory=20_000, overwrite=True)


def test_the_head_does_as_well_as_one_from_memory(cache, tmp_path, options):
    whole = train_head(cache, tmp_path / "whole", options)
    blocked = train_head(cache, tmp_path / "blocked", in_blocks(options))
    assert "in_blocks" not in whole.choice
    for split, scores in whole.metrics.items():
        assert blocked.metrics[split].num_samples == scores.num_samples
        assert blocked.metrics[split].top1 == pytest.approx(scores.top1, abs=0.03)
    for name in ("strength", "num_folds"):
        if options.solver in ("ridge",):
            assert blocked.choice.get(name) == whole.choice.get(name)
    assert (blocked.calibration is None) == (whole.calibration is None)
    assert blocked.head.header.details["provenance"] == whole.head.header.details["provenance"]
    if options.few_shot:  # the draws fit into memory: nothing is different
        assert blocked.head.layers[0][0].tobytes() == whole.head.layers[0][0].tobytes()
        assert blocked.few_shot == whole.few_shot
    else:
        assert blocked.choice["in_blocks"]["bytes_read"] >= 2 * 1200 * 6 * 4


def test_the_same_twice_gives_the_same_bytes(cache, tmp_path, options):
    for name in "ab":  # the same output again would be up to date
        train_head(cache, tmp_path / name, in_blocks(options))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_blocks_and_what_is_read_ahead_do_not_decide(cache, tmp_path, monkeypatch):
    options = in_blocks(TrainOptions(strengths=(0.1,)))
    objectives = []
    for size in (1, 5000, 10**6):
        monkeypatch.setattr(featx.features.blocks, "_BLOCK_BYTES", size)
        objectives.append(train_head(cache, tmp_path / "head", options).choice["objective"])
    assert objectives == pytest.approx([objectives[0]] * 3, rel=1e-6)
    whole = train_head(cache, tmp_path / "whole", TrainOptions(strengths=(0.1,)))
    assert objectives[0] == pytest.approx(whole.choice["objective"], rel=1e-5)


def test_the_stored_metrics_are_those_of_the_stored_head(cache, tmp_path, options):
    train_head(cache, tmp_path / "head", in_blocks(options))
    head, features = open_head(tmp_path / "head"), open_features(cache)
    for split, stored in head.header.details["metrics"].items():
        rows = features.rows(split)
        rows = rows[features.labels[rows] >= 0]
        scores = measure_classes(head.logits(features.features[rows]), features.labels[rows])
        assert scores is not None
        expected = scores.to_dict()
        assert stored.keys() == expected.keys()
        assert stored["per_class"] == expected["per_class"]
        for name in ("top1", "log_loss", "ece", "macro_f1", "balanced_accuracy"):
            assert stored[name] == pytest.approx(expected[name], rel=1e-5)


# --- memory -------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """22.5 MB of features; 21,000 rows of the training split hold out a fifth."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 22_000)
    features = random.normal(size=(22_000, 256)).astype(np.float32)
    features[:, :3] += 2 * np.eye(3, dtype=np.float32)[labels]
    splits = np.where(np.arange(22_000) % 22, 0, 2).astype(np.uint8)
    return write_cache(tmp_path / "large.h5", features, labels, splits)


MEASURED = {
    "lbfgs": TrainOptions(strengths=(1e-3, 1e-2)),
    "ridge": TrainOptions(solver="ridge"),
    "centroid": TrainOptions(solver="centroid"),
    "sgd": TrainOptions(solver="sgd", sgd=SGDOptions(epochs=1)),
    "mlp": TrainOptions(head="mlp", mlp=MLPOptions(hidden=(8,), max_epochs=1)),
}


def peak_of(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_is_what_is_said(large, tmp_path):
    """Of arrays; what else is held, as the names of the samples, is in the spare bytes."""
    size, spare, blocks = 22_000 * 256 * 4, 12 * 2**20, 24 * 2**20
    for kind, options in MEASURED.items():
        whole = replace(options, memory=COPIES[kind] * size)
        peak = peak_of(lambda whole=whole, kind=kind: train_head(large, tmp_path / kind, whole))
        assert 1.5 * size < peak <= COPIES[kind] * size + spare, kind
        blocked = replace(options, memory="12MB", overwrite=True)
        peak = peak_of(lambda blocked=blocked: train_head(large, tmp_path / "blocked", blocked))
        assert peak <= 12e6 + blocks + spare, kind


def test_memory_with_views_is_what_is_said(tmp_path):
    random = np.random.default_rng(0)
    labels, size, spare = random.integers(0, 3, 6000), 6000 * 5 * 160 * 4, 2**21
    features = random.normal(size=(6000, 160)).astype(np.float32)
    views = np.repeat(features[:, None], 4, axis=1)
    path = write_cache(tmp_path / "f.h5", features, labels, labels * 0, views=views)
    for kind, options in MEASURED.items():
        whole = replace(options, memory=COPIES[kind] * size, strengths=(1e-3, 1e-2))
        cache = open_features(path)
        peak = peak_of(lambda cache=cache, whole=whole: fit_heads(cache, whole))
        assert 2 * size < peak <= COPIES[kind] * size + spare, kind


def test_a_process_with_less_address_space_than_features(tmp_path):
    """61 MB of features and 310 MB in all, of which Python and its libraries take 220."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 15_000)
    features = random.normal(size=(15_000, 1024)).astype(np.float32)
    features[:, :3] += 2 * np.eye(3, dtype=np.float32)[labels]
    splits = np.where(np.arange(15_000) % 10, 0, 2).astype(np.uint8)
    path = write_cache(tmp_path / "large.h5", features, labels, splits)

    def train(memory: str) -> subprocess.CompletedProcess[str]:
        limit = 310 * 2**20
        arguments = ["-C", "0.001", "-C", "0.01", "--json", "--overwrite", "--memory", memory]
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "featx",
                "train-head",
                path,
                "-o",
                tmp_path / "head",
                *arguments,
            ],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = train("30MB")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["metrics"]["test"]["top1"] > 0.6
    assert report["choice"]["in_blocks"]["kept"] < 15_000
    assert train("1TB").returncode != 0, "the limit is not a limit"


def test_free_memory_is_no_more_than_the_process_may_have(monkeypatch):
    assert 0 < free_memory() < 2**50
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2**34, 2**34))
    assert free_memory() < 2**34


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500 * 10**6),
        ("2GB", 2 * 10**9),
        ("2g", 2 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("1 TiB", 2**40),
        (" 64kB ", 64_000),
        ("12345", 12345),
        (12345, 12345),
    ],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1e9", "2 PB", "two", "1,5GB", "nan", -5])
def test_what_is_no_size(text):
    with pytest.raises(ConfigError, match="memory must be a size"):
        TrainOptions(memory=text)


# --- what is refused ----------------------------------------------------------------------------


def test_scikit_learn_is_refused_and_told_what_to_do(cache, tmp_path):
    with pytest.raises(ConfigError, match=r"scikit-learn trains in memory.*solver='lbfgs'"):
        train_head(cache, tmp_path / "head", in_blocks(TrainOptions(solver="sklearn")))
    assert not (tmp_path / "head").exists()


def test_fewer_samples_than_features(tmp_path):
    path = write_cache(tmp_path / "f.h5", **separable(150, 200))
    with pytest.raises(ConfigError, match="too few to be read in blocks"):
        train_head(path, tmp_path / "head", in_blocks(TrainOptions()))


def test_features_that_are_no_numbers_are_named(tmp_path, options):
    columns = separable(400)
    columns["features"][columns["splits"] == 1] = np.nan
    path = write_cache(tmp_path / "f.h5", **columns)
    first = f"{int(np.flatnonzero(columns['splits'] == 1)[0]):04d}.jpg"
    with pytest.raises(ArtifactInvalid, match=f"NaN or infinite.*'{first}' first"):
        train_head(path, tmp_path / "head", replace(in_blocks(options), memory=1000))
    assert not (tmp_path / "head").exists()


def test_damage_while_it_trains(cache, tmp_path):
    with h5py.File(cache) as file:
        place = file["features"].id.get_chunk_info(2).byte_offset + 2

    def damage(scores: EpochScores) -> None:
        if scores.epoch == 2:
            with cache.open("r+b") as file:
                file.seek(place)
                file.write(b"\x55\xaa")

    with pytest.raises(ArtifactInvalid, match="changed or damaged"):
        train_head(cache, tmp_path / "head", in_blocks(KINDS["sgd"]), progress=damage)
    assert not (tmp_path / "head").exists()


def test_damage_from_before(cache, tmp_path, options):
    with h5py.File(cache) as file:
        place = file["features"].id.get_chunk_info(2).byte_offset + 2
    with cache.open("r+b") as file:
        file.seek(place)
        file.write(b"\x55\xaa")
    with pytest.raises(ArtifactInvalid, match="sha256"):
        train_head(cache, tmp_path / "head", in_blocks(options))


def test_reading_in_blocks_is_told(cache, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="featx")
    train_head(cache, tmp_path / "head", in_blocks(KINDS["centroid"]))
    assert "read in blocks" in caplog.text
