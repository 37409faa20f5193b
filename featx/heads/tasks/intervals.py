"""95 % intervals of scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_Z = 1.959963984540054  # 97.5 % of a normal distribution lie below
_REPLICATES = (200, 1000)
_DRAWS = 2e7


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a proportion, in [0, 1].

    Source: Wilson, "Probable inference, the law of succession, and statistical inference" (1927).

    Args:
        hits: At most ``count``.
        count: At least 1.

    >>> [round(bound, 3) for bound in wilson_interval(9, 10)]
    [0.596, 0.982]
    """
    share, square = hits / count, _Z * _Z / count
    centre = share + square / 2
    spread = _Z * float(np.sqrt(share * (1 - share) / count + square / (4 * count)))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    return (0.0 if hits == 0 else low), (1.0 if hits == count else high)


def share_with_interval(hits: int, count: int) -> tuple[float | None, float | None, float | None]:
    """Return a proportion and its Wilson interval; None each where ``count`` is 0."""
    if not count:
        return None, None, None
    return hits / count, *wilson_interval(hits, count)


def bootstrap_intervals(
    statistics: np.ndarray, score: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> list[tuple[float, float]]:
    """Return the 95 % percentile intervals of scores that are made of means over samples.

    Samples are drawn with replacement 1,000 times, of many samples less often, at least 200 times.
    Source: Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979).

    Args:
        statistics: Of each sample, ``(N, num_statistics)``.
        score: From means ``(r, num_statistics)`` to scores ``(r, num_scores)``, NaN where there is
            none.
        seed: Of the draws.
    """
    count = len(statistics)
    random = np.random.default_rng(seed)
    replicates = int(np.clip(_DRAWS / count, *_REPLICATES))
    means = np.empty((replicates, statistics.shape[1]))
    for replicate in range(replicates):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        means[replicate] = times @ statistics / count
    intervals = []
    for values in score(means).T:
        known = values[np.isfinite(values)]
        low, high = np.percentile(known, (2.5, 97.5)) if len(known) else (np.nan, np.nan)
        intervals.append((float(low), float(high)))
    return intervals
