"""Results and events of fine-tuning; without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featx.training.trained import Trained


@dataclass(frozen=True)
class Epoch:
    """Result of one epoch.

    Attributes:
        number: From 1.
        loss: Mean over the training samples, as they were seen.
        held_out: Mean loss of the held-out samples after it; None where there are none.
        accuracy: The task's accuracy on the held-out samples, at most 1; None where there are none.
        rate: Learning rate of the head at its end.
        skipped: Steps with an infinite gradient, which changed nothing.
    """

    number: int
    loss: float
    held_out: float | None
    accuracy: float | None
    rate: float
    skipped: int


@dataclass(frozen=True)
class Comparison:
    """McNemar's test of two heads on the same labelled images of the validation split.

    Attributes:
        num_only_probe: Images that the probe alone has right.
        num_only_tuned: Images that the tuned head alone has right.
        p_value: Probability of a difference at least this large, were both equally good.
    """

    num_only_probe: int
    num_only_tuned: int
    p_value: float

    @classmethod
    def of(cls, probe: np.ndarray, tuned: np.ndarray) -> Comparison:
        """Compare which images each has right, ``(n,)`` bool, by the exact binomial test.

        Source: McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages" (1947).

        >>> right = np.arange(20) < 10
        >>> Comparison.of(right, right | (np.arange(20) < 16))
        Comparison(num_only_probe=0, num_only_tuned=6, p_value=0.03125)
        """
        first, second = int((probe & ~tuned).sum()), int((tuned & ~probe).sum())
        return cls(first, second, _two_sided(min(first, second), first + second))


def _two_sided(fewer: int, count: int) -> float:
    """Return the probability that either side of ``count`` fair coins has at most ``fewer``."""
    ways: int = 1
    term: int = 1
    for k in range(fewer):
        term = term * (count - k) // (k + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << count))


@dataclass(frozen=True, eq=False)
class Tuned:
    """A tail and head that were trained, and the probe beside them.

    Attributes:
        trained: The head on the trained tail's features, with scores of every split.
        tail: Tensors behind the cut by their names in the whole model, float32; with statistics of
            batch norms, without integer counters.
        probe: The head that train-head fits to the unchanged tail's features; the one that
            training started from where one was given; None from scratch.
        comparison: Both on the validation split; None without labelled validation images, without
            a probe, and for tasks other than one class each.
    """

    trained: Trained
    tail: dict[str, np.ndarray]
    probe: Trained | None
    comparison: Comparison | None


def _nothing(*_: object) -> None:
    """Ignore an event."""


@dataclass(frozen=True)
class Events:
    """Callbacks of a training.

    Attributes:
        on_step: With the step under way, in a few words.
        on_parameters: With name and size of each parameter to learn, in the order of the network
            and the head's last, and the size of the whole network and head; before training.
        on_epoch: After each epoch, with its seconds and training images a second; after resuming,
            with the epochs trained from there on.
    """

    on_step: Callable[[str], None] = _nothing
    on_parameters: Callable[[Sequence[tuple[str, int]], int], None] = _nothing
    on_epoch: Callable[[Epoch, float, float], None] = _nothing
