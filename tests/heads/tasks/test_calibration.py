"""Calibration: the best temperature, and a head that has it in its weights."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.heads.head import Layer, apply_layers
from featx.heads.samples.folds import HeldOut
from featx.heads.tasks import MULTI_LABEL, SINGLE_LABEL, Task
from featx.heads.tasks.calibration import (
    Calibration,
    fit_tag_temperature,
    fit_temperature,
    fold_temperature,
)
from featx.heads.tasks.losses import binary_log_loss, log_loss, sigmoid

EPS = float(np.finfo(np.float32).eps)


def calibrate(task: Task, logits: np.ndarray, labels: np.ndarray) -> Calibration:
    assert task.calibrate
    return task.calibrate(HeldOut(logits, labels))


def honest(num_samples: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose probabilities are those their labels were drawn with."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(num_samples, num_classes))
    return logits, (logits + random.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_a_temperature_is_found_again(temperature, num_classes):
    logits, labels = honest(20_000, num_classes)
    assert fit_temperature(temperature * logits, labels) == pytest.approx(temperature, rel=0.05)


@given(seed=st.integers(0, 2**32), num_classes=st.integers(2, 6), factor=st.floats(0.1, 10))
def test_no_other_temperature_is_better(seed, num_classes, factor):
    logits, labels = honest(200, num_classes, seed)
    logits = factor * (logits + np.random.default_rng(seed).normal(size=logits.shape))
    found = fit_temperature(logits, labels)
    best = log_loss(logits / found, labels)
    for other in (0.5, 0.8, 0.9, 1.1, 1.25, 2.0):
        assert best <= log_loss(logits / (found * other), labels) + 1e-3


def test_scaling_logits_scales_the_temperature():
    logits, labels = honest(500, 4)
    assert fit_temperature(7 * logits, labels) == pytest.approx(7 * fit_temperature(logits, labels))


def test_logits_that_are_never_wrong_stay_finite():
    labels = np.arange(30) % 3
    logits = np.eye(3)[labels]
    temperature = fit_temperature(logits, labels)
    assert 0.01 < temperature < 1
    assert log_loss(logits / temperature, labels) < 0.1


@pytest.mark.parametrize("logits", [np.zeros((6, 3)), -np.eye(3)[np.arange(6) % 3]])
def test_logits_that_say_nothing_or_lie(logits):
    temperature = fit_temperature(logits, np.arange(6) % 3)
    assert 1e-3 <= temperature <= 1e3
    assert np.isfinite(log_loss(logits / temperature, np.arange(6) % 3))


def test_what_is_reported():
    logits, labels = honest(5000, 5)
    found = calibrate(SINGLE_LABEL, 4 * logits, labels)
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.num_samples == 5000
    assert found.log_loss_before == pytest.approx(log_loss(4 * logits, labels))
    assert found.log_loss_after < found.log_loss_before
    assert found.ece_after < 0.03 < found.ece_before
    assert all(type(value) in (int, float) for value in asdict(found).values())


@given(
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=4),
    temperature=st.floats(1e-3, 1e3),
    spread=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**32),
)
def test_folding_keeps_logits(widths, temperature, spread, seed):
    """The logits of the folded head are those of the head, divided, within float32 rounding."""
    random = np.random.default_rng(seed)
    layers: list[Layer] = [
        (
            (spread * random.normal(size=(out, inputs))).astype(np.float32),
            (spread * random.normal(size=out)).astype(np.float32),
        )
        for inputs, out in pairwise(widths)
    ]
    features = random.normal(size=(20, widths[0])).astype(np.float32)
    folded = [*layers[:-1], fold_temperature(*layers[-1], temperature)]
    assert [part.dtype for layer in folded for part in layer] == [np.float32] * 2 * len(layers)
    before = apply_layers(layers[:-1], features)
    if len(layers) > 1:
        before = np.maximum(before, 0)
    weight, bias = layers[-1]
    expected = (before.astype(np.float64) @ weight.T + bias) / temperature
    size = (np.abs(before) @ np.abs(weight.T) + np.abs(bias)) / temperature
    found = apply_layers(folded, features)
    assert (np.abs(found - expected) <= EPS * (widths[-2] + 3) * size + 1e-37).all()


def test_folding_leaves_the_layers_alone():
    weight, bias = np.ones((2, 3), np.float32), np.ones(2, np.float32)
    fold_temperature(weight, bias, 2.0)
    assert (weight == 1).all()
    assert (bias == 1).all()


# --- tags ---------------------------------------------------------------------------------------


def honest_tags(num_samples: int, num_tags: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(num_samples, num_tags)) - 1
    return logits, (random.random(logits.shape) < sigmoid(logits)).astype(np.uint8)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 50.0])
def test_one_temperature_of_all_tags_is_found_again(temperature):
    logits, tags = honest_tags(5_000, 4)
    found = fit_tag_temperature(temperature * logits, tags)
    assert found == pytest.approx(temperature, rel=0.05)
    calibration = calibrate(MULTI_LABEL, temperature * logits, tags)
    assert calibration.temperature == found
    assert calibration.log_loss_after == pytest.approx(binary_log_loss(logits, tags), rel=1e-2)
    assert calibration.ece_after < 0.03
    assert calibration.log_loss_after <= calibration.log_loss_before + 1e-3


def test_tags_that_are_never_wrong_stay_finite():
    tags = np.eye(4, dtype=np.uint8).repeat(5, axis=0)
    temperature = fit_tag_temperature(2.0 * tags - 1, tags)
    assert 0.01 < temperature < 1


def test_tags_about_which_logits_say_nothing():
    assert 1e-3 <= fit_tag_temperature(np.zeros((6, 2)), np.eye(6, 2)) <= 1e3


@pytest.mark.parametrize("count", [4, 24, 2000])
def test_a_temperature_of_one_counts_as_some_samples(count):
    random = np.random.default_rng(0)
    labels = np.arange(count) % 2
    logits = 8 * random.standard_normal((count, 2))  # says nothing of the label
    plain, steadied = (
        SINGLE_LABEL.calibrate(HeldOut(logits, labels), prior_samples=prior).temperature
        for prior in (0, 25)
    )
    assert plain > 4
    assert 1 < steadied <= 4 ** (count / (count + 25)) + 1e-9


def test_few_samples_calibrate_better_with_prior_samples_than_alone_or_not_at_all():
    random = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray]:
        logits = 3 * random.standard_normal((count, 2))
        labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
        return 2.5 * logits, labels  # as sure of itself as a trained network

    logits, labels = draw(20_000)
    trained, best = log_loss(logits, labels), log_loss(logits / 2.5, labels)
    gained = {}
    for prior in (0, 15):
        found = [SINGLE_LABEL.calibrate(HeldOut(*draw(24)), prior_samples=prior) for _ in range(80)]
        losses = [log_loss(logits / each.temperature, labels) for each in found]
        gained[prior] = (trained - np.mean(losses)) / (trained - best)
    assert gained[15] > 0.9
    assert gained[0] < 0.8


def test_samples_that_are_all_right_leave_an_overconfident_head_no_surer():
    labels = np.arange(20) % 2
    found = SINGLE_LABEL.calibrate(HeldOut(6.0 * np.eye(2)[labels], labels), prior_samples=15)
    assert 1 < found.temperature < 4
