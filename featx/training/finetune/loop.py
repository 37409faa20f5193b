"""Train the tail of a network and the head behind it on cached activations.

Linear probing, then fine-tuning (Kumar et al. 2022): the head starts as the one fitted on the
unchanged tail's features, so the first steps don't distort what the tail has learnt. Normalisation
layers stay in eval mode, so what is trained computes what is evaluated, and exported.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from featx.errors import ConfigError, TrainingError, counted
from featx.training.finetune.data import Batch, CachedData, num_steps
from featx.training.finetune.groups import batch_norms, parameter_groups, set_modes
from featx.training.finetune.options import Recipe
from featx.training.finetune.outcome import Epoch
from featx.training.finetune.problem import Goal, evaluate

log = logging.getLogger(__name__)

_MAX_SKIPPED = 10


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to be resumed after an epoch; tensors by name."""

    epochs: tuple[Epoch, ...]
    step: int  # optimizer steps done
    model: Mapping[str, Tensor]  # tail and head
    average: Mapping[str, Tensor]  # their moving average; empty without one
    optimizer: Mapping[str, Mapping[str, Tensor]]  # moments of each trained tensor
    best: Mapping[str, Tensor]  # tail and head of the best epoch
    best_epoch: int  # 0 for the start
    best_loss: float  # held out; infinite where there is none


class _Diverged(TrainingError):
    """A loss, gradients or weights are not finite."""


def train_tail(
    tail: nn.Module,
    head: nn.Module,
    data: CachedData,
    goal: Goal,
    recipe: Recipe,
    *,
    keep_start: bool = True,
    resumed: State | None = None,
    finish: bool = False,
    after_epoch: Callable[[Epoch, State], None] | None = None,
) -> State:
    """Train tail and head; leave them in eval mode, with the tensors of the best epoch.

    Where training diverges, the best epoch before is kept, and a warning says so. With
    ``keep_start`` that may be the start. A run that is ``resumed`` with the same arguments gives
    the same tensors as if it had not stopped; with ``finish`` nothing more is trained.
    ``after_epoch`` gets each epoch and the state to resume from.

    Raises:
        TrainingError: An activation is not finite, training diverges before there is a best epoch,
            a parameter has no gradient, or statistics moved that are to stay.
        ConfigError: ``resumed`` is of other parameters.
    """
    trainer = _Trainer(tail, head, goal, recipe)
    if resumed is None:
        state = trainer.start(data, keep_start=keep_start)
    else:
        state = trainer.restore(resumed)
    finish = finish or _is_over(state, recipe)
    while not finish:
        try:
            epoch = trainer.train_epoch(data, number=len(state.epochs) + 1)
            state = trainer.state_after(state, epoch)
        except _Diverged as err:
            if math.isinf(state.best_loss) and not state.best_epoch:
                raise
            log.warning("%s The best epoch before is kept: %d.", err, state.best_epoch)
            break
        if after_epoch:
            after_epoch(epoch, state)
        finish = _is_over(state, recipe)
    trainer.model.load_state_dict(dict(state.best))
    trainer.model.eval()
    trainer.require_same_statistics()
    return state


def held_out_loss_after(
    tail: nn.Module, head: nn.Module, data: CachedData, goal: Goal, recipe: Recipe, *, steps: int
) -> float:
    """Return the held-out loss after a short training, infinite where it diverges.

    The learning rate rises and falls as in a whole one. Tail and head are left as they were.
    """
    trainer = _Trainer(tail, head, goal, replace(recipe, max_epochs=1, average="none"))
    before = trainer.tensors()
    try:
        trainer.train_steps(data, steps)
        loss, _ = trainer.evaluate(data)
    except _Diverged:
        loss = math.inf
    finally:
        trainer.model.load_state_dict(before)
    return math.inf if loss is None or math.isnan(loss) else loss


