"""``featx predict``."""

from __future__ import annotations

import csv
import filecmp
import io
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from featx.cli import options
from featx.cli.completion import files
from featx.cli.help import Command
from featx.cli.layout import fits
from featx.cli.output import print_json, print_table, print_text, progress_bars
from featx.cli.streams import columns
from featx.errors import SourceError, counted, printable

if TYPE_CHECKING:
    from featx.classifier.prediction import Prediction
    from featx.heads.tasks import TaskName
    from featx.stages.predict import Predictor

_TOP = 3
UNKNOWN = "unknown"
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f]')
_KEPT = "\u00a0\u3000\u200c\u200d"  # spaces, and the joiners that some scripts are written with
_CSV_COLUMNS: dict[TaskName, Callable[[Sequence[str]], list[str]]] = {
    "single-label": lambda classes: ["rank", "label", "probability"],
    "multi-label": lambda classes: ["label", *(f"p({name})" for name in classes)],
    "regression": list,
}


def _probability(
    _context: click.Context, _option: click.Parameter, text: str | None
) -> float | str | None:
    if text is None or text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise click.BadParameter(f"{text!r} is neither auto nor a probability from 0 to 1.")
    return value


def _limit(predictor: Predictor) -> float:
    """Return the probability that export chose."""
    if (chosen := predictor.unknown_below) is None:
        raise click.UsageError(
            "The model has no limit for --unknown-below auto: it was exported by an earlier featx, "
            "without proof, or with fewer than 20 held-out images answered right. Give a "
            "probability, or export it to another file."
        )
    return chosen


def _model_and_images(paths: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    named = paths[0].endswith(".onnx") or (paths[0].startswith("hf:") and len(paths) > 1)
    model, images = (Path(paths[0]), paths[1:]) if named else (options.MODEL, paths)
    if not images:
        raise click.UsageError("Give at least one image, folder or source after the model.")
    if paths[0].startswith("hf:") and not named and not options.MODEL.exists():
        raise click.UsageError(
            f"'{paths[0]}' alone is a data set, and there is no '{options.MODEL}' to predict it "
            "with. If it is a model, give images after it."
        )
    return model, images


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
    help="Classes that are shown for each image.  [3, in a table those that fit]",
)
@click.option(
    "--format",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="jsonl and csv are written line by line, however many images there are.",
)
@click.option(
    "--csv",
    "table",
    type=options.FILE,
    help="Write a row for each image to this table: prediction, probability, margin, next best.",
)
@click.option(
    "--copy-to",
    type=options.FILE,
    metavar="FOLDER",
    help="Copy each image into a folder of its predicted class below this one.",
)
@click.option(
    "--unknown-below",
    callback=_probability,
    metavar="P|auto",
    help="Answer 'unknown' where the best class is less probable; auto: than 95 % of the right "
    "answers to held-out images were at export.",
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
    top_k: int | None,
    format: str,
    table: Path | None,
    copy_to: Path | None,
    unknown_below: float | Literal["auto"] | None,
    threads: int | None,
    providers: tuple[str, ...],
    max_pixels: int,
    quiet: bool,
) -> None:
    """Predict images with an exported file; a folder stands for all images below it.

    So do an archive and other sources that extract takes: photos.zip, shards-{00..09}.tar,
    s3://bucket/photos/, images.csv. They are read one by one, and are called by their ids.

    MODEL is the first path if it ends in .onnx, or is hf:USER/NAME and others follow, else
    artifacts/model.onnx. An image that cannot be
    used gets a line with the reason, and the exit code is 1 at the end. A model of tags shows those
    whose probability is at least their threshold, a regression the value of each target.
    """
    from featx.images.given import find_given
    from featx.stages.predict import Predictor

    model, images = _model_and_images(paths)
    predictor = Predictor(
        model, providers=providers or None, threads=threads, max_pixels=max_pixels
    )
    if predictor.task != "single-label":
        for flag, value in (("--copy-to", copy_to), ("--unknown-below", unknown_below)):
            if value is not None:
                raise click.UsageError(f"{flag} is for models of classes, not {predictor.task}.")
    below = _limit(predictor) if unknown_below == "auto" else unknown_below
    found, num_bad, best = find_given(images), 0, top_k or _TOP
    rows: list[list[str]] = []
    quiet = quiet or (format in ("jsonl", "csv") and sys.stdout.isatty())  # lines would cross it
    every = format == "csv" and predictor.task == "multi-label"  # a column for each tag
    several = table is not None and predictor.task == "multi-label"
    with progress_bars(quiet=quiet) as bar:
        progress = bar("Predicting")

        def predictions() -> Iterator[Prediction]:
            nonlocal num_bad
            shown = len(predictor.classes) if every or several else max(best, 2 if table else 1)
            for done, each in enumerate(predictor.predict_each(found, top_k=shown), start=1):
                num_bad += each.error is not None
                if progress:
                    progress(done, len(found))
                if table:
                    rows.append([each.image, *_row(each, predictor, below)])
                answer = with_unknown(replace(each, top=each.top[:best]), below)
                if copy_to and answer.label is not None:
                    copy_into_class(answer.image, answer.label, copy_to)
                yield each if every else answer

        if format == "jsonl":
            for each in predictions():
                print_json(each.to_dict(), indent=None)
        elif format == "csv":
            _print_csv(predictions(), predictor.task, predictor.classes)
        else:
            collected = list(predictions())
    if format == "table":
        _print_table(collected, may_narrow=top_k is None)
    elif format == "json":
        print_json([each.to_dict() for each in collected])
    if table:
        _write(table, predictor, rows)
    if num_bad:
        raise SourceError(f"{num_bad:,} of {counted(len(found), 'image')} could not be used.")


