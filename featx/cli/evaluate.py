"""``featx evaluate``."""

from __future__ import annotations

from typing import Any

import click

from featx.cli import options
from featx.cli.output import (
    human_seconds,
    print_fields,
    print_json,
    print_skipped,
    progress_bars,
)
from featx.cli.scores import print_metrics, print_per_class
from featx.errors import counted


@click.command()
@click.argument("model", type=options.FILE)
@click.argument("source")
@options.per_class
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
    fields |= {"time": human_seconds(report.seconds)}
    if report.skipped:
        fields["skipped"] = f"{counted(len(report.skipped), 'image')} that cannot be used:"
    print_fields(fields)
    print_skipped(report.skipped, rest="--json")
