"""Choose a learning rate, then train, with the progress in a checkpoint."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from featx.errors import ConfigError, TrainingError
from featx.training.finetune.checkpoint import Checkpoint, Progress
from featx.training.finetune.data import CachedData, num_steps
from featx.training.finetune.groups import is_transformer
from featx.training.finetune.loop import State, held_out_loss_after, train_tail
from featx.training.finetune.options import FinetuneOptions, Recipe
from featx.training.finetune.outcome import Epoch, Events
from featx.training.finetune.problem import Goal

log = logging.getLogger(__name__)

_TRIAL_EPOCHS, _MAX_TRIAL_STEPS = 2, 100
RATES = tuple(float(f"{factor}e{power}") for power in range(-6, 1) for factor in (1, 3))
"""All that may be tried, 1e-6 to 3."""
_FIRST_RATES = {"adamw": (3e-4, 1e-3, 3e-3), "sgd": (3e-3, 1e-2, 3e-2)}
_NEARLY = 1.05
"""A loss up to so many times the lowest is nearly as low."""


@dataclass(frozen=True, eq=False)
class Training:
    """Choosing a rate, then training, with the progress in a checkpoint."""

    options: FinetuneOptions
    tail: nn.Module
    head: nn.Module
    data: CachedData
    goal: Goal
    checkpoint: Checkpoint
    events: Events
    finish: bool = False  # train no further

    def run(
        self, progress: Progress, *, keep_start: bool
    ) -> tuple[Recipe, Mapping[float, float], State]:
        """Return the recipe, the rates that were tried, and the state after the last epoch."""
        rates = dict(progress.rates)
        recipe = self.options.recipe(is_transformer=is_transformer(self.tail))
        try:
            recipe = replace(recipe, lr=self._rate(recipe, rates))
            last = time.perf_counter()

            def after_epoch(epoch: Epoch, state: State) -> None:
                nonlocal last
                self.checkpoint.save(Progress(rates, state))
                now = time.perf_counter()
                seconds, last = now - last, now
                self.events.on_epoch(epoch, seconds, self.data.num_samples / seconds)

            state = train_tail(
                *(self.tail, self.head, self.data, self.goal, recipe),
                keep_start=keep_start,
                resumed=progress.state,
                finish=self.finish,
                after_epoch=after_epoch,
            )
        except torch.OutOfMemoryError as err:
            raise ConfigError(
                f"The memory of '{self.data.device}' does not hold a batch of {recipe.batch_size} "
                "images. Use a smaller batch_size, or a later cut."
            ) from err
        return recipe, rates, state

    def _rate(self, recipe: Recipe, rates: dict[float, float]) -> float:
        """Return the learning rate that was given, or the best of several; these are added."""
        given = self.options.lr
        if not self.data.is_held_out.any():
            usual = _FIRST_RATES[recipe.optimizer][1] if given is None else given
            log.warning(
                "No training images can be held out: the learning rate is %g, all epochs are "
                "trained, and nothing is calibrated.",
                usual,
            )
            return usual
        if given is not None:
            return given
        epoch = num_steps(self.data.num_samples, recipe.batch_size)
        steps = min(_TRIAL_EPOCHS * epoch, _MAX_TRIAL_STEPS)

        def trial(rate: float) -> float:
            if rate not in rates:
                self.events.on_step(f"Trying learning rate {rate:g}")
                rates[rate] = held_out_loss_after(
                    *(self.tail, self.head, self.data, self.goal),
                    replace(recipe, lr=rate),
                    steps=steps,
                )
                self.checkpoint.save(Progress(rates))
            return rates[rate]

        return choose_rate(trial, optimizer=recipe.optimizer)


def choose_rate(trial: Callable[[float], float], *, optimizer: str) -> float:
    """Return the rate with the lowest held-out loss of ``trial``, or the next larger one.

    Three neighbours are tried first, then more on the side where the best is at the edge. The next
    larger one is taken where its loss is nearly as low: a short training favours small rates, which
    end near the start, and a whole one has the time to settle.

    Raises:
        TrainingError: No loss is finite.
    """
    losses = {RATES.index(rate): trial(rate) for rate in _FIRST_RATES[optimizer]}
    while True:
        best = min(sorted(losses), key=losses.__getitem__)
        if math.isinf(losses[best]):
            best = min(losses)  # all diverge: smaller ones
        beyond = best - 1 if best == min(losses) else best + 1
        if beyond in losses or not 0 <= beyond < len(RATES):
            break
        losses[beyond] = trial(RATES[beyond])
    if math.isinf(losses[best]):
        raise TrainingError(
            f"The training diverges at every learning rate from {RATES[max(losses)]:g} down to "
            f"{RATES[best]:g}. Are the activations those of this network? Extract them again."
        )
    larger = losses.get(best + 1, math.inf)
    return RATES[best + 1 if larger <= _NEARLY * losses[best] else best]


@contextmanager
def repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Calculate the same bits again from the same start; torch is left as it was."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
        memory.fill_uninitialized_memory = False  # nothing reads it
        try:
            with warnings.catch_warnings():  # a GPU has no such algorithm for some operations
                warnings.filterwarnings("ignore", message=".*deterministic")
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            memory.fill_uninitialized_memory = filled
