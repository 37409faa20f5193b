"""``featx backbones``."""

from __future__ import annotations

from dataclasses import asdict

import click

from featx.cli import options
from featx.cli.output import print_json, print_table, print_text

_DEPTH = 2


@click.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="With NAME: every node of the graph.")
@click.option("--image-size", type=int, metavar="PIXELS", help="With NAME: for this input size.")
@options.as_json
@options.no_notes
def backbones(name: str | None, everything: bool, image_size: int | None, as_json: bool) -> None:
    """List every backbone, or the layers of backbone NAME with their output shapes."""
    if name is None:
        _list_backbones(as_json=as_json)
    else:
        _list_layers(name, image_size, depth=None if everything else _DEPTH, as_json=as_json)


def _list_backbones(*, as_json: bool) -> None:
    from featx.backbones.catalog import backbone_names, describe_backbone

    lines = [describe_backbone(name) for name in backbone_names()]
    if as_json:
        print_json([asdict(line) for line in lines])
        return
    print_table(
        ["backbone", "features", "input px", "parameters", "GFLOPs", "weights"],
        [
            [
                line.name,
                f"{line.num_features:,}",
                f"{line.image_size}",
                f"{line.num_parameters / 1e6:.1f} M",
                f"{line.gflops:.2f}",
                " ".join(line.weights),
            ]
            for line in lines
        ],
    )


def _list_layers(name: str, image_size: int | None, *, depth: int | None, as_json: bool) -> None:
    from featx.backbones.catalog import build_skeleton, default_preprocess
    from featx.backbones.network import layer_names, layer_shapes, penultimate_layer

    size = image_size or default_preprocess(name).image_size
    model = build_skeleton(name, size)
    shapes = layer_shapes(name, size, layer_names(model, depth=depth), model=model)
    default = penultimate_layer(model)
    if as_json:
        print_json({layer: list(shape[1:]) for layer, shape in shapes.items()})
        return
    print_text(f"{name} at {size} px; * is the default layer")
    click.echo()
    print_table(
        ["layer", "output"],
        [
            [f"{layer} *" if layer == default else layer, " × ".join(map(str, shape[1:]))]
            for layer, shape in shapes.items()
        ],
    )
