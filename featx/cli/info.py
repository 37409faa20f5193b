"""``featx info`` and ``featx backbones``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from featx.artifact import kind_of_file
from featx.backbones.table import (
    Order,
    backbone_table,
    find_backbone,
    require_backbone,
    search_backbones,
    short_name,
    sort_backbones,
)
from featx.cli import options
from featx.cli.head_text import data_fields, describe_classes, head_fields, print_path
from featx.cli.output import (
    human_bytes,
    human_count,
    print_fields,
    print_json,
    print_metrics,
    print_table,
    print_text,
    proof_fields,
)
from featx.errors import ArtifactInvalid, counted

if TYPE_CHECKING:
    from featx.artifact import Header

_DEPTH = 2
_START_WITH = {
    "lite0": "on a laptop's CPU; weights by pip",
    "timm/vit_small_patch14_dinov2": "on a GPU, with --image-size 224",
    "tiny": "images of about 32 px; no download",
}


@click.command()
@click.argument("path", type=options.FILE)
@options.as_json
@options.no_notes
def info(path: Path, as_json: bool) -> None:
    """Say what a feature, head or model file is and how it was made."""
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
    yield "file", f"{path}  ({header.kind}, {human_bytes(path.stat().st_size)})"
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
    yield "graph", f"{count_nodes(path.read_bytes()):,} nodes, opset {opset}, {precision}"
    if "stale" in header.details:
        yield "stale", header.details["stale"]
    proof = header.details.get("proof")
    yield from proof_fields(proof).items()
    if date := (proof or {}).get("date"):
        yield "proven", date


@click.command()
@click.argument("name", required=False)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="With NAME: every node of the graph, and every cut.",
)
@click.option("--cuts", is_flag=True, help="With NAME: its cuts alone.")
@click.option("--image-size", type=int, metavar="PIXELS", help="With NAME: for this input size.")
@click.option(
    "--max-params",
    callback=options.parameters,
    metavar="NUMBER",
    help="List those with at most so many parameters, such as 30M.",
)
@click.option(
    "--sort",
    type=click.Choice(get_args(Order)),
    help="Order of the list: the smallest first, of top1 the best.  [name, after tiny]",
)
@options.as_json
@options.no_notes
def backbones(
    name: str | None,
    everything: bool,
    cuts: bool,
    image_size: int | None,
    max_params: int | None,
    sort: Order | None,
    as_json: bool,
) -> None:
    """List every backbone, those like NAME, or the layers and cuts of backbone NAME.

    A NAME that is only a part of names, or of a family, lists these: vit, resnet, transformer.
    top-1 is the accuracy of the default weights on ImageNet-1K, in percent.

    Of one backbone, layers are for --layer: their pooled output is the feature. Cuts are for --cut:
    what enters the module is cached, and everything behind it can be trained. --json gives the
    layers, with --cuts the cuts.
    """
    found = None if name is None else find_backbone(name)
    if found is None:
        of_one = {"--cuts": cuts, "--all": everything, "--image-size": image_size}
        if flags := [flag for flag, value in of_one.items() if value]:
            raise click.UsageError(f"{flags[0]} needs the whole NAME of a backbone.")
        _list_backbones(name, max_params, sort, as_json=as_json)
        return
    if max_params is not None or sort:
        raise click.UsageError(f"--max-params and --sort are for lists; {found} is one backbone.")
    if not cuts:
        _list_layers(found, image_size, everything=everything, as_json=as_json)
    if cuts or not as_json:
        _list_cuts(found, image_size, everything=everything, as_json=as_json)


def _list_backbones(
    part: str | None, max_params: int | None, order: Order | None, *, as_json: bool
) -> None:
    rows = list(backbone_table()) if part is None else search_backbones(part)
    if part is not None and not rows:
        require_backbone(part)  # raises: it offers the nearest names
    small = [row for row in rows if max_params is None or row.num_parameters <= max_params]
    if not small:
        least = min(rows, key=lambda row: row.num_parameters)
        raise click.ClickException(
            f"None has so few parameters; the smallest, {least.name}, has "
            f"{human_count(least.num_parameters)}."
        )
    small = sort_backbones(small, order) if order else small
    if as_json:
        print_json([asdict(row) | {"licence": row.licence} for row in small])
        return
    names = [short_name(row) for row in small]
    print_table(
        ["backbone", "features", "input", "params", "GFLOPs", "top-1"],
        [
            [
                name,
                f"{row.num_features:,}",
                f"{row.image_size}",
                f"{row.num_parameters / 1e6:.1f} M",
                f"{row.gflops:.2f}",
                f"{row.top1:.1f}" if row.top1 else "",
            ]
            for name, row in zip(names, small, strict=True)
        ],
    )
    shown = set(names)
    start = [name for name in _START_WITH if part is None and name in shown]
    for number, name in enumerate(start):
        title = "\nstart with" if number == 0 else " " * len("start with")
        click.echo(f"{title}  {name:<{max(map(len, start))}}  {_START_WITH[name]}")


def _list_layers(name: str, image_size: int | None, *, everything: bool, as_json: bool) -> None:
    from featx.backbones.catalog import build_skeleton, default_preprocess, penultimate_layer
    from featx.backbones.network import layer_names, layer_shapes

    size = image_size or default_preprocess(name).image_size
    model = build_skeleton(name, size)
    depth = None if everything else _DEPTH
    shapes = layer_shapes(name, size, layer_names(model, depth=depth), model=model)
    default = penultimate_layer(model)
    if as_json:
        print_json({layer: list(shape[1:]) for layer, shape in shapes.items()})
        return
    _print_weights(name)
    print_text(f"{name} at {size} px; * is the default layer")
    click.echo()
    print_table(
        ["layer", "output"],
        [
            [f"{layer} *" if layer == default else layer, _product(shape[1:])]
            for layer, shape in shapes.items()
        ],
    )
    click.echo()


def _print_weights(name: str) -> None:
    """Print the names of a backbone's weights, and what is said of their licences."""
    for row in (row for row in backbone_table() if row.name == name):
        print_text(f"weights  {', '.join(row.weights)}")
        print_text(f"licence  {row.licence}")
        for licence in dict.fromkeys(row.licences.values()):
            if licence != row.licence:
                own = [each for each, other in row.licences.items() if other == licence]
                print_text(f"         of {', '.join(own)}:")
                print_text(f"         {licence}")
        click.echo()


def _list_cuts(name: str, image_size: int | None, *, everything: bool, as_json: bool) -> None:
    from featx.backbones.catalog import default_preprocess
    from featx.backbones.cuts import list_cuts, main_cuts

    size = image_size or default_preprocess(name).image_size
    cuts = list_cuts(name, size)
    cuts = cuts if everything else main_cuts(cuts)
    if as_json:
        print_json([asdict(cut) | {"num_bytes": cut.num_bytes} for cut in cuts])
        return
    print_text(f"{name} at {size} px: cuts, with what lies behind each and can be trained")
    click.echo()
    print_table(
        ["cut", "input", "an image", "parameters", "work"],
        [
            [
                cut.name,
                _product(cut.shape),
                human_bytes(cut.num_bytes),
                f"{cut.num_parameters / 1e6:.2f} M",
                f"{cut.share:.1%}",
            ]
            for cut in cuts
        ],
    )


def _product(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
