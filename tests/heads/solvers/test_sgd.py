"""The tutorials' recipe: torch's steps, one line per epoch, the same bytes again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scores import top1
from solving import fit_sgd

from featx.errors import ConfigError
from featx.heads.head import apply_layers
from featx.heads.solvers.sgd import EpochScores, SGDOptions

QUICK = SGDOptions(learning_rate=0.05, epochs=4, step_size=2, batch_size=16)


def blobs(num_samples: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % 3
    centres = np.random.default_rng(9).normal(size=(3, 5))
    features = 2 * centres[labels] + random.normal(size=(num_samples, 5))
    return features.astype(np.float32), labels


@pytest.mark.parametrize("weighted", [False, True])
def test_steps_are_torchs(weighted):
    """From the same weights over the same batches."""
    features, labels = blobs()
    by_class = np.array([1.0, 3.0, 0.5]) if weighted else np.ones(3)
    random = np.random.default_rng(4)
    model = torch.nn.Linear(5, 3)
    with torch.no_grad():
        bound = 1 / np.sqrt(5)
        model.weight[:] = torch.tensor(random.uniform(-bound, bound, (3, 5)))
        model.bias[:] = torch.tensor(random.uniform(-bound, bound, 3))
    optimiser = torch.optim.SGD(model.parameters(), lr=QUICK.learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, QUICK.step_size, QUICK.gamma)
    criterion = torch.nn.CrossEntropyLoss(torch.tensor(by_class, dtype=torch.float32))
    for _ in range(QUICK.epochs):
        order = random.permutation(len(labels))
        for rows in np.split(order, range(16, len(order), 16)):
            optimiser.zero_grad()
            loss = criterion(model(torch.tensor(features[rows])), torch.tensor(labels[rows]))
            loss.backward()
            optimiser.step()
        schedule.step()
    weight, bias = fit_sgd(features, labels, 3, QUICK, weights=by_class[labels], seed=4).layer
    assert np.allclose(weight, model.weight.detach().numpy(), atol=1e-5)
    assert np.allclose(bias, model.bias.detach().numpy(), atol=1e-5)


def test_an_epoch_is_told_as_it_went():
    features, labels = blobs()
    told: list[EpochScores] = []
    layer = fit_sgd(features, labels, 3, QUICK, progress=told.append).layer
    assert [scores.epoch for scores in told] == [1, 2, 3, 4]
    assert all(scores.seconds > 0 for scores in told)
    assert all(0 <= scores.accuracy <= 1 for scores in told)
    assert told[-1].loss < told[0].loss
    found = top1(apply_layers([layer], features), labels)
    assert found == pytest.approx(told[-1].accuracy, abs=0.05)


def test_a_seed_repeats_itself():
    features, labels = blobs()
    first, second = (fit_sgd(features, labels, 3, QUICK, seed=2).layer for _ in range(2))
    assert first[0].tobytes() == second[0].tobytes()
    assert fit_sgd(features, labels, 3, QUICK, seed=3).layer[0].tobytes() != first[0].tobytes()


def test_a_class_without_samples_is_never_predicted():
    features, labels = blobs()
    layer = fit_sgd(features, np.array([0, 2, 4])[labels], 6, QUICK).layer
    assert set(apply_layers([layer], features).argmax(axis=1)) <= {0, 2, 4}


def test_divergence_is_a_clear_error():
    features, labels = blobs()
    with pytest.raises(ConfigError, match=r"diverged in epoch 1.*learning rate below 1e"):
        fit_sgd(features, labels, 3, replace(QUICK, learning_rate=1e38))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
        ({"momentum": float("nan")}, "momentum"),
        ({"step_size": 0}, "at least 1"),
        ({"epochs": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_options_out_of_range(change, match):
    with pytest.raises(ConfigError, match=match):
        SGDOptions(**change)
