"""What several commands share: default paths and options."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

FOLDER = Path("artifacts")
FEATURES = FOLDER / "features.h5"
HEAD = FOLDER / "head.safetensors"
MODEL = FOLDER / "model.onnx"

FILE = click.Path(path_type=Path)


def _set_quiet(_context: click.Context, _option: click.Parameter, quiet: bool) -> bool:
    if quiet:
        logging.getLogger("featx").setLevel(logging.ERROR)
    return quiet


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the current command's options that were given, not left at their default."""
    source = click.get_current_context().get_parameter_source
    return {
        name: value
        for name, value in settings.items()
        if source(name) is not ParameterSource.DEFAULT
    }


overwrite = click.option("--overwrite", is_flag=True, hidden=True)
"""Accepted where it was needed once: what featx made itself is replaced anyway."""
stale = click.option(
    "--stale",
    is_flag=True,
    help="Use the head although the rows that trained it have changed; the output says so.",
)
quiet = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    callback=_set_quiet,
    help="No progress and no notes, only errors and results.",
)
no_notes = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    callback=_set_quiet,
    expose_value=False,
    help="No notes, only errors and results.",
)
"""For commands without progress."""
on_error = click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do with images that cannot be used: name them all, or leave them out.",
)
task = click.option(
    "--task",
    type=click.Choice(["auto", "single-label", "multi-label", "regression"]),
    default="auto",
    show_default=True,
    help="What labels are: one class each, tags separated by |, or numbers. auto takes tags where "
    "any label has a |, else classes.",
)
max_pixels = click.option(
    "--max-pixels",
    type=int,
    default=178_956_970,
    show_default=True,
    help="Images with more pixels cannot be used; the limit can only be lowered.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