class _Trainer:
    """Tail and head, with their optimizer."""

    def __init__(self, tail: nn.Module, head: nn.Module, goal: Goal, recipe: Recipe) -> None:
        self.model = nn.ModuleDict({"tail": tail, "head": head})
        set_modes(self.model, train_bn=recipe.train_bn)
        groups = parameter_groups(tail, head, recipe)
        if recipe.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, momentum=recipe.momentum
            )
        else:
            self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.tail, self.head, self.goal, self.recipe = tail, head, goal, recipe
        self.step = 0
        self._average: dict[str, Tensor] = self.tensors() if recipe.average == "ema" else {}
        self._norms = batch_norms(self.model)
        self._statistics = {name: value.clone() for name, value in self.model.named_buffers()}
        self._device = next(self.model.parameters()).device

    def start(self, data: CachedData, *, keep_start: bool) -> State:
        """Return the state before the first epoch."""
        best = math.inf
        if keep_start:
            loss, _ = self.evaluate(data)
            best = math.inf if loss is None or math.isnan(loss) else loss
        tensors = self.tensors()
        return State((), 0, tensors, self._average, {}, tensors, 0, best)

    def restore(self, state: State) -> State:
        """Go back to a state, which must be of the same tensors."""
        ours, theirs = (
            {name: value.shape for name, value in tensors.items()}
            for tensors in (self.model.state_dict(), state.model)
        )
        other = sorted(name for name, _ in ours.items() ^ theirs.items())
        if other:
            raise ConfigError(
                f"The unfinished training is of other tensors ({', '.join(other[:3])}, …): the cut "
                "or the head was another. Start anew."
            )
        self.model.load_state_dict(dict(state.model))
        self._average = {
            name: value.to(self._device, copy=True) for name, value in state.average.items()
        }
        for name, parameter in self.model.named_parameters():
            if name in state.optimizer:
                self.optimizer.state[parameter] = {
                    key: _laid_out_as(parameter, value)
                    for key, value in state.optimizer[name].items()
                }
        self.step = state.step
        return state

    def train_epoch(self, data: CachedData, *, number: int) -> Epoch:
        """Train on every sample once."""
        total, count, skipped, in_a_row, rate = 0.0, 0.0, 0, 0, 0.0
        recipe, per_epoch = self.recipe, num_steps(data.num_samples, self.recipe.batch_size)
        for batch in data.batches(epoch=number, batch_size=recipe.batch_size, seed=recipe.seed):
            rate = recipe.rate(self.step, steps_per_epoch=per_epoch)
            loss = self._backward(batch, data, number)
            in_a_row = 0 if self._update(rate, per_epoch) else in_a_row + 1
            skipped += in_a_row > 0
            if in_a_row == _MAX_SKIPPED:
                raise _Diverged(
                    f"{_MAX_SKIPPED} steps in a row had infinite gradients (epoch {number}). Try a "
                    "smaller learning rate."
                )
            total, count = total + loss, count + float(batch.weights.sum())
        if skipped:
            log.warning(
                "Epoch %d: %s with infinite gradients left out.",
                *(number, counted(skipped, "step", "steps")),
            )
        held_out, accuracy = self._held_out(data)
        return Epoch(number, total / count, held_out, accuracy, rate * recipe.lr, skipped)

    def train_steps(self, data: CachedData, count: int) -> None:
        """Train for some steps, as if they were one epoch; steps that are skipped count too."""
        number = done = 0
        recipe = self.recipe
        while done < count:
            number += 1
            for batch in data.batches(epoch=number, batch_size=recipe.batch_size, seed=recipe.seed):
                self._backward(batch, data, number)
                self._update(recipe.rate(self.step, steps_per_epoch=count), count)
                done += 1
                if done == count:
                    break

    def state_after(self, before: State, epoch: Epoch) -> State:
        """Return the state that the run can be resumed from."""
        tensors = self.tensors()
        if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
            raise _Diverged(f"Weights are not finite after epoch {epoch.number}.")
        kept = tensors | self._average
        is_better = epoch.held_out is None or epoch.held_out < before.best_loss
        names: dict[Tensor, str] = {value: name for name, value in self.model.named_parameters()}
        return State(
            epochs=(*before.epochs, epoch),
            step=self.step,
            model=tensors,
            average={name: value.clone() for name, value in self._average.items()},
            optimizer={
                names[parameter]: {key: value.clone() for key, value in moments.items()}
                for parameter, moments in self.optimizer.state.items()
            },
            best={name: value.clone() for name, value in kept.items()}
            if is_better
            else before.best,
            best_epoch=epoch.number if is_better else before.best_epoch,
            best_loss=min(before.best_loss, math.inf if epoch.held_out is None else epoch.held_out),
        )

    def require_same_statistics(self) -> None:
        """Check that statistics which are to stay are the same to the bit."""
        moved = [
            name
            for name, value in self.model.named_buffers()
            if not torch.equal(value, self._statistics[name])
        ]
        if moved and not self.recipe.train_bn:
            raise TrainingError(f"{', '.join(moved[:3])} moved in training, and were to stay.")

    def tensors(self) -> dict[str, Tensor]:
        """Return a copy of the tensors of tail and head, by name."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def evaluate(self, data: CachedData) -> tuple[float | None, np.ndarray]:
        """Return held-out loss and outputs of the tensors as they are."""
        return evaluate(self.tail, self.head, data, self.goal, self.recipe.batch_size)

    def _held_out(self, data: CachedData) -> tuple[float | None, float | None]:
        """Return held-out loss and accuracy, of the average where there is one."""
        own = self.tensors() if self._average else {}
        if own:
            self.model.load_state_dict(own | self._average)
        loss, outputs = self.evaluate(data)
        if own:
            self.model.load_state_dict(own)
        if loss is None:
            return None, None
        if not math.isfinite(loss):
            return math.inf, None
        return loss, self.goal.accuracy(outputs) if self.goal.accuracy else None

    def _backward(self, batch: Batch, data: CachedData, number: int) -> float:
        """Calculate gradients; return the loss, summed over the batch."""
        if any(norm.training != self.recipe.train_bn for norm in self._norms):
            raise TrainingError("A batch norm has left the mode that it was put into.")
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            outputs = self.head(self.tail(batch.activations))
        losses = self.goal.loss(outputs.float(), batch.targets) * batch.weights
        total = float(losses.detach().sum())
        if not math.isfinite(total):
            self._explain(batch, data, number)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses.sum() / batch.weights.sum().clamp_min(1e-12))
        return total

    def _explain(self, batch: Batch, data: CachedData, number: int) -> None:
        """Raise the error for a loss that is not finite."""
        bad = ~torch.isfinite(batch.activations.float().flatten(1)).all(1).cpu().numpy()
        if bad.any():
            raise TrainingError(
                f"The activations of '{data.name_of(int(batch.numbers[bad][0]))}' are not finite. "
                "Extract them again; where float16 is too narrow, with dtype='float32'."
            )
        raise _Diverged(
            f"The loss is not finite in epoch {number}, at step {self.step + 1}, for a batch with "
            f"'{data.name_of(int(batch.numbers[0]))}'. Try a smaller learning rate."
        )

    def _update(self, rate: float, per_epoch: int) -> bool:
        """Do a step at a share of the highest rates; return False where it would be infinite."""
        if self.step == 0:
            _require_gradients(self.model)
        clip = math.inf if self.recipe.clip is None else self.recipe.clip
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(norm):
            return False
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["highest"]
        self.optimizer.step()
        self.step += 1
        self._add_to_average(per_epoch)
        return True

    def _add_to_average(self, per_epoch: int) -> None:
        """Let the average forget the start at once, and later steps within about an epoch."""
        if not self._average:
            return
        decay = min(1 - 1 / max(1, per_epoch), self.step / (self.step + 10))
        moving, own = list[Tensor](), list[Tensor]()
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                moving.append(self._average[name])
                own.append(value)
            else:
                self._average[name].copy_(value)
        torch._foreach_lerp_(moving, own, 1 - decay)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a copy of a moment as the optimizer needs it: its values in the parameter's order."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter).copy_(value)


def _is_over(state: State, recipe: Recipe) -> bool:
    """Return whether all epochs are done, or the held-out loss has not fallen for some of them.

    The start does not count.
    """
    if len(state.epochs) >= recipe.max_epochs:
        return True
    losses = [epoch.held_out for epoch in state.epochs if epoch.held_out is not None]
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= recipe.patience


def _require_gradients(model: nn.Module) -> None:
    without = [name for name, value in model.named_parameters() if value.grad is None]
    if without:
        raise TrainingError(f"No gradient reaches {', '.join(without[:3])}, to be trained.")
