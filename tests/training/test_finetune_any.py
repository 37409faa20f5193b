"""Fine-tuning with options, tasks and files of any kind: killed anywhere, it comes to the same."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tuning import patterned, write_activations

from featx.heads.head import open_head
from featx.stages.finetune import finetune
from featx.training.finetune.loop import _Trainer

pytestmark = pytest.mark.slow
CHOICES: dict[str, list[Any]] = {
    "max_epochs": [1, 2, 3],
    "batch_size": [2, 7, 64],
    "lr": [None, 1e-3, 1e-2],
    "backbone_lr": [None, 1e-4],
    "layer_decay": [None, 0.5],
    "optimizer": ["adamw", "sgd"],
    "step_size": [None, 1],
    "clip": [1.0, None],
    "average": ["ema", "none"],
    "train_bn": [None, True, False],
    "scratch": [False, False, True],
    "calibrate": [True, False],
    "patience": [1, 4],
    "memory": [None, "200KB", "2MB"],
    "seed": [0, 1],
}


class Killed(Exception):
    """Stands for the end of the process."""


def write(path: Path, chosen: random.Random, task: str) -> Path:
    """Write some images at a cut: a few without a label, few of some class, perhaps one split."""
    count = chosen.choice([8, 20, 50])
    kinds = np.array([min(chosen.randrange(6), 3) for _ in range(count)])
    kinds[:2] = 0, 1
    names = {
        "single-label": [f"c{kind}" for kind in kinds],
        "multi-label": [("red", "big", "red|big", "none")[kind] for kind in kinds],
        "regression": [f"{10 * kind + chosen.random():.3f}" for kind in kinds],
    }[task]
    names = [name if row < 4 or chosen.random() < 0.9 else "" for row, name in enumerate(names)]
    others = chosen.choice([[0], [1], [2], [1, 2]])
    splits = [
        0 if row < 4 or chosen.random() < 0.7 else chosen.choice(others) for row in range(count)
    ]
    return write_activations(
        *(
            path,
            patterned(kinds, contrast=chosen.choice([2, 40])),
            names,
            np.array(splits, np.uint8),
        ),
        cut=chosen.choice(["stage3", "stage2", "input"]),
        num_views=chosen.choice([0, 0, 2]),
        groups=[f"g{row // 3}" for row in range(count)] if chosen.random() < 0.4 else None,
    )


@pytest.mark.parametrize("number", range(12))
def test_a_training_of_any_kind_is_finite_and_the_same_when_it_was_killed(
    number, tmp_path, monkeypatch
):
    chosen = random.Random(number)
    task = ("single-label", "multi-label", "regression")[number % 3]
    maps = write(tmp_path / "maps.h5", chosen, task)
    options = {name: chosen.choice(values) for name, values in CHOICES.items()} | {"task": task}
    if task == "single-label":
        options["class_weight"] = chosen.choice([None, "balanced", {"c0": 3.0}])
    options["exclude"] = chosen.choice([(), ("0002.jpg", "0005.jpg")])
    report = finetune(maps, tmp_path / "whole.safetensors", progress=False, **options)
    json.dumps(report.to_dict(), allow_nan=False)
    head = open_head(report.path)
    tensors = [*head.tail.values(), *(part for layer in head.layers for part in layer)]
    assert all(np.isfinite(tensor).all() for tensor in tensors)

    update, rest = _Trainer._update, chosen.randrange(30)

    def dying(self: _Trainer, *args: Any) -> bool:
        nonlocal rest
        rest -= 1
        if rest < 0:
            raise Killed
        return update(self, *args)

    again = tmp_path / "killed.safetensors"
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(_Trainer, "_update", dying)
        finetune(maps, again, progress=False, **options)
    finetune(maps, again, progress=False, **options)
    assert again.read_bytes() == report.path.read_bytes()
    assert not list(tmp_path.glob("*.partial"))
