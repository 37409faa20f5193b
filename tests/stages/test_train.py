"""Training: the train split decides, the others are reported, and what is refused says why."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from caches import separable, write_cache
from scores import measure_classes
from solving import fit_linear

from featx.artifact import Header
from featx.errors import (
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMissing,
    ConfigError,
    SourceError,
)
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.features.schema import COLUMNS
from featx.heads.head import open_head
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.linear import STRENGTHS
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.solvers.sgd import EpochScores, SGDOptions
from featx.stages.extract import extract
from featx.stages.train import train_head
from featx.training.options import TrainOptions

FIXED = TrainOptions(strengths=(0.01,))
MLP = TrainOptions(head="mlp", mlp=MLPOptions(hidden=(8,), max_epochs=3))
KINDS = {
    "lbfgs": FIXED,
    "chosen": TrainOptions(strengths=(1e-3, 1e-2, 0.1)),
    "sklearn": TrainOptions(solver="sklearn", strengths=(1e-3, 1e-2)),
    "ridge": TrainOptions(solver="ridge"),
    "centroid": TrainOptions(solver="centroid"),
    "sgd": TrainOptions(
        solver="sgd", sgd=SGDOptions(learning_rate=0.003, epochs=15, batch_size=16, step_size=12)
    ),
    "balanced": replace(FIXED, class_weight="balanced"),
    "few-shot": replace(FIXED, few_shot=FewShot(12, 2)),
    "mlp": MLP,
}


@pytest.fixture(params=KINDS)
def options(request) -> TrainOptions:
    return KINDS[request.param]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "features.h5", **separable())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """In a folder of its own, so that what is left behind shows."""
    (tmp_path / "heads").mkdir()
    return tmp_path / "heads" / "head.safetensors"


# --- what comes out -----------------------------------------------------------------------------


def test_the_report_is_what_the_head_stores(cache, output, options):
    report = train_head(cache, output, options)
    stored = open_head(output)
    assert report.path == output
    assert stored.header == report.head.header
    assert stored.header.details["metrics"] == {
        split: scores.to_dict() for split, scores in report.metrics.items()
    }
    assert stored.header.details["choice"] == json.loads(json.dumps(report.choice))
    assert json.loads(json.dumps(report.to_dict()))["metrics"] == stored.header.details["metrics"]
    for found, told in zip(stored.layers, report.head.layers, strict=True):
        assert [part.tobytes() for part in found] == [part.tobytes() for part in told]


def test_the_stored_metrics_are_those_of_the_stored_head(cache, output, options):
    train_head(cache, output, options)
    head, features = open_head(output), open_features(cache)
    assert set(head.header.details["metrics"]) == {"train", "val", "test"}
    for split, stored in head.header.details["metrics"].items():
        rows = features.rows(split)
        scores = measure_classes(head.logits(features.features[rows]), features.labels[rows])
        assert scores is not None
        assert scores.to_dict() == stored
        assert scores.num_samples == len(rows)
    if options is not MLP:  # three epochs learn little
        assert head.header.details["metrics"]["val"]["top1"] > 0.7


def test_the_head_belongs_to_its_features(cache, output):
    head, header = train_head(cache, output, FIXED).head, open_features(cache).header
    assert head.header.spec == header.spec
    assert head.header.fingerprint == header.fingerprint
    assert head.classes == header.classes
    assert head.header.details["features"] == str(cache.resolve())
    assert head.header.details["source"] == "/photos"
    assert head.header.details["weights"] == "builtin:tiny"


def test_it_is_the_linear_fit_of_the_training_rows(cache, output):
    options = replace(FIXED, calibrate=False)
    head, features = train_head(cache, output, options).head, open_features(cache)
    rows = features.rows("train")
    fit = fit_linear(
        features.features[rows], features.labels[rows], 3, strengths=[0.01], hold_out=True
    )
    assert head.layers[0][0].tobytes() == fit.layer[0].tobytes()
    assert head.layers[0][1].tobytes() == fit.layer[1].tobytes()


def test_the_same_twice_gives_the_same_bytes(cache, output, options):
    train_head(cache, output, options)
    first = output.read_bytes()
    output.unlink()
    train_head(cache, output, options)
    assert output.read_bytes() == first


def test_the_default_options_choose_a_strength(cache, output):
    report = train_head(str(cache), str(output))
    assert report.choice["strength"] in STRENGTHS
    assert report.choice["num_folds"] == 5
    assert report.metrics["val"].top1 > 0.8
    assert report.metrics["val"].top5 is None
    assert report.seconds > 0


def test_the_whole_path_is_stored(cache, output):
    train_head(cache, output)
    path = open_head(output).header.details["choice"]["path"]
    assert [point["strength"] for point in path] == list(STRENGTHS)
    assert len(path) >= 16
    for point in path:
        assert set(point) == {"strength", "log_loss", "top1", "objective", "gradient_norm"}
        assert 0 <= point["top1"] <= 1
        assert point["objective"] > 0


def test_the_temperature_is_stored_and_folded_in(cache, output, options):
    plain = train_head(cache, output, replace(options, calibrate=False))
    assert plain.calibration is None
    assert open_head(output).header.details["temperature"] == 1.0
    report = train_head(cache, output, replace(options, overwrite=True))
    details = open_head(output).header.details
    if options.solver == "sgd":  # holds nothing out
        assert report.calibration is details["calibration"] is None
        return
    assert report.calibration is not None
    assert details["calibration"] == asdict(report.calibration) == report.to_dict()["calibration"]
    temperature = details["temperature"]
    assert temperature == report.calibration.temperature != 1.0
    features = open_features(cache).features
    before, after = plain.head.logits(features), report.head.logits(features)
    assert np.allclose(after * temperature, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    assert report.calibration.log_loss_after <= report.calibration.log_loss_before + 1e-3
    assert report.metrics["val"].top1 == plain.metrics["val"].top1


def test_the_features_are_left_alone(cache, output, options):
    before = cache.read_bytes()
    train_head(cache, output, options)
    assert cache.read_bytes() == before


# --- validation and test are only reported ------------------------------------------------------


def layers_of(path: Path) -> list[bytes]:
    return [part.tobytes() for layer in open_head(path).layers for part in layer]


def test_other_splits_never_influence_the_head(tmp_path, options):
    """Whatever is done to them: other values, other labels, no labels, gone."""
    table = separable()
    held_out = table["splits"] != 0
    random = np.random.default_rng(5)
    variants = {"as it is": table}
    variants["values"] = table | {"features": table["features"].copy()}
    variants["values"]["features"][held_out] = random.normal(size=(held_out.sum(), 6)) * 1e4
    variants["labels"] = table | {"labels": np.where(held_out, 0, table["labels"])}
    variants["no labels"] = table | {"labels": np.where(held_out, -1, table["labels"])}
    variants["swapped"] = table | {"splits": np.uint8([0, 2, 1])[table["splits"]]}
    variants["gone"] = {name: column[~held_out] for name, column in table.items()}
    results = {}
    for name, variant in variants.items():
        write_cache(tmp_path / "features.h5", **variant, overwrite=True)
        report = train_head(
            tmp_path / "features.h5", tmp_path / "h", replace(options, overwrite=True)
        )
        results[name] = layers_of(tmp_path / "h")
        assert ("val" in report.metrics) == (name not in ("no labels", "gone")), name
    assert all(layers == results["as it is"] for layers in results.values())


def test_training_rows_do(tmp_path, options):
    table = separable()
    layers = []
    for factor in (1, 2):
        features = table["features"].copy()
        features[table["splits"] == 0, 0] *= factor
        write_cache(tmp_path / "features.h5", **(table | {"features": features}), overwrite=True)
        train_head(tmp_path / "features.h5", tmp_path / "h", replace(options, overwrite=True))
        layers.append(layers_of(tmp_path / "h"))
    assert layers[0] != layers[1]


def test_unlabelled_training_rows_are_left_out_and_counted(tmp_path, options, caplog):
    table = separable()
    without = train_head(write_cache(tmp_path / "a.h5", **table), tmp_path / "a", options)
    random = np.random.default_rng(0)
    more = {
        "features": np.concatenate([table["features"], random.normal(size=(20, 6)) * 100]),
        "labels": np.concatenate([table["labels"], np.full(20, -1)]),
        "splits": np.concatenate([table["splits"], np.zeros(20, np.uint8)]),
    }
    assert "left out" not in caplog.text
    report = train_head(write_cache(tmp_path / "b.h5", **more), tmp_path / "b", options)
    assert "20 training images have no label: left out." in caplog.text
    assert layers_of(tmp_path / "a") == layers_of(tmp_path / "b")
    assert report.metrics == without.metrics


# --- refusals -----------------------------------------------------------------------------------


def refused(
    features: Path, output: Path, kind: type[Exception], match: str, options: TrainOptions = FIXED
) -> None:
    with pytest.raises(kind, match=match) as caught:
        train_head(features, output, options)
    assert type(caught.value) is kind
    assert os.listdir(output.parent) == []


def test_no_labels_at_all(tmp_path, output):
    table = separable() | {"labels": np.full(150, -1)}
    path = write_cache(tmp_path / "f.h5", **table, classes=())
    refused(path, output, SourceError, r"f\.h5' has no labels.*one\s+folder per class")


def test_no_labels_in_the_training_split(tmp_path, output):
    table = separable()
    table["labels"] = np.where(table["splits"] == 0, -1, table["labels"])
    path = write_cache(tmp_path / "f.h5", **table)
    refused(path, output, SourceError, "no labelled images in its training split")


def test_an_empty_training_split(tmp_path, output):
    table = separable()
    table["splits"] = np.maximum(table["splits"], 1)
    path = write_cache(tmp_path / "f.h5", **table)
    refused(path, output, SourceError, "no labelled images in its training split")


@pytest.mark.parametrize("elsewhere", [True, False])
def test_one_class_only(tmp_path, output, elsewhere):
    """Classes with images in other splits only cannot be learnt either."""
    table = separable()
    table["labels"] = np.where((table["splits"] == 0) | (not elsewhere), 1, table["labels"])
    path = write_cache(tmp_path / "f.h5", **table)
    refused(path, output, SourceError, r"one class only \('bee'\); a classifier needs two")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("split", [0, 1, 2])
def test_features_that_are_no_numbers_are_named(tmp_path, output, value, split):
    table = separable()
    rows = np.flatnonzero(table["splits"] == split)[[1, 4]]
    table["features"][rows, 3] = value
    path = write_cache(tmp_path / "f.h5", **table)
    refused(
        path, output, ArtifactInvalid, f"NaN or infinite features in 2 rows, '{rows[0]:04d}.jpg'"
    )


def test_files_that_are_no_features(cache, output, tmp_path):
    refused(tmp_path / "none.h5", output, ArtifactMissing, "featx extract")
    (tmp_path / "text.h5").write_text("hello")
    refused(tmp_path / "text.h5", output, ArtifactInvalid, "not a featx feature file")
    with h5py.File(cache, "r+") as file:
        file.attrs["complete"] = False
    refused(cache, output, ArtifactIncomplete, "the extraction did not finish")


def test_damaged_features(cache, output):
    with h5py.File(cache, "r+") as file:
        file["features"][0, 0] += 1
    refused(cache, output, ArtifactInvalid, "sha256")


def test_a_head_instead_of_features(cache, output, tmp_path):
    train_head(cache, tmp_path / "h.safetensors", FIXED)
    refused(tmp_path / "h.safetensors", output, ArtifactInvalid, "not a featx feature file")


def test_a_head_of_other_options_is_replaced_and_named(cache, output):
    assert train_head(cache, output, FIXED).replaced == ""
    before = output.read_bytes()
    report = train_head(cache, output, replace(FIXED, strengths=(1.0,)))
    assert not report.is_unchanged
    assert report.replaced.startswith("linear, C = 0.01, val 0.")
    assert report.to_dict()["replaced"] == report.replaced
    assert output.read_bytes() != before
    assert os.listdir(output.parent) == [output.name]


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_same_again_is_up_to_date_and_fits_nothing(
    cache, output, options, monkeypatch, overwrite
):
    first = train_head(cache, output, options)
    before = output.read_bytes(), output.stat().st_mtime_ns
    monkeypatch.setattr("featx.stages.train.fit_heads", None)
    again = train_head(cache, output, replace(options, overwrite=overwrite))
    assert again.is_unchanged
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    assert again.metrics == first.metrics
    assert again.calibration == first.calibration
    assert again.few_shot == first.few_shot
    assert again.head.header == first.head.header
    changed = {"seconds": 0.0, "is_unchanged": True}
    assert again.to_dict() == json.loads(json.dumps(first.to_dict())) | changed


CHANGES = {
    "strength": replace(FIXED, strengths=(0.1,)),
    "seed": replace(FIXED, seed=1),
    "calibrate": replace(FIXED, calibrate=False),
    "class weight": replace(FIXED, class_weight={"ant": 2.0}),
    "solver": replace(FIXED, solver="ridge"),
    "head": MLP,
    "memory": replace(FIXED, memory="1GB"),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_another_option_trains_again(cache, output, changed):
    train_head(cache, output, FIXED)
    assert not train_head(cache, output, CHANGES[changed]).is_unchanged
    assert train_head(cache, output, CHANGES[changed]).is_unchanged
    assert not train_head(cache, output, FIXED).is_unchanged


def change_column(path: Path, name: str) -> None:
    """Change a column of a feature file, and what its header says of it, as an update does."""
    with h5py.File(path, "r+") as file:
        rows = file[name][:]
        rows[[0, -1]] = rows[[-1, 0]] if name == "sample_ids" else (rows[[0, -1]] + 1) % 3
        file[name][:] = rows
        header = json.loads(file.attrs["header"])
        header["details"]["sha256"][name] = hashlib.sha256(rows.data).hexdigest()
        del header["checksum"], header["fingerprint"]
        header["classes"] = tuple(header["classes"])
        file.attrs["header"] = np.bytes_(Header(**header).to_json().encode())


@pytest.mark.parametrize(
    ("column", "is_unchanged"),
    [*((name, False) for name in COLUMNS if name != "stamps"), ("stamps", True)],
)
def test_other_features_train_again_other_times_do_not(cache, output, column, is_unchanged):
    train_head(cache, output, FIXED)
    change_column(cache, column)
    assert train_head(cache, output, FIXED).is_unchanged == is_unchanged


def test_features_that_moved_are_noted_anew(cache, output, tmp_path):
    train_head(cache, output, FIXED)
    moved = cache.rename(tmp_path / "moved.h5")
    assert not train_head(moved, output, FIXED).is_unchanged
    assert open_head(output).header.details["features"] == str(moved)


@pytest.mark.parametrize("cut", [1000, -1])
def test_a_damaged_head_is_replaced(cache, output, cut):
    train_head(cache, output, FIXED)
    whole = output.read_bytes()
    output.write_bytes(whole[:cut])
    assert train_head(cache, output, FIXED).replaced == "a head that cannot be read"
    assert output.read_bytes() == whole


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("content", [b"", b"notes of mine", b'\x08\0\0\0\0\0\0\0{"a":{}}'])
def test_a_file_that_is_no_head_is_never_replaced(cache, output, content, overwrite):
    output.write_bytes(content)
    with pytest.raises(ArtifactExists, match=r"is not a head that featx wrote.*head-2.safetensors"):
        train_head(cache, output, replace(FIXED, overwrite=overwrite))
    assert output.read_bytes() == content


def test_a_link_to_where_nothing_is_yet_is_written_through(cache, output):
    target = output.with_name("target.safetensors")
    output.symlink_to(target.name)
    assert train_head(cache, output, FIXED).replaced == ""
    assert output.is_symlink()
    assert train_head(cache, target, FIXED).is_unchanged


def test_other_files_of_featx_are_no_heads(cache, tmp_path):
    other = shutil.copy(cache, tmp_path / "other.h5")
    with pytest.raises(ArtifactExists):
        train_head(cache, other, FIXED)


def test_an_existing_head_is_noticed_before_any_work(cache, tmp_path, output, monkeypatch):
    output.write_bytes(b"")
    monkeypatch.setattr("featx.training.fitting.training_rows", None)
    with pytest.raises(ArtifactExists):
        train_head(cache, output, FIXED)
    with pytest.raises(ArtifactMissing):  # a typo is not hidden by it
        train_head(tmp_path / "none.h5", output, FIXED)


def test_a_failed_training_keeps_the_old_head(cache, output, tmp_path):
    train_head(cache, output, FIXED)
    before = output.read_bytes()
    one = write_cache(tmp_path / "one.h5", **(separable() | {"labels": np.zeros(150, int)}))
    with pytest.raises(SourceError):
        train_head(one, output, replace(FIXED, overwrite=True))
    assert output.read_bytes() == before


def test_the_features_cannot_be_overwritten_by_their_head(cache, tmp_path):
    before = cache.read_bytes()
    (tmp_path / "link.h5").symlink_to(cache)
    for output in (cache, tmp_path / "link.h5"):
        with pytest.raises(ConfigError, match="would replace"):
            train_head(cache, output, replace(FIXED, overwrite=True))
    assert cache.read_bytes() == before


def test_a_folder_cannot_be_a_head(cache, tmp_path):
    with pytest.raises(Exception, match="is a folder; give the path of a file"):
        train_head(cache, tmp_path, FIXED)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"head": "forest"}, "head must be one of linear, mlp; got 'forest'"),
        (
            {"solver": "adam"},
            "solver must be one of lbfgs, sklearn, ridge, centroid, sgd; got 'adam'",
        ),
        ({"strengths": ()}, "strengths C must be above 0"),
        ({"strengths": (1.0, 0.0)}, "strengths C must be above 0"),
        ({"strengths": (-1.0,)}, "strengths C must be above 0"),
        ({"strengths": (float("inf"),)}, "strengths C must be above 0"),
        ({"strengths": (float("nan"),)}, "strengths C must be above 0"),
    ],
)
def test_options_out_of_range(change, match):
    with pytest.raises(ConfigError, match=match):
        TrainOptions(**change)


# --- odd but usable data ------------------------------------------------------------------------


def test_a_class_without_training_images_is_warned_of_and_never_predicted(
    tmp_path, output, options, caplog
):
    table = separable()
    table["labels"] = np.where(table["splits"] == 0, table["labels"] % 2 * 2, table["labels"])
    path = write_cache(tmp_path / "f.h5", **table, classes=("ant", "bee", "wasp", "fly"))
    if options is MLP:
        options = replace(MLP, mlp=replace(MLP.mlp, max_epochs=60, learning_rate=0.02))
    with caplog.at_level(logging.WARNING):
        report = train_head(path, output, options)
    assert "No training images of 'bee', 'fly': never predicted." in caplog.text
    predicted = report.head.logits(table["features"]).argmax(axis=1)
    assert set(predicted) <= {0, 2}
    assert np.isfinite(report.metrics["val"].log_loss)


@pytest.mark.parametrize("counts", [(1, 1), (1, 5), (2, 2)])
def test_the_smallest_training_splits(tmp_path, output, options, counts):
    labels = np.repeat([0, 1], counts)
    features = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    path = write_cache(
        tmp_path / "f.h5", features, labels, np.zeros(len(labels), np.uint8), classes=("a", "b")
    )
    report = train_head(path, output, options)
    assert list(report.metrics) == ["train"]
    assert np.isfinite(report.head.logits(features)).all()


def test_constant_features_give_the_largest_class(tmp_path, output, options):
    table = separable() | {"features": np.full((150, 6), 2.5, np.float32)}
    report = train_head(write_cache(tmp_path / "f.h5", **table), output, options)
    assert np.isfinite(report.metrics["val"].log_loss)
    train = table["labels"][table["splits"] == 0]
    if options in (FIXED, KINDS["chosen"], KINDS["sklearn"], KINDS["ridge"]):
        assert report.metrics["train"].top1 == np.bincount(train).max() / len(train)


def test_sgd_tells_each_epoch_and_is_not_calibrated(cache, output):
    told: list[EpochScores] = []
    report = train_head(cache, output, KINDS["sgd"], progress=told.append)
    assert [scores.epoch for scores in told] == list(range(1, 16))
    assert report.calibration is None
    assert report.choice["momentum"] == 0.9


def test_class_weights_move_the_decision(tmp_path):
    """A rare class that overlaps a frequent one is found more often when it counts more."""
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 30])
    features = (random.normal(size=(330, 4)) + labels[:, None]).astype(np.float32)
    splits = np.zeros(330, np.uint8)
    path = write_cache(tmp_path / "f.h5", features, labels, splits, classes=("ant", "bee"))
    recalls = {}
    for name, weight in {"none": None, "balanced": "balanced", "named": {"bee": 10.0}}.items():
        options = TrainOptions(strengths=(0.1,), class_weight=weight)
        report = train_head(path, tmp_path / name, options)
        recalls[name] = report.metrics["train"].per_class[1].recall
        assert open_head(tmp_path / name).header.details["class_weight"] == weight
    assert recalls["balanced"] == pytest.approx(recalls["named"], abs=0.05)
    assert recalls["balanced"] > recalls["none"] + 0.2


def test_unknown_class_weights_are_named(cache, output):
    options = replace(FIXED, class_weight={"fly": 2.0})
    refused(cache, output, ConfigError, "'fly', which is not a class", options)


def test_few_shot_scores_are_those_of_its_draws(cache, output):
    options = replace(FIXED, few_shot=FewShot(3, 4))
    report = train_head(cache, output, options)
    details = open_head(output).header.details["few_shot"]
    assert (details["shots"], details["repeats"]) == (3, 4)
    assert details["metrics"] == report.to_dict()["few_shot"]
    assert set(report.few_shot) == {"train", "val", "test"}
    spread = report.few_shot["val"].top1
    assert abs(report.metrics["val"].top1 - spread.mean) < 4 * spread.deviation + 0.1
    assert spread.deviation > 0


def test_an_mlp_that_diverges_is_a_clear_error(cache, output):
    options = replace(MLP, mlp=MLPOptions(hidden=(8, 8), learning_rate=1e30, max_epochs=3))
    refused(cache, output, ConfigError, "diverged", options)


def test_the_choice_of_an_mlp_is_recorded(cache, output):
    options = MLPOptions(hidden=(8, 4), dropout=0.1, max_epochs=3)
    choice = train_head(cache, output, TrainOptions(head="mlp", mlp=options, seed=7)).choice
    assert choice["hidden"] == [8, 4]
    assert (choice["head"], choice["solver"]) == ("mlp", "adamw")
    assert (choice["dropout"], choice["seed"]) == (0.1, 7)
    assert 1 <= choice["num_epochs"] <= 3


def test_copies_of_training_images_among_held_out_ones_are_named(photos, tmp_path, caplog):
    root = photos({"train/ants": 4, "train/bees": 4, "val/ants": 2, "val/bees": 2})
    options = ExtractOptions(backbone="tiny")
    extract(root, tmp_path / "f.h5", options)
    train_head(tmp_path / "f.h5", tmp_path / "h.safetensors")
    assert "too good" not in caplog.text
    (root / "val" / "bees" / "copy.jpg").write_bytes((root / "train/bees/000.jpg").read_bytes())
    extract(root, tmp_path / "f.h5", options)
    train_head(tmp_path / "f.h5", tmp_path / "h2.safetensors")
    assert "1 validation or test image has the content of a training image" in caplog.text
    assert "'val/bees/copy.jpg' first" in caplog.text
