"""Fine-tuning with less memory than activations, and the features behind the cut, take."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning import patterned, tiny_weights, write_activations

from featx.backbones.spec import BackboneSpec
from featx.backbones.tails import build_tail, features_of
from featx.features.file import FeatureFile, open_features
from featx.heads.head import apply_layers
from featx.training.finetune.fit import fit_tail
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Events, Tuned


def cache_of(path: Path, labels: np.ndarray, **options: Any) -> FeatureFile:
    names = [f"class {label}" for label in labels]
    splits = (np.arange(len(labels)) % 5 == 0).astype(np.uint8)
    return open_features(
        write_activations(path, patterned(labels, **options), names, splits), features_later=True
    )


def tune(cache: FeatureFile, path: Path, **options: Any) -> Tuned:
    quick = {"max_epochs": 2, "lr": 1e-3, "seed": 1}
    return fit_tail(
        cache,
        FinetuneOptions(**(quick | options)),
        start=None,
        tensors=tiny_weights().state,
        checkpoint=path,
        events=Events(),
    )


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_where_features_do_not_fit_the_probe_is_fitted_to_some_of_each_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str
):
    labels = np.arange(300) % 4
    labels[labels == 3] = np.where(np.arange(75) < 3, 3, 0)  # a rare class
    cache = cache_of(tmp_path / "m.h5", labels)
    options = {"memory": "200KB", "task": task}
    tuned = tune(cache, tmp_path / "a", **options)
    probe = tuned.probe
    assert probe is not None
    num_fitted = probe.choice["num_fitted"]
    assert 64 <= num_fitted <= 72
    assert f"is fitted to {num_fitted} of 240 training images" in caplog.text
    assert probe.metrics["train"].num_samples == 240  # scored on all
    vectors = cache.with_network(
        features_of(build_tail(BackboneSpec.from_dict(cache.header.spec), {}, tiny_weights()), 192)
    )
    rows = cache.rows("val")
    outputs = apply_layers(probe.layers, vectors.features[rows])
    if task == "single-label":
        assert probe.task.measure(outputs, cache.labels[rows]) == probe.metrics["val"]
        assert (outputs > -1e3).all()  # no class was left out of the subsample
        assert probe.metrics["val"].top1 > 0.8  # type: ignore[union-attr]
    again = tune(cache, tmp_path / "b", **options)
    assert again.trained.metrics == tuned.trained.metrics
    usual = tune(cache, tmp_path / "c", memory="500MB", task=task)
    assert usual.probe is not None
    assert "num_fitted" not in usual.probe.choice


def test_a_kept_probe_of_some_images_says_how_many(tmp_path: Path):
    cache = cache_of(tmp_path / "m.h5", np.arange(300) % 4)
    still = {"lr": 1e-30, "backbone_lr": 1e-30, "weight_decay": 0.0}
    tuned = tune(cache, tmp_path / "a", memory="200KB", **still)
    assert tuned.trained.choice["best_epoch"] == 0
    assert tuned.probe is not None
    assert tuned.trained.choice["num_fitted"] == tuned.probe.choice["num_fitted"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_activations(tmp_path: Path):
    peaks, sizes = [], []
    for count in (100, 800, 2400):  # the first one imports
        cache = cache_of(tmp_path / f"{count}.h5", np.arange(count) % 4)
        cache = open_features(cache.path)  # compared with its sha256 here, in larger blocks
        tracemalloc.start()
        try:
            tuned = tune(cache, tmp_path / f"{count}", memory="3MB", max_epochs=1)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        sizes.append(cache.path.stat().st_size)
        assert tuned.trained.metrics["val"].num_samples == count // 5
    assert sizes[2] - sizes[1] > 23e6
    assert peaks[2] - peaks[1] < 8e6
