"""Options of fine-tuning, and the paired test of its outcome."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featx.errors import ConfigError
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Comparison


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"lr": 0.0}, "lr must be above 0; got 0.0"),
        ({"backbone_lr": float("inf")}, "backbone_lr must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1"),
        ({"max_epochs": 0}, "max_epochs must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"batch_size": 1, "train_bn": True}, "batch_size must be at least 2"),
        ({"optimizer": "lion"}, "optimizer must be one of adamw, sgd"),
        ({"momentum": 1.0}, "momentum must be at least 0 and below 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N; got 'tpu'"),
        ({"average": "swa"}, "average must be one of none, ema"),
        ({"memory": "much"}, "memory must be a size"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"clip": -1.0}, "clip must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(option: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        FinetuneOptions(**option)


def test_what_is_left_open_depends_on_the_network_and_on_the_start():
    usual = FinetuneOptions().recipe(is_transformer=False)
    assert (usual.layer_decay, usual.max_epochs, usual.train_bn) == (0.9, 12, False)
    assert FinetuneOptions().recipe(is_transformer=True).layer_decay == 0.75
    scratch = FinetuneOptions(scratch=True).recipe(is_transformer=True)
    assert (scratch.layer_decay, scratch.max_epochs, scratch.train_bn) == (1.0, 30, True)
    given = FinetuneOptions(lr=0.1, scratch=True, train_bn=False, max_epochs=3, layer_decay=0.5)
    recipe = given.recipe(is_transformer=False)
    assert (recipe.lr, recipe.layer_decay, recipe.max_epochs, recipe.train_bn) == (
        0.1,
        0.5,
        3,
        False,
    )


def test_a_paired_test_counts_only_images_that_one_head_has_right():
    right = np.arange(1000) < 900
    assert Comparison.of(right, right) == Comparison(0, 0, 1.0)
    better = right | (np.arange(1000) < 920)
    assert Comparison.of(right, better).num_only_tuned == 20
    assert Comparison.of(right, better).p_value == pytest.approx(2 / 2**20)
    assert Comparison.of(right, ~right).p_value < 1e-100
    mixed = np.roll(right, 5)
    assert Comparison.of(right, mixed) == Comparison(5, 5, 1.0)
