"""``featx backbones``: the list, and the weights, layers and cuts of one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import asdict
from typing import get_args

import click

from featx.backbones.licences import has_terms
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
from featx.cli.completion import backbones as complete_backbones
from featx.cli.help import Command
from featx.cli.output import human_bytes, human_count, print_json, print_table, print_text
from featx.errors import listed

_DEPTH = 2
_START_WITH = {
    "lite0": "on a laptop's CPU; weights by pip",
    "timm/vit_small_patch14_dinov2": "on a GPU, with --image-size 224",
    "tiny": "images of about 32 px; no download",
}


@click.command(cls=Command)
@click.argument("name", required=False, shell_complete=complete_backbones)
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
    "--family", metavar="NAME", help="List those of a family, such as regnet or convnext."
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
    family: str | None,
    sort: Order | None,
    as_json: bool,
) -> None:
    """List every backbone, those like NAME, or the layers and cuts of backbone NAME.

    A NAME that is only a part of names, or of a family, lists these: vit, resnet, transformer.
    top-1 is the accuracy of the default weights on ImageNet-1K, in percent. A name with * has
    weights whose licence is not free for every use.

    Layers of one backbone are for --layer: their pooled output is the feature. Cuts are for --cut:
    what enters the module is cached, and everything behind it can be trained. --json gives the
    layers, with --cuts the cuts.
    """
    found = None if name is None else find_backbone(name)
    if found is None:
        of_one = {"--cuts": cuts, "--all": everything, "--image-size": image_size}
        if flags := [flag for flag, value in of_one.items() if value]:
            raise click.UsageError(f"{flags[0]} needs the whole NAME of a backbone.")
        _list_backbones(name, max_params, family, sort, as_json=as_json)
        return
    if max_params is not None or family is not None or sort:
        raise click.UsageError(
            f"--max-params, --family and --sort are for lists; {found} is one backbone."
        )
    if not cuts:
        _list_layers(found, image_size, everything=everything, as_json=as_json)
    if cuts or not as_json:
        _list_cuts(found, image_size, everything=everything, as_json=as_json)


def _list_backbones(
    part: str | None,
    max_params: int | None,
    family: str | None,
    order: Order | None,
    *,
    as_json: bool,
) -> None:
    rows = list(backbone_table()) if part is None else search_backbones(part)
    if part is not None and not rows:
        require_backbone(part)  # raises: it offers the nearest names
    if family is not None:
        known = sorted({row.family for row in rows})
        rows = [row for row in rows if row.family == family.lower()]
        if not rows:
            near = difflib.get_close_matches(family.lower(), known, n=3, cutoff=0.3)
            like = f" Like it are {listed(near, 3)}." if near else ""
            raise click.UsageError(f"No backbone is of a family '{family}'.{like}")
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
    marks = ["*" if has_terms(row.name, row.licence) else "" for row in small]
    print_table(
        ["backbone", "features", "input", "params", "GFLOPs", "top-1"],
        [
            [
                name + mark,
                f"{row.num_features:,}",
                f"{row.image_size}",
                f"{row.num_parameters / 1e6:.1f} M",
                f"{row.gflops:.2f}",
                f"{row.top1:.1f}" if row.top1 else "",
            ]
            for name, mark, row in zip(names, marks, small, strict=True)
        ],
    )
    if any(marks):
        click.echo()
        print_text("*  under terms that restrict its use: see 'featx backbones NAME'")
    shown = set(names)
    start = [name for name in _START_WITH if part is None and name in shown]
    for number, name in enumerate(start):
        title = "\nstart with" if number == 0 else " " * len("start with")
        click.echo(f"{title}  {name:<{max(map(len, start))}}  {_START_WITH[name]}")


def _list_layers(name: str, image_size: int | None, *, everything: bool, as_json: bool) -> None:
    from featx.backbones.catalog import build_skeleton, default_preprocess, penultimate_layer
    from featx.backbones.network import find_end, layer_names, layer_shapes

    size = image_size or default_preprocess(name).image_size
    model = build_skeleton(name, size)
    depth = None if everything else _DEPTH
    shapes = layer_shapes(name, size, layer_names(model, depth=depth), model=model)
    default = penultimate_layer(model)
    if default not in shapes:  # timm's features are not the output of a module
        shapes[default] = (1, find_end(name, size).num_features)
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
    """Print a backbone's family, the names of its weights, and what is said of their licences."""
    for row in (row for row in backbone_table() if row.name == name):
        print_text(f"family   {row.family}")
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
