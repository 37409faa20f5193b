"""The MLP head: learns what a line cannot, stops in time, repeats itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scores import top1
from solving import ArrayBlocks, fit_linear, fit_mlp

from featx.errors import ConfigError
from featx.heads.head import apply_layers
from featx.heads.samples.data import FirstPass
from featx.heads.samples.folds import stratified_folds
from featx.heads.solvers.mlp import MLPOptions, Networks, Setting, parse_hidden, split_layers
from featx.heads.tasks.losses import SIGMOID, SQUARED, Softmax, binary_log_loss, log_loss

QUICK = MLPOptions(hidden=(16,), max_epochs=5)


def blobs(
    num_samples: int, num_classes: int = 3, num_features: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % num_classes
    centres = 2 * random.normal(size=(num_classes, num_features))
    features = centres[labels] + random.normal(size=(num_samples, num_features))
    return (features * 10 + 100).astype(np.float32), labels


def xor(num_samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    features = random.uniform(-1, 1, size=(num_samples, 2))
    features += 0.2 * np.sign(features)  # a gap around the axes
    return features.astype(np.float32), (features[:, 0] * features[:, 1] > 0).astype(np.int64)


def bytes_of(fit: SimpleNamespace) -> list[bytes]:
    return [part.tobytes() for layer in fit.layers for part in layer]


def test_learns_what_a_linear_head_cannot():
    features, labels = xor(400)
    others, their_labels = xor(400, seed=1)
    options = MLPOptions(hidden=(32,), learning_rate=0.02, batch_size=64, max_epochs=40)
    fit = fit_mlp(features, labels, 2, options)
    line = fit_linear(features, labels, 2, strengths=[1.0])
    assert top1(apply_layers(fit.layers, others), their_labels) > 0.95
    assert top1(apply_layers([line.layer], others), their_labels) < 0.7


@pytest.mark.parametrize("hidden", [(1,), (7,), (8, 5), (6, 5, 4, 3)])
def test_shapes_follow_hidden(hidden):
    features, labels = blobs(60)
    fit = fit_mlp(features, labels, 3, replace(QUICK, hidden=hidden))
    widths = [6, *hidden, 3]
    assert [weight.shape for weight, _ in fit.layers] == [
        (out, inputs) for inputs, out in pairwise(widths)
    ]
    assert all(part.dtype == np.float32 for layer in fit.layers for part in layer)
    assert apply_layers(fit.layers, features).shape == (60, 3)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_seed_repeats_itself_whatever_happened_before(dropout):
    features, labels = blobs(60)
    options = replace(QUICK, dropout=dropout)
    first = fit_mlp(features, labels, 3, options)
    np.random.default_rng(0).random(17)
    second = fit_mlp(features.copy(), labels.copy(), 3, options)
    assert bytes_of(first) == bytes_of(second)
    assert (first.num_epochs, first.held_out_loss) == (second.num_epochs, second.held_out_loss)
    assert bytes_of(fit_mlp(features, labels, 3, options, seed=1)) != bytes_of(first)


def test_the_callers_random_state_and_arrays_are_left_alone():
    features, labels = blobs(60)
    copies = features.copy(), labels.copy()
    numpys = np.random.get_state()[1].copy()
    fit_mlp(features, labels, 3, replace(QUICK, dropout=0.3))
    assert np.array_equal(np.random.get_state()[1], numpys)
    assert np.array_equal(features, copies[0])
    assert np.array_equal(labels, copies[1])


@pytest.mark.parametrize("max_epochs", [1, 25])
def test_the_best_epoch_is_kept(max_epochs):
    """What is reported of the hold-out is what the returned layers give on it."""
    features, labels = blobs(100, seed=2)
    features += np.random.default_rng(0).normal(size=features.shape).astype(np.float32) * 20
    options = MLPOptions(
        hidden=(64,), learning_rate=0.02, max_epochs=max_epochs, patience=30, batch_size=16
    )
    fit = fit_mlp(features, labels, 3, options)
    held_out = stratified_folds(labels, 10, seed=0) == 0
    logits = apply_layers(fit.layers, features[held_out])
    assert log_loss(logits.astype(np.float64), labels[held_out]) == pytest.approx(
        fit.held_out_loss, rel=1e-3
    )
    assert 1 <= fit.num_epochs <= max_epochs
    if max_epochs > 1:
        assert fit.num_epochs < max_epochs  # it overfits, so the last is not the best


def test_stopping_early_loses_nothing_that_was_better():
    features, labels = blobs(80, seed=2)
    features += np.random.default_rng(0).normal(size=features.shape).astype(np.float32) * 20
    patient = MLPOptions(hidden=(32,), learning_rate=0.02, max_epochs=20, patience=20)
    eager = fit_mlp(features, labels, 3, replace(patient, patience=1))
    fit = fit_mlp(features, labels, 3, patient)
    assert fit.held_out_loss <= eager.held_out_loss
    assert eager.num_epochs <= fit.num_epochs


def test_held_out_samples_never_train():
    """Outliers among them move neither the scaling nor the first epoch's weights."""
    features, labels = blobs(60)
    held_out = stratified_folds(labels, 10, seed=0) == 0
    assert 0 < held_out.sum() <= 6
    changed = features.copy()
    changed[held_out] += 50
    options = replace(QUICK, max_epochs=1)
    first, second = (fit_mlp(x, labels, 3, options) for x in (features, changed))
    assert bytes_of(first) == bytes_of(second)
    assert first.held_out_loss != second.held_out_loss


