"""``featx extract``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.output import human_seconds, print_fields, progress_bar

if TYPE_CHECKING:
    from featx.stages.extract import ExtractReport

_SKIPPED_SHOWN = 10


@click.command()
@click.argument("source")
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    default=options.FEATURES,
    show_default=True,
    help="The feature file to write.",
)
@click.option(
    "-b",
    "--backbone",
    default="resnet18",
    show_default=True,
    help="Any name of 'featx backbones'.",
)
@click.option(
    "-w",
    "--weights",
    default="default",
    show_default=True,
    metavar="default|NAME|none|FILE",
    help="torchvision's default or named weights, none (seeded random), or a .pth or "
    ".safetensors file.",
)
@click.option(
    "--layer", help="Layer to cut after; 'featx backbones NAME' lists them. [penultimate]"
)
@click.option(
    "--pool",
    type=click.Choice(["auto", "avg", "max", "cls", "flatten"]),
    default="auto",
    show_default=True,
    help="How the layer's maps or tokens become a vector.",
)
@click.option(
    "--image-size",
    type=int,
    metavar="PIXELS",
    help="Input of the backbone; the shorter side is resized to it.  [the weights' own]",
)
@click.option(
    "--resize", type=int, metavar="PIXELS", help="Shorter side before the crop.  [the weights' own]"
)
@click.option(
    "--crop",
    type=click.Choice(["center", "none"]),
    help="center: cut the middle square; none: squeeze the whole image.  [the weights' own]",
)
@click.option(
    "--val-fraction",
    type=float,
    default=0.2,
    show_default=True,
    help="Share of the training images held out where the source has no validation split.",
)
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    show_default=True,
    help="What to do with an image that cannot be used.",
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]")
@click.option("--batch-size", type=int, default=32, show_default=True)
@click.option("--workers", type=int, help="Threads that read and decode.  [one per core]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random weights.")
@options.overwrite
@options.quiet
def extract(source: str, output: Path, quiet: bool, **settings: Any) -> None:
    """Run a frozen backbone once over SOURCE and cache its features.

    SOURCE is a folder of class folders; a folder of train, val and test folders of class folders;
    a folder of images; a .csv or .tsv with the columns path,label[,split]; cifar10:FOLDER with
    CIFAR-10's python pickles; or digits:, scikit-learn's built-in digits.
    """
    from featx.stages.extract import ExtractOptions
    from featx.stages.extract import extract as run

    with progress_bar("Extracting", quiet=quiet) as progress:
        settings["quiet"] = quiet or not sys.stderr.isatty()
        report = run(source, output, ExtractOptions(**settings), progress=progress)
    _print(report)


def _print(report: ExtractReport) -> None:
    splits = ", ".join(f"{size:,} {split}" for split, size in report.split_sizes.items())
    fields: dict[str, object] = {
        "features": f"{report.num_images:,} × {report.spec.num_features}  ({splits})",
        "classes": f"{len(report.classes)}",
        "backbone": f"{report.spec.backbone}, layer {report.spec.layer}"
        + (f", pool {report.spec.pool}" if report.spec.pool != "none" else ""),
        "time": f"{human_seconds(report.seconds)} "
        f"({report.num_images / report.seconds:,.0f} images/s, {report.device})",
        "written": report.path,
    }
    if report.num_unlabelled:
        fields["unlabelled"] = f"{report.num_unlabelled:,} images"
    if report.num_ignored:
        fields["ignored"] = f"{report.num_ignored:,} files that are no images"
    if report.skipped:
        fields["skipped"] = f"{len(report.skipped):,} images that cannot be used:"
    print_fields(fields)
    for sample_id, reason in report.skipped[:_SKIPPED_SHOWN]:
        click.echo(f"  {sample_id}: {reason}")
    if len(report.skipped) > _SKIPPED_SHOWN:
        click.echo(f"  … and {len(report.skipped) - _SKIPPED_SHOWN} more (featx info --json)")
