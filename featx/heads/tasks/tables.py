"""Scores of splits as tables: of text, and of numbers for a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featx.heads.tasks import TASKS
from featx.heads.tasks.scores import Scores
from featx.heads.tasks.task import Column


def main_column(scores: Scores) -> Column:
    """Return the column of the measure by which a task is compared first."""
    return next(each for each in TASKS[scores.task].columns if each.is_main)


def score_cells(metrics: Mapping[str, Scores]) -> tuple[list[str], list[list[str]]]:
    """Return titles of the columns, and a row of text for each split."""
    if not metrics:
        return ["split"], []
    columns = TASKS[next(iter(metrics.values())).task].columns
    rows = [[split, *(each.text(own) for each in columns)] for split, own in metrics.items()]
    return ["split", *(each.title for each in columns)], rows


def score_columns(metrics: Mapping[str, Scores]) -> dict[str, Sequence[Any]]:
    """Return the scores of each split by their names, with the bounds of their intervals."""
    columns: dict[str, Sequence[Any]] = {"split": list(metrics)}
    for own in metrics.values():
        for name in (name for each in TASKS[own.task].columns for name in each.fields):
            columns[name] = [getattr(each, name) for each in metrics.values()]
    return columns
