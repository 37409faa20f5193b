"""Which samples are kept in memory, where not all of them can be."""

from __future__ import annotations

import numpy as np

from featx.heads.samples.folds import units_of
from featx.heads.solvers.mlp import HOLDOUT_PARTS
from featx.heads.tasks.losses import Loss

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

    Of each tag at least one that has it is kept, and one that lacks it, the rarest tags first. The
    number of samples is a power of two, so that a little more or less memory changes nothing.

    Args:
        labels: Class indices, ``(N,)``; or tags, ``(N, num_classes)``, 0 or 1.
        num_features: Length of a row.
        num_classes: Length of a row of logits.
        memory: Bytes that may be taken for them and for what is made of them.
        seed: Decides which.
        at_most: More are not kept.
    """
    fitting = _fitting(num_features, num_classes, memory)
    count = min(len(labels), at_most, max(LEAST_KEPT, fitting))
    order = np.random.default_rng(seed).permutation(len(labels))
    if labels.ndim == 2:
        first = _one_of_each(labels, order)
        others = order[~np.isin(order, first)]
        return np.sort(np.concatenate([first, others])[:count])
    by_class = order[np.argsort(labels[order], kind="stable")]
    # evenly spread over classes that stand one after the other
    places = (np.arange(count) * len(labels)) // count
    return np.sort(by_class[places])


def _fitting(num_features: int, num_classes: int, memory: int) -> int:
    """Return how many samples fit, a power of two."""
    row_bytes = 4 * num_features * _COPIES + 8 * num_classes * _COPIES_OF_LOGITS
    return 1 << max(0, int(memory // row_bytes).bit_length() - 1)


def choose_judges(
    labels: np.ndarray,
    num_features: int,
    num_classes: int,
    *,
    loss: Loss,
    groups: np.ndarray | None = None,
    memory: int,
    seed: int,
) -> np.ndarray:
    """Return which samples ``(n,)`` decide when to stop, ascending: about a tenth at most.

    They are held out as ``mlp`` does it, of as many samples as leave that few; perhaps none.
    """
    fitting = _fitting(num_features, num_classes, memory)
    most = HOLDOUT_PARTS * min(MOST_KEPT, max(LEAST_KEPT, fitting))
    some = np.arange(len(labels))
    if len(labels) > most:
        units = units_of(groups, len(labels))
        order = np.argsort(np.random.default_rng(seed).permutation(units.max() + 1)[units])
        whole = np.flatnonzero(np.diff(units[order], append=-1))  # last of each unit
        end = whole[max(0, int(np.searchsorted(whole, most)) - 1)] + 1
        some = np.sort(order[:end])
    of_some = None if groups is None else groups[some]
    held_out = loss.hold_out(labels[some], HOLDOUT_PARTS, groups=of_some, seed=seed)
    judges: np.ndarray = some[held_out]
    return judges


def _one_of_each(tags: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the first in an order to have each tag, and to lack it: each once, rarest tags first.

    Args:
        tags: Which each sample has, ``(N, num_tags)``, 0 or 1.
        order: Numbers of all samples, ``(N,)``.
    """
    counts = tags.sum(axis=0, dtype=np.int64)
    first = []
    for tag in np.argsort(np.minimum(counts, len(tags) - counts), kind="stable"):
        has = tags[order, tag] > 0
        first += [int(order[side.argmax()]) for side in (has, ~has) if side.any()]
    return np.array(list(dict.fromkeys(first)), np.int64)
