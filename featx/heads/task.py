"""What a head answers: which of several classes, which tags, or how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Task = Literal["single-label", "multi-label", "regression"]
TASKS: tuple[Task, ...] = get_args(Task)


def task_of(details: Mapping[str, Any]) -> Task:
    """Return the task that a header's details name; without one it is single-label.

    Raises:
        ValueError: They name another.
    """
    task = details.get("task", "single-label")
    if task not in TASKS:
        raise ValueError(f"its task is {task!r}, expected one of {', '.join(TASKS)}")
    return TASKS[TASKS.index(task)]


def thresholds_of(details: Mapping[str, Any], num_classes: int) -> tuple[float, ...]:
    """Return from which probability on each tag is given; empty where the task has no tags.

    Raises:
        ValueError: There are not as many as tags, or one is outside (0, 1).
    """
    if task_of(details) != "multi-label":
        return ()
    found = details.get("thresholds")
    numbers = [t for t in found if isinstance(t, float | int)] if isinstance(found, list) else []
    if len(numbers) != num_classes or not all(0 < number < 1 for number in numbers):
        raise ValueError(f"it has no {num_classes} thresholds between 0 and 1")
    return tuple(map(float, numbers))
