"""How good a head is: one module for each task, and intervals that they share.

single_label   accuracies, F1, log loss and calibration of one class each
multi_label    average precision of each tag, F1 and exact matches at its threshold
regression     absolute error, and how much of the variance is explained
intervals      Wilson's, and by bootstrap
"""

from __future__ import annotations

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
    "measure_judged",
    "measure_tags",
    "measure_values",
    "top_k_accuracy",
    "wilson_interval",
]

Scores = Metrics | MultiLabelMetrics | RegressionMetrics
