"""Few-shot: so many of each class, others each time, and honest spreads."""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scores import measure_classes

from featx.errors import ConfigError
from featx.heads.samples.few_shot import FewShot, draw_shots, summarise, warn_of_small_classes

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
