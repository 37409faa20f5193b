"""Training's products by torch, here on the CPU: the optimum and the steps of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featx.heads.samples.rows import ArrayRows, survey
from featx.heads.solvers.linear import fit_linear
from featx.heads.solvers.mlp import fit_mlp
from featx.heads.solvers.mlp_options import MLPOptions
from featx.heads.solvers.networks import Networks, Setting
from featx.heads.solvers.on_torch import TorchDevice
from featx.heads.solvers.streamed_linear import fit_linear_in_blocks
from featx.heads.solvers.streamed_mlp import fit_mlp_in_blocks

DEVICE = TorchDevice("cpu")


@pytest.fixture
def samples() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 900)
    features = random.normal(size=(4, 10))[labels] + random.normal(size=(900, 10))
    return (features * 3 + 1).astype(np.float32), labels


def test_the_optimum_and_the_choice_are_numpys(samples) -> None:
    features, labels = samples
    weights = np.array([1, 3, 0.5, 1])[labels]
    options = {"strengths": [1e-4, 1e-2, 1.0], "weights": weights}
    ours = fit_linear(features, labels, 4, device=DEVICE, **options)
    theirs = fit_linear(features, labels, 4, **options)
    assert ours.strength == theirs.strength
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-9)
    np.testing.assert_allclose(ours.layer[0], theirs.layer[0], atol=1e-5)
    assert [point.log_loss for point in ours.path] == pytest.approx(
        [point.log_loss for point in theirs.path], rel=1e-5
    )


def test_the_optimum_in_blocks_is_numpys(samples) -> None:
    features, labels = samples
    found, _ = survey(ArrayRows(features, 100), np.arange(900), np.arange(0, 900, 2))
    rows = ArrayRows(features, 100)
    options = {"strengths": [1e-3, 1e-2]}
    ours = fit_linear_in_blocks(rows, labels, 4, found, device=DEVICE, **options)
    theirs = fit_linear_in_blocks(rows, labels, 4, found, **options)
    assert ours.strength == theirs.strength
    assert ours.objective == pytest.approx(theirs.objective, rel=1e-6)


def test_steps_without_dropout_are_numpys(samples) -> None:
    features, labels = samples
    settings = [Setting((0, 0), 1e-2, 1e-2, 0.0), Setting((0, 1), 1e-3, 0.5, 0.0)]
    ours, theirs = DEVICE.networks((10, 7, 5, 4), settings), Networks((10, 7, 5, 4), settings)
    assert np.array_equal(ours.parameters, theirs.parameters)
    shares = np.full(90, 1 / 90, np.float32)
    held = DEVICE.hold(features)
    for number in range(10):
        rows = np.arange(number, 900, 10)
        ours.step(held[rows], labels[rows], shares, pace=0.9)
        theirs.step(features[rows], labels[rows], shares, pace=0.9)
    np.testing.assert_allclose(ours.parameters, theirs.parameters, atol=2e-5)
    np.testing.assert_allclose(ours.logits(held), theirs.logits(features), atol=1e-3)
    for networks in (ours, theirs):
        networks.only(np.array([False, True]))
    assert len(ours) == 1
    np.testing.assert_allclose(ours.logits(held), theirs.logits(features), atol=1e-3)


def test_dropout_drops_as_many_as_asked_and_keeps_the_mean() -> None:
    networks = DEVICE.networks((3, 400, 2), [Setting((0, 0), 1, 0, 0.25), Setting((0, 1), 1, 0, 0)])
    kept = networks._kept(torch.ones(2, 50, 400))
    assert float((kept[0] == 0).float().mean()) == pytest.approx(0.25, abs=0.02)
    assert float(kept[0].mean()) == pytest.approx(1, abs=0.02)
    assert bool((kept[1] == 1).all())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_mlp_learns_as_well(samples, dropout: float) -> None:
    features, labels = samples
    options = MLPOptions(hidden=(16,), dropout=dropout, learning_rate=0.01, max_epochs=6)
    ours = fit_mlp(features, labels, 4, options, device=DEVICE)
    theirs = fit_mlp(features, labels, 4, options)
    again = fit_mlp(features, labels, 4, options, device=DEVICE)
    assert ours.held_out_loss == pytest.approx(theirs.held_out_loss, abs=0.05)
    assert ours.layers[0][0].tobytes() == again.layers[0][0].tobytes()


def test_an_mlp_in_blocks_learns_as_well(samples) -> None:
    features, labels = samples
    options = MLPOptions(hidden=(16,), learning_rate=0.01, max_epochs=6)
    kept = np.arange(0, 900, 10)
    found, _ = survey(ArrayRows(features, 100), np.arange(900), kept)
    rows = ArrayRows(np.delete(features, kept, axis=0), 50)
    arguments = (rows, labels, 4, found, options)
    ours = fit_mlp_in_blocks(*arguments, pool_bytes=10**4, device=DEVICE)
    theirs = fit_mlp_in_blocks(*arguments, pool_bytes=10**4)
    assert ours.held_out_loss == pytest.approx(theirs.held_out_loss, abs=1e-3)
