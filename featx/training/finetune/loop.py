"""Train the tail of a network and the head behind it on cached activations.

Linear probing, then fine-tuning (Kumar et al. 2022): the head starts as the one fitted on the
unchanged tail's features, so the first steps don't distort what the tail has learnt. Normalisation
layers stay in eval mode, so what is trained computes what is evaluated, and exported.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from featx.errors import ConfigError, TrainingError
from featx.training.finetune.options import Recipe
from featx.training.finetune.outcome import Epoch

log = logging.getLogger(__name__)

_MAX_SKIPPED = 10
_NO_DECAY = re.compile(r"(^|[._])(class_token|cls_token|pos_embed\w*|\w*register\w*|\w*bias\w*)$")


class Data(Protocol):
    """Training samples, and the held-out ones that choose the epoch."""

    @property
    def num_samples(self) -> int:
        """Number of training samples."""

    def batches(self, *, epoch: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Yield each training sample once, in an order that ``epoch`` and ``seed`` decide."""

    def held_out(self, *, batch_size: int) -> Iterator[Batch]:
        """Yield the held-out samples at the evaluation view."""


@dataclass(frozen=True)
class Batch:
    """Some samples.

    Attributes:
        activations: At the cut, ``(n, …)`` float32.
        targets: As the loss takes them, ``(n, …)``.
        weights: What each counts, ``(n,)`` float32.
    """

    activations: Tensor
    targets: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to be resumed after an epoch.

    Attributes:
        epochs: Those that were trained.
        step: Optimizer steps done.
        model: Tensors of tail and head by name.
        optimizer: Moments of each trained tensor by name.
        best: Tensors of the best epoch, by name.
        best_epoch: Its number; 0 for the start.
        best_loss: Its held-out loss.
    """

    epochs: tuple[Epoch, ...]
    step: int
    model: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Tensor]]
    best: Mapping[str, Tensor]
    best_epoch: int
    best_loss: float


Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs ``(n, num_outputs)`` and targets ``(n, …)`` to the loss of each sample ``(n,)``."""


def train_tail(
    tail: nn.Module,
    head: nn.Module,
    data: Data,
    loss: Loss,
    recipe: Recipe,
    *,
    resumed: State | None = None,
    after_epoch: Callable[[Epoch, State], None] | None = None,
) -> State:
    """Train tail and head; leave them with the tensors of the best epoch.

    Args:
        tail: From activations to features; changed.
        head: From features to outputs; changed.
        data: Gives batches.
        loss: Of each sample.
        recipe: How.
        resumed: Of an earlier run with the same arguments: the same as if it had gone on.
        after_epoch: Called with each epoch and what a run can be resumed from.

    Raises:
        TrainingError: The loss is not finite, or a parameter has no gradient.
        ConfigError: ``resumed`` is of other parameters.
    """
    trainer = _Trainer(tail, head, loss, recipe)
    state = trainer.start(data) if resumed is None else trainer.restore(resumed)
    while len(state.epochs) < recipe.max_epochs and not _is_over(state, recipe):
        epoch = trainer.train_epoch(data, number=len(state.epochs) + 1)
        state = trainer.state_after(state, epoch)
        if after_epoch:
            after_epoch(epoch, state)
    trainer.model.load_state_dict(dict(state.best))
    return state


