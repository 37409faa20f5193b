"""``featx relabel``."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import next_command, print_fields, print_json, print_table
from featx.errors import counted


@click.command(cls=Command)
@click.argument("table", metavar="AUDIT.CSV", type=options.FILE)
@options.features("The feature file that was audited.")
@click.option(
    "--output",
    "-o",
    type=options.FILE,
    help="The manifest.  [relabelled.csv beside the features]",
)
@click.option("--overwrite", is_flag=True, help="Replace a manifest that is there.")
@options.as_json
@options.no_notes
def relabel(
    table: Path, features: Path, output: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Write a manifest with the labels that are corrected in AUDIT.CSV.

    That is the table of featx audit --csv, or of its page, with right labels in the column
    corrected. No image is touched; featx extract with the manifest runs no backbone.
    """
    from featx.stages.relabel import relabel as run

    output = output or features.parent / "relabelled.csv"
    report = run(features, table, output, overwrite=overwrite)
    if as_json:
        print_json(report.to_dict())
        return
    if report.corrections:
        rows = [[before or "–", after, f"{count:,}"] for before, after, count in report.changes]
        print_table(["label", "corrected", "images"], rows[:20])
        if len(rows) > 20:
            click.echo(f"  … {len(rows) - 20:,} more")
        click.echo()
    into = [] if features == options.FEATURES else ["-o", str(features)]
    corrected = counted(len(report.corrections), "label")
    done = f"; {report.num_done:,} were corrected before" if report.num_done else ""
    fields = {
        "corrected": f"{corrected} of {report.num_images:,}{done}",
        "written": str(output),
        "next": next_command("extract", output, Path(), *into),
    }
    if report.num_dropped:
        fields["dropped"] = (
            f"{counted(report.num_dropped, 'image')} marked so: featx train-head --exclude "
            f"{shlex.quote(str(table))}"
        )
    print_fields(fields)
