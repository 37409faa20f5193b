"""``featx export``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.output import (
    human_bytes,
    human_seconds,
    print_fields,
    proof_fields,
    step_status,
    written,
)


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
    show_default="logits,probabilities; of numbers values",
    metavar="NAMES",
    help="What it gives: logits, probabilities, features, top-K, or the values of a regression; "
    "several with commas.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    help="Of the backbone in the file.  [int8 if the features were made in it, else fp32]",
)
@click.option(
    "--opset",
    type=click.IntRange(18, 20),
    default=20,
    show_default=True,
    help="Of the ONNX operators; older runtimes may need 18.",
)
@click.option(
    "--atol", type=float, help="Largest logit difference allowed.  [2 % of the logits' spread]"
)
@click.option(
    "--max-drop",
    type=float,
    default=1.0,
    show_default=True,
    metavar="POINTS",
    help="Validation accuracy that the file may lose against the head.",
)
@options.max_images("Validation images that the file is run on.")
@click.option(
    "--no-verify", is_flag=True, help="Export without proof; the file says that it is unverified."
)
@options.stale
@click.option(
    "--with-names",
    is_flag=True,
    help="Keep names of images and whole paths in the file, which else has digests and base names.",
)
@click.option(
    "--card",
    type=options.FILE,
    help="Write a model card as well: data, scores, proof, and how to use the file.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model card that was edited.")
@options.quiet
def export(head: Path, output: Path, no_verify: bool, quiet: bool, **settings: Any) -> None:
    """Stitch preprocessing, backbone and HEAD into one ONNX file and prove it on real images."""
    from featx.heads.tasks import task_of
    from featx.stages.export import ExportOptions, export_onnx

    export_options = ExportOptions(**settings, verify=not no_verify)
    with step_status(quiet=quiet) as progress:
        report = export_onnx(head, output, export_options, progress=progress)
    details = report.header.details
    outputs = ", ".join(details["contract"]["outputs"])
    things = task_of(details).outputs
    fields: dict[str, object] = {
        "model": f"{human_bytes(report.num_bytes)}, {details['contract']['input']} → {outputs}, "
        f"{len(report.header.classes)} {things}, {details['precision']}"
    }
    if "stale" in details:
        fields["stale"] = details["stale"]
    fields |= proof_fields(details["proof"])
    if not report.is_unchanged:
        fields["time"] = human_seconds(report.seconds)
    fields |= written(report)
    if report.card:
        fields["card"] = report.card
    print_fields(fields)
