"""Tasks of a head: a class, tags, or numbers.

task            the type of a task, labels, targets
single_label, multi_label, regression    the three tasks: labels, measures, comparison
scores          scores of a split, and their 95 % intervals
tables          scores of splits as tables
losses          loss functions, and how samples are divided for them
calibration     temperature of the logits
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featx.heads.tasks.multi_label import MULTI_LABEL
from featx.heads.tasks.regression import REGRESSION
from featx.heads.tasks.single_label import SINGLE_LABEL
from featx.heads.tasks.task import Labels, Scorer, Targets, Task, TaskName

__all__ = [
    "MULTI_LABEL",
    "REGRESSION",
    "SINGLE_LABEL",
    "TASKS",
    "Labels",
    "Scorer",
    "Targets",
    "Task",
    "TaskName",
    "task_of",
]

TASKS: Mapping[str, Task] = {task.name: task for task in (SINGLE_LABEL, MULTI_LABEL, REGRESSION)}


def task_of(details: Mapping[str, Any]) -> Task:
    """Return the task that a header's details name; without one it is single-label.

    Raises:
        ValueError: They name another.
    """
    name = details.get("task", SINGLE_LABEL.name)
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"its task is {name!r}, expected one of {', '.join(TASKS)}")
    return TASKS[name]
