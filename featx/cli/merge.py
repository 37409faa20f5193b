"""``featx merge``."""

from __future__ import annotations

from pathlib import Path

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import next_command, print_fields
from featx.errors import counted


@click.command(cls=Command)
@click.argument("parts", type=options.FILE)
@click.option(
    "-o", "--output", type=options.FILE, help="The feature file to write.  [none: only the index]"
)
@click.option("--overwrite", is_flag=True, help="Replace a feature file that is there.")
@options.quiet
def merge(parts: Path, output: Path | None, overwrite: bool, quiet: bool) -> None:
    """Complete PARTS, a folder that 'featx extract --part' made, or write them as one file.

    The index of PARTS decides the splits, and duplicates across parts; the part that is finished
    last writes it, too. With -o, the parts become one feature file, which has the bytes of one
    extraction. Missing parts are named, with exit code 1.
    """
    from featx.stages.merge import merge_parts

    report = merge_parts(parts, output, overwrite=overwrite)
    fields: dict[str, object] = {
        "parts": f"{counted(report.num_parts, 'part')}, {counted(report.num_images, 'image')}",
    }
    if report.num_copies:
        images = counted(report.num_copies, "image")
        fields["duplicates"] = f"{images} with the content of one in an earlier part"
    if report.path is None:
        fields["complete"] = report.parts
    else:
        fields["up to date" if report.is_unchanged else "written"] = report.path
    if not quiet:
        fields["next"] = next_command("train-head", report.path or parts, options.FEATURES)
    print_fields(fields)
