"""``featx report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.output import human_bytes, print_fields, written


@click.command()
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

    The page needs no network: figures and pictures are in it. Figures need matplotlib
    (pip install 'featx[report]').
    """
    from featx.stages.report import ReportOptions, write_report

    page = write_report(head, output, ReportOptions(**settings))
    print_fields({"size": human_bytes(page.path.stat().st_size)} | written(page))
