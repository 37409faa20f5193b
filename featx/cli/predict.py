"""``featx predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.output import print_json, print_table, progress_bar
from featx.errors import SourceError

if TYPE_CHECKING:
    from featx.stages.predict import Prediction


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[MODEL] IMAGES…|FOLDER…")
@click.option("-k", "--top-k", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--format",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    default="table",
    show_default=True,
    help="jsonl and csv are written line by line, however many images there are.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Default: all cores.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Execution provider of ONNX Runtime, CUDAExecutionProvider for one; several are tried in "
    "their order.  [default: the CPU]",
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
    """Answer for images with an exported file; a folder stands for all images below it.

    MODEL is the first path if it ends in .onnx, else artifacts/model.onnx. An image that cannot be
    used gets a line with the reason, and the exit code is 1 at the end.
    """
    from featx.stages.predict import Predictor, find_images

    named = paths[0].endswith(".onnx")
    model, images = (paths[0], paths[1:]) if named else (options.MODEL, paths)
    if not images:
        raise click.UsageError("Give at least one image or folder after the model.")
    predictor = Predictor(
        model, providers=providers or None, threads=threads, max_pixels=max_pixels
    )
    found = find_images(images)
    quiet = quiet or (format in ("jsonl", "csv") and sys.stdout.isatty())  # lines would cross it
    count = _Count(len(found))
    with progress_bar("Predicting", quiet=quiet) as progress:
        predictions = count.of(predictor.predict_each(found, top_k=top_k), progress)
        if format == "jsonl":
            _print_lines(predictions)
        elif format == "csv":
            _print_csv(predictions)
        all_of_them = list(predictions)  # what lines have not used up
    if format == "table":
        _print_table(all_of_them)
    elif format == "json":
        print_json([_as_json(prediction) for prediction in all_of_them])
    if count.bad:
        raise SourceError(f"{count.bad} of {count.total} images could not be used.")


@dataclass
class _Count:
    """How many predictions have gone by, and how many of them are errors."""

    total: int
    done: int = 0
    bad: int = 0

    def of(
        self, predictions: Iterable[Prediction], progress: Callable[[int, int], None] | None
    ) -> Iterator[Prediction]:
        for prediction in predictions:
            self.done += 1
            self.bad += prediction.error is not None
            if progress:
                progress(self.done, self.total)
            yield prediction


def _print_table(predictions: Sequence[Prediction]) -> None:
    rows = [
        [prediction.image, f"cannot be used: {prediction.error}"]
        if prediction.error
        else [prediction.image, *(f"{label} {p:.3f}" for label, p in prediction.top)]
        for prediction in predictions
    ]
    width = max(map(len, rows))
    print_table(
        [
            "image",
            *(["prediction", "2nd", "3rd"] + [f"{n}th" for n in range(4, width)])[: width - 1],
        ],
        [row + [""] * (width - len(row)) for row in rows],
    )


def _as_json(prediction: Prediction) -> dict[str, Any]:
    return {
        "image": prediction.image,
        "top": [{"label": label, "probability": p} for label, p in prediction.top],
        "error": prediction.error,
    }


def _print_lines(predictions: Iterable[Prediction]) -> None:
    """Print one JSON object per line."""
    for prediction in predictions:
        line = json.dumps(_as_json(prediction), ensure_ascii=False) + "\n"
        click.echo(line.encode("utf-8", "backslashreplace"), nl=False)


def _print_csv(predictions: Iterable[Prediction]) -> None:
    """Print one line per image and class: image, rank, label, probability, error.

    As UTF-8 whatever the terminal's encoding; a name that is not UTF-8 comes out as its own bytes.
    """
    line = io.StringIO(newline="")
    writer = csv.writer(line)

    def write(*fields: object) -> None:
        writer.writerow(fields)
        click.echo(line.getvalue().encode("utf-8", "surrogateescape"), nl=False)
        line.seek(0)
        line.truncate()

    write("image", "rank", "label", "probability", "error")
    for prediction in predictions:
        if prediction.error:
            write(prediction.image, "", "", "", prediction.error)
        for rank, (label, probability) in enumerate(prediction.top, start=1):
            write(prediction.image, rank, label, f"{probability:.6f}", "")
