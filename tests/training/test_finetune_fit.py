"""Fine-tuning a feature file: what it starts from, chooses, keeps, reports and resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from caches import separable, write_cache
from tuning import patterned, tiny_weights, write_activations

from featx.backbones.spec import BackboneSpec
from featx.backbones.tails import build_tail, features_of, tail_shapes
from featx.errors import ArtifactMismatch, BackboneError, ConfigError
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head, apply_layers
from featx.heads.tasks.losses import softmax_in_place
from featx.training.finetune.checkpoint import Checkpoint, Progress
from featx.training.finetune.fit import fit_tail
from featx.training.finetune.heads import layers_of_start, require_fitting_start
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Events, Tuned
from featx.training.finetune.problem import Problem
from featx.training.fitting import fit_heads
from featx.training.options import TrainOptions
from featx.training.record import head_header, made_from

QUICK = {"max_epochs": 3, "batch_size": 32, "lr": 3e-3, "seed": 1}


def cache_of(
    path: Path, count: int = 240, num_classes: int = 4, noise: float = 60.0, **options: Any
) -> FeatureFile:
    random = np.random.default_rng(5)
    labels = np.arange(count) % num_classes
    splits = random.choice(3, count, p=[0.6, 0.2, 0.2]).astype(np.uint8)
    names = [f"class {label}" for label in labels]
    return open_features(
        write_activations(path, patterned(labels, noise=noise), names, splits, **options),
        features_later=True,
    )


def tune(cache: FeatureFile, path: Path, events: Events | None = None, **options: Any) -> Tuned:
    return fit_tail(
        cache,
        FinetuneOptions(**(QUICK | options)),
        start=None,
        tensors=None if options.get("scratch") else tiny_weights().state,
        checkpoint=path,
        events=events or Events(),
    )


def test_a_tail_is_tuned_and_compared_with_the_probe(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5")
    told: list[tuple[str, int]] = []
    events = Events(on_parameters=lambda sizes, _: told.extend(sizes))
    tuned = tune(cache, tmp_path / "checkpoint", events, lr=None)
    choice, probe = tuned.trained.choice, tuned.probe
    assert probe is not None
    json.dumps(choice, allow_nan=False)
    tried = {each["lr"]: each["held_out"] for each in choice["learning_rates"]}
    assert choice["recipe"]["lr"] == min(tried, key=tried.__getitem__)
    losses = [epoch["held_out"] for epoch in choice["epochs"]]
    assert losses[choice["best_epoch"] - 1] == min(losses)
    assert tuned.trained.metrics.keys() == probe.metrics.keys() == {"train", "val", "test"}
    assert tuned.comparison is not None
    assert tuned.tail.keys() == tail_shapes(BackboneSpec.from_dict(cache.header.spec)).keys()
    assert all(each.dtype == np.float32 for each in tuned.tail.values())
    assert [name for name, _ in told] == [
        *("stage3.0.weight", "stage3.1.weight", "stage3.1.bias", "head.0.weight", "head.0.bias")
    ]
    assert choice["parameters"] == {"trained": sum(size for _, size in told), "all": 685_220}
    weights = tiny_weights().state
    same = {name for name, own in tuned.tail.items() if np.array_equal(own, weights[name])}
    assert same == {"stage3.1.running_mean", "stage3.1.running_var"}


@pytest.mark.parametrize("train_bn", [False, True])
def test_scores_are_those_of_the_written_tail_and_head(tmp_path: Path, train_bn: bool):
    cache = cache_of(tmp_path / "maps.h5", 120, noise=90)
    tuned = tune(cache, tmp_path / "checkpoint", train_bn=train_bn, average="ema")
    spec = BackboneSpec.from_dict(cache.header.spec)
    vectors = cache.with_network(features_of(build_tail(spec, tuned.tail, None), 192))
    for split, scores in tuned.trained.metrics.items():
        rows = cache.rows(split)
        outputs = apply_layers(tuned.trained.layers, vectors.features[rows])
        assert tuned.trained.task.measure(outputs, cache.labels[rows]) == scores


def assert_same(ours: Tuned, theirs: Tuned) -> None:
    """Check that two runs came to the same bits."""
    assert ours.trained.choice == theirs.trained.choice
    assert ours.trained.calibration == theirs.trained.calibration
    assert ours.trained.metrics == theirs.trained.metrics
    for a, b in zip(ours.trained.layers, theirs.trained.layers, strict=True):
        assert a[0].tobytes() == b[0].tobytes()
        assert a[1].tobytes() == b[1].tobytes()
    assert ours.tail.keys() == theirs.tail.keys()
    assert all(own.tobytes() == theirs.tail[name].tobytes() for name, own in ours.tail.items())


def test_a_run_is_repeated_to_the_bit_and_val_and_test_choose_nothing(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5", 120, num_views=1)
    first = tune(cache, tmp_path / "first", lr=None)
    assert_same(first, tune(cache, tmp_path / "again", lr=None))
    labels = cache.labels.copy()
    others = np.flatnonzero(cache.splits != 0)
    labels[others] = np.random.default_rng(0).permutation(labels[others])
    permuted = tune(replace(cache, labels=labels), tmp_path / "permuted", lr=None)
    assert permuted.trained.metrics["val"] != first.trained.metrics["val"]
    assert_same(
        first, replace(permuted, trained=replace(permuted.trained, metrics=first.trained.metrics))
    )


def test_a_run_that_is_resumed_with_other_threads_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    cache = cache_of(tmp_path / "maps.h5", 60)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        tune(cache, tmp_path / "state", Events(on_epoch=stop))
    try:
        torch.set_num_threads(before + 1)
        tuned = tune(cache, tmp_path / "state")
    finally:
        torch.set_num_threads(before)
    assert f"threads: expected '{before}', found '{before + 1}'" in caplog.text
    assert tuned.trained.choice["num_threads"] == before + 1


def test_where_no_epoch_is_better_the_probe_of_all_training_images_is_kept(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5")
    tuned = tune(cache, tmp_path / "checkpoint", lr=1e-30, backbone_lr=1e-30, weight_decay=0.0)
    assert tuned.trained.choice["best_epoch"] == 0
    (probe,) = fit_heads(cache, TrainOptions(seed=QUICK["seed"]))
    assert tuned.trained.calibration == probe.calibration
    for own, of_probe in zip(tuned.trained.layers[0], probe.layers[0], strict=True):
        assert np.array_equal(own, of_probe)
    weights = tiny_weights().state
    assert all(np.array_equal(own, weights[name]) for name, own in tuned.tail.items())
    assert tuned.comparison is not None
    assert tuned.comparison.num_only_tuned == tuned.comparison.num_only_probe == 0


@pytest.mark.parametrize("count", [4, 60])
def test_each_warning_is_given_once(tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int):
    labels = np.arange(count) % 4
    names, splits = [f"class {label}" for label in labels], np.zeros(count, np.uint8)
    if count == 60:  # a class without training images
        splits[labels == 3] = 1
    path = write_activations(tmp_path / "m.h5", patterned(labels), names, splits)
    tune(open_features(path), tmp_path / "checkpoint", task="single-label", max_epochs=1)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(messages) == len(set(messages))
    starts = [message.partition(":")[0] for message in messages]
    assert starts.count("No training images can be held out") == (count == 4)
    assert starts.count("No training images of 'class 3'") == (count == 60)


def test_a_class_with_one_training_image_stays_in_training_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    labels = np.arange(100) % 2
    labels[7] = 2
    splits = np.where(np.arange(100) % 5 == 0, 1, 0).astype(np.uint8)
    names = [("ant", "bee", "wasp")[label] for label in labels]
    cache = open_features(write_activations(tmp_path / "m.h5", patterned(labels), names, splits))
    problem = Problem.of(cache, FinetuneOptions(), None)
    assert not problem.is_held_out[problem.rows == 7]
    assert problem.is_held_out.sum() == 8
    assert "1 class has no image among those that choose learning rate and epoch: wasp." in (
        caplog.text
    )


def test_groups_are_held_out_as_a_whole(tmp_path: Path):
    labels = np.arange(120) % 3
    groups = [f"animal {row // 6}" for row in range(120)]
    path = write_activations(
        *(tmp_path / "m.h5", patterned(labels), [str(label) for label in labels]),
        np.zeros(120, np.uint8),
        groups=groups,
    )
    problem = Problem.of(open_features(path), FinetuneOptions(task="single-label"), None)
    held_out = {groups[row] for row in problem.rows[problem.is_held_out]}
    trained = {groups[row] for row in problem.rows[~problem.is_held_out]}
    assert held_out
    assert not held_out & trained


def test_tags_and_numbers_are_tuned_as_well(tmp_path: Path):
    random = np.random.default_rng(5)
    kinds = np.arange(150) % 4
    splits = random.choice(3, 150, p=[0.7, 0.2, 0.1]).astype(np.uint8)
    images = patterned(kinds)
    tags = [("", "red", "big", "red|big")[kind] or "none" for kind in kinds]
    path = write_activations(tmp_path / "tags.h5", images, tags, splits)
    tuned = tune(open_features(path), tmp_path / "a", task="multi-label")
    assert tuned.trained.names == ("big", "none", "red")
    assert len(tuned.trained.thresholds) == 3
    assert tuned.comparison is None
    assert tuned.trained.metrics["val"].mean_average_precision > 0.9  # type: ignore[union-attr]
    numbers = [f"{100 * kind + random.normal():.2f}" for kind in kinds]
    path = write_activations(tmp_path / "numbers.h5", images, numbers, splits)
    cache = open_features(path)
    tuned = tune(cache, tmp_path / "b", task="regression", lr=3e-4, average="none")
    assert tuned.trained.unit is not None
    assert tuned.trained.metrics["val"].r2 > 0.3  # type: ignore[union-attr, operator]
    assert tuned.trained.choice["epochs"][0]["held_out"] < 0.5  # in deviations


def test_a_run_from_scratch_has_no_probe_and_moves_the_statistics(tmp_path: Path):
    labels = np.arange(90) % 3
    splits = (np.arange(90) % 5 == 0).astype(np.uint8)
    names = [("ant", "bee", "wasp")[label] for label in labels]
    path = write_activations(
        tmp_path / "m.h5", patterned(labels), names, splits, cut="input", num_views=1
    )
    cache = open_features(path)
    tuned = tune(cache, tmp_path / "a", scratch=True, max_epochs=2)
    assert (tuned.probe, tuned.comparison) == (None, None)
    assert tuned.trained.choice["best_epoch"] > 0
    assert tuned.trained.choice["parameters"]["all"] == sum(
        tuned.trained.choice["parameters"][name] for name in ("trained",)
    )
    assert tuned.tail["stem.1.running_mean"].any()
    assert_same(tuned, tune(cache, tmp_path / "b", scratch=True, max_epochs=2))
    other = tune(cache, tmp_path / "c", scratch=True, max_epochs=1, seed=2)
    assert not np.array_equal(other.tail["stem.0.weight"], tuned.tail["stem.0.weight"])


def head_on(cache: FeatureFile, **changes: Any) -> Head:
    """Return a head that train-head fits to the unchanged tail's features."""
    spec = BackboneSpec.from_dict(cache.header.spec)
    vectors = cache.with_network(features_of(build_tail(spec, {}, tiny_weights()), 192))
    (trained,) = fit_heads(vectors, TrainOptions(**changes))
    header = head_header(cache, trained, made_from(cache, {}), class_weight=None, more={})
    return Head(header, trained.layers)


