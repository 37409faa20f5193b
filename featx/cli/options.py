"""Default paths, and options that several commands share."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from featx.cli.completion import COMPLETERS, files
from featx.errors import ConfigError

FOLDER = Path("artifacts")
FEATURES = FOLDER / "features.h5"
HEAD = FOLDER / "head.safetensors"
TUNED = FOLDER / "tuned.safetensors"
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
    "backbone": (
        {},
        "The network: any name of 'featx backbones', however it is written, like ResNet-18.",
        "resnet18",
    ),
    "weights": (
        {"metavar": "default|NAME|none|FILE"},
        "Its weights: the default or named ones, none (seeded random), or a .pth or .safetensors "
        "file.",
        "default",
    ),
    "layer": ({}, "Layer to cut after; 'featx backbones NAME' lists them.", "penultimate"),
    "cut": (
        {"metavar": "MODULE|input|penultimate"},
        "Keep what enters this module, unpooled, to train the rest of the network on; 'featx "
        "backbones NAME' lists them. input: pixels.",
        "penultimate: vectors",
    ),
    "pool": (
        {"type": click.Choice(["auto", "avg", "max", "cls", "cls+avg", "map", "flatten"])},
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
        {"type": click.Choice(["center", "none", "squash", "border"])},
        "center: cut the middle square; none: squeeze the whole image; as timm: squash: squeeze, "
        "then cut; border: lay the whole image on the mean colour.",
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
        "Type of the numbers that are stored as features.",
        "float32, at a cut float16",
    ),
    "precision": (
        {"type": click.Choice(["fp32", "tf32", "bf16", "fp16", "int8"])},
        "Arithmetic of the backbone. int8: on the CPU, calibrated with SOURCE's images; bf16: with "
        "torch; tf32, fp16: on a GPU.",
        "fp32",
    ),
    "seed": ({"type": int}, "Seed of random weights.", "0"),
}
_MAX_NAME = 100
_SHORT = {"backbone": ["-b"], "weights": ["-w"]}


def backbone(
    *names: str, show_defaults: bool = True, several: Mapping[str, str] | None = None
) -> Callable[[Any], Any]:
    """Return a decorator that adds options of the backbone: those named, or all.

    ``several`` has what is said of options that may be repeated.
    """

    def add(command: Any) -> Any:
        for name in reversed(names or tuple(_BACKBONE)):
            settings, text, default = _BACKBONE[name]
            if name in (several or {}):
                settings, text = settings | {"multiple": True}, f"{text} {(several or {})[name]}"
            settings = settings | {"shell_complete": COMPLETERS.get(name)}
            flags = [*_SHORT.get(name, ()), f"--{name.replace('_', '-')}"]
            shown = f"{text}  [{default}]" if show_defaults else text
            command = click.option(*flags, help=shown, **settings)(command)
        return command

    return add


def parameters(_context: click.Context, _option: click.Parameter, text: str | None) -> int | None:
    """Return a number of parameters that was written like ``30M``, ``1.5 M`` or ``500000``."""
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([kMGB]?)", text.strip(), re.IGNORECASE)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number such as 30M, 500k or 25000000.")
    return int(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9}[match[2].lower()])


def features_path(cut: str | None) -> Path:
    """Return the default feature file of a cut, so that the vectors of a probe stay."""
    return FEATURES if cut in (None, "penultimate") else path_of(FEATURES, str(cut))


def path_of(path: Path, *parts: str) -> Path:
    """Return a path with names before its ending, such as ``features-layer3.h5``."""
    safe = "-".join(re.sub(r"[^A-Za-z0-9._-]", "_", part) for part in parts)[:_MAX_NAME]
    return path.with_name(f"{path.stem}-{safe}{path.suffix}")


_OF_IMAGES = ("backbone", "weights", "cut", "image_size", "resize", "crop", "decode", "dtype")
EXTRACTION = (*_OF_IMAGES, "views", "augment", "val_fraction", "on_error", "overwrite")
"""What ``extraction`` adds, by name."""


def views(command: Any) -> Any:
    """Add the options of augmented versions of training images."""
    command = click.option(
        "--augment",
        metavar="crop,flip,color|none",
        help="How an augmented version differs from its image.  [crop,flip]",
    )(command)
    return click.option(
        "--views",
        type=int,
        metavar="NUMBER",
        help="Number of augmented versions of each training image.  [0]",
    )(command)


def extraction(*, without: Sequence[str] = ()) -> Callable[[Any], Any]:
    """Return a decorator that adds the options of ``featx extract`` to what extracts first."""

    def add(command: Any) -> Any:
        command = on_error(replace_features(command))
        command = click.option(
            "--val-fraction",
            type=float,
            metavar="SHARE",
            help="Share of each class held out where SOURCE has no validation split.  [0.2]",
        )(command)
        return backbone(*(name for name in _OF_IMAGES if name not in without))(views(command))

    return add


def _class_weight(_context: click.Context, _option: click.Parameter, text: str | None) -> Any:
    """Return ``"balanced"``, the content of a JSON file, or None."""
    if text is None or text == "balanced":
        return text
    try:
        weights = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(
            f"--class-weight must be 'balanced' or a JSON file; '{text}' cannot be read "
            f"({err.strerror})."
        ) from err
    except ValueError as err:
        raise ConfigError(f"'{text}' is not JSON ({err}).") from err
    if not isinstance(weights, dict):
        raise ConfigError(f'\'{text}\' must hold an object like {{"ants": 2, "bees": 1}}.')
    return weights


replace_features = click.option(
    "--overwrite", is_flag=True, help="Replace features that were made with other settings."
)
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
source = click.argument("source", required=False, shell_complete=files)
verify_content = click.option(
    "--verify-content",
    is_flag=True,
    help="Read every image and compare its content hash; by default size and time tell whether it "
    "changed.",
)
class_weight = click.option(
    "--class-weight",
    callback=_class_weight,
    metavar="balanced|FILE.json",
    help="Let every class count the same, or give weights by class name.",
)
ray = click.option(
    "--ray",
    metavar="ADDRESS",
    help="Let a Ray cluster do it: auto for the one of this machine, HOST:PORT, ray://HOST:PORT.",
)
allow_mixed = click.option(
    "--allow-mixed", is_flag=True, help="Let nodes of several kinds compute."
)
no_calibrate = click.option(
    "--no-calibrate",
    is_flag=True,
    help="Leave the probabilities as trained; else a temperature is fitted on held-out samples.",
)
exclude = click.option(
    "--exclude",
    type=FILE,
    help="Leave out the training images named in this file: one on each line, or a CSV with the "
    "column path or sample_id, and of its rows those whose column drop is true, if it has one.",
)
per_class = click.option(
    "--per-class", is_flag=True, help="Print a table with the scores of each class, too."
)


def max_images(text: str) -> Callable[[Any], Any]:
    """Return the option that limits the images that a model is run on."""
    return click.option(
        "--max-images", type=click.IntRange(min=1), default=2000, show_default=True, help=text
    )


def output(default: Path, text: str) -> Callable[[Any], Any]:
    """Return the option that names what a command writes."""
    return click.option("-o", "--output", type=FILE, default=default, show_default=True, help=text)


def features(text: str) -> Callable[[Any], Any]:
    """Return the option that names the feature file that a command reads."""
    return click.option("--features", type=FILE, default=FEATURES, show_default=True, help=text)


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
