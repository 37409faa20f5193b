"""What several commands share: default paths and options."""

from __future__ import annotations

import logging
from pathlib import Path

import click

FEATURES = Path("artifacts/features.h5")
HEAD = Path("artifacts/head.safetensors")
MODEL = Path("artifacts/model.onnx")

FILE = click.Path(path_type=Path)


def _set_quiet(_context: click.Context, _option: click.Parameter, quiet: bool) -> bool:
    if quiet:
        logging.getLogger("featx").setLevel(logging.ERROR)
    return quiet


overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
quiet = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    callback=_set_quiet,
    help="No progress and no notes, only errors and results.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