class _Trainer:
    """Tail and head, with their optimizer."""

    def __init__(self, tail: nn.Module, head: nn.Module, loss: Loss, recipe: Recipe) -> None:
        self.model = nn.ModuleDict({"tail": tail, "head": head})
        set_modes(self.model, train_bn=recipe.train_bn)
        groups = parameter_groups(tail, head, recipe)
        if recipe.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(
                groups, momentum=recipe.momentum
            )
        else:
            self.optimizer = torch.optim.AdamW(groups)
        self.tail, self.head, self.loss, self.recipe = tail, head, loss, recipe
        self.step = 0

    def start(self, data: Data) -> State:
        """Return the state before the first epoch: the start is the best so far."""
        held_out = mean_loss(self.tail, self.head, data, self.loss, self.recipe.batch_size)
        tensors = self._tensors()
        return State((), 0, tensors, {}, tensors, 0, math.inf if held_out is None else held_out)

    def restore(self, state: State) -> State:
        """Go back to a state.

        Raises:
            ConfigError: It is of other tensors.
        """
        other = sorted(set(self.model.state_dict()) ^ set(state.model))
        if other:
            raise ConfigError(
                f"The unfinished training is of other tensors ({', '.join(other[:3])}, …): the cut "
                "or the head was another. Start anew."
            )
        self.model.load_state_dict(dict(state.model))
        for name, parameter in self.model.named_parameters():
            if name in state.optimizer:
                moments = {key: value.clone() for key, value in state.optimizer[name].items()}
                self.optimizer.state[parameter] = moments
        self.step = state.step
        return state

    def train_epoch(self, data: Data, *, number: int) -> Epoch:
        """Train on every sample once.

        Raises:
            TrainingError: A loss, or the gradients of many steps, are not finite.
        """
        total, count, skipped, in_a_row, rate = 0.0, 0.0, 0, 0, 0.0
        recipe = self.recipe
        per_epoch = -(-data.num_samples // recipe.batch_size)
        for batch in data.batches(epoch=number, batch_size=recipe.batch_size, seed=recipe.seed):
            rate = recipe.rate(self.step, steps_per_epoch=per_epoch)
            losses = self._losses(batch)
            if not torch.isfinite(losses).all():
                raise TrainingError(
                    f"The loss is not finite in epoch {number}, at step {self.step + 1}. Try a "
                    "smaller learning rate; the best epoch before is kept."
                )
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(losses.sum() / batch.weights.sum().clamp_min(1e-12))
            in_a_row = 0 if self._update(rate) else in_a_row + 1
            skipped += in_a_row > 0
            if in_a_row == _MAX_SKIPPED:
                raise TrainingError(
                    f"{_MAX_SKIPPED} steps in a row had infinite gradients (epoch {number}). Try a "
                    "smaller learning rate."
                )
            total += float(losses.detach().sum())
            count += float(batch.weights.sum())
        held_out = mean_loss(self.tail, self.head, data, self.loss, recipe.batch_size)
        return Epoch(number, total / count, held_out, None, rate * recipe.lr, skipped)

    def state_after(self, before: State, epoch: Epoch) -> State:
        """Return what the run can be resumed from."""
        tensors = self._tensors()
        is_better = epoch.held_out is None or epoch.held_out < before.best_loss
        names: dict[Tensor, str] = {value: name for name, value in self.model.named_parameters()}
        return State(
            epochs=(*before.epochs, epoch),
            step=self.step,
            model=tensors,
            optimizer={
                names[parameter]: {key: value.clone() for key, value in moments.items()}
                for parameter, moments in self.optimizer.state.items()
            },
            best=tensors if is_better else before.best,
            best_epoch=epoch.number if is_better else before.best_epoch,
            best_loss=min(before.best_loss, math.inf if epoch.held_out is None else epoch.held_out),
        )

    def _losses(self, batch: Batch) -> Tensor:
        losses = self.loss(self.head(self.tail(batch.activations)), batch.targets)
        return losses * batch.weights

    def _update(self, rate: float) -> bool:
        """Do a step at a share of the highest rates; return False where it would be infinite."""
        if self.step == 0:
            _require_gradients(self.model)
        trained = [value for value in self.model.parameters() if value.grad is not None]
        if not all(torch.isfinite(value.grad).all() for value in trained):  # type: ignore[arg-type]
            return False
        if self.recipe.clip is not None:
            nn.utils.clip_grad_norm_(trained, self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["highest"]
        self.optimizer.step()
        self.step += 1
        return True

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}


def set_modes(model: nn.Module, *, train_bn: bool) -> None:
    """Put a model into eval mode, batch norms into train mode where they are trained.

    Parameters of batch norms in eval mode are trained; their statistics stay.
    """
    model.eval().requires_grad_(True)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(train_bn)


def parameter_groups(tail: nn.Module, head: nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Return the optimizer's groups, with the highest rate and the weight decay of each.

    A block has ``layer_decay`` times the rate of the next one, the head the whole rate, so a block
    has the same rate wherever the network is cut before it.
    """
    blocks = [block_of(name) for name, _ in tail.named_parameters()]
    order = list(dict.fromkeys(blocks))  # in the order of the modules, as they are computed
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in (
        *(("tail." + name, value) for name, value in tail.named_parameters()),
        *(("head." + name, value) for name, value in head.named_parameters()),
    ):
        rate, own = recipe.lr, name.partition(".")[2]
        if name.startswith("tail."):
            depth = len(order) - order.index(block_of(own))
            flat = recipe.backbone_lr
            rate = recipe.lr * recipe.layer_decay**depth if flat is None else flat
        decayed = parameter.ndim > 1 and not _NO_DECAY.search(own)
        groups.setdefault((rate, recipe.weight_decay if decayed else 0.0), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "highest": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def block_of(name: str) -> str:
    """Return the block that a parameter belongs to: a numbered module, or a numbered one in it.

    >>> block_of("layer4.0.conv1.weight"), block_of("encoder.layers.encoder_layer_11.mlp.0.bias")
    ('layer4.0', 'encoder.layers.encoder_layer_11')
    """
    parts = name.split(".")
    for number, part in enumerate(parts[:-1]):
        if re.search(r"\d[a-z]?$", part):
            more = number + 2 < len(parts) and re.search(r"^\D*\d+(-\d+)?$", parts[number + 1])
            return ".".join(parts[: number + (2 if more else 1)])
    return parts[0]


def mean_loss(
    tail: nn.Module, head: nn.Module, data: Data, loss: Loss, batch_size: int
) -> float | None:
    """Return the mean loss of the held-out samples in eval mode; None where there are none."""
    modes = [(module, module.training) for part in (tail, head) for module in part.modules()]
    tail.eval()
    head.eval()
    total, count = 0.0, 0.0
    with torch.inference_mode():
        for batch in data.held_out(batch_size=batch_size):
            losses = loss(head(tail(batch.activations)), batch.targets) * batch.weights
            total += float(losses.double().sum())
            count += float(batch.weights.sum())
    for module, mode in modes:
        module.training = mode
    return total / count if count else None


def _is_over(state: State, recipe: Recipe) -> bool:
    if math.isinf(state.best_loss):
        return False
    return len(state.epochs) - state.best_epoch >= recipe.patience


def _require_gradients(model: nn.Module) -> None:
    without = [name for name, value in model.named_parameters() if value.grad is None]
    if without:
        raise TrainingError(f"No gradient reaches {', '.join(without[:3])}, to be trained.")


def order_of(
    num_samples: int, *, epoch: int, seed: int, block: int, at_once: int
) -> Iterator[np.ndarray]:
    """Yield an epoch's order in pieces: samples of some blocks that are read together, shuffled.

    Blocks of consecutive samples are read whole, so that no chunk of a file is read twice; many
    blocks from everywhere in the file share a piece, so that a file sorted by class is mixed.

    Args:
        num_samples: Of the file.
        epoch: From 1.
        seed: With the epoch it decides the order.
        block: Samples of a block.
        at_once: Samples that may be in memory at a time; all of them are one piece.
    """
    random = np.random.default_rng([seed, epoch])
    starts = random.permutation(np.arange(0, num_samples, block))
    together = max(1, at_once // block)
    for first in range(0, len(starts), together):
        rows = [
            np.arange(start, min(start + block, num_samples))
            for start in starts[first : first + together]
        ]
        yield random.permutation(np.concatenate(rows))
