"""Heads of feature files at a cut: fitted on what the unchanged network behind it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tuned import write_cut

from featx.backbones.spec import BackboneSpec
from featx.errors import ConfigError
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.stages.extract import extract
from featx.stages.train import train_head
from featx.training.fitting import COPIES, fit_heads
from featx.training.options import TrainOptions

OPTIONS = TrainOptions(strengths=(0.01,), calibrate=False)


@pytest.fixture
def source(photos: Callable[..., Path]) -> Path:
    return photos({"ants": 12, "bees": 12})


@pytest.fixture
def plain(source: Path, tmp_path: Path) -> Path:
    extract(source, tmp_path / "f.h5", ExtractOptions(backbone="tiny", val_fraction=0.4))
    return tmp_path / "f.h5"


@pytest.mark.parametrize(
    ("cut", "dtype", "bound"),
    [("stage2", "float32", 1e-4), ("stage3", "float16", 5e-3), ("input", "uint8", 1e-4)],
)
def test_the_head_of_a_cut_is_that_of_the_vectors(plain, source, tmp_path, cut, dtype, bound):
    path = write_cut(tmp_path / "maps.h5", plain, source, cut, dtype=dtype)
    ours = train_head(path, tmp_path / "cut", OPTIONS)
    theirs = train_head(plain, tmp_path / "plain", OPTIONS)
    features = open_features(plain).features
    expected = theirs.head.logits(features)
    assert np.abs(ours.head.logits(features) - expected).max() <= bound * np.abs(expected).max()
    head = open_head(tmp_path / "cut")
    spec = BackboneSpec.from_dict(head.header.spec)
    assert head.header.spec == open_features(path).header.spec
    assert (spec.cut, spec.row_shape) == (cut, open_features(path).row_shape)
    assert spec.without_cut == BackboneSpec.from_dict(theirs.head.header.spec)
    assert not head.tail
    assert head.layers[0][0].shape == (2, spec.num_features)
    for split, scores in theirs.metrics.items():
        assert ours.metrics[split].top1 == scores.top1
    assert train_head(path, tmp_path / "cut", OPTIONS).is_unchanged


def test_views_at_a_cut_train_through_the_network(plain, source, tmp_path):
    path = write_cut(tmp_path / "maps.h5", plain, source, "stage3", dtype="float32", num_views=2)
    (head,) = fit_heads(open_features(path), OPTIONS)
    (without,) = fit_heads(open_features(path), replace(OPTIONS, use_views=False))
    assert head.choice["views"]["num_views"] == 2
    assert np.allclose(head.layers[0][0], without.layers[0][0], atol=1e-5)


def test_activations_are_never_read_in_blocks(plain, source, tmp_path, monkeypatch):
    path = write_cut(tmp_path / "maps.h5", plain, source, "stage2")
    cache = open_features(path)
    monkeypatch.setattr("featx.training.fitting.reading_blocks", None)
    needed = COPIES["lbfgs"] * 4 * len(cache) * cache.num_features
    assert needed < len(cache) * 4 * np.prod(cache.row_shape)  # the maps themselves do not fit
    fit_heads(cache, replace(OPTIONS, memory=needed))
    with pytest.raises(ConfigError, match="the features behind the cut 'stage2' need about"):
        fit_heads(cache, replace(OPTIONS, memory=needed - 1))
