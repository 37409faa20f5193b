"""Few-shot: scores of heads trained on a few samples of each class, over several draws."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from featx.errors import ConfigError, counted
from featx.heads.tasks.scores import Scores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FewShot:
    """How many samples are drawn, and how often.

    Attributes:
        shots: Samples of each class.
        repeats: Draws; each trains a head.

    Raises:
        ConfigError: A value is below 1.
    """

    shots: int
    repeats: int = 10

    def __post_init__(self) -> None:
        if min(self.shots, self.repeats) < 1:
            raise ConfigError(
                f"shots and repeats must be at least 1; got {self.shots} and {self.repeats}."
            )


@dataclass(frozen=True)
class Spread:
    """One score over all draws.

    Attributes:
        mean: Over the draws.
        deviation: Standard deviation of a draw, 0 of a single one.
    """

    mean: float
    deviation: float


@dataclass(frozen=True)
class FewShotScores:
    """Scores of one split over all draws.

    Attributes:
        top1: Share whose label has the largest logit.
        balanced_accuracy: Mean over classes of the recall.
        macro_f1: Mean over classes of the F1 score.
        log_loss: Nats.
    """

    top1: Spread
    balanced_accuracy: Spread
    macro_f1: Spread
    log_loss: Spread


def draw_shots(labels: np.ndarray, shots: int, *, seed: Sequence[int]) -> np.ndarray:
    """Return the rows of some samples of each class, ascending, int64.

    Args:
        labels: Class indices, ``(N,)``.
        shots: Samples of each class; all of a class that has fewer.
        seed: Decides which.
    """
    random = np.random.default_rng(list(seed))
    order = random.permutation(len(labels))
    rows = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(rows))


def warn_of_small_classes(labels: np.ndarray, shots: int) -> None:
    """Log how many classes have fewer samples than are to be drawn; ``labels`` are ``(N,)``."""
    counts = np.bincount(labels)
    small = int(((counts > 0) & (counts < shots)).sum())
    if small:
        log.warning(
            "%s fewer than %d training samples: all are used.",
            *(counted(small, "class has", "classes have"), shots),
        )


def summarise(draws: Sequence[Mapping[str, Scores]]) -> dict[str, FewShotScores]:
    """Return mean and deviation of each split's scores."""
    names = [field.name for field in fields(FewShotScores)]
    return {
        split: FewShotScores(
            **{name: _spread([getattr(draw[split], name) for draw in draws]) for name in names}
        )
        for split in draws[0]
    }


def _spread(values: Sequence[float]) -> Spread:
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return Spread(float(np.mean(values)), deviation)
