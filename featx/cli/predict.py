"""``featx predict``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from featx.cli import options
from featx.cli.output import print_json, progress_bars
from featx.cli.predictions import as_json, print_csv, print_lines, print_predictions
from featx.errors import SourceError, counted

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
    used gets a line with the reason, and the exit code is 1 at the end. Of tags, those are shown
    whose probability is at least their threshold; of a regression, the value of each target.
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
    with progress_bars(quiet=quiet) as bar:
        every = format == "csv" and predictor.task == "multi-label"  # a column for each tag
        shown = len(predictor.classes) if every else top_k
        predictions = count.of(predictor.predict_each(found, top_k=shown), bar("Predicting"))
        if format == "jsonl":
            print_lines(predictions)
        elif format == "csv":
            print_csv(predictions, predictor.task, predictor.classes)
        all_of_them = list(predictions)  # what lines have not used up
    if format == "table":
        print_predictions(all_of_them)
    elif format == "json":
        print_json([as_json(prediction) for prediction in all_of_them])
    if count.bad:
        raise SourceError(f"{count.bad:,} of {counted(count.total, 'image')} could not be used.")


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
