"""Comparing: the scores of train-head, the best first, and only of the same images."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import separable, write_cache
from commands import featx_cli

from featx.errors import ArtifactInvalid, ArtifactMismatch, ConfigError
from featx.features.file import open_features
from featx.stages.compare import caches as comparison
from featx.stages.compare import compare
from featx.stages.train import train_head
from featx.training.options import TrainOptions

OPTIONS = TrainOptions(strengths=(0.01, 0.1))


@pytest.fixture
def caches(tmp_path: Path) -> tuple[Path, Path]:
    """Features that tell the classes apart, and the same with noise upon them."""
    clear = separable()
    noise = np.random.default_rng(1).normal(size=clear["features"].shape)
    noisy = clear | {"features": (clear["features"] + 12 * noise).astype(np.float32)}
    return (
        write_cache(tmp_path / "noisy.h5", **noisy),
        write_cache(tmp_path / "clear.h5", **clear),
    )


def test_the_best_comes_first_with_the_scores_of_train_head(caches, tmp_path):
    report = compare(caches, OPTIONS)
    assert report.split == "val"
    assert [cache.path.name for cache in report.caches] == ["clear.h5", "noisy.h5"]
    assert report.caches[0].metrics.top1 > report.caches[1].metrics.top1
    for cache in report.caches:
        alone = train_head(cache.path, tmp_path / "head", TrainOptions(strengths=(0.01, 0.1)))
        (tmp_path / "head").unlink()
        assert cache.metrics == alone.metrics["val"]
        assert cache.choice == alone.choice
        assert cache.num_features == 6


def test_the_order_of_the_files_does_not_matter(caches):
    names = [
        [cache.path.name for cache in compare(paths, OPTIONS).caches]
        for paths in (caches, caches[::-1])
    ]
    assert names[0] == names[1]


def test_another_split_may_be_compared(caches):
    val, test = (compare(caches, OPTIONS, split=split) for split in ("val", "test"))
    assert (val.split, test.split) == ("val", "test")
    assert val.caches[0].metrics != test.caches[0].metrics


def test_the_test_split_is_compared_where_there_is_no_validation(tmp_path):
    columns = separable()
    columns["splits"] = np.where(columns["splits"] == 1, 2, columns["splits"]).astype(np.uint8)
    paths = [write_cache(tmp_path / name, **columns) for name in ("a.h5", "b.h5")]
    assert compare(paths, OPTIONS).split == "test"
    with pytest.raises(ConfigError, match=r"no labelled images in a val split; there are train,"):
        compare(paths, OPTIONS, split="val")


def test_training_images_alone_cannot_be_compared(tmp_path):
    columns = separable()
    columns["splits"] = np.zeros_like(columns["splits"])
    paths = [write_cache(tmp_path / name, **columns) for name in ("a.h5", "b.h5")]
    with pytest.raises(ConfigError, match=r"validation or test split.*val_fraction"):
        compare(paths, OPTIONS)


@pytest.mark.parametrize(
    ("column", "named"),
    [("labels", "labels"), ("splits", "splits"), ("features", "images")],
)
def test_other_images_are_refused(column, named, tmp_path):
    columns = separable()
    first = write_cache(tmp_path / "a.h5", **columns)
    if column == "features":  # a row less
        columns = {name: values[:-1] for name, values in columns.items()}
    else:
        columns[column] = np.roll(columns[column], 1)
    second = write_cache(tmp_path / "b.h5", **columns)
    with pytest.raises(ArtifactMismatch, match=rf"b\.h5' has other {named} than .*a\.h5'"):
        compare([first, second], OPTIONS)


@pytest.mark.parametrize("number", [0, 1])
def test_one_file_is_nothing_to_compare(number, caches):
    with pytest.raises(ConfigError, match="two or more"):
        compare(caches[:number], OPTIONS)


def test_a_file_is_compared_once(caches, tmp_path):
    (tmp_path / "link.h5").symlink_to(caches[0])
    with pytest.raises(ConfigError, match="each once"):
        compare([caches[0], tmp_path / "link.h5"], OPTIONS)


def test_a_damaged_file_is_named(caches):
    caches[1].write_bytes(b"damaged")
    with pytest.raises(ArtifactInvalid, match=r"clear\.h5"):
        compare(caches, OPTIONS)


def test_only_one_file_is_in_memory_at_a_time(caches, monkeypatch):
    alive: list[weakref.ref[object]] = []

    def watched(path: Path) -> object:
        assert all(each() is None for each in alive)
        cache = open_features(path)
        alive.append(weakref.ref(cache))
        return cache

    monkeypatch.setattr(comparison, "open_features", watched)
    compare(caches, OPTIONS)
    assert len(alive) == 2


def test_the_command_prints_a_table_and_json(caches, run):
    lines = run("compare", *caches).splitlines()
    assert lines[0].split()[:4] == ["features", "backbone", "layer", "dim"]
    paths = [Path(line.split()[0]) for line in lines[2:4]]
    assert [path.name for path in paths] == ["clear.h5", "noisy.h5"]
    assert set(paths) == set(caches)
    assert "val split" in lines[-1]
    report = json.loads(run("compare", *caches, "--json"))
    assert report["split"] == "val"
    assert [Path(cache["path"]).name for cache in report["caches"]] == ["clear.h5", "noisy.h5"]
    assert report["caches"][0]["metrics"]["per_class"]


def test_the_table_names_the_settings_that_differ(caches, run, monkeypatch):
    own, pools = comparison._train_on, iter(("avg", "max"))

    def pooled(*arguments: object) -> object:
        row = own(*arguments)
        return replace(row, settings=row.settings | {"pool": next(pools)})

    monkeypatch.setattr(comparison, "_train_on", pooled)
    title, _, *rows = run("compare", *caches).splitlines()
    assert title.split()[:5] == ["features", "backbone", "layer", "pool", "dim"]
    assert {"avg", "max"} <= {word for row in rows for word in row.split()}


@pytest.fixture
def run() -> Callable[..., str]:
    def invoke(*arguments: object) -> str:
        result = featx_cli(*arguments)
        assert result.exit_code == 0, result.output
        return result.stdout

    return invoke
