"""The tutorials' recipe on features that are read block by block: one pass an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featx.heads.head import Layer, silence_absent
from featx.heads.samples.pools import PooledRows
from featx.heads.samples.rows import Rows
from featx.heads.solvers.sgd import Batch, EpochScores, SGDOptions, train_sgd


def fit_sgd_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    options: SGDOptions,
    *,
    pool_bytes: int,
    weights: np.ndarray | None = None,
    seed: int = 0,
    progress: Callable[[EpochScores], None] | None = None,
    step: Callable[[str], None] | None = None,
) -> Layer:
    """Return the layer after the last epoch.

    Args:
        rows: Raw features of the training samples, finite.
        labels: ``(N,)`` in ``[0, num_classes)``.
        num_classes: Outputs of the head; classes without samples get logits that lose.
        options: The recipe.
        pool_bytes: Of the features that are shuffled together.
        weights: Of each sample, ``(N,)``, above 0; None for 1 each.
        seed: Of initial weights and shuffling.
        progress: Called after each epoch.
        step: Called with the step under way.

    Raises:
        ConfigError: Training with these options diverges.
    """
    random = np.random.default_rng(seed)
    counts = (np.ones(len(labels)) if weights is None else weights).astype(np.float32)
    pooled = PooledRows(rows, labels, counts, pool_bytes)

    def batches() -> Iterator[Batch]:
        for numbers, x in pooled.raw_batches(options.batch_size, random):
            yield x, labels[numbers], counts[numbers]

    widths = rows.shape[1], num_classes
    layer = train_sgd(
        batches, len(labels), widths, options, random=random, progress=progress, step=step
    )
    return silence_absent(layer, labels)