def test_the_unit_of_a_feature_does_not_matter():
    features, labels = blobs(60)
    one = fit_mlp(features, labels, 3, QUICK)
    other = fit_mlp(features * np.float32(1024), labels, 3, QUICK)
    assert np.allclose(
        apply_layers(one.layers, features), apply_layers(other.layers, features * 1024), atol=1e-2
    )


def test_constant_features_do_no_harm():
    features, labels = blobs(60)
    features[:, 2] = 3e8
    logits = apply_layers(fit_mlp(features, labels, 3, QUICK).layers, features)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("counts", [[1, 1], [1, 2], [2, 1], [1, 9], [5, 5], [1, 1, 1], [2, 2, 2]])
def test_tiny_sets_are_learnt_whole(counts):
    """However few, each class is trained on: none lies in the hold-out alone."""
    labels = np.repeat(np.arange(len(counts)), counts)
    features = np.eye(len(counts), dtype=np.float32)[labels]
    options = MLPOptions(hidden=(32,), learning_rate=0.02, max_epochs=60, patience=60)
    fit = fit_mlp(features, labels, len(counts), options)
    assert (fit.held_out is None) == (sorted(counts)[-2] < 2)
    assert (fit.held_out_loss is None) == (fit.held_out is None)
    assert top1(apply_layers(fit.layers, features), labels) == 1


def test_with_nothing_held_out_the_first_setting_is_trained_for_all_epochs():
    labels = np.array([0, 1, 2])
    features = np.eye(3, dtype=np.float32)
    options = MLPOptions(hidden=(8,), dropout=(0.1, 0.0), max_epochs=12, patience=2)
    fit = fit_mlp(features, labels, 3, options)
    assert fit.held_out is None
    assert len(fit.candidates) == 1
    assert (fit.num_epochs, fit.dropout) == (12, 0.1)


def test_a_class_without_samples_loses():
    features, labels = blobs(60, num_classes=2)
    options = MLPOptions(hidden=(16,), learning_rate=0.02, max_epochs=20)
    fit = fit_mlp(features, np.array([0, 2])[labels], 4, options)
    assert set(apply_layers(fit.layers, features).argmax(axis=1)) <= {0, 2}


