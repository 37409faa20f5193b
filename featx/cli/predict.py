"""``featx predict``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from featx.cli import options
from featx.cli.output import print_json, print_table
from featx.errors import SourceError

if TYPE_CHECKING:
    from featx.stages.predict import Prediction


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="[MODEL] IMAGES…|FOLDER…")
@click.option("-k", "--top-k", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--format", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
@options.max_pixels
def predict(paths: tuple[str, ...], top_k: int, format: str, max_pixels: int) -> None:
    """Answer for images with an exported file; a folder stands for all images below it.

    MODEL is the first path if it ends in .onnx, else artifacts/model.onnx. An image that cannot be
    used gets a line with the reason, and the exit code is 1 at the end.
    """
    from featx.stages.predict import Predictor, find_images

    named = paths[0].endswith(".onnx")
    model, images = (paths[0], paths[1:]) if named else (options.MODEL, paths)
    if not images:
        raise click.UsageError("Give at least one image or folder after the model.")
    predictor = Predictor(model, max_pixels=max_pixels)
    predictions = list(predictor.predict_each(find_images(images), top_k=top_k))
    {"table": _print_table, "json": _print_json, "csv": _print_csv}[format](predictions)
    bad = [prediction for prediction in predictions if prediction.error]
    if bad:
        raise SourceError(f"{len(bad)} of {len(predictions)} images could not be used.")


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


def _print_json(predictions: Sequence[Prediction]) -> None:
    print_json(
        [
            {
                "image": prediction.image,
                "top": [{"label": label, "probability": p} for label, p in prediction.top],
                "error": prediction.error,
            }
            for prediction in predictions
        ]
    )


def _print_csv(predictions: Sequence[Prediction]) -> None:
    """Print one line per image and class: image, rank, label, probability, error.

    As UTF-8 whatever the terminal's encoding; a name that is not UTF-8 comes out as its own bytes.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["image", "rank", "label", "probability", "error"])
    for prediction in predictions:
        if prediction.error:
            writer.writerow([prediction.image, "", "", "", prediction.error])
        for rank, (label, probability) in enumerate(prediction.top, start=1):
            writer.writerow([prediction.image, rank, label, f"{probability:.6f}", ""])
    click.echo(table.getvalue().encode("utf-8", "surrogateescape"), nl=False)
