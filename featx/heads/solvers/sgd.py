"""The tutorials' recipe: one linear layer on raw features, SGD with momentum and a stepped rate.

A baseline: ``linear`` finds the optimum in less time and has no rate to choose.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numpy as np

from featx.artifact.keywords import require_types
from featx.errors import ConfigError, require_at_least, require_number
from featx.heads.head import Fitted, silence_absent
from featx.heads.samples.data import Step, TrainingData, no_step, shuffled_batches


@dataclass(frozen=True)
class SGDOptions:
    """How a linear layer is trained by SGD.

    Attributes:
        learning_rate: In the first epoch, above 0.
        momentum: Share of the last step that is taken again, in [0, 1).
        step_size: Epochs after which the rate falls.
        gamma: Factor by which it falls, above 0.
        epochs: Passes over the samples.
        batch_size: Samples a step.

    Raises:
        ConfigError: A value is out of range.
    """

    learning_rate: float = 1e-3
    momentum: float = 0.9
    step_size: int = 7
    gamma: float = 0.1
    epochs: int = 20
    batch_size: int = 512

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("learning_rate", "gamma"):
            require_number(name, getattr(self, name), 0, ends="(]")
        require_number("momentum", self.momentum, 0, 1, ends="[)")
        for name in ("step_size", "epochs", "batch_size"):
            require_at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class EpochScores:
    """Scores of an epoch, counted from 1, on each sample as it was trained on.

    The loss is a mean over samples in nats, the accuracy a share in [0, 1].
    """

    epoch: int
    loss: float
    accuracy: float
    seconds: float


def fit_sgd(
    data: TrainingData,
    options: SGDOptions,
    *,
    seed: int = 0,
    progress: Callable[[EpochScores], None] | None = None,
    step: Step = no_step,
) -> Fitted:
    """Return the layer after the last epoch; nothing is held out.

    Classes without samples get logits that lose. The seed decides initial weights and shuffling.

    Raises:
        ConfigError: Training with these options diverges.
    """
    random = np.random.default_rng(seed)
    if isinstance(data.features, np.ndarray):
        data = replace(data, features=np.ascontiguousarray(data.features, dtype=np.float32))
    weights, num_features = data.weights.astype(np.float32), data.features.shape[1]
    bound = 1 / np.sqrt(num_features)  # as torch's Linear
    weight, bias = (
        random.uniform(-bound, bound, size).astype(np.float32)
        for size in ((data.num_outputs, num_features), data.num_outputs)
    )
    state = _State(weight, bias, np.zeros_like(weight), np.zeros_like(bias))
    for epoch in range(options.epochs):
        start = time.perf_counter()
        step(f"Epoch {epoch + 1} of {options.epochs}")
        rate = options.learning_rate * options.gamma ** (epoch // options.step_size)
        loss, accuracy = 0.0, 0.0
        for rows, x in shuffled_batches(data, options.batch_size, random):
            lost, right = state.step(x, data.targets[rows], weights[rows], rate, options.momentum)
            loss, accuracy = loss + lost / data.num_samples, accuracy + right / data.num_samples
        if not np.isfinite(loss):
            raise ConfigError(
                f"training by SGD diverged in epoch {epoch + 1}. Use a learning rate below "
                f"{options.learning_rate:g}."
            )
        if progress:
            progress(EpochScores(epoch + 1, loss, accuracy, time.perf_counter() - start))
    layer = silence_absent((state.weight, state.bias), data.targets)
    return Fitted((layer,), {"head": "linear", "solver": "sgd", **asdict(options), "seed": seed})


@dataclass(frozen=True, eq=False)
class _State:
    """Weights and their last steps, changed in place."""

    weight: np.ndarray
    bias: np.ndarray
    weight_step: np.ndarray
    bias_step: np.ndarray

    def step(
        self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray, rate: float, momentum: float
    ) -> tuple[float, float]:
        """Take a step; return the sum of losses and the number of right predictions before it."""
        rows = np.arange(len(labels))
        with np.errstate(over="ignore", invalid="ignore"):  # the caller sees what diverged
            z = x @ self.weight.T + self.bias  # (n, k)
            right = int((z.argmax(axis=1) == labels).sum())
            z -= z.max(axis=1, keepdims=True)
            own = z[rows, labels].copy()
            np.exp(z, out=z)
            total = z.sum(axis=1)
            loss = float((np.log(total) - own).sum(dtype=np.float64))
            z /= total[:, None]
            z[rows, labels] -= 1
            z *= (weights / weights.sum())[:, None]
            self.weight_step[:] = momentum * self.weight_step + z.T @ x
            self.bias_step[:] = momentum * self.bias_step + z.sum(axis=0)
            self.weight[:] -= np.float32(rate) * self.weight_step
            self.bias[:] -= np.float32(rate) * self.bias_step
        return loss, right
