"""``featx info``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.head_text import data_fields, describe_classes, head_fields, print_path
from featx.cli.help import Command
from featx.cli.output import (
    describe_fixed,
    human_bytes,
    print_fields,
    print_json,
    print_metrics,
    proof_fields,
)
from featx.errors import ArtifactInvalid, counted

if TYPE_CHECKING:
    from featx.artifact import Header


@click.command(cls=Command)
@click.argument("path", type=options.FILE)
@options.as_json
@options.no_notes
def info(path: Path, as_json: bool) -> None:
    """Say what a feature, head or model file is and how it was made."""
    from featx.classifier.hub import local_model

    path = local_model(path)
    header = _open(path)
    if as_json:
        print_json(json.loads(header.to_json()))
        return
    print_fields(dict(_fields(path, header)))
    metrics = header.details.get("metrics")
    if header.kind == "head" and len(header.details.get("choice", {}).get("path", [])) > 1:
        click.echo()
        print_path(header.details["choice"])
    if metrics:
        from featx.heads.tasks import task_of

        click.echo()
        task = task_of(header.details)
        print_metrics({split: task.scores_from_dict(own) for split, own in metrics.items()})


def _open(path: Path) -> Header:
    """Return the header of a file that is checked on opening."""
    from featx.artifact import kind_of_file

    kind = kind_of_file(path)
    if kind == "features":
        from featx.features.file import open_features

        return open_features(path).header
    if kind == "head":
        from featx.heads.head import open_head

        return open_head(path).header
    from featx.classifier.session import open_classifier

    try:
        return open_classifier(path).header
    except ArtifactInvalid as err:
        if path.suffix == ".onnx":
            raise
        raise ArtifactInvalid(path, f"'{path}' is none of featx's files.") from err


def _fields(path: Path, header: Header) -> Iterator[tuple[str, object]]:
    from featx.heads.tasks import task_of

    spec, details = header.spec, header.details
    preprocess = spec["preprocess"]
    files = list(path.iterdir()) if path.is_dir() else [path]  # of parts
    num_parts = sum(each.suffix == ".h5" for each in files)
    kind = f"{header.kind}, {counted(num_parts, 'part')}" if path.is_dir() else header.kind
    yield "file", f"{path}  ({kind}, {human_bytes(sum(each.stat().st_size for each in files))})"
    if "num_rows" in details:
        yield from _row_fields(header)
    task = task_of(details)
    metrics = {
        split: task.scores_from_dict(own) for split, own in details.get("metrics", {}).items()
    }
    yield task.outputs, describe_classes(header.classes)
    if metrics:
        yield from data_fields(metrics, header.classes)
    pool = "" if spec["pool"] == "none" else f", pool {spec['pool']}"
    yield "backbone", f"{spec['backbone']}, layer {spec['layer']}{pool}, {spec['precision']}"
    yield "weights", f"{details['weights']}  (sha256 {spec['weights_sha256'][:16]}…)"
    if "licence" in details:
        yield "licence", details["licence"]
    crop = (
        f"resize {preprocess['resize']}, centre crop {preprocess['image_size']}"
        if preprocess["crop"] == "center"
        else f"{preprocess['crop']} to {preprocess['resize']}, crop {preprocess['image_size']}"
        if preprocess["crop"] != "none"
        else f"resize to {preprocess['image_size']}×{preprocess['image_size']}"
    )
    scaled = ", JPEGs decoded scaled" if preprocess.get("decode") == "scaled" else ""
    yield "preprocess", f"{crop}, {preprocess['interpolation']}{scaled}"
    yield "source", details["source"]
    if details.get("skipped"):
        yield "skipped", counted(len(details["skipped"]), "image")
    if header.kind != "features":
        yield from head_fields(header)
        yield from training_fields(header)
    if header.kind == "classifier":
        yield from _model_fields(path, header)
    yield "fingerprint", f"{header.fingerprint[:16]}…"
    yield "made with", ", ".join(f"{name} {value}" for name, value in header.environment.items())


def training_fields(header: Header) -> Iterator[tuple[str, object]]:
    """Yield how the network behind the cut of a head or model was trained, if it was."""
    from featx.heads.describe import describe_head, describe_training

    spec, details = header.spec, header.details
    choice = details.get("choice" if header.kind == "head" else "head", {})
    if "cut" in spec:
        yield "cut", f"{spec['cut']}, {'×'.join(map(str, spec['shape']))}"
    if "views" in details:
        yield "views", _views(details)
    if not (training := describe_training(choice)):
        return
    yield "trained", training
    rates, recipe = choice.get("learning_rates", []), choice.get("recipe", {})
    if recipe:
        chosen = f" (of {len(rates)} tried)" if len(rates) > 1 else ""
        yield "recipe", ", ".join(_recipe(recipe, chosen))
    if probe := details.get("probe"):
        yield "probe", describe_head(probe["choice"], probe["metrics"])
    if comparison := details.get("comparison"):
        only_tuned, only_probe = comparison["num_only_tuned"], comparison["num_only_probe"]
        yield (
            "against it",
            f"{only_tuned} validation images right that the probe has wrong, {only_probe} the "
            f"other way round (p = {comparison['p_value']:.2g})",
        )


def _recipe(recipe: Mapping[str, Any], chosen: str) -> Iterator[str]:
    """Yield the parts of a recipe that differ from one training to another."""
    optimizer = recipe.get("optimizer")
    if optimizer:
        momentum = f" with momentum {recipe.get('momentum', 0):g}" if optimizer == "sgd" else ""
        yield f"{optimizer}{momentum}"
    if "lr" in recipe:
        yield f"lr {recipe['lr']:g}{chosen}"
    if recipe.get("backbone_lr") is not None:
        yield f"backbone lr {recipe['backbone_lr']:g}"
    elif "layer_decay" in recipe:
        yield f"layer decay {recipe['layer_decay']:g}"
    if "weight_decay" in recipe:
        yield f"weight decay {recipe['weight_decay']:g}"
    if "batch_size" in recipe:
        yield f"batch {recipe['batch_size']}"
    if recipe.get("step_size") is not None:
        yield f"times {recipe.get('gamma', 1):g} every {counted(recipe['step_size'], 'epoch')}"
    if recipe.get("train_bn"):
        yield "batch norms trained"
    if recipe.get("average") not in (None, "none"):
        yield f"average {recipe['average']}"


def _row_fields(header: Header) -> Iterator[tuple[str, object]]:
    """Yield what a feature file stores for an image, and which of its versions."""
    shape = "×".join(map(str, header.spec.get("shape", [header.spec["num_features"]])))
    dtype = header.details["dtype"]
    stored = "" if dtype == "float32" and "cut" not in header.spec else f" {dtype}"
    yield "features", f"{header.details['num_rows']:,} × {shape}{stored}"
    if "cut" in header.spec:
        yield "cut", header.spec["cut"]
    yield "views", _views(header.details) if "views" in header.details else "none"


def _views(details: Mapping[str, Any]) -> str:
    from featx.images.views import ViewsSpec, describe_views

    return describe_views(ViewsSpec.from_dict(details["views"]))


def _model_fields(path: Path, header: Header) -> Iterator[tuple[str, object]]:
    from featx.backbones.seal import count_nodes
    from featx.classifier.contract import Contract
    from featx.heads.tasks import task_of

    task = task_of(header.details)
    contract = Contract.from_dict(header.details.get("contract"), task=task)
    precision, opset = header.details.get("precision", "fp32"), header.details.get("opset", 20)
    yield "contract", f"{contract.input} → {', '.join(contract.outputs)}"
    if takes := describe_fixed(header.details):
        yield "takes", takes
    yield "graph", f"{count_nodes(path.read_bytes()):,} nodes, opset {opset}, {precision}"
    if "stale" in header.details:
        yield "stale", header.details["stale"]
    proof = header.details.get("proof")
    yield from proof_fields(proof).items()
    if date := (proof or {}).get("date"):
        yield "proven", date
