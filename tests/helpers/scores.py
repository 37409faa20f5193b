"""Scores of arrays, for tests."""

from __future__ import annotations

import numpy as np

from featx.heads.tasks import SINGLE_LABEL
from featx.heads.tasks.scores import Metrics


def top1(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def measure_classes(logits: np.ndarray, labels: np.ndarray) -> Metrics:
    """Score the labelled samples; there must be one."""
    scores = SINGLE_LABEL.measure(logits[labels >= 0], labels[labels >= 0])
    assert isinstance(scores, Metrics)
    return scores
