"""One way to score every task."""

from __future__ import annotations

import numpy as np
import pytest

from featx.heads.metrics import measure_for, scores_from_dict
from featx.heads.tasks.task import TASKS, Task


@pytest.mark.parametrize("task", TASKS)
def test_what_is_measured_can_be_stored_and_read(task: Task) -> None:
    random = np.random.default_rng(0)
    outputs = random.normal(size=(20, 3))
    targets = {
        "single-label": random.integers(0, 3, 20),
        "multi-label": random.integers(0, 2, (20, 3)),
        "regression": random.normal(size=(20, 3)),
    }[task]
    scores = measure_for(task, outputs, targets, thresholds=(0.5, 0.4, 0.3))
    assert scores is not None
    assert scores.task == task
    assert scores_from_dict(task, scores.to_dict()) == scores
