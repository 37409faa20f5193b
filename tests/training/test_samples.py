"""Held-out images: never the only one of a class, groups as a whole, and the scores from them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from caches import separable, write_cache

from featx.heads.head import open_head
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.linear import FIXED_STRENGTH
from featx.heads.solvers.mlp import MLPOptions
from featx.stages.train import train_head
from featx.training.options import TrainOptions

SOLVERS = {
    "lbfgs": TrainOptions(),
    "sklearn": TrainOptions(solver="sklearn", strengths=(0.001, 0.1)),
    "ridge": TrainOptions(solver="ridge"),
    "centroid": TrainOptions(solver="centroid"),
    "mlp": TrainOptions(head="mlp", mlp=MLPOptions(hidden=(16,), learning_rate=0.01)),
}


def two_classes(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(count) % 2
    features = 2 * np.eye(6)[labels] + random.normal(size=(count, 6))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("name", SOLVERS)
def test_one_stray_image_of_a_class_of_its_own_changes_little(tmp_path, name, memory):
    if name == "sklearn" and memory:
        pytest.skip("scikit-learn trains in memory only")
    features, labels = two_classes(np.random.default_rng(0), 200)
    splits, options = np.repeat([0, 1], 100), replace(SOLVERS[name], memory=memory)
    top1 = []
    for stray in (False, True):
        if stray:
            features, labels = np.append(features, [[0, 0, 4, 4, 4, 4]], axis=0), [*labels, 2]
            splits = np.append(splits, 0)
        path = write_cache(tmp_path / f"{stray}.h5", features.astype(np.float32), labels, splits)
        report = train_head(path, tmp_path / f"{stray}.safetensors", options)
        top1.append(report.metrics["val"].top1)
        assert report.calibration is not None
        assert report.calibration.num_samples <= 100
    assert top1[0] > 0.85
    assert top1[1] >= top1[0] - (0.25 if name == "centroid" else 0.05)  # it moves the mean


@pytest.mark.parametrize("name", SOLVERS)
def test_one_image_of_each_class_chooses_nothing(tmp_path, caplog, name):
    features = np.repeat(3 * np.eye(3, 6, dtype=np.float32), 2, axis=0)
    path = write_cache(tmp_path / "f.h5", features, np.arange(6) // 2, np.arange(6) % 2)
    report = train_head(path, tmp_path / "h", SOLVERS[name])
    assert report.calibration is None
    assert report.cross_validated is None
    assert report.head.header.details["temperature"] == 1
    assert report.metrics["val"].top1 == 1
    assert "No training images can be held out: fewer than two classes have two" in caplog.text
    assert ("fixed at C = " in caplog.text) == (name in ("lbfgs", "sklearn", "ridge"))
    assert ("trained for all epochs" in caplog.text) == (name == "mlp")


def test_one_shot_of_each_class_chooses_nothing(tmp_path, caplog):
    cache = write_cache(tmp_path / "f.h5", **separable())
    report = train_head(cache, tmp_path / "h", TrainOptions(few_shot=FewShot(1, 3)))
    assert report.choice["strength"] == FIXED_STRENGTH
    assert report.calibration is None
    assert caplog.text.count("No training images can be held out") == 1


def test_tags_that_one_image_alone_has_are_trained_and_not_held_out(tmp_path, caplog):
    random = np.random.default_rng(0)
    features = random.normal(size=(60, 5)).astype(np.float32)
    tags = np.stack([features[:, 0] > 0, np.arange(60) == 7, np.arange(60) != 9], axis=1)
    names = ["|".join(n for n, there in zip("abc", row, strict=True) if there) for row in tags]
    names = [name or "|" for name in names]
    classes = tuple(sorted(set(names)))
    labels = np.array([classes.index(name) for name in names])
    path = write_cache(
        tmp_path / "f.h5", features, labels, np.zeros(60, int), classes=classes, label_kind="tags"
    )
    report = train_head(path, tmp_path / "h")
    assert report.calibration is not None
    assert report.calibration.num_samples == 58
    assert report.head.thresholds[1:] == (0.5, 0.5)
    few = write_cache(
        tmp_path / "few.h5", features[:3], np.arange(3), np.zeros(3, int), label_kind="tags"
    )
    report = train_head(few, tmp_path / "few")
    assert (report.calibration, report.head.thresholds) == (None, (0.5, 0.5, 0.5))
    assert "each is the only one that has, or lacks, some tag" in caplog.text


@pytest.mark.parametrize("by", ["group", "content"])
def test_images_of_a_group_or_content_are_held_out_together(tmp_path, by):
    """Without knowing that they belong together, copies would tell the labels, which are noise."""
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(40, 30)), 4, axis=0).astype(np.float32)
    labels, units = np.repeat(random.integers(0, 2, 40), 4), np.repeat(np.arange(40), 4)
    together = {"contents": units + 1} if by == "content" else {}
    if by == "group":
        together = {"groups": tuple(f"patient {unit}" for unit in units)}
    for name in ("lbfgs", "ridge"):
        scores = []
        for number, known in enumerate((together, {})):
            path = write_cache(
                tmp_path / f"{number}.h5",
                features,
                labels,
                np.zeros(160, int),
                **known,
                overwrite=True,
            )
            report = train_head(path, tmp_path / f"{name}{number}", SOLVERS[name])
            scores.append(report.cross_validated.scores.top1)
        assert scores[0] < 0.7
        assert scores[1] > 0.9


def test_contents_with_two_labels_in_training_are_told(tmp_path, caplog):
    data = separable()
    data["labels"][:6], data["splits"][:6] = [0, 1, 0, 2, 1, 1], 0
    contents = np.append([1, 1, 2, 3, 3, 4], np.arange(5, 149) % 250 + 5)
    path = write_cache(tmp_path / "f.h5", **data, contents=contents)
    train_head(path, tmp_path / "h", TrainOptions(strengths=(0.01,)))
    assert (
        "2 images have several labels: '0000.jpg' (ant) and '0001.jpg' (bee) have the same content"
        in caplog.text
    )


# --- cross-validated scores -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lbfgs", "ridge", "centroid"])
def test_with_few_validation_images_training_images_are_scored_in_turn(tmp_path, name):
    features, labels = two_classes(np.random.default_rng(0), 60)
    path = write_cache(tmp_path / "f.h5", features, labels, np.zeros(60, int))
    report = train_head(path, tmp_path / "h", SOLVERS[name])
    found = report.cross_validated
    assert found is not None
    assert found.num_folds == (5 if name == "lbfgs" else 0)
    assert found.scores.num_samples == 60
    assert 0.7 < found.scores.top1 < 1
    assert found.scores.top1_low < found.scores.top1 < found.scores.top1_high
    if name == "lbfgs":
        chosen = next(
            p for p in report.choice["path"] if p["strength"] == report.choice["strength"]
        )
        assert found.scores.top1 == pytest.approx(chosen["top1"])
        assert found.scores.log_loss == pytest.approx(report.calibration.log_loss_after)
    stored = open_head(tmp_path / "h").header.details["cross_validated"]
    assert stored == json.loads(json.dumps(report.to_dict()["cross_validated"]))
    again = train_head(path, tmp_path / "h", SOLVERS[name])
    assert again.is_unchanged
    assert again.cross_validated == found


def test_numbers_and_tags_are_scored_in_turn_in_their_units(tmp_path):
    features, labels = two_classes(np.random.default_rng(0), 60)
    numbers = write_cache(
        tmp_path / "n.h5", features, labels, np.zeros(60, int), classes=("100", "300")
    )
    report = train_head(numbers, tmp_path / "n", TrainOptions(task="regression"))
    assert 10 < report.cross_validated.scores.mae < 90
    tags = write_cache(
        *(tmp_path / "t.h5", features, labels, np.zeros(60, int)),
        classes=("big|red", "red"),
        label_kind="tags",
    )
    report = train_head(tags, tmp_path / "t")
    assert 0.7 < report.cross_validated.scores.exact < 1
    assert len(report.cross_validated.scores.per_class) == 2


def test_enough_validation_images_or_a_hold_out_need_no_cross_validation(tmp_path):
    features, labels = two_classes(np.random.default_rng(0), 200)
    path = write_cache(tmp_path / "f.h5", features, labels, 1 * (np.arange(200) % 4 == 0))
    assert train_head(path, tmp_path / "h").cross_validated is None
    few = write_cache(tmp_path / "few.h5", features, labels, 1 * (np.arange(200) % 5 == 0))
    assert train_head(few, tmp_path / "few").cross_validated is not None
    assert train_head(few, tmp_path / "mlp", SOLVERS["mlp"]).cross_validated is None


@pytest.mark.parametrize("name", [*SOLVERS, "sgd"])
def test_every_solver_tells_its_steps(tmp_path, name):
    cache = write_cache(tmp_path / "f.h5", **separable())
    options = SOLVERS.get(name, TrainOptions(solver="sgd"))
    steps: list[str] = []
    train_head(cache, tmp_path / "h", options, step=steps.append)
    assert len(steps) >= 2
    assert steps[-1] == "Scoring"