def test_divergence_is_a_clear_error():
    features, labels = blobs(60)
    with pytest.raises(ConfigError, match=r"diverged.*learning rate below 1e"):
        fit_mlp(features, labels, 3, replace(QUICK, hidden=(8, 8), learning_rate=1e30))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden": ()}, "hidden must be"),
        ({"hidden": (10, 0)}, "hidden must be"),
        ({"hidden": (-1,)}, "hidden must be"),
        ({"dropout": -0.1}, "dropout must be at least 0 and below 1; got -0.1"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"weight_decay": -1e-3}, "weight_decay"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_epochs": 0}, "epochs"),
        ({"patience": 0}, "patience"),
        ({"num_seeds": 0}, "seeds"),
        ({"dropout": (0.1, 1.0)}, "dropout"),
        ({"learning_rate": (0.1, 0.0)}, "learning_rate"),
        ({"learning_rate": ()}, "there is no learning rate"),
    ],
)
def test_options_out_of_range(change, match):
    with pytest.raises(ConfigError, match=match):
        MLPOptions(**change)


@pytest.mark.parametrize("dropout", [0.0, 0.999])
def test_dropout_at_its_ends(dropout):
    features, labels = blobs(60)
    fit = fit_mlp(features, labels, 3, replace(QUICK, dropout=dropout))
    first = apply_layers(fit.layers, features)
    assert np.isfinite(first).all()
    assert np.array_equal(first, apply_layers(fit.layers, features))  # none when applied


def test_dropout_changes_training():
    features, labels = blobs(60)
    assert bytes_of(fit_mlp(features, labels, 3, QUICK)) != bytes_of(
        fit_mlp(features, labels, 3, replace(QUICK, dropout=0.5))
    )


# --- several side by side -----------------------------------------------------------------------


def test_every_combination_and_seed_is_trained_and_the_best_is_kept():
    features, labels = blobs(90, seed=3)
    options = replace(
        QUICK, learning_rate=(1e-3, 0.02), weight_decay=(0.0, 0.1), dropout=(0.0, 0.2), num_seeds=2
    )
    fit = fit_mlp(features, labels, 3, options)
    found = {(c.learning_rate, c.weight_decay, c.dropout, c.number) for c in fit.candidates}
    assert len(found) == len(fit.candidates) == 16
    assert fit.held_out_loss == min(c.held_out_loss or np.inf for c in fit.candidates)
    assert fit.learning_rate == 0.02  # five epochs are few


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_side_by_side_each_does_what_it_would_alone(dropout):
    features, labels = blobs(80, seed=2)
    features += np.random.default_rng(0).normal(size=features.shape).astype(np.float32) * 20
    options = MLPOptions(
        hidden=(16, 8),
        learning_rate=(0.03, 1e-3, 0.01),
        dropout=dropout,
        max_epochs=15,
        patience=2,
        batch_size=16,
    )
    together = fit_mlp(features, labels, 3, options)
    assert len({c.num_epochs for c in together.candidates}) > 1  # some stop before others
    for candidate in together.candidates:
        alone = fit_mlp(
            features, labels, 3, replace(options, learning_rate=candidate.learning_rate)
        )
        assert alone.num_epochs == candidate.num_epochs
        assert alone.held_out_loss == pytest.approx(candidate.held_out_loss, rel=1e-3)


def test_one_that_diverges_does_not_take_the_others_along():
    features, labels = blobs(60)
    options = replace(QUICK, hidden=(8, 8), learning_rate=(1e30, 0.01))
    fit = fit_mlp(features, labels, 3, options)
    assert fit.learning_rate == 0.01
    assert fit.candidates[0].held_out_loss is None
    assert np.isfinite(fit.layers[0][0]).all()


def test_weights_count():
    """A class that counts a hundred times more is preferred where classes overlap."""
    features, labels = blobs(90)
    features = np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    options = replace(QUICK, learning_rate=0.01, max_epochs=20)
    shares = []
    for heavy in (0, 1):
        weights = np.where(labels == heavy, 100.0, 1.0)
        fit = fit_mlp(features, labels, 3, options, weights=weights)
        shares.append((apply_layers(fit.layers, features).argmax(axis=1) == heavy).mean())
    assert min(shares) > 0.8


