"""``featx export``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import (
    describe_fixed,
    human_bytes,
    human_seconds,
    next_command,
    print_fields,
    proof_fields,
    step_status,
    written,
)
from featx.errors import counted

if TYPE_CHECKING:
    from featx.stages.export import ExportOptions


class Shape(click.ParamType[tuple[int, int]]):
    """Height and width, as ``480x640``."""

    name = "shape"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", str(value))
        if match is None:
            self.fail(f"expected height and width like 480x640; got {value!r}.", param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=Command)
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
    "--state-dict",
    type=options.FILE,
    help="Write backbone and head as a state dict of torchvision's model: .pth, .pt or "
    ".safetensors. Without --onnx, it alone.",
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
    help="Arithmetic of the backbone in the file.  [int8 if the features were made in it, else "
    "fp32]",
)
@click.option(
    "--opset",
    type=click.IntRange(18, 20),
    help="Version of the ONNX operators; older runtimes may need 18.  [20, or what --for reads]",
)
@click.option(
    "--for",
    "runtime",
    metavar="RUNTIME",
    help="What will run the file: tract, opencv, openvino, onnxruntime==1.17. A file that it "
    "cannot run is refused.",
)
@click.option(
    "--image-shape",
    type=Shape(),
    metavar="HxW",
    help="Height and width of the only images that the file takes, 480x640 for one, where other "
    "runtimes than ONNX Runtime get whole images.  [any]",
)
@click.option(
    "--batch", type=click.IntRange(min=1), help="How many images it takes at once.  [any number]"
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
@click.option(
    "--overwrite", is_flag=True, help="Replace a model card that was edited, or a state dict."
)
@options.quiet
@click.pass_context
def export(
    context: click.Context,
    /,
    head: Path,
    output: Path,
    state_dict: Path | None,
    no_verify: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Stitch preprocessing, backbone and HEAD into one ONNX file and prove it on real images."""
    from featx.stages.export import ExportOptions

    export_options = ExportOptions(**settings, verify=not no_verify)
    is_asked_for = context.get_parameter_source("output") is not ParameterSource.DEFAULT
    if state_dict is None or is_asked_for:
        _write_onnx(head, output, export_options, quiet=quiet)
    if state_dict is not None:
        _write_state_dict(head, state_dict, export_options, quiet=quiet)


def _write_onnx(head: Path, output: Path, export_options: ExportOptions, *, quiet: bool) -> None:
    from featx.heads.tasks import task_of
    from featx.stages.export import export_onnx

    with step_status(quiet=quiet) as progress:
        report = export_onnx(head, output, export_options, progress=progress)
    details = report.header.details
    outputs = ", ".join(details["contract"]["outputs"])
    things = task_of(details).outputs
    fields: dict[str, object] = {
        "model": f"{human_bytes(report.num_bytes)}, {details['contract']['input']} → {outputs}, "
        f"{len(report.header.classes)} {things}, {details['precision']}"
    }
    if takes := describe_fixed(details):
        fields["takes"] = takes
    if "stale" in details:
        fields["stale"] = details["stale"]
    fields |= proof_fields(details["proof"])
    if not report.is_unchanged:
        fields["time"] = human_seconds(report.seconds)
    fields |= written(report)
    if report.card:
        fields["card"] = report.card
    if not quiet and details["contract"]["input"] == "image":
        fields["next"] = next_command("predict", report.path, options.MODEL, "IMAGE")
    print_fields(fields)


def _write_state_dict(
    head: Path, output: Path, export_options: ExportOptions, *, quiet: bool
) -> None:
    from featx.stages.export import export_state_dict

    with step_status(quiet=quiet) as progress:
        report = export_state_dict(head, output, export_options, progress=progress)
    compared = counted(report.num_images, "image") if report.num_images else "random pixels"
    print_fields(
        {
            "state dict": f"{human_bytes(report.num_bytes)}, for {report.load}",
            "compared": f"{compared}: logits differ by at most {report.max_difference:.1e} of the "
            "largest",
            "time": human_seconds(report.seconds),
            "written": report.path,
        }
    )
