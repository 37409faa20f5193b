"""Fine-tuning a feature file: what it starts from, chooses, keeps, reports and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tuning import patterned, tiny_weights, write_activations

from featx.backbones.spec import BackboneSpec
from featx.backbones.tails import build_tail, features_of, tail_shapes
from featx.features.file import FeatureFile, open_features
from featx.heads.head import apply_layers
from featx.training.finetune.fit import fit_tail
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Events, Tuned

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


def test_scores_are_those_of_the_written_tail_and_head(tmp_path: Path):
    cache = cache_of(tmp_path / "maps.h5", noise=90)
    tuned = tune(cache, tmp_path / "checkpoint")
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
