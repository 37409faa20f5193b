"""``featx export``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.output import human_bytes, human_seconds, print_fields, step_status


@click.command()
@click.argument("head", type=options.FILE, default=options.HEAD)
@click.option(
    "--onnx",
    "output",
    type=options.FILE,
    is_flag=False,
    flag_value=options.MODEL,
    default=options.MODEL,
    show_default=True,
    help="The ONNX file to write.",
)
@click.option(
    "--features", type=options.FILE, help="Features to compare with.  [the head's own file]"
)
@click.option("--source", help="Where the images are now.  [where they were]")
@click.option(
    "-w", "--weights", help="The backbone's weights, where they moved.  [where they were]"
)
@click.option(
    "--input",
    type=click.Choice(["image", "crop", "tensor"]),
    default="image",
    show_default=True,
    help="What the file takes: images of any size; or resized and cropped ones; or those "
    "normalised as well, channels first.",
)
@click.option(
    "--output",
    "outputs",
    multiple=True,
    default=["logits,probabilities"],
    show_default="logits,probabilities",
    metavar="NAMES",
    help="What it gives: logits, probabilities, features, top-K; several with commas.",
)
@click.option(
    "--atol", type=float, help="Largest logit difference allowed.  [2 % of the largest logit]"
)
@click.option(
    "--no-verify", is_flag=True, help="Export without proof; the file says that it is unverified."
)
@options.overwrite
@options.quiet
def export(
    head: Path,
    output: Path,
    no_verify: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Stitch preprocessing, backbone and HEAD into one ONNX file and prove it on real images."""
    from featx.stages.export import ExportOptions, export_onnx

    export_options = ExportOptions(
        **settings, verify=not no_verify, quiet=quiet or not sys.stderr.isatty()
    )
    with step_status(quiet=quiet) as progress:
        report = export_onnx(head, output, export_options, progress=progress)
    proof = "unverified (--no-verify)"
    if report.proof:
        proof = (
            f"{report.proof.num_images} images: same class in "
            f"{report.proof.top1_agreement:.0%}, largest logit difference "
            f"{report.proof.max_difference:.1e} ({report.proof.bound:.2g} allowed)"
        )
    print_fields(
        {
            "model": f"{human_bytes(report.num_bytes)}, {export_options.input} → "
            f"{', '.join(export_options.contract.outputs)} of {len(report.header.classes)} classes",
            "proof": proof,
            "time": human_seconds(report.seconds),
            "written": report.path,
        }
    )
