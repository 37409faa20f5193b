"""The MLP head on features that are read block by block: one pass an epoch.

The samples that the survey kept decide when to stop, and are not trained on.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from featx.heads.samples.pools import PooledRows
from featx.heads.samples.rows import Rows, Survey
from featx.heads.solvers.eigenbasis import StandardisedRows
from featx.heads.solvers.mlp import Judges, MLPFit, train_mlp
from featx.heads.solvers.mlp_options import MLPOptions
from featx.heads.tasks.losses import SOFTMAX, Loss


def fit_mlp_in_blocks(
    rows: Rows,
    labels: np.ndarray,
    num_classes: int,
    survey: Survey,
    options: MLPOptions,
    *,
    pool_bytes: int,
    weights: np.ndarray | None = None,
    loss: Loss = SOFTMAX,
    seed: int = 0,
    step: Callable[[str], None] | None = None,
) -> MLPFit:
    """Return the MLP of the network and epoch with the lowest held-out loss.

    Args:
        rows: Raw features of the samples to train on, finite: those that were not kept.
        labels: Of all training samples, ``(N,)`` in ``[0, num_classes)``; tags or numbers ``(N,
            num_classes)`` where the loss takes these.
        num_classes: Outputs of the head.
        survey: Of all training samples.
        options: Shape and training.
        pool_bytes: Of the features that are shuffled together.
        weights: Of all training samples, ``(N,)``, above 0; None for 1 each.
        loss: What is made small, and compared.
        seed: Of initial weights, shuffling and dropout.
        step: Called with the step under way.

    Raises:
        ConfigError: Training with these options diverges.
    """
    weights = np.ones(len(labels)) if weights is None else weights
    kept = survey.kept
    others = np.delete(np.arange(len(labels)), kept)
    standardised = StandardisedRows(rows, survey.mean, survey.scale, survey.features[:0])
    train = PooledRows(standardised, labels[others], weights[others], pool_bytes)
    judge = Judges(survey.features, labels[kept], weights[kept])
    standard = survey.mean, survey.scale
    return train_mlp(
        *(train, judge, standard, num_classes, options),
        loss=loss,
        seed=seed,
        step=step,
    )
