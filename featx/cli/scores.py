"""Tables of scores: what train-head, evaluate and info print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from featx.cli.output import print_table

if TYPE_CHECKING:
    from featx.heads.tasks.scores import Scores


def print_metrics(metrics: Mapping[str, Scores]) -> None:
    """Print a row for each split."""
    from featx.heads.tasks import SINGLE_LABEL, TASKS

    task = next((TASKS[scores.task] for scores in metrics.values()), SINGLE_LABEL)
    rows = [
        [split, *(column.text(scores) for column in task.columns)]
        for split, scores in metrics.items()
    ]
    print_table(["split", *(column.title for column in task.columns)], rows)


def print_per_class(metrics: Mapping[str, Scores], classes: Sequence[str]) -> None:
    """Print a row for each class, tag or target, for each split."""
    from featx.heads.tasks import TASKS

    for split, scores in metrics.items():
        task = TASKS[scores.task]
        rows = [
            [name, *(column.text(own) for column in task.output_columns)]
            for name, own in zip(classes, getattr(scores, task.scores[2]), strict=True)
        ]
        titles = (column.title for column in task.output_columns)
        print_table([f"{task.output} ({split})", *titles], rows)
        click.echo()


def headline(scores: Scores) -> dict[str, str]:
    """Return the main scores, by the title of their column."""
    from featx.heads.tasks import TASKS

    columns = TASKS[scores.task].columns
    return {column.title: column.text(scores) for column in columns if column.is_main}
