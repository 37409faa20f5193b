"""The commands that make the files of a folder again as they were made."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.errors import ArtifactError

if TYPE_CHECKING:
    from featx.heads.head import Head

FEATURES, HEAD, MODEL = "features.h5", "head.safetensors", "model.onnx"
TUNED = "tuned.safetensors"
DEFAULT_FOLDER = Path("artifacts")
_FLAGS = {
    **{"max_epochs": "--epochs", "strengths": "-C", "num_seeds": "--seeds"},
    "use_views": "--views",
}


def command_of(stage: str, *arguments: str | Path) -> str:
    """Return the command that makes a file; short where all paths are the default ones."""
    usual = {str(DEFAULT_FOLDER / name) for name in (FEATURES, HEAD, MODEL)}
    texts = [str(argument) for argument in arguments]
    kept = [
        text
        for text, following in zip(texts, [*texts[1:], ""], strict=True)
        if text not in usual and not (text in ("-o", "--onnx") and following in usual)
    ]
    return shlex.join(("featx", stage, *kept))


def extract_again(path: Path, head: Head | None, *arguments: str) -> str:
    """Return the command that makes features again, with what a head knows of them."""
    if head is None:
        return command_of("extract", "photos/", *arguments, "-o", path)
    details, spec = head.header.details, head.header.spec
    scheme, _, name = str(details["weights"]).partition(":")
    weights = "none" if scheme == "random" else name
    arguments = (*(("-w", weights) if weights else ()), *arguments)
    if head.cut is not None:
        arguments = ("--cut", head.cut, *arguments)
    source, backbone = str(details["source"]), str(spec["backbone"])
    return command_of("extract", source, "-b", backbone, *arguments, "-o", path)


def train_again(path: Path, features: Path, head: Head | None) -> str:
    """Return the command that trains a head again as it was trained."""
    made_by = ("finetune" if path.name == TUNED else "train-head") if head is None else head.made_by
    flags = []
    if head is not None:
        details = head.header.details
        given = details.get("made_from")
        made_from: Mapping[str, Any] = given if isinstance(given, dict) else {}
        options = made_from.get("options")
        flags += _recorded_flags(made_by, options if isinstance(options, dict) else {})
        start = made_from.get("start")
        flags += given_as_files(path, start, details.get("excluded"), details.get("class_weight"))
    return command_of(made_by, *flags, features, "-o", path)


def _recorded_flags(made_by: str, recorded: Mapping[str, Any]) -> list[str]:
    from featx.heads.solvers.mlp import MLPOptions
    from featx.heads.solvers.sgd import SGDOptions
    from featx.training.finetune.options import FinetuneOptions
    from featx.training.options import TrainOptions

    if made_by == "finetune":
        return flags_of(recorded, FinetuneOptions().to_dict())
    usual = {**asdict(TrainOptions()), "shots": None, "repeats": 10}
    parts: dict[str, Any] = {"few_shot": None}
    if recorded.get("head") == "mlp":
        parts["mlp"] = MLPOptions()
    elif recorded.get("solver") == "sgd":
        parts["sgd"] = SGDOptions()
    options = {name: value for name, value in recorded.items() if not isinstance(value, dict)}
    for name, default in parts.items():
        usual |= asdict(default) if default else {}
        options |= recorded.get(name) or {}
    options.pop("patience", None)  # of an MLP, it is none of the command's
    return flags_of(options, usual)


def flags_of(options: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Return options of a training that are not the usual ones, as its command takes them."""
    flags = []
    for name, value in options.items():
        default = usual.get(name)
        is_usual = value == (list(default) if isinstance(default, tuple) else default)
        if name not in usual or is_usual or name in ("exclude", "class_weight"):
            continue
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif name == "hidden":
            flags += [flag, ",".join(map(str, value))]
        else:
            values = value if isinstance(value, list) else [value]
            known = (each for each in values if isinstance(each, (str, int, float)))
            flags += chain.from_iterable((flag, str(each)) for each in known)
    return flags


def given_as_files(path: Path, start: Any, excluded: Any, class_weight: Any) -> list[str]:
    """Return the options of a training that name files, whose names are not recorded."""
    flags = []
    if start is not None:
        flags += ["--start", str(_head_of(path.parent, start) or "START_HEAD")]
    if excluded:
        flags += ["--exclude", "EXCLUDED_FILE"]
    if class_weight is not None:
        is_file = not isinstance(class_weight, str)
        flags += ["--class-weight", "WEIGHTS_FILE" if is_file else class_weight]
    return flags


def _head_of(folder: Path, digest: str) -> Path | None:
    """Return the head of a folder that has this sha256."""
    from featx.heads.head import open_head

    for path in sorted(folder.glob("*.safetensors")):
        with suppress(ArtifactError):
            if open_head(path).sha256 == digest:
                return path
    return None
