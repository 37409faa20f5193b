"""What outputs decide, task by task, and whether a file and its head decide the same.

Outputs are compared as logits; those of a regression in deviations of each target from its mean, so
that one bound fits every unit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from featx.heads.metrics.multi_label import given_tags
from featx.heads.tasks.task import Task, task_of, thresholds_of, unit_of

MEASURES: dict[Task, str] = {
    "single-label": "accuracy",
    "multi-label": "share of images with exactly the right tags",
    "regression": "R²",
}


_MOST = 0.9
"""Share of images whose outputs are taken for usual."""


def comparable(details: Mapping[str, Any], outputs: np.ndarray) -> np.ndarray:
    """Return outputs as they are compared: logits, or standardised values of a regression.

    Args:
        details: Of a head's or a classifier's header.
        outputs: Logits, values or true values, ``(n, num_outputs)``.
    """
    if task_of(details) != "regression":
        return outputs
    mean, scale = unit_of(details, outputs.shape[1])
    standardised: np.ndarray = ((outputs - mean) / scale).astype(outputs.dtype)
    return standardised


def trained_outputs(task: Task, targets: np.ndarray, num_outputs: int) -> np.ndarray:
    """Return which outputs training rows had something to say of, ``(num_outputs,)`` bool.

    Others have logits of another order of magnitude: a class without training rows is never
    predicted, and a tag or target that is the same in all rows is constant.

    Args:
        task: Of the head.
        targets: Of the labelled training rows: class indices ``(N,)``; tags or numbers
            ``(N, num_outputs)``.
        num_outputs: Of the head.
    """
    trained: np.ndarray
    if not len(targets):
        trained = np.ones(num_outputs, bool)
    elif task == "single-label":
        trained = np.bincount(targets, minlength=num_outputs) > 0
    else:
        trained = np.ptp(targets, axis=0) > 0
    return trained


def typical_size(task: Task, expected: np.ndarray, trained: np.ndarray) -> float:
    """Return how large differences between outputs are, at least 1: what bounds are a share of.

    Of each image it is the spread between its logits; of tags and numbers, which have no others to
    be compared with, twice the distance from 0. Of three or more, the farthest one is left out, and
    so is a tenth of the images, so that no absurd output widens a bound.

    Args:
        task: Of the head.
        expected: As ``comparable`` gives them, ``(n, num_outputs)``; ``n`` ≥ 1.
        trained: Outputs that count, ``(num_outputs,)`` bool.
    """
    values = expected[:, trained] if trained.any() else expected
    values = values[np.isfinite(values).all(axis=1)]
    if not len(values):
        return 1.0
    single = task == "single-label"
    sizes = values.max(axis=1, keepdims=True) - values if single else 2 * np.abs(values)
    farthest = np.sort(sizes, axis=1)[:, -2 if sizes.shape[1] >= 3 else -1]
    return max(1.0, float(np.quantile(farthest, _MOST, method="lower")))


def agreeing(details: Mapping[str, Any], found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return for which images both decide the same, ``(n,)``; numbers are never quite the same.

    For these it is the share of the variance that they have in common, in [0, 1].

    Args:
        details: Of the header.
        found: As ``comparable`` gives them, ``(n, num_outputs)``.
        expected: Likewise.
    """
    task = task_of(details)
    same: np.ndarray
    if task == "regression":
        same = np.clip(1 - np.square(found.astype(np.float64) - expected).mean(axis=1), 0, 1)
    elif task == "multi-label":
        thresholds = thresholds_of(details, expected.shape[1])
        same = np.all(given_tags(found, thresholds) == given_tags(expected, thresholds), axis=1)
    else:
        same = found.argmax(axis=1) == expected.argmax(axis=1)
    return same.astype(np.float64)


def settled(
    details: Mapping[str, Any], found: np.ndarray, expected: np.ndarray, bound: float
) -> np.ndarray:
    """Return for which images both decide the same, or all but tie within the bound, ``(n,)`` bool.

    Args:
        details: Of the header.
        found: As ``comparable`` gives them, ``(n, num_outputs)``.
        expected: Likewise.
        bound: At least 0.
    """
    task = task_of(details)
    if task == "single-label":
        return top_class_is_settled(found.argmax(axis=1), expected, bound)
    fine: np.ndarray = np.abs(found - expected) <= bound
    if task == "multi-label":
        thresholds = thresholds_of(details, expected.shape[1])
        at = np.array([np.log(t / (1 - t)) for t in thresholds])
        same = given_tags(found, thresholds) == given_tags(expected, thresholds)
        fine = same | (np.abs(expected - at) <= bound)
    every: np.ndarray = np.all(fine, axis=1)
    return every


def top_class_is_settled(classes: np.ndarray, expected: np.ndarray, bound: float) -> np.ndarray:
    """Return, for each image, whether a class is the top one, or ties with it within the bound.

    Args:
        classes: ``(num_images,)`` int64.
        expected: Logits, ``(num_images, num_classes)``.
        bound: At least 0.
    """
    gap = expected.max(axis=1) - expected[np.arange(len(expected)), classes]
    settled: np.ndarray = gap <= bound
    return settled


def share_right(details: Mapping[str, Any], outputs: np.ndarray, targets: np.ndarray) -> float:
    """Return how good outputs are, by the measure of the task: at most 1.

    Args:
        details: Of the header.
        outputs: As ``comparable`` gives them, ``(n, num_outputs)``.
        targets: Class indices ``(n,)``, tags ``(n, num_outputs)``, or true values as ``comparable``
            gives them.
    """
    task = task_of(details)
    if task == "multi-label":
        given = given_tags(outputs, thresholds_of(details, outputs.shape[1]))
        return float((given == targets).all(axis=1).mean())
    if task == "regression":
        error = np.square(outputs - targets).mean(axis=0)
        variance = targets.var(axis=0)
        varies = variance > 0
        return float((1 - error[varies] / variance[varies]).mean()) if varies.any() else 0.0
    return float((outputs.argmax(axis=1) == targets).mean())
