"""One way to score every task."""

from __future__ import annotations

import numpy as np
import pytest

from featx.heads.tasks import TASKS


@pytest.mark.parametrize("task", TASKS)
def test_what_is_measured_can_be_stored_and_read(task: str) -> None:
    random = np.random.default_rng(0)
    outputs = random.normal(size=(20, 3))
    targets = {
        "single-label": random.integers(0, 3, 20),
        "multi-label": random.integers(0, 2, (20, 3)),
        "regression": random.normal(size=(20, 3)),
    }[task]
    scores = TASKS[task].measure(outputs, targets, thresholds=(0.5, 0.4, 0.3))
    assert scores is not None
    assert scores.task == task
    assert TASKS[task].scores_from_dict(scores.to_dict()) == scores


@pytest.mark.parametrize("task", TASKS)
def test_without_samples_there_are_no_scores(task: str) -> None:
    targets = np.zeros(0, np.int64) if task == "single-label" else np.zeros((0, 2))
    assert TASKS[task].measure(np.zeros((0, 2)), targets, thresholds=(0.5, 0.5)) is None
