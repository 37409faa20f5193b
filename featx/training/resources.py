"""Where training takes place: in memory or in blocks."""

from __future__ import annotations

import logging

import numpy as np

from featx.errors import ConfigError
from featx.features.file import FeatureFile
from featx.training.memory import free_memory, parse_memory
from featx.training.options import TrainOptions

log = logging.getLogger(__name__)

COPIES = {"lbfgs": 4, "sklearn": 8, "ridge": 7, "centroid": 5, "sgd": 3, "mlp": 5}
"""Of all features in float32 that training in memory holds at once."""


def memory_for(options: TrainOptions) -> int:
    """Return the bytes that features and their copies may take: as asked for, or half of free."""
    return free_memory() // 2 if options.memory is None else parse_memory(options.memory)


def fits_into_memory(
    cache: FeatureFile, rows: np.ndarray, options: TrainOptions, memory: int
) -> bool:
    """Return whether training holds all features in memory, with the copies that it makes.

    Args:
        cache: The features.
        rows: Numbers of those that train, ``(n,)``.
        options: What is trained, with the task and solver that were settled.
        memory: Bytes that they may take.

    Raises:
        ConfigError: They do not fit, and the solver knows no other way.
    """
    kind = "mlp" if options.head == "mlp" else options.solver or "lbfgs"
    size = 4 * len(cache) * cache.num_features
    copies = COPIES["sgd"] if options.few_shot else COPIES[kind]
    if copies * size <= memory:
        return True
    if not options.few_shot:
        if kind == "sklearn":
            raise ConfigError(
                f"scikit-learn trains in memory: it needs about {_show(copies * size)} for these "
                f"features, and may take {_show(memory)}. Use --solver lbfgs, which has the same "
                "optimum and reads them in blocks, or allow more by --memory."
            )
        if len(rows) <= cache.num_features:
            raise ConfigError(
                f"these features need about {_show(copies * size)} of memory, and {_show(memory)} "
                f"may be taken; {len(rows):,} samples of {cache.num_features:,} features are too "
                "few to be read in blocks. Allow more by --memory."
            )
    log.info("The features take %s: they are read in blocks, pass after pass.", _show(size))
    return False


def _show(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
