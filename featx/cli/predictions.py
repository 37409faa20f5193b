"""How predictions look: a table, JSON, and lines of JSON or CSV; one look for each task."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from featx.cli.output import print_json, print_table, print_text
from featx.errors import printable

if TYPE_CHECKING:
    from featx.heads.tasks import TaskName
    from featx.stages.predict import Prediction

_FORMULA = tuple("=+-@＝＋－＠")  # the full-width ones, too
_KEPT = "\u00a0\u3000\u200c\u200d"  # spaces, and the joiners that some scripts are written with
_RANKED = ("prediction", "2nd", "3rd")


def print_predictions(
    predictions: Sequence[Prediction], task: TaskName, classes: Sequence[str]
) -> None:
    """Print a row for each image; of tags those given, then the most probable ones.

    Images that cannot be used follow, a line each.
    """
    rows = [[own.image, *_cells(own)] for own in predictions if not own.error]
    width = max(map(len, rows), default=0)
    columns = [*_RANKED, *(f"{n}th" for n in range(4, width))]
    if task == "regression":
        columns = list(classes)
    elif task == "multi-label":
        columns = ["tags", "1st", *columns[1:]]
    if rows:
        rows = [row + [""] * (width - len(row)) for row in rows]
        print_table(["image", *columns[: width - 1]], rows)
    for own in predictions:
        if own.error:
            print_text(f"{own.image}  cannot be used: {own.error}")


def _cells(prediction: Prediction) -> list[str]:
    if prediction.values:
        return [f"{value:.6g}" for _, value in prediction.values]
    top = [f"{label} {p:.3f}" for label, p in prediction.top]
    return top if prediction.tags is None else [prediction.label or "", *top]


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values; ``tags`` or ``values`` where there are any."""
    shown: dict[str, Any] = {"image": prediction.image}
    if prediction.tags is not None:
        shown |= {"label": prediction.label, "tags": list(prediction.tags)}
    if prediction.values:
        shown["values"] = dict(prediction.values)
    else:
        shown["top"] = [{"label": label, "probability": p} for label, p in prediction.top]
    return shown | {"error": prediction.error}


def print_lines(predictions: Iterable[Prediction]) -> None:
    """Print one JSON object per line."""
    for prediction in predictions:
        print_json(as_json(prediction), indent=None)


def print_csv(predictions: Iterable[Prediction], task: TaskName, classes: Sequence[str]) -> None:
    """Print one line per image and class: image, rank, label, probability, error.

    Of tags one line per image, with those given as ``label`` and the probability of each; of a
    regression one line per image with its values. As UTF-8 whatever the terminal's encoding. Text
    that a spreadsheet would run as a formula begins with an apostrophe.
    """
    line = io.StringIO(newline="")
    writer = csv.writer(line)

    def write(*fields: str) -> None:
        writer.writerow(map(_cell, fields))
        click.echo(line.getvalue().encode(), nl=False)
        line.seek(0)
        line.truncate()

    if task == "single-label":
        write("image", "rank", "label", "probability", "error")
    elif task == "multi-label":
        write("image", "label", *(f"p({name})" for name in classes), "error")
    else:
        write("image", *classes, "error")
    for prediction in predictions:
        for fields in _lines(prediction, task, classes):
            write(prediction.image, *fields, prediction.error or "")


def _cell(text: str) -> str:
    """Return the text of a cell on one line; no formula to a spreadsheet, unless it is a number.

    See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    shown = printable(text, keep=_KEPT)
    return f"'{shown}" if shown.startswith(_FORMULA) and not _is_number(shown) else shown


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lines(prediction: Prediction, task: TaskName, classes: Sequence[str]) -> list[list[str]]:
    """Return the fields between image and error, for each line of a prediction."""
    if task == "multi-label":
        top = dict(prediction.top)
        own = [f"{top[name]:.6f}" if name in top else "" for name in classes]
        return [[prediction.label or "", *own]]
    if task == "regression":
        values = dict(prediction.values)
        return [[f"{values[name]:.9g}" if name in values else "" for name in classes]]
    if prediction.error:
        return [["", "", ""]]
    return [
        [str(rank), label, f"{probability:.6f}"]
        for rank, (label, probability) in enumerate(prediction.top, start=1)
    ]
