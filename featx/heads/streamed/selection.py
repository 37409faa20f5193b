"""Which samples are kept in memory, where not all of them can be."""

from __future__ import annotations

import numpy as np

MOST_KEPT = 2**16
"""More samples do not change which strength is best, only how long it takes to find."""
LEAST_KEPT = 2**11
_COPIES = 3
"""Of the kept features that are held at once: raw, standardised, without the held-out."""
_COPIES_OF_LOGITS = 8


def choose_kept(
    labels: np.ndarray,
    num_features: int,
    num_classes: int,
    *,
    memory: int,
    seed: int,
    at_most: int = MOST_KEPT,
) -> np.ndarray:
    """Return which samples to keep, ascending: the same share of each class, by chance.

    Their number is a power of two, so that a little more or less memory changes nothing.

    Args:
        labels: Class indices, ``(N,)``.
        num_features: Length of a row.
        num_classes: Length of a row of logits.
        memory: Bytes that may be taken for them and for what is made of them.
        seed: Decides which.
        at_most: More are not kept.
    """
    row_bytes = 4 * num_features * _COPIES + 8 * num_classes * _COPIES_OF_LOGITS
    fitting = 1 << max(0, int(memory // row_bytes).bit_length() - 1)
    count = min(len(labels), at_most, max(LEAST_KEPT, fitting))
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    # evenly spread over classes that stand one after the other
    places = (np.arange(count) * len(labels)) // count
    return np.sort(by_class[places])


def choose_judges(
    labels: np.ndarray, num_features: int, num_classes: int, *, memory: int, seed: int
) -> np.ndarray:
    """Return which of ``(N,)`` samples decide when to stop, ascending: a tenth at most.

    As ``choose_kept``, but never the only sample of a class.
    """
    several = np.flatnonzero(np.bincount(labels)[labels] > 1)
    kept = choose_kept(
        labels[several],
        num_features,
        num_classes,
        memory=memory,
        seed=seed,
        at_most=min(MOST_KEPT, max(1, len(several) // 10)),
    )
    judges: np.ndarray = several[kept]
    return judges