@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
def test_hidden_sizes_as_text(sizes):
    assert parse_hidden(",".join(map(str, sizes))) == tuple(sizes)
    assert parse_hidden(" , ".join(map(str, sizes))) == tuple(sizes)
    assert parse_hidden(sizes) == tuple(sizes)


@pytest.mark.parametrize("text", ["", "abc", "10,", "1.5", "10;20"])
def test_hidden_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="must be like 100 or 256,128"):
        parse_hidden(text)


def test_tags_that_a_linear_head_cannot_tell():
    features, labels = xor(600)
    tags = np.stack([labels, labels == 0, features[:, 0] > 0], axis=1).astype(np.uint8)
    options = MLPOptions(hidden=(32,), learning_rate=1e-2, max_epochs=60)
    fit = fit_mlp(features, tags, 3, options, loss=SIGMOID)
    right = (apply_layers(fit.layers, features) > 0) == tags
    assert right.mean(axis=0).min() > 0.95
    loss = binary_log_loss(fit.held_out.logits, fit.held_out.labels)
    assert fit.held_out_loss == pytest.approx(loss, rel=1e-4)


def test_numbers_that_a_linear_head_cannot_tell():
    features = np.random.default_rng(0).uniform(-2, 2, (500, 2)).astype(np.float32)
    numbers = np.stack([features[:, 0] * features[:, 1], np.abs(features[:, 0])], axis=1)
    options = MLPOptions(hidden=(32,), learning_rate=1e-2, max_epochs=60)
    fit = fit_mlp(features, numbers, 2, options, loss=SQUARED)
    errors = np.square(apply_layers(fit.layers, features) - numbers).mean(axis=0)
    assert (errors < 0.05 * numbers.var(axis=0)).all()
    squared = np.square(fit.held_out.logits - fit.held_out.labels).mean()
    assert fit.held_out_loss == pytest.approx(squared, rel=1e-4)
    assert len(fit.held_out.labels) == 50


class _Counted(Softmax):
    """Counts how often the held-out loss is measured: once an epoch."""

    def __init__(self) -> None:
        self.num_epochs = 0

    def mean(self, *args: Any, **options: Any) -> float:
        self.num_epochs += 1
        return super().mean(*args, **options)


@pytest.mark.parametrize("patience", [1, 4])
def test_training_ends_patience_epochs_after_the_best(patience):
    features, labels = blobs(80, seed=2)
    features += np.random.default_rng(0).normal(size=features.shape).astype(np.float32) * 20
    options = MLPOptions(hidden=(32,), learning_rate=0.02, max_epochs=60, patience=patience)
    loss = _Counted()
    fit = fit_mlp(features, labels, 3, options, loss=loss)
    assert loss.num_epochs == fit.num_epochs + patience < 60


def test_the_seed_decides_the_order_of_samples(monkeypatch):
    """Full batches leave only the order within them, small ones which samples meet."""
    features, labels = blobs(40)
    features[:, 0] = np.arange(len(features))
    width = features.shape[1]
    held_out = FirstPass(
        np.zeros(width), np.ones(width), np.arange(9), features[:9], np.zeros((0, 0))
    )
    orders: list[list[float]] = []

    def noted(_: Networks, x: np.ndarray, *args: Any, **options: Any) -> None:
        orders.append(x[:, 0].tolist())

    monkeypatch.setattr(Networks, "step", noted)
    options = MLPOptions(hidden=(4,), max_epochs=2, patience=2)
    for seed in (0, 0, 1):
        blocks = ArrayBlocks(features, len(features))
        fit_mlp(blocks, labels, 3, options, first_pass=held_out, pool_bytes=10**6, seed=seed)
    first, second, again, _, other, _ = orders
    assert sorted(first) == list(range(9, 40))
    assert first == again
    assert first != second
    assert first != other


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
    monkeypatch.setattr("featx.heads.solvers.mlp._ROWS_AT_ONCE", 7)
    assert np.allclose(networks.logits(x), whole, atol=1e-6)
    assert whole.shape == (1, 50, 3)
