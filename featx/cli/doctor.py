"""``featx doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import print_json
from featx.cli.streams import print_line
from featx.errors import printable


@click.command(cls=Command)
@click.argument("folders", nargs=-1, type=options.FILE)
@click.option(
    "--network", is_flag=True, help="Ask the hosts of weights, hub and stores, 5 s at most each."
)
@options.as_json
@options.no_notes
def doctor(folders: tuple[Path, ...], network: bool, as_json: bool) -> None:
    """Look at packages, processor, GPUs, memory and disks, and say what to do.

    FOLDERS are those that commands will write to, artifacts by default: their disk and whether
    files can be locked there. Exit code 1 where something keeps commands from working.
    """
    from featx.stages.doctor import describe_problems, examine

    findings = examine(folders or (options.FOLDER,), network=network)
    if as_json:
        print_json([finding.to_dict() for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print_line(
                printable(f"{finding.name:<{width}}  {finding.value}"),
                "warning" if finding.advice else "",
            )
            if finding.advice:
                print_line(printable(f"{'':<{width}}  → {finding.advice}"), "strong")
        click.echo()
        style = "warning" if any(finding.advice for finding in findings) else "good"
        print_line(f"verdict  {describe_problems(findings)}", style)
    if any(finding.is_wrong for finding in findings):
        sys.exit(1)
