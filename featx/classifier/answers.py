"""Answers as a table: one row for each image, for spreadsheets and programs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featx.heads.tasks.losses import log_softmax
from featx.heads.tasks.task import Task
from featx.images.sources.labels import SEPARATOR

_KEPT = 0.95
_FEWEST = 20


def answer_columns(task: Task, classes: Sequence[str]) -> list[str]:
    """Return the columns of a table of answers, after those that name the image.

    Classes have prediction, probability, margin (over the next best) and next best; tags a
    probability each; numbers their values.
    """
    if task.name == "regression":
        return list(classes)
    if task.name == "multi-label":
        return ["prediction", *(f"p({name})" for name in classes)]
    return ["prediction", "probability", "margin", "next_best"]


def answer_cells(
    task: Task, classes: Sequence[str], logits: np.ndarray, thresholds: Sequence[float] = ()
) -> list[list[str]]:
    """Return the cells of ``answer_columns`` for each row of logits, or of values, ``(n, k)``."""
    if task.name == "regression":
        return [[f"{value:.9g}" for value in row] for row in logits]
    rows = []
    for row in task.probabilities(logits.astype(np.float64)):
        if task.name == "multi-label":
            limits = thresholds or [0.5] * len(classes)
            has = [name for name, p, t in zip(classes, row, limits, strict=True) if p >= t]
            rows.append([SEPARATOR.join(has) or SEPARATOR, *(f"{p:.6f}" for p in row)])
        else:
            order = np.argsort(-row, kind="stable")[:2]
            rows.append(class_cells([(classes[i], float(row[i])) for i in order]))
    return rows


def class_cells(best: Sequence[tuple[str, float]]) -> list[str]:
    """Return the cells of ``answer_columns`` for classes, from the two best with probabilities."""
    (name, probability), *others = best
    if not others:
        return [name, f"{probability:.6f}", "", ""]
    return [name, f"{probability:.6f}", f"{probability - others[0][1]:.6f}", others[0][0]]


def choose_unknown_below(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Return the probability that 95 % of the right answers to held-out images reach.

    Below it an answer of classes is taken for unknown: of images like these, one right answer in
    twenty is lost. It needs no image that is none of the classes, as in Hendrycks and Gimpel (2017,
    https://arxiv.org/abs/1610.02136), whose score it limits.

    Args:
        logits: Of the exported file, ``(n, num_classes)``.
        labels: Class indices, ``(n,)``.

    Returns:
        A probability in [0, 1]; None with fewer than 20 right answers.
    """
    right = logits.argmax(axis=1) == labels
    if right.sum() < _FEWEST:
        return None
    best = np.exp(log_softmax(logits.astype(np.float64))).max(axis=1)
    return float(np.quantile(best[right], 1 - _KEPT, method="lower"))
