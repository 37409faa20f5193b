"""How good a head is: one module for each task, and intervals that they share.

single_label   accuracies, F1, log loss and calibration of one class each
multi_label    average precision of each tag, F1 and exact matches at its threshold
regression     absolute error, and how much of the variance is explained
intervals      Wilson's, and by bootstrap
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from featx.heads.metrics.intervals import wilson_interval
from featx.heads.metrics.multi_label import MultiLabelMetrics, TagScores, measure_tags
from featx.heads.metrics.regression import RegressionMetrics, TargetScores, measure_values
from featx.heads.metrics.single_label import (
    NUM_BINS,
    ClassScores,
    Judged,
    Metrics,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    judge,
    log_loss,
    log_softmax,
    macro_f1,
    measure,
    measure_judged,
    top_k_accuracy,
)
from featx.heads.tasks.task import Task

__all__ = [
    "NUM_BINS",
    "ClassScores",
    "Judged",
    "Metrics",
    "MultiLabelMetrics",
    "RegressionMetrics",
    "Scores",
    "TagScores",
    "TargetScores",
    "class_scores",
    "confusion_matrix",
    "expected_calibration_error",
    "judge",
    "log_loss",
    "log_softmax",
    "macro_f1",
    "measure",
    "measure_for",
    "measure_judged",
    "measure_tags",
    "measure_values",
    "scores_from_dict",
    "top_k_accuracy",
    "wilson_interval",
]

Scores = Metrics | MultiLabelMetrics | RegressionMetrics


def measure_for(
    task: Task, outputs: np.ndarray, targets: np.ndarray, *, thresholds: Sequence[float] = ()
) -> Scores | None:
    """Return the scores of labelled samples at a task, None if there are none.

    Args:
        task: What the outputs are.
        outputs: Logits, or values of a regression, ``(num_samples, num_outputs)``.
        targets: As ``heads.targets`` reads them, of labelled samples.
        thresholds: From which probability on a tag is given.
    """
    if task == "multi-label":
        return measure_tags(outputs, targets, thresholds)
    if task == "regression":
        return measure_values(outputs, targets)
    return measure(outputs, targets)


def scores_from_dict(task: Task, values: Mapping[str, Any]) -> Scores:
    """Return the scores of a task that ``to_dict`` made ``values`` of, perhaps in a later featx."""
    of_all, of_each, each = {
        "single-label": (Metrics, ClassScores, "per_class"),
        "multi-label": (MultiLabelMetrics, TagScores, "per_class"),
        "regression": (RegressionMetrics, TargetScores, "per_target"),
    }[task]
    own = [_known(of_each, scores) for scores in values[each]]
    scores: Scores = of_all(**_known(of_all, values) | {each: own})
    return scores


def _known(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that a dataclass has fields for."""
    return {field.name: values[field.name] for field in fields(kind)}
