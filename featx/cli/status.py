"""``featx status``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from featx.cli import options
from featx.cli.output import print_json, print_text, with_flags

_WIDTH = len("unfinished")


@click.command()
@click.argument("folder", type=options.FILE, default=options.FOLDER)
@options.as_json
@options.no_notes
def status(folder: Path, as_json: bool) -> None:
    """Say which of FOLDER's files are current, and the command that fixes each other one.

    Its features.h5 is compared with the images, head.safetensors with the features, model.onnx with
    the head. Exit code 0 if all three are current, else 1. FOLDER is artifacts by default.
    """
    from featx.stages.check import status as run

    report = run(folder)
    if as_json:
        print_json(report.to_dict())
    else:
        for file in report.files:
            print_text(f"{file.state:<{_WIDTH}}  {file.path}")
            for line in filter(
                None, (with_flags(file.reason), file.command and f"run: {file.command}")
            ):
                print_text(f"{'':<{_WIDTH}}  {line}")
    if not report.is_current:
        sys.exit(1)
