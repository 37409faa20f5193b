"""Default paths, and options that several commands share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
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


_PIXELS = {"type": int, "metavar": "PIXELS"}
_BACKBONE: dict[str, tuple[dict[str, Any], str, str]] = {  # settings, help, default
    "backbone": ({}, "Any name of 'featx backbones'.", "resnet18"),
    "weights": (
        {"metavar": "default|NAME|none|FILE"},
        "torchvision's default or named weights, none (seeded random), or a .pth or .safetensors "
        "file.",
        "default",
    ),
    "layer": ({}, "Layer to cut after; 'featx backbones NAME' lists them.", "penultimate"),
    "pool": (
        {"type": click.Choice(["auto", "avg", "max", "cls", "flatten"])},
        "How the layer's maps or tokens become a vector.",
        "auto",
    ),
    "image_size": (
        _PIXELS,
        "Input of the backbone; the shorter side is resized to it.",
        "the weights' own",
    ),
    "resize": (_PIXELS, "Shorter side before the crop.", "the weights' own"),
    "crop": (
        {"type": click.Choice(["center", "none"])},
        "center: cut the middle square; none: squeeze the whole image.",
        "the weights' own",
    ),
    "decode": (
        {"type": click.Choice(["full", "scaled"])},
        "scaled: decode JPEGs at 1/2, 1/4 or 1/8 where that leaves twice the resize's pixels; "
        "faster for large photos, but features differ a little.",
        "full",
    ),
    "dtype": (
        {"type": click.Choice(["float32", "float16"])},
        "What the features are stored as.",
        "float32",
    ),
    "precision": (
        {"type": click.Choice(["fp32", "tf32", "bf16", "fp16", "int8"])},
        "Arithmetic of the backbone. int8: on the CPU, calibrated with SOURCE's images; bf16: with "
        "torch; tf32, fp16: on a GPU.",
        "fp32",
    ),
    "seed": ({"type": int}, "Of random weights.", "0"),
}
_SHORT = {"backbone": ["-b"], "weights": ["-w"]}


def backbone(*names: str, show_defaults: bool = True) -> Callable[[Any], Any]:
    """Return a decorator that adds options of the backbone: those named, or all."""

    def add(command: Any) -> Any:
        for name in reversed(names or tuple(_BACKBONE)):
            settings, text, default = _BACKBONE[name]
            flags = [*_SHORT.get(name, ()), f"--{name.replace('_', '-')}"]
            shown = f"{text}  [{default}]" if show_defaults else text
            command = click.option(*flags, help=shown, **settings)(command)
        return command

    return add


overwrite = click.option("--overwrite", is_flag=True, hidden=True)
"""Accepted for scripts of earlier versions: files of featx are replaced anyway."""
stale = click.option(
    "--stale",
    is_flag=True,
    help="Use the head although the rows that trained it have changed; the output says so.",
)
_quiet = partial(click.option, "-q", "--quiet", is_flag=True, callback=_set_quiet)
quiet = _quiet(help="No progress and no notes, only errors and results.")
no_notes = _quiet(expose_value=False, help="No notes, only errors and results.")
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
source = click.argument("source", required=False)
verify_content = click.option(
    "--verify-content",
    is_flag=True,
    help="Read every image and compare its content hash; by default size and time tell whether it "
    "changed.",
)
exclude = click.option(
    "--exclude",
    type=FILE,
    help="Leave out the training images named in this file: one on each line, or a CSV with the "
    "column path or sample_id, and of its rows those whose column drop is true, if it has one.",
)
per_class = click.option("--per-class", is_flag=True, help="Print a table of the classes too.")


def max_images(text: str) -> Callable[[Any], Any]:
    """Return the option that limits the images that a model is run on."""
    return click.option(
        "--max-images", type=click.IntRange(min=1), default=2000, show_default=True, help=text
    )


def output(default: Path, text: str) -> Callable[[Any], Any]:
    """Return the option that names what a command writes."""
    return click.option("-o", "--output", type=FILE, default=default, show_default=True, help=text)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")
