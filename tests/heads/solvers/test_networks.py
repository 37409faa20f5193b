"""Perceptrons side by side: torch's steps, and the gradient of what is said to fall."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featx.heads.solvers.networks import Networks, Setting, split_layers

WIDTHS = (5, 7, 4, 3)


def samples_of(num_samples: int = 24, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    shares = random.uniform(0.5, 2, num_samples)
    x = random.normal(size=(num_samples, 5)).astype(np.float32)
    return x, random.integers(0, 3, num_samples), (shares / shares.sum()).astype(np.float32)


def torchs(networks: Networks, row: int) -> torch.nn.Sequential:
    """The same network in torch."""
    modules: list[torch.nn.Module] = []
    for weight, bias in split_layers(networks.parameters[row : row + 1].copy(), WIDTHS):
        linear = torch.nn.Linear(*weight[0].shape)
        linear.load_state_dict(
            {"weight": torch.tensor(weight[0].T), "bias": torch.tensor(bias[0, 0])}
        )
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


def test_steps_are_torchs_adamw():
    settings = [Setting((0, 0), 0.01, 0.1, 0.0), Setting((0, 1), 0.003, 0.0, 0.0)]
    networks = Networks(WIDTHS, settings)
    others = [torchs(networks, row) for row in range(2)]
    x, labels, shares = samples_of()
    for row, (other, setting) in enumerate(zip(others, settings, strict=True)):
        optimiser = torch.optim.AdamW(
            other.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay
        )
        for step in range(10):
            optimiser.param_groups[0]["lr"] = setting.learning_rate * (1 - step / 20)
            if row == 0:
                networks.step(x, labels, shares, lr_scale=1 - step / 20)
            losses = torch.nn.functional.cross_entropy(
                other(torch.tensor(x)), torch.tensor(labels), reduction="none"
            )
            optimiser.zero_grad()
            (losses * torch.tensor(shares)).sum().backward()
            optimiser.step()
        with torch.inference_mode():
            expected = other(torch.tensor(x)).numpy()
        assert np.allclose(networks.logits(x)[row], expected, atol=1e-4)


def test_dropping_networks_leaves_the_others():
    settings = [Setting((0, i), 0.01, 0.1, 0.3) for i in range(3)]
    x, labels, shares = samples_of()
    all_along, dropped = Networks(WIDTHS, settings), Networks(WIDTHS, settings)
    for step in range(6):
        if step == 2:
            dropped.only(np.array([True, False, True]))
        for networks in (all_along, dropped):
            networks.step(x, labels, shares, lr_scale=1.0)
    assert len(dropped) == 2
    assert np.allclose(dropped.parameters, all_along.parameters[[0, 2]], atol=1e-6)


@pytest.mark.parametrize("dropout", [0.25, 0.75])
def test_dropout_keeps_the_mean(dropout):
    networks = Networks((3, 4000, 2), [Setting((0, 0), 1e-3, 0.0, dropout)])
    hidden = np.ones((1, 50, 4000), np.float32)
    networks._drop(hidden)
    assert hidden.mean() == pytest.approx(1, abs=0.02)
    assert (hidden == 0).mean() == pytest.approx(dropout, abs=0.01)


def test_initial_weights_are_torchs_range():
    networks = Networks((100, 50, 10), [Setting((0, i), 1e-3, 0.0, 0.0) for i in range(2)])
    (first, _), (second, _) = split_layers(networks.parameters, (100, 50, 10))
    assert np.abs(first).max() == pytest.approx(0.1, rel=0.01)
    assert np.abs(second).max() == pytest.approx(1 / np.sqrt(50), rel=0.02)
    assert not np.array_equal(first[0], first[1])


def test_samples_in_parts_are_samples_at_once(monkeypatch):
    networks = Networks(WIDTHS, [Setting((0, 0), 1e-3, 0.0, 0.5)])
    x, _, _ = samples_of(50)
    whole = networks.logits(x)
    monkeypatch.setattr("featx.heads.solvers.networks._ROWS_AT_ONCE", 7)
    assert np.allclose(networks.logits(x), whole, atol=1e-6)
    assert whole.shape == (1, 50, 3)
