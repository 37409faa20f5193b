"""``featx train-head``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featx.cli import options
from featx.cli.output import human_seconds, print_fields, print_json, print_metrics

if TYPE_CHECKING:
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
            seed=seed,
            overwrite=overwrite,
        ),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)


_ONLY_MLP = ("hidden", "dropout", "learning_rate", "weight_decay", "batch_size", "epochs")
_ONLY_LINEAR = ("solver", "strengths")


def _require_used(head: str) -> None:
    """Refuse options that the chosen head would ignore."""
    context = click.get_current_context()
    for name in _ONLY_MLP if head == "linear" else _ONLY_LINEAR:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "-C" if name == "strengths" else f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{option} has no meaning for --head {head}.")


def _print(report: TrainReport) -> None:
    print_metrics(report.metrics)
    click.echo()
    print_fields(
        {
            "head": _describe(report.choice),
            "time": human_seconds(report.seconds),
            "written": report.path,
        }
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
