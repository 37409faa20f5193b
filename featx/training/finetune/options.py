"""Options of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Optimizer = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class Recipe:
    """How a tail is trained.

    Attributes:
        lr: Highest learning rate of the head.
        backbone_lr: Of the whole tail; None for ``layer_decay``.
        layer_decay: Learning rate of a block divided by that of the next one.
        max_epochs: Epochs at the most.
        patience: Epochs without a lower held-out loss after which training stops.
        batch_size: Images a step.
        optimizer: ``"adamw"``; or ``"sgd"`` with ``momentum``.
        momentum: Of ``sgd``.
        weight_decay: Of weights of convolutions, linear layers and attention.
        warmup: Share of the steps in which the rate rises from zero; a cosine to zero follows.
        step_size: Epochs after which the rate is multiplied by ``gamma``; None for the cosine.
        gamma: See ``step_size``.
        clip: Largest norm of the gradient; None for any.
        train_bn: Train batch norms as well, and let their statistics move.
        seed: Of the order of images and the choice of views.
    """

    lr: float = 1e-3
    backbone_lr: float | None = None
    layer_decay: float = 0.9
    max_epochs: int = 12
    patience: int = 4
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.1
    step_size: int | None = None
    gamma: float = 0.1
    clip: float | None = 1.0
    train_bn: bool = False
    seed: int = 0

    def rate(self, step: int, *, steps_per_epoch: int) -> float:
        """Return the share of the highest rate at a step, counted from 0.

        With a tenth of 30 steps for the warm-up, step 2 is the first at the full rate and step 29
        is nearly at zero.
        """
        if self.step_size is not None:
            return self.gamma ** (step // steps_per_epoch // self.step_size)
        total = self.max_epochs * steps_per_epoch
        rising = max(1, round(self.warmup * total))
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step + 1 - rising) / max(1, total - rising)))