def _write(table: Path, predictor: Predictor, rows: Sequence[Sequence[str]]) -> None:
    from featx.artifact import publish
    from featx.artifact.cells import table_bytes
    from featx.classifier.prediction import answer_columns
    from featx.heads.tasks import TASKS

    columns = answer_columns(TASKS[predictor.task], predictor.classes)
    publish(table, table_bytes(["image", *columns, "error"], rows), overwrite=True)


def _row(prediction: Prediction, predictor: Predictor, below: float | None) -> list[str]:
    """Return the cells of a row of the table behind the image: its answer, and the error."""
    from featx.classifier.prediction import answer_columns, class_cells
    from featx.heads.tasks import TASKS

    count = len(answer_columns(TASKS[predictor.task], predictor.classes))
    if prediction.error is not None:
        return [""] * count + [prediction.error]
    if predictor.task != "single-label":
        return [*_lines(prediction, predictor.classes)[0], ""]
    cells = class_cells(prediction.top[:2])
    if (answer := with_unknown(prediction, below)) is not prediction:
        cells = [str(answer.label), *cells[1:3], cells[0]]  # the best class is the next best answer
    return [*cells, ""]


def _print_table(predictions: Sequence[Prediction], *, may_narrow: bool) -> None:
    """Print a row for each image: best classes, tags or values; those that failed follow.

    ``may_narrow`` leaves out next best classes that would break the names of images.
    """
    usable = [own for own in predictions if not own.error]
    if usable:
        rows = [[own.image, *_cells(own)] for own in usable]
        width = max(map(len, rows))
        titles = ["prediction", "2nd", "3rd", *(f"{n}th" for n in range(4, width))]
        if usable[0].values:
            titles = [name for name, _ in usable[0].values]
        elif usable[0].tags is not None:
            titles = ["tags", "1st", *titles[1:]]
        rows = [row + [""] * (width - len(row)) for row in rows]
        titles = ["image", *titles[: width - 1]]
        if may_narrow and not usable[0].values:
            while len(titles) > 2 and not fits(titles, rows, columns()):
                titles, rows = titles[:-1], [row[:-1] for row in rows]
        print_table(titles, rows)
    for own in predictions:
        if own.error:
            print_text(f"{own.image}  cannot be used: {own.error}")


def _cells(prediction: Prediction) -> list[str]:
    if prediction.values:
        return [f"{value:.6g}" for _, value in prediction.values]
    top = [f"{label} {p:.3f}" for label, p in prediction.top]
    return top if prediction.tags is None else [prediction.label or "", *top]


def _print_csv(predictions: Iterable[Prediction], task: TaskName, classes: Sequence[str]) -> None:
    """Print CSV: a line for each image, of single labels one for each rank.

    It is UTF-8 whatever the terminal's encoding. Cells are on one line, and no formula.
    """
    from featx.artifact.cells import to_cell

    line = io.StringIO(newline="")
    writer = csv.writer(line)

    def write(*fields: str) -> None:
        writer.writerow(to_cell(printable(field, keep=_KEPT)) for field in fields)
        click.echo(line.getvalue().encode(), nl=False)
        line.seek(0)
        line.truncate()

    columns = _CSV_COLUMNS[task](classes)
    write("image", *columns, "error")
    for prediction in predictions:
        lines = [[""] * len(columns)] if prediction.error else _lines(prediction, classes)
        for fields in lines:
            write(prediction.image, *fields, prediction.error or "")


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


def with_unknown(prediction: Prediction, below: float | None) -> Prediction:
    """Return the answer, which is ``unknown`` where its probability is below a limit.

    The class that was most probable is then the second one, with the same probability.
    """
    probability = prediction.probability
    if below is None or probability is None or probability >= below:
        return prediction
    return replace(prediction, top=((UNKNOWN, probability), *prediction.top))


def copy_into_class(image: str, label: str, folder: Path) -> Path:
    """Copy a picture into the folder of its class, and return where it is.

    One that is there with the same content stays; of another one the copy gets a number.

    Raises:
        SourceError: The picture is not a file, or cannot be copied.
    """
    from featx.artifact import publishing

    source, target = Path(image), folder / folder_name(label) / Path(image).name
    try:
        if not source.is_file():
            raise SourceError(
                f"'{image}' is not a file of its own; copying needs pictures in folders."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        number = 1
        while target.exists():
            if filecmp.cmp(source, target, shallow=False):
                return target
            number += 1
            target = target.with_name(f"{source.stem}-{number}{source.suffix}")
        with publishing(target, overwrite=False) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as err:
        raise SourceError(f"'{image}' cannot be copied to '{target}' ({err.strerror}).") from err
    return target


def folder_name(label: str) -> str:
    """Return a name of a class that is one folder on any system.

    >>> folder_name("a/b"), folder_name("..")
    ('a_b', '_.')
    """
    safe = _UNSAFE.sub("_", label).rstrip(" .") or "_"
    return f"_{label[1:]}" if label in (".", "..") else f"_{safe[1:]}" if safe[0] == "." else safe
