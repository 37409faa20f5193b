"""Options of fine-tuning."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict

from featx.artifact.keywords import require_types
from featx.errors import ConfigError, require_at_least, require_number
from featx.heads.samples.selection import ClassWeight
from featx.training.options import TaskChoice, parse_memory

Optimizer = Literal["adamw", "sgd"]
Average = Literal["none", "ema"]

_EPOCHS, _EPOCHS_FROM_SCRATCH = 12, 30
_DECAY, _DECAY_OF_TRANSFORMERS = 0.9, 0.75
_NO_STEPS = ("task", "class_weight", "calibrate", "exclude", "memory", "device", "scratch")
"""Options that decide what is trained, and where, and not the steps."""


@dataclass(frozen=True)
class FinetuneOptions:
    """How the tail behind a cut, and the head, are trained.

    Attributes:
        task: How labels are read, as in ``TrainOptions``.
        class_weight: What a sample counts, by the name of its class, 1 where there is none;
            ``"balanced"`` lets every class count the same. Probabilities are brought back to the
            shares of the classes, unless ``calibrate`` is false.
        calibrate: Fit a temperature on held-out images and fold it into the head.
        exclude: Sample ids of training images to leave out; ``exclude`` applies it to a file.
        memory: What activations may take, in bytes or like ``"2GB"``; more are read from the file
            in every epoch. Where the features behind the cut need more, the probe is fitted to
            some of the training images. None is half of what is free.
        seed: Decides what is held out, the order of images, and random weights.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        scratch: Start from random weights behind the cut, without pretrained ones.
        lr: Highest learning rate of the head; None chooses it from a few on the held-out images.
        backbone_lr: The same of the whole tail; None for ``layer_decay``.
        layer_decay: Learning rate of a block divided by that of the next one; None is 0.75 for
            transformers and 0.9 for others, and 1 from scratch.
        max_epochs: Epochs at the most; None is 12, and 30 from scratch.
        patience: Epochs without a lower held-out loss after which training stops.
        batch_size: Images a step.
        optimizer: ``"adamw"``; or ``"sgd"`` with ``momentum``, as in tutorials.
        momentum: Of ``sgd``, in [0, 1).
        weight_decay: Of weights of convolutions, linear layers and attention, at least 0.
        warmup: Share of the steps in which the rate rises from zero, in [0, 1).
        step_size: Epochs after which the rate is multiplied by ``gamma``; None for a cosine.
        gamma: See ``step_size``; above 0 and at most 1.
        clip: Largest norm of the gradient; None for any.
        train_bn: Let the statistics of batch norms move; None does so from scratch only.
        average: ``"ema"`` keeps a moving average of the weights, over about an epoch, ``"none"``
            the weights themselves.

    Raises:
        ConfigError: A value is out of range.
    """

    task: TaskChoice = "auto"
    class_weight: ClassWeight = None
    calibrate: bool = True
    exclude: tuple[str, ...] = ()
    memory: str | float | None = None
    seed: int = 0
    device: str = "auto"
    scratch: bool = False
    lr: float | None = None
    backbone_lr: float | None = None
    layer_decay: float | None = None
    max_epochs: int | None = None
    patience: int = 4
    batch_size: int = 64
    optimizer: Optimizer = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    warmup: float = 0.1
    step_size: int | None = None
    gamma: float = 0.1
    clip: float | None = 1.0
    train_bn: bool | None = None
    average: Average = "ema"

    def __post_init__(self) -> None:
        require_types(self)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N; got {self.device!r}.")
        for name in ("max_epochs", "patience", "step_size"):
            require_at_least(name, getattr(self, name), 1)
        train_bn = self.scratch if self.train_bn is None else self.train_bn
        require_at_least("batch_size", self.batch_size, 2 if train_bn else 1)
        for name in ("lr", "backbone_lr", "clip"):
            require_number(name, getattr(self, name), 0, ends="(]", optional=True)
        require_number("weight_decay", self.weight_decay, 0)
        for name in ("momentum", "warmup"):
            require_number(name, getattr(self, name), 0, 1, ends="[)")
        for name in ("gamma", "layer_decay"):
            require_number(name, getattr(self, name), 0, 1, ends="(]", optional=True)
        if self.memory is not None:
            parse_memory(self.memory)

    def recipe(self, *, is_transformer: bool) -> Recipe:
        """Return the recipe with what was left open filled in; the rate may be chosen later."""
        decay = _DECAY_OF_TRANSFORMERS if is_transformer else _DECAY
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        open_ones = {
            "lr": Recipe.lr,
            "layer_decay": 1.0 if self.scratch else decay,
            "max_epochs": _EPOCHS_FROM_SCRATCH if self.scratch else _EPOCHS,
            "train_bn": self.scratch,
        }
        chosen = {name: value for name, value in open_ones.items() if given[name] is None}
        return Recipe(**(given | chosen))

    def to_dict(self) -> dict[str, Any]:
        """Return the options that decide what is trained, JSON values: all but the memory."""
        values = {name: value for name, value in asdict(self).items() if name != "memory"}
        if self.class_weight is not None and not isinstance(self.class_weight, str):
            values["class_weight"] = dict(self.class_weight)
        return values


@dataclass(frozen=True)
class Recipe(FinetuneOptions):
    """How a tail is trained: options that leave nothing open."""

    lr: float = 1e-3
    layer_decay: float = _DECAY
    max_epochs: int = _EPOCHS
    train_bn: bool = False

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

    def to_dict(self) -> dict[str, Any]:
        """Return the options that decide the steps of a training, JSON values."""
        return {name: value for name, value in asdict(self).items() if name not in _NO_STEPS}


class FinetuneKeywords(TypedDict, total=False):
    """Options of ``FinetuneOptions`` by keyword."""

    task: TaskChoice
    class_weight: ClassWeight
    calibrate: bool
    exclude: Sequence[str] | str | Path
    memory: str | float | None
    seed: int
    device: str
    scratch: bool
    lr: float | None
    backbone_lr: float | None
    layer_decay: float | None
    max_epochs: int | None
    patience: int
    batch_size: int
    optimizer: Optimizer
    momentum: float
    weight_decay: float
    warmup: float
    step_size: int | None
    gamma: float
    clip: float | None
    train_bn: bool | None
    average: Average
