"""``featx predict``."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.completion import files
from featx.cli.help import Command
from featx.cli.output import print_json, print_table, print_text, progress_bars
from featx.errors import SourceError, counted, printable

if TYPE_CHECKING:
    from featx.classifier.prediction import Prediction
    from featx.heads.tasks import TaskName

_FORMULA = tuple("=+-@＝＋－＠")  # the full-width ones, too
_KEPT = "\u00a0\u3000\u200c\u200d"  # spaces, and the joiners that some scripts are written with
_CSV_COLUMNS: dict[TaskName, Callable[[Sequence[str]], list[str]]] = {
    "single-label": lambda classes: ["rank", "label", "probability"],
    "multi-label": lambda classes: ["label", *(f"p({name})" for name in classes)],
    "regression": list,
}


@click.command(cls=Command)
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="[MODEL] IMAGE…|FOLDER…|SOURCE…",
    shell_complete=files,
)
@click.option(
    "-k",
    "--top-k",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Classes that are shown for each image.",
)
@click.option(
    "--format",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="jsonl and csv are written line by line, however many images there are.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of ONNX Runtime.  [all cores]")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Execution provider of ONNX Runtime, CUDAExecutionProvider for one; several are tried in "
    "their order.  [the CPU]",
)
@options.max_pixels
@options.quiet
def predict(
    paths: tuple[str, ...],
    top_k: int,
    format: str,
    threads: int | None,
    providers: tuple[str, ...],
    max_pixels: int,
    quiet: bool,
) -> None:
    """Predict images with an exported file; a folder stands for all images below it.

    So do an archive and other sources that extract takes: photos.zip, shards-{00..09}.tar,
    s3://bucket/photos/, images.csv. They are read one by one, and are called by their ids.

    MODEL is the first path if it ends in .onnx, else artifacts/model.onnx. An image that cannot be
    used gets a line with the reason, and the exit code is 1 at the end. A model of tags shows those
    whose probability is at least their threshold, a regression the value of each target.
    """
    from featx.images.given import find_given
    from featx.stages.predict import Predictor

    named = paths[0].endswith(".onnx")
    model, images = (paths[0], paths[1:]) if named else (options.MODEL, paths)
    if not images:
        raise click.UsageError("Give at least one image, folder or source after the model.")
    predictor = Predictor(
        model, providers=providers or None, threads=threads, max_pixels=max_pixels
    )
    found, num_bad = find_given(images), 0
    quiet = quiet or (format in ("jsonl", "csv") and sys.stdout.isatty())  # lines would cross it
    every = format == "csv" and predictor.task == "multi-label"  # a column for each tag
    with progress_bars(quiet=quiet) as bar:
        progress = bar("Predicting")

        def predictions() -> Iterator[Prediction]:
            nonlocal num_bad
            shown = len(predictor.classes) if every else top_k
            for done, each in enumerate(predictor.predict_each(found, top_k=shown), start=1):
                num_bad += each.error is not None
                if progress:
                    progress(done, len(found))
                yield each

        if format == "jsonl":
            for each in predictions():
                print_json(_as_json(each), indent=None)
        elif format == "csv":
            _print_csv(predictions(), predictor.task, predictor.classes)
        else:
            collected = list(predictions())
    if format == "table":
        _print_table(collected)
    elif format == "json":
        print_json([_as_json(each) for each in collected])
    if num_bad:
        raise SourceError(f"{num_bad:,} of {counted(len(found), 'image')} could not be used.")


def _print_table(predictions: Sequence[Prediction]) -> None:
    """Print a row for each image: its best classes, its tags and the most probable ones, or values.

    Images that cannot be used follow, a line each.
    """
    usable = [own for own in predictions if not own.error]
    if usable:
        rows = [[own.image, *_cells(own)] for own in usable]
        width = max(map(len, rows))
        columns = ["prediction", "2nd", "3rd", *(f"{n}th" for n in range(4, width))]
        if usable[0].values:
            columns = [name for name, _ in usable[0].values]
        elif usable[0].tags is not None:
            columns = ["tags", "1st", *columns[1:]]
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


def _as_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction as JSON values; ``tags`` or ``values`` where there are any."""
    shown: dict[str, Any] = {"image": prediction.image}
    if prediction.tags is not None:
        shown |= {"label": prediction.label, "tags": list(prediction.tags)}
    if prediction.values:
        shown["values"] = dict(prediction.values)
    else:
        shown["top"] = [{"label": label, "probability": p} for label, p in prediction.top]
    return shown | {"error": prediction.error}


def _print_csv(predictions: Iterable[Prediction], task: TaskName, classes: Sequence[str]) -> None:
    """Print CSV: a line for each image, of single labels one for each rank.

    It is UTF-8 whatever the terminal's encoding. Text that a spreadsheet would run as a formula
    begins with an apostrophe.
    """
    line = io.StringIO(newline="")
    writer = csv.writer(line)

    def write(*fields: str) -> None:
        writer.writerow(map(_cell, fields))
        click.echo(line.getvalue().encode(), nl=False)
        line.seek(0)
        line.truncate()

    columns = _CSV_COLUMNS[task](classes)
    write("image", *columns, "error")
    for prediction in predictions:
        lines = [[""] * len(columns)] if prediction.error else _lines(prediction, classes)
        for fields in lines:
            write(prediction.image, *fields, prediction.error or "")


def _cell(text: str) -> str:
    """Return the text of a cell on one line; no formula to a spreadsheet, unless it is a number.

    See https://owasp.org/www-community/attacks/CSV_Injection.
    """
    shown = printable(text, keep=_KEPT)
    try:
        float(shown)
    except ValueError:
        return f"'{shown}" if shown.startswith(_FORMULA) else shown
    return shown


def _lines(prediction: Prediction, classes: Sequence[str]) -> list[list[str]]:
    """Return the fields between image and error, for each line of a prediction."""
    if prediction.values:
        return [[f"{value:.9g}" for _, value in prediction.values]]
    if prediction.tags is not None:
        top = dict(prediction.top)
        own = [f"{top[name]:.6f}" if name in top else "" for name in classes]
        return [[prediction.label or "", *own]]
    return [
        [str(rank), label, f"{probability:.6f}"]
        for rank, (label, probability) in enumerate(prediction.top, start=1)
    ]
