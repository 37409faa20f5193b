"""Scores of a split.

single_label   accuracies, F1, log loss and calibration of classes
multi_label    average precision of each tag, F1 and exact matches at its threshold
regression     absolute error, and the share of the variance that is explained
intervals      Wilson's, and by bootstrap
"""

from __future__ import annotations

from featx.heads.metrics.multi_label import MultiLabelMetrics
from featx.heads.metrics.regression import RegressionMetrics
from featx.heads.metrics.single_label import Metrics

Scores = Metrics | MultiLabelMetrics | RegressionMetrics
