"""Heads of feature files with views: all versions train, the images as they are score."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import separable, write_cache, write_labels
from click.testing import CliRunner
from PIL import Image

from featx.classifier.staleness import staleness_of
from featx.cli import main
from featx.errors import ArtifactInvalid
from featx.extraction.options import ExtractOptions
from featx.features.file import FeatureFile, open_features
from featx.heads.head import apply_layers, open_head, save_head
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import SGDOptions
from featx.stages.extract import extract
from featx.stages.train import train_head
from featx.training.fitting import fit_heads
from featx.training.options import TrainOptions

OPTIONS = {
    "lbfgs": TrainOptions(strengths=(0.001, 0.1)),
    "sklearn": TrainOptions(solver="sklearn", strengths=(0.001, 0.1)),
    "ridge": TrainOptions(solver="ridge"),
    "centroid": TrainOptions(solver="centroid"),
    "mlp": TrainOptions(head="mlp", mlp=MLPOptions((8,), learning_rate=0.02, max_epochs=5)),
    "sgd": TrainOptions(solver="sgd", sgd=SGDOptions(epochs=4, batch_size=16)),
}


ViewOf = Callable[[np.ndarray], np.ndarray]


def with_views(path: Path, view_of: ViewOf, count: int) -> FeatureFile:
    """Return the same feature file with views that a function makes of the features."""
    cache = open_features(path)
    views = np.stack([view_of(cache.features) for _ in range(count)], axis=1)
    written = write_cache(
        *(path.with_name("views.h5"), cache.features, cache.labels, cache.splits),
        classes=cache.classes,
        groups=tuple(f"group {group}" if group >= 0 else "" for group in cache.groups),
        views=views.astype(np.float32),
        overwrite=True,
    )
    return open_features(written)


def as_they_are(features: np.ndarray) -> np.ndarray:
    return features


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "f.h5", **separable(num_rows=200))


@pytest.fixture
def noise() -> ViewOf:
    random = np.random.default_rng(2)
    return lambda features: features + random.normal(size=features.shape)


@pytest.mark.parametrize("weight", [None, "balanced"])
@pytest.mark.parametrize("name", OPTIONS)
def test_identical_views_give_the_head_without_views(path, name, weight):
    options = replace(OPTIONS[name], class_weight=weight)
    (plain,) = fit_heads(open_features(path), options)
    cache = with_views(path, as_they_are, 3)
    (head,) = fit_heads(cache, options)
    ours, theirs = (apply_layers(each.layers, cache.features) for each in (head, plain))
    assert np.abs(ours - theirs).max() <= 0.01 * np.abs(theirs).max()
    views = head.choice["views"]
    assert views["num_views"] == 3
    if name == "sgd":
        assert views["with"] is views["without"] is None
    else:
        assert views["num_samples"] == len(plain.held_out.labels)
        assert views["with"] == pytest.approx(views["without"], rel=0.01)
    (without,) = fit_heads(cache, replace(options, use_views=False))
    assert "views" not in without.choice
    for ours, theirs in zip(without.layers, plain.layers, strict=True):
        assert np.array_equal(ours[0], theirs[0])
    assert plain.choice == without.choice


@pytest.mark.parametrize("task", ["multi-label", "regression"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_identical_views_change_no_head_of_tags_or_numbers(tmp_path, task, head):
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 4)).astype(np.float32)
    scores = features[:, :2] + 0.5 * random.normal(size=(60, 2))
    labels = [f"{a:.2f}|{b:.2f}" for a, b in scores]
    if task == "multi-label":
        labels = [("a" if a > 0 else "") + "|" + ("b" if b > 0 else "") for a, b in scores]
    path = write_labels(tmp_path / "f.h5", features, labels, np.zeros(60))
    options = TrainOptions(task=task, head=head, mlp=OPTIONS["mlp"].mlp)
    (plain,) = fit_heads(open_features(path), options)
    (trained,) = fit_heads(with_views(path, as_they_are, 2), options)
    ours, theirs = (apply_layers(each.layers, features) for each in (trained, plain))
    assert np.abs(ours - theirs).max() <= 0.01 * np.abs(theirs).max()
    names = {"multi-label": {"log_loss", "mean_average_precision"}, "regression": {"mae", "r2"}}
    assert set(trained.choice["views"]["with"]) == names[task]
    assert trained.choice["views"]["with"] == pytest.approx(
        trained.choice["views"]["without"], rel=0.02
    )


def test_images_whose_labels_are_noise_are_scored_at_chance(tmp_path, noise):
    random = np.random.default_rng(0)
    features = 5 * random.normal(size=(240, 30))
    groups = tuple(f"patient {row // 2}" for row in range(240))
    labels = np.repeat(random.integers(0, 3, 120), 2)
    path = write_cache(
        tmp_path / "f.h5", features.astype(np.float32), labels, np.zeros(240, int), groups=groups
    )
    for name in ("lbfgs", "ridge", "centroid"):
        (head,) = fit_heads(with_views(path, noise, 4), OPTIONS[name])
        assert head.cross_validated.scores.num_samples == 240
        assert head.cross_validated.scores.top1 < 0.5


def test_only_the_images_as_they_are_are_scored(path):
    """Views that would be wrong by any head are in no score."""
    (head,) = fit_heads(with_views(path, lambda features: 0 * features, 1), OPTIONS["lbfgs"])
    assert len(head.held_out.labels) == len(open_features(path).rows("train"))
    assert head.cross_validated.scores.top1 > 0.9
    assert head.metrics["train"].num_samples == len(head.held_out.labels)


@pytest.mark.parametrize("name", ["lbfgs", "ridge", "mlp"])
def test_the_report_shows_that_flips_lose_where_a_class_is_another_one_mirrored(
    tmp_path, caplog, name
):
    random = np.random.default_rng(0)
    labels = np.arange(120) % 2
    features = random.normal(size=(120, 6)) + 3 * np.eye(6)[np.where(labels, 5, 0)]
    path = write_cache(tmp_path / "f.h5", features.astype(np.float32), labels, labels * 0)
    options = replace(OPTIONS[name], mlp=MLPOptions((8,), learning_rate=0.02, max_epochs=40))
    (head,) = fit_heads(with_views(path, lambda features: features[:, ::-1], 1), options)
    views = head.choice["views"]
    assert views["with"]["top1"] < 0.85 < views["without"]["top1"]
    assert views["with"]["log_loss"] > views["without"]["log_loss"]
    assert "Views made the held-out scores worse (log loss" in caplog.text
    assert "use_views=False" in caplog.text


@pytest.mark.parametrize(("augment", "loses"), [("flip", True), ("crop", False)])
def test_flips_of_images_whose_mirror_image_is_another_class_are_said_to_lose(
    tmp_path, caplog, augment, loses
):
    random = np.random.default_rng(0)
    for number in range(40):
        image = np.full((32, 32, 3), random.integers(0, 120, 3), np.uint8)
        for column in range(24):  # an arrowhead that points to the right
            image[4 + column // 2 : 28 - column // 2, 4 + column] = 255
        name = ("left", "right")[number % 2]
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        mirrored = image if name == "right" else image[:, ::-1]
        Image.fromarray(mirrored).save(tmp_path / "images" / name / f"{number}.png")
    options = ExtractOptions(backbone="tiny", views=2, augment=augment)
    extract(tmp_path / "images", tmp_path / "f.h5", options)
    views = train_head(tmp_path / "f.h5", tmp_path / "h", OPTIONS["lbfgs"]).choice["views"]
    assert views["without"]["top1"] == 1
    assert (views["with"]["log_loss"] > 2 * views["without"]["log_loss"]) == loses
    assert ("Views made the held-out scores worse" in caplog.text) == loses


def test_views_that_help_are_said_to_help(tmp_path, caplog):
    random = np.random.default_rng(0)
    labels = np.arange(45) % 3
    own = np.eye(40)[labels]
    features = (own + 0.4 * random.normal(size=own.shape)).astype(np.float32)
    path = write_cache(tmp_path / "f.h5", features, labels, labels * 0)
    other = with_views(path, lambda _: own + 0.4 * random.normal(size=own.shape), 8)
    (head,) = fit_heads(other, OPTIONS["lbfgs"])
    views = head.choice["views"]
    assert views["with"]["log_loss"] < views["without"]["log_loss"]
    assert "worse" not in caplog.text


def test_few_shots_are_drawn_among_images_and_train_with_all_their_views(path, noise):
    options = TrainOptions(few_shot=FewShot(3, 2), strengths=(0.1,))
    cache = with_views(path, noise, 2)
    first, second = fit_heads(cache, options)
    assert [len(each.drawn) for each in (first, second)] == [9, 9]
    assert first.choice["views"]["num_samples"] <= 9
    assert "views" not in second.choice
    plain, _ = fit_heads(open_features(path), options)
    assert np.array_equal(first.drawn, plain.drawn)
    assert not np.allclose(first.layers[0][0], plain.layers[0][0], rtol=0.05)


def test_views_that_do_not_fit_into_memory_are_left_out_with_a_warning(path, caplog):
    cache = with_views(path, as_they_are, 8)
    options = TrainOptions(strengths=(0.1,), calibrate=False)
    (plain,) = fit_heads(open_features(path), options)
    for memory in (4 * 200 * 6 * 4 + 100, 1000):  # without views, and in blocks
        caplog.clear()
        (head,) = fit_heads(cache, replace(options, memory=memory))
        assert "views are left out" in caplog.text
        assert "views" not in head.choice
        assert np.allclose(head.layers[0][0], plain.layers[0][0], rtol=0.01, atol=1e-4)


def test_views_of_unlabelled_training_images_train_nothing(tmp_path):
    samples = separable()
    samples["labels"][::7] = -1
    missing = samples["labels"] < 0
    path = write_cache(tmp_path / "f.h5", **samples)
    cache = with_views(path, lambda features: np.where(missing[:, None], 1e6, features), 1)
    unlabelled = missing[cache.rows("train")]
    (head,) = fit_heads(cache, OPTIONS["lbfgs"])
    assert head.metrics["train"].top1 > 0.9
    assert head.choice["views"]["num_samples"] == (~unlabelled).sum()
    first = cache.rows("train")[~unlabelled][0]
    (less,) = fit_heads(cache.without([cache.sample_ids[first]]), OPTIONS["lbfgs"])
    assert less.metrics["train"].top1 > 0.9
    assert less.choice["views"]["num_samples"] == (~unlabelled).sum() - 1


class TestStage:
    @pytest.fixture
    def path(self, path, noise) -> Path:
        return with_views(path, noise, 2).path

    def test_the_report_and_the_head_have_what_views_bought(self, path, tmp_path):
        report = train_head(path, tmp_path / "h", OPTIONS["lbfgs"])
        views = report.to_dict()["views"]
        assert views["num_views"] == 2
        assert set(views["with"]) == set(views["without"]) == {"log_loss", "top1"}
        assert open_head(tmp_path / "h").header.details["choice"]["views"] == views
        again = train_head(path, tmp_path / "h", OPTIONS["lbfgs"])
        assert again.is_unchanged
        assert again.to_dict()["views"] == views
        without = replace(OPTIONS["lbfgs"], use_views=False)
        report = train_head(path, tmp_path / "h", without)
        assert not report.is_unchanged
        assert report.to_dict()["views"] is None
        assert train_head(path, tmp_path / "h", without).is_unchanged

    def test_a_head_without_views_is_not_stale_where_they_change(self, path, tmp_path):
        cache = open_features(path)
        columns = (cache.features, cache.labels, cache.splits)
        views = np.repeat(cache.features[:, None], 3, axis=1)
        other = open_features(write_cache(tmp_path / "other.h5", *columns, views=views))
        for use_views in (True, False):
            options = replace(OPTIONS["lbfgs"], use_views=use_views)
            head = train_head(path, tmp_path / "h", options).head
            assert not staleness_of(head, cache).is_stale
            assert staleness_of(head, other).is_stale == use_views

    def test_a_header_that_says_something_else_of_views_is_refused(self, path, tmp_path):
        head = train_head(path, tmp_path / "h", OPTIONS["lbfgs"]).head
        choice = head.header.details["choice"]
        for wrong in (3, {"num_views": 2}, choice["views"] | {"with": {"top1": "high"}}):
            details = head.header.details | {"choice": choice | {"views": wrong}}
            forged = replace(head, header=replace(head.header, details=details))
            save_head(tmp_path / "forged", forged, overwrite=True)
            with pytest.raises(ArtifactInvalid, match=r"details\.choice\.views"):
                open_head(tmp_path / "forged")

    @pytest.mark.parametrize("name", OPTIONS)
    def test_every_head_is_read_again(self, path, tmp_path, name):
        made = train_head(path, tmp_path / "h", OPTIONS[name]).head
        assert open_head(tmp_path / "h").header == made.header

    def test_the_command_prints_it_and_leaves_views_out(self, path, tmp_path):
        run = ["train-head", str(path), "-o", str(tmp_path / "h"), "-C", "0.1"]
        printed = CliRunner().invoke(main, run)
        assert printed.exit_code == 0, printed.output
        (line,) = [line for line in printed.output.splitlines() if line.startswith("views")]
        assert "2 views of each image, held out: log loss 0." in line
        assert line.endswith("with them")
        without = CliRunner().invoke(main, [*run, "--no-views", "--json"])
        assert json.loads(without.stdout)["views"] is None
