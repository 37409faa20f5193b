"""``featx evaluate`` and ``featx report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.completion import files
from featx.cli.help import Command
from featx.cli.output import (
    human_bytes,
    human_seconds,
    print_fields,
    print_json,
    print_metrics,
    print_per_class,
    print_skipped,
    progress_bars,
    written,
)
from featx.errors import counted


@click.command(cls=Command)
@click.argument("model", type=options.FILE)
@click.argument("source", shell_complete=files)
@options.per_class
@click.option(
    "--csv",
    "table",
    type=options.FILE,
    help="Write a row for each image to this table: label, prediction, probability, margin, next "
    "best.",
)
@options.stale
@options.on_error
@options.max_pixels
@options.as_json
@options.quiet
def evaluate(
    model: str, source: str, per_class: bool, as_json: bool, quiet: bool, **settings: Any
) -> None:
    """Score the exported file MODEL on the labelled images of SOURCE.

    Raw images go through the file. Classes are joined by name, so SOURCE may have fewer of them, in
    any order. Labels are read as the model's head was trained: classes, tags separated by |, or
    numbers.
    """
    from featx.stages.evaluate import evaluate as run

    with progress_bars(quiet=quiet) as bar:
        report = run(model, source, progress=bar("Evaluating"), **settings)
    if as_json:
        print_json(report.to_dict())
        return
    print_metrics(report.metrics)
    click.echo()
    if per_class:
        print_per_class(report.metrics, report.classes)
    fields = {"stale": report.stale} if report.stale else {}
    fields["time"] = human_seconds(report.seconds)
    if report.skipped:
        fields["skipped"] = f"{counted(len(report.skipped), 'image')} that cannot be used:"
    if settings["table"]:
        fields["table"] = settings["table"]
    print_fields(fields)
    print_skipped(report.skipped, rest="--json")


@click.command(cls=Command)
@click.argument("head", type=options.FILE, default=options.HEAD)
@options.output(Path("artifacts/report.html"), "The page to write.")
@click.option("--features", type=options.FILE, help="The feature file.  [the head's own]")
@click.option("--source", help="The images.  [those of the features]")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Split that is shown in detail.  [val, else test, else train]",
)
@click.option(
    "--map",
    type=click.Choice(["pca", "tsne", "none"]),
    default="pca",
    show_default=True,
    help="How the features are put on a plane.",
)
@click.option(
    "--num-mistakes",
    type=int,
    default=24,
    show_default=True,
    help="Mistakes that are shown as pictures.",
)
@options.stale
@options.overwrite
@options.no_notes
def report(head: Path, output: Path, **settings: Any) -> None:
    """Write one HTML page about HEAD: scores, confusions, calibration, a map, its worst mistakes.

    The page needs no network: figures and pictures are in it. Figures need matplotlib, which the
    extra 'report' installs.
    """
    from featx.stages.report import ReportOptions, write_report

    page = write_report(head, output, ReportOptions(**settings))
    print_fields({"size": human_bytes(page.path.stat().st_size)} | written(page))
