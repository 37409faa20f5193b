"""Sums over parts, each in another process, add up to the head of all samples."""

from __future__ import annotations

import numpy as np
import pytest
from solving import ArrayBlocks, fit_centroid, fit_linear, fit_ridge, samples_of

from featx.heads.samples.data import read_first_pass
from featx.heads.tasks.losses import SIGMOID

NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES = 900, 12, 4


def fitted(fit, part_rows, labels=None, **given):
    features, own = samples_of(NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES)
    labels = own if labels is None else labels
    blocks = ArrayBlocks(features, 50, part_rows)
    first_pass, _ = read_first_pass(blocks, np.arange(NUM_SAMPLES), np.arange(0, NUM_SAMPLES, 3))
    return fit(blocks, labels, NUM_CLASSES, first_pass=first_pass, **given)


def tags() -> np.ndarray:
    _, labels = samples_of(NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES)
    return ((labels[:, None] + np.arange(NUM_CLASSES)) % NUM_CLASSES < 2).astype(np.uint8)


@pytest.mark.parametrize("part_rows", [131, 899])
@pytest.mark.parametrize(
    ("fit", "given", "atol"),
    [
        (fit_linear, {"strengths": [1e-3, 1e-2]}, 2e-4),
        (
            fit_linear,
            {"strengths": [1e-3], "labels": tags(), "loss": SIGMOID, "hold_out": True},
            2e-4,
        ),
        (fit_ridge, {}, 1e-6),
        (fit_ridge, {"groups": np.arange(NUM_SAMPLES) // 5}, 1e-6),
        (fit_ridge, {"labels": samples_of(NUM_SAMPLES, NUM_CLASSES, 2)[0]}, 1e-6),
        (fit_centroid, {}, 1e-6),
        (fit_centroid, {"groups": np.arange(NUM_SAMPLES) // 5}, 1e-6),
    ],
    ids=["linear", "tags", "ridge", "ridge in groups", "numbers", "centroid", "centroid in groups"],
)
def test_heads_over_parts_are_those_of_all_samples(fit, given, atol, part_rows):
    whole, ours = fitted(fit, None, **given), fitted(fit, part_rows, **given)
    again = fitted(fit, part_rows, **given)
    for name in ("strength", "objective"):
        if hasattr(whole, name):
            assert getattr(ours, name) == pytest.approx(getattr(whole, name), rel=1e-6)
    for one, other, same in zip(ours.layer, whole.layer, again.layer, strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one / scale, other / scale, atol=atol)
        assert np.array_equal(one, same)
    assert np.array_equal(ours.held_out.labels, whole.held_out.labels)
    np.testing.assert_allclose(
        ours.held_out.logits, whole.held_out.logits, atol=atol * 100, rtol=1e-3
    )


@pytest.mark.parametrize("part_rows", [1, 131, 899])
def test_a_first_pass_over_parts_finds_what_one_does(part_rows):
    features, _ = samples_of(NUM_SAMPLES, NUM_FEATURES, NUM_CLASSES)
    features[77, 3] = np.nan
    trained, kept = np.arange(100, NUM_SAMPLES, 2), np.arange(0, 400, 7)
    (whole, bad), (ours, own_bad) = (
        read_first_pass(ArrayBlocks(features, 50, rows), trained, kept)
        for rows in (None, part_rows)
    )
    assert own_bad.tolist() == bad.tolist() == [77]
    assert np.array_equal(ours.features, whole.features)
    for name in ("mean", "scale", "correlation"):
        np.testing.assert_allclose(getattr(ours, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
