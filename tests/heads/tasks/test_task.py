"""What a header says of a task, and what it must not."""

from __future__ import annotations

import pytest

from featx.heads.tasks import SINGLE_LABEL, TASKS, task_of
from featx.heads.tasks.multi_label import thresholds_of
from featx.heads.tasks.regression import unit_of


def test_heads_made_before_there_were_tasks_have_one_label() -> None:
    assert task_of({}) is SINGLE_LABEL
    assert SINGLE_LABEL.thresholds_of({}, 3) == ()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_read(task: str) -> None:
    assert task_of({"task": task}).name == task


@pytest.mark.parametrize("task", ["", None, 3, "tags", ["single-label"]])
def test_another_task_is_refused(task: object) -> None:
    with pytest.raises(ValueError, match="its task is"):
        task_of({"task": task})


@pytest.mark.parametrize("found", [None, [], [0.5], [0.5, 1.0], [0.5, "0.5"], [0.0, 0.5], "ab"])
def test_thresholds_that_do_not_fit_are_refused(found: object) -> None:
    with pytest.raises(ValueError, match="no 2 thresholds"):
        thresholds_of({"task": "multi-label", "thresholds": found}, 2)


def test_thresholds_are_read() -> None:
    assert thresholds_of({"task": "multi-label", "thresholds": [0.25, 0.5]}, 2) == (0.25, 0.5)


@pytest.mark.parametrize(
    "unit",
    [
        None,
        [],
        {"mean": [0]},
        {"mean": [0, 1], "scale": [1, 0]},
        {"mean": [0, 1], "scale": [1]},
        {"mean": [0, float("nan")], "scale": [1, 1]},
        {"mean": ["a", 1], "scale": [1, 1]},
    ],
)
def test_a_regression_without_its_unit_is_refused(unit: object) -> None:
    with pytest.raises(ValueError, match="unit"):
        unit_of({"task": "regression", "unit": unit}, 2)


def test_a_unit_is_read() -> None:
    details = {"task": "regression", "unit": {"mean": [0, 5], "scale": [1, 2]}}
    mean, scale = unit_of(details, 2)
    assert (mean.tolist(), scale.tolist()) == ([0, 5], [1, 2])
