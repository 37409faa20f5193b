"""The subsample, the hold-out of many samples, class weights, and draws of a few samples."""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scores import measure_classes
from sklearn.utils.class_weight import compute_sample_weight

from featx.errors import ConfigError
from featx.heads.samples.selection import (
    MIN_SUBSAMPLE,
    FewShot,
    choose_held_out,
    choose_subsample,
    draw_shots,
    summarise,
    warn_of_small_classes,
    weights_of,
)
from featx.heads.tasks.losses import SIGMOID, SOFTMAX

CLASSES = ("ant", "bee", "wasp")


@given(labels=st.lists(st.integers(0, 6), min_size=1, max_size=100).map(np.array))
def test_balanced_is_scikit_learns(labels):
    weights = weights_of(labels, [str(i) for i in range(7)], "balanced")
    assert np.allclose(weights, compute_sample_weight("balanced", labels))
    assert weights.sum() == pytest.approx(len(labels))


def test_by_name_and_1_for_the_others():
    labels = np.array([2, 0, 1, 1])
    assert weights_of(labels, CLASSES, {"bee": 3, "wasp": 0.5}).tolist() == [0.5, 1, 3, 3]
    assert weights_of(labels, CLASSES, {}).tolist() == [1, 1, 1, 1]
    assert weights_of(labels, CLASSES, None).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given_", "match"),
    [
        ("even", "must be 'balanced' or weights by class name; got 'even'"),
        ({"bees": 2}, "name 'bees', which is not a class; the classes are ant, bee, wasp"),
        ({"bee": 0}, "must be above 0; got 0 for 'bee'"),
        ({"bee": -1.5}, "must be above 0"),
        ({"bee": float("nan")}, "must be above 0"),
        ({"bee": float("inf")}, "must be above 0"),
        ({"bee": "2"}, "must be above 0; got '2'"),
        ({"bee": True}, "must be above 0"),
        ({"bee": None}, "must be above 0"),
    ],
)
def test_refusals(given_, match):
    with pytest.raises(ConfigError, match=match):
        weights_of(np.array([0, 1]), CLASSES, given_)


@given(st.integers(2, 3000), st.integers(1, 30), st.integers(0, 10**7))
def test_a_subsample_is_spread_over_the_classes(n, num_classes, memory):
    labels = np.random.default_rng(n).integers(0, num_classes, n)
    kept = choose_subsample(labels, 10, num_classes, memory=memory, seed=0, at_most=700)
    assert len(np.unique(kept)) == len(kept)
    assert np.all(np.diff(kept) > 0)
    shares = np.bincount(labels[kept], minlength=num_classes) / len(kept)
    expected = np.bincount(labels, minlength=num_classes) / n
    assert np.abs(shares - expected).max() <= 1 / len(kept) + 1e-9


def test_the_only_sample_of_a_class_is_never_held_out():
    labels = np.concatenate([np.arange(50), np.repeat([50, 51], 60)])
    held_out = choose_held_out(labels, 10, 52, loss=SOFTMAX, memory=10**6, seed=0)
    assert 1 <= len(held_out) <= len(labels) // 10
    assert (labels[held_out] >= 50).all()
    none = choose_held_out(np.arange(50), 10, 50, loss=SOFTMAX, memory=10**6, seed=0)
    assert not len(none)


def test_of_many_samples_few_are_held_out_and_whole_groups():
    labels = np.arange(60_000) % 7
    groups = np.where(np.arange(60_000) < 50_000, np.arange(60_000) // 25, -1)
    held_out = choose_held_out(labels, 10, 7, loss=SOFTMAX, groups=groups, memory=0, seed=0)
    assert 0.8 * MIN_SUBSAMPLE < len(held_out) <= 1.05 * MIN_SUBSAMPLE
    assert np.all(np.diff(held_out) > 0)
    chosen = np.isin(np.arange(60_000), held_out)
    for group in np.unique(groups[held_out]):
        assert group < 0 or chosen[groups == group].all()


def sides(tags: np.ndarray) -> np.ndarray:
    """How many have each tag, and how many lack it."""
    return np.stack([tags.sum(axis=0, dtype=np.int64), (1 - tags).sum(axis=0, dtype=np.int64)])


@given(st.integers(1, 300), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_a_subsample_has_each_tag_and_a_hold_out_leaves_it(n, num_tags, seed):
    random = np.random.default_rng(seed)
    tags = (random.random((n, num_tags)) < random.random(num_tags) ** 3).astype(np.uint8)
    there = sides(tags) > 0
    kept = choose_subsample(tags, 10, num_tags, memory=0, seed=0, at_most=2 * num_tags)
    assert len(kept) == min(n, 2 * num_tags)
    assert np.all(np.diff(kept) > 0)
    assert np.array_equal(sides(tags[kept]) > 0, there)
    held_out = choose_held_out(tags, 10, num_tags, loss=SIGMOID, memory=0, seed=0)
    if len(held_out):
        assert np.array_equal(sides(np.delete(tags, held_out, axis=0)) > 0, there)


def test_a_subsample_has_tags_as_often_as_all():
    tags = (np.random.default_rng(0).random((20_000, 3)) < [0.5, 0.1, 0.9]).astype(np.uint8)
    kept = choose_subsample(tags, 10, 3, memory=0, seed=0)
    assert len(kept) == 2048
    assert tags[kept].mean(axis=0) == pytest.approx(tags.mean(axis=0), abs=0.04)
    assert not np.array_equal(kept, choose_subsample(tags, 10, 3, memory=0, seed=1))


label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=100).map(np.array)


@given(labels=label_lists, shots=st.integers(1, 10), seed=st.integers(0, 2**32))
def test_so_many_of_each_class(labels, shots, seed):
    rows = draw_shots(labels, shots, seed=(seed, 0))
    assert (np.diff(rows) > 0).all()
    drawn = np.bincount(labels[rows], minlength=6)
    assert np.array_equal(drawn, np.minimum(np.bincount(labels, minlength=6), shots))
    assert np.array_equal(rows, draw_shots(labels, shots, seed=(seed, 0)))


def test_each_draw_is_another():
    labels = np.repeat([0, 1], 100)
    assert len({draw_shots(labels, 5, seed=(0, i)).tobytes() for i in range(20)}) == 20


def test_small_classes_are_told(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_small_classes(np.array([0, 0, 0, 2]), 2)
    assert "1 class has fewer than 2 training samples" in caplog.text


def test_mean_and_deviation():
    labels = np.array([0, 1, 0, 1])
    draws = []
    for right in (4, 2):
        logits = np.eye(2)[np.where(np.arange(4) < right, labels, 1 - labels)]
        draws.append({"val": measure_classes(logits, labels)})
    scores = summarise(draws)["val"]  # type: ignore[arg-type]
    assert scores.top1.mean == 0.75
    assert scores.top1.deviation == pytest.approx(np.std([1, 0.5], ddof=1))
    assert summarise(draws[:1])["val"].top1.deviation == 0  # type: ignore[arg-type]
    assert set(asdict(scores)["log_loss"]) == {"mean", "deviation"}


@pytest.mark.parametrize(("shots", "repeats"), [(0, 1), (1, 0), (-1, 5)])
def test_options_out_of_range(shots, repeats):
    with pytest.raises(ConfigError, match="must be at least 1"):
        FewShot(shots, repeats)
