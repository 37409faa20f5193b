"""Choose a learning rate from a grid that widens where the best one is at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable

from featx.errors import TrainingError

RATES = tuple(float(f"{factor}e{power}") for power in range(-6, 1) for factor in (1, 3))
"""All that may be tried, 1e-6 to 3."""
_FIRST = {"adamw": (3e-4, 1e-3, 3e-3), "sgd": (3e-3, 1e-2, 3e-2)}

_NEARLY = 1.05
"""A loss up to so many times the lowest is nearly as low."""


def usual_rate(optimizer: str) -> float:
    """Return the rate to take where nothing can be held out to choose one."""
    return _FIRST[optimizer][1]


def choose_rate(trial: Callable[[float], float], *, optimizer: str) -> float:
    """Return the rate with the lowest held-out loss of ``trial``, or the next larger one.

    Three neighbours are tried first, then more on the side where the best is at the edge. The next
    larger one is taken where its loss is nearly as low: a short training favours small rates, which
    end near the start, and a whole one has the time to settle.

    Raises:
        TrainingError: No loss is finite.
    """
    losses = {RATES.index(rate): trial(rate) for rate in _FIRST[optimizer]}
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
