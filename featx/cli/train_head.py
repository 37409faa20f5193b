"""``featx train-head``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featx.cli import options
from featx.cli.output import (
    human_seconds,
    print_fields,
    print_json,
    print_metrics,
    print_per_class,
    print_table,
)

if TYPE_CHECKING:
    from featx.heads.calibration import Calibration
    from featx.stages.train import TrainReport


@click.command("train-head")
@click.argument("features", type=options.FILE, default=options.FEATURES)
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    default=options.HEAD,
    show_default=True,
    help="The head file to write.",
)
@click.option("--head", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True)
@click.option(
    "--solver",
    type=click.Choice(["lbfgs", "sklearn"]),
    default="lbfgs",
    show_default=True,
    help="Of a linear head.",
)
@click.option(
    "-C",
    "--strength",
    "strengths",
    type=float,
    multiple=True,
    help="Inverse L2 strength of a linear head; repeat to choose from several.  [3.2e-7 to 10]",
)
@click.option(
    "--hidden", default="100", show_default=True, help="Hidden sizes of an MLP, like 256,128."
)
@click.option("--dropout", type=float, default=0.0, show_default=True, help="Of an MLP.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="Of an MLP.")
@click.option("--weight-decay", type=float, default=1e-2, show_default=True, help="Of an MLP.")
@click.option("--batch-size", type=int, default=128, show_default=True, help="Of an MLP.")
@click.option("--epochs", type=int, default=100, show_default=True, help="At most, of an MLP.")
@click.option(
    "--no-calibrate",
    is_flag=True,
    help="Leave the probabilities as trained; else a temperature is fitted on held-out samples.",
)
@click.option("--per-class", is_flag=True, help="Print a table of the classes too.")
@click.option("--seed", type=int, default=0, show_default=True)
@options.overwrite
@options.as_json
@options.quiet
def train_head(
    features: Path,
    output: Path,
    head: str,
    solver: str,
    strengths: tuple[float, ...],
    no_calibrate: bool,
    per_class: bool,
    seed: int,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    **mlp: Any,
) -> None:
    """Fit a head on cached FEATURES.

    The strength of a linear head is chosen by cross-validation inside the training split, an MLP is
    stopped early by a part of it; validation and test splits are only reported.
    """
    from featx.heads.linear import STRENGTHS
    from featx.heads.mlp import MLPOptions, parse_hidden
    from featx.stages.train import TrainOptions
    from featx.stages.train import train_head as run

    _require_used(head)
    hidden, epochs = parse_hidden(mlp.pop("hidden")), mlp.pop("epochs")
    report = run(
        features,
        output,
        TrainOptions(
            head=head,  # type: ignore[arg-type]
            solver=solver,  # type: ignore[arg-type]
            strengths=strengths or STRENGTHS,
            mlp=MLPOptions(hidden=hidden, max_epochs=epochs, **mlp),
            calibrate=not no_calibrate,
            seed=seed,
            overwrite=overwrite,
        ),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, per_class=per_class)


_ONLY_MLP = ("hidden", "dropout", "learning_rate", "weight_decay", "batch_size", "epochs")
_ONLY_LINEAR = ("solver", "strengths")


def _require_used(head: str) -> None:
    """Refuse options that the chosen head would ignore."""
    context = click.get_current_context()
    for name in _ONLY_MLP if head == "linear" else _ONLY_LINEAR:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "-C" if name == "strengths" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} has no meaning for --head {head}.")


def _print(report: TrainReport, *, per_class: bool) -> None:
    print_metrics(report.metrics)
    click.echo()
    if per_class:
        unseen = {split: scores for split, scores in report.metrics.items() if split != "train"}
        print_per_class(unseen or report.metrics, report.head.classes)
    path = report.choice.get("path", [])
    if len(path) > 1:
        _print_path(path, report.choice["strength"])
    fields: dict[str, object] = {"head": _describe(report.choice)}
    if report.calibration:
        fields["calibration"] = _describe_calibration(report.calibration)
    fields |= {"time": human_seconds(report.seconds), "written": report.path}
    print_fields(fields)


def _print_path(path: Sequence[Mapping[str, Any]], chosen: float) -> None:
    """Print every strength that was solved; the chosen one has a star."""
    rows = [
        [
            f"{point['strength']:g}{' *' if point['strength'] == chosen else ''}",
            f"{point['log_loss']:.4f}",
            f"{point['top1']:.4f}",
            "–" if point["objective"] is None else f"{point['objective']:.5f}",
            "–" if point["gradient_norm"] is None else f"{point['gradient_norm']:.0e}",
        ]
        for point in path
    ]
    print_table(["C", "held-out log loss", "top-1", "objective", "gradient"], rows)
    click.echo()


def _describe_calibration(calibration: Calibration) -> str:
    return (
        f"temperature {calibration.temperature:.3g}, held-out ECE {calibration.ece_before:.4f} → "
        f"{calibration.ece_after:.4f}"
    )


def _describe(choice: dict[str, Any]) -> str:
    if choice["head"] == "mlp":
        sizes = "-".join(str(size) for size in choice["hidden"])
        return f"MLP with hidden {sizes}, stopped at epoch {choice['num_epochs']}"
    text = f"linear, C = {choice['strength']:g}"
    if choice["num_folds"] > 1:
        text += (
            f", the best of {len(choice['path'])} by {choice['num_folds']}-fold cross-validation"
        )
    elif choice["num_folds"] == 1:
        text += f", the best of {len(choice['path'])} on a hold-out"
    return text