def test_a_head_is_taken_as_the_start_with_its_temperature_unfolded(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5", 120, noise=120)
    head = head_on(cache)
    problem = Problem.of(cache, FinetuneOptions(), head)
    temperature = head.header.details["temperature"]
    assert temperature != 1
    ((weight, _),) = layers_of_start(head, problem.targets.names, problem.encoding)
    assert weight == pytest.approx(head.layers[0][0] * temperature)
    tuned = fit_tail(
        cache,
        FinetuneOptions(lr=1e-9, max_epochs=1, calibrate=False),
        start=head,
        tensors=tiny_weights().state,
        checkpoint=tmp_path / "a",
        events=Events(),
    )
    assert tuned.trained.layers[0][0] == pytest.approx(weight, rel=1e-4, abs=1e-5)
    assert tuned.trained.choice["best_epoch"] == 1  # never the start, which has seen all images
    assert tuned.probe is not None
    assert tuned.probe.metrics["val"].to_dict() == head.header.details["metrics"].get(
        "val", tuned.probe.metrics["val"].to_dict()
    )


def test_a_start_of_other_classes_or_features_is_refused(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5", 60, num_classes=3)
    head = head_on(cache)
    other = cache_of(tmp_path / "other.h5", 60, num_classes=2)
    fewer = Problem.of(other, FinetuneOptions(), None).targets
    with pytest.raises(ArtifactMismatch, match="classes: class 2 in one of them only"):
        require_fitting_start(head, other, fewer)
    spec = dict(head.header.spec) | {"weights_sha256": "1" * 64}
    moved = replace(head, header=replace(head.header, spec=spec))
    own = Problem.of(cache, FinetuneOptions(), None).targets
    with pytest.raises(ArtifactMismatch, match="weights_sha256: expected"):
        require_fitting_start(moved, cache, own)


def test_probabilities_have_the_shares_of_the_classes_after_class_weights(tmp_path: Path):
    random = np.random.default_rng(0)
    labels = random.choice(3, 600, p=[0.8, 0.15, 0.05])
    splits = (np.arange(600) % 4 == 0).astype(np.uint8)
    names = [("ant", "bee", "wasp")[label] for label in labels]
    images = patterned(labels, contrast=4)
    cache = open_features(write_activations(tmp_path / "m.h5", images, names, splits))
    tuned = tune(cache, tmp_path / "a", class_weight="balanced", max_epochs=2, lr=3e-4)
    held_out = tuned.trained.held_out
    assert held_out is not None
    likely = softmax_in_place(held_out.logits.astype(np.float64))
    shares = np.bincount(held_out.labels, minlength=3) / len(held_out.labels)
    assert likely.mean(axis=0) == pytest.approx(shares, rel=0.1)


@pytest.mark.parametrize("scratch", [False, True])
def test_vectors_have_nothing_to_train_behind_them(tmp_path: Path, scratch: bool):
    cache = open_features(write_cache(tmp_path / "f.h5", **separable()))
    with pytest.raises(ConfigError, match="holds vectors: there is nothing behind them to train"):
        tune(cache, tmp_path / "a", scratch=scratch)


def test_missing_tensors_are_named(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5", 60)
    state = {name: own for name, own in tiny_weights().state.items() if "stage3.1" not in name}
    with pytest.raises(BackboneError, match=r"'stage3' are missing: stage3\.1\.weight"):
        fit_tail(
            *(cache, FinetuneOptions()),
            start=None,
            tensors=state,
            checkpoint=tmp_path / "a",
            events=Events(),
        )


def test_class_weights_have_no_meaning_for_numbers(tmp_path: Path):
    labels = np.arange(60) % 3
    path = write_activations(
        *(tmp_path / "m.h5", patterned(labels), [f"{label}.5" for label in labels]),
        np.zeros(60, np.uint8),
    )
    with pytest.raises(ConfigError, match="class weights have no meaning for regression"):
        tune(open_features(path), tmp_path / "a", task="regression", class_weight="balanced")


def test_an_error_while_the_file_is_open_is_not_taken_for_damage_to_it(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5", 60)
    Checkpoint(tmp_path / "state", {"start": None}, {}).save(Progress({1e-3: 0.5}))
    with pytest.raises(ArtifactMismatch, match=r"^'.*state' is the state of an unfinished"):
        tune(cache, tmp_path / "state")
