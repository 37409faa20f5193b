"""What a head answers: which of several classes, which tags, or how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np

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


def unit_of(details: Mapping[str, Any], num_targets: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation of a regression's targets in training, ``(num_targets,)`` each.

    Raises:
        ValueError: They are not there, or a deviation is not above 0.
    """
    try:
        mean, scale = (np.array(details["unit"][name], np.float64) for name in ("mean", "scale"))
    except (TypeError, KeyError, ValueError) as err:
        raise ValueError(f"it does not say the unit of its targets ({err})") from err
    fits = mean.shape == scale.shape == (num_targets,) and np.isfinite(mean).all()
    if not (fits and np.isfinite(scale).all() and (scale > 0).all()):
        raise ValueError(f"it has no unit for {num_targets} targets")
    return mean, scale
