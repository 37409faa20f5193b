"""``featx train-head``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from featx.cli import options
from featx.cli.head_text import data_fields, head_fields, print_path
from featx.cli.help import Command
from featx.cli.output import (
    human_seconds,
    next_command,
    print_fields,
    print_json,
    print_metrics,
    print_per_class,
    print_table,
    step_status,
    written,
)

if TYPE_CHECKING:
    from featx.heads.samples.selection import FewShotScores
    from featx.heads.solvers.sgd import EpochScores
    from featx.stages.train import TrainReport
    from featx.training.options import TrainOptions

SOLVERS = ("lbfgs", "sklearn", "ridge", "centroid", "sgd")


@click.command("train-head", cls=Command)
@click.argument("features", type=options.FILE, default=options.FEATURES)
@options.output(options.HEAD, "The head file to write.")
@options.task
@click.option(
    "--head",
    type=click.Choice(["linear", "mlp"]),
    default="linear",
    show_default=True,
    help="A linear layer, or a multi-layer perceptron with ReLU.",
)
@click.option(
    "--solver",
    type=click.Choice(SOLVERS),
    help="How a linear head is fitted: logistic regression by lbfgs or sklearn, ridge regression, "
    "nearest centroids, or SGD.  [lbfgs; of numbers ridge]",
)
@click.option(
    "-C",
    "--strength",
    "strengths",
    type=float,
    multiple=True,
    help="Inverse L2 strength of lbfgs, sklearn and ridge; repeat to choose from several.  "
    "[3.2e-7 to 10]",
)
@click.option("--hidden", help="Sizes of the hidden layers, like 256,128.  [100]")
@click.option(
    "--dropout",
    type=float,
    multiple=True,
    help="Share of hidden units that are dropped in training.  [0]",
)
@click.option("--weight-decay", type=float, multiple=True, help="Weight decay of AdamW.  [0.01]")
@click.option(
    "--learning-rate",
    "--lr",
    type=float,
    multiple=True,
    help="Learning rate. Repeat it, --dropout or --weight-decay to train an MLP with each, side by "
    "side.  [0.001]",
)
@click.option("--seeds", type=int, help="Number of initial weights that are tried.  [1]")
@click.option("--batch-size", type=int, help="Samples in a step.  [128; SGD 512]")
@click.option(
    "--epochs", type=int, help="Passes over the samples, of an MLP at most.  [100; SGD 20]"
)
@click.option("--momentum", type=float, help="Momentum.  [0.9]")
@click.option("--step-size", type=int, help="Epochs after which the learning rate falls.  [7]")
@click.option("--gamma", type=float, help="Factor by which it falls.  [0.1]")
@options.class_weight
@click.option(
    "--shots",
    type=int,
    help="Train on so many images of each class, drawn at random, to see how few are enough.",
)
@click.option("--repeats", type=int, help="How often --shots are drawn.  [10]")
@click.option(
    "--no-views",
    "no_use_views",
    is_flag=True,
    help="Train on the images as they are, without the views that extraction added.",
)
@options.no_calibrate
@click.option(
    "--memory",
    metavar="SIZE",
    help="What features and their copies may take, like 2GB; more are read from the file in "
    "blocks.  [half of what is free]",
)
@options.ray
@options.allow_mixed
@options.exclude
@click.option(
    "--weights",
    "-w",
    metavar="NAME|FILE",
    help="At a cut, where the pretrained weights are now.  [where they were]",
)
@options.per_class
@click.option(
    "-v", "--verbose", is_flag=True, help="Print every strength that was tried, with its scores."
)
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of folds, draws and an MLP."
)
@options.overwrite
@options.as_json
@options.quiet
def train_head(
    features: Path,
    output: Path,
    weights: str | None,
    ray: str | None,
    allow_mixed: bool,
    per_class: bool,
    verbose: bool,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Fit a head on cached FEATURES.

    The strength of a linear head is chosen by cross-validation inside the training split, an MLP is
    stopped early by a part of it; validation and test splits are only reported.
    """
    from featx.stages.train import train_head as run

    _require_used(chosen["task"], chosen["head"], chosen["solver"])
    progress = None if as_json or quiet else _print_epoch
    train_options = _options(options.given(chosen), features)
    with step_status(quiet=quiet) as step:
        report = run(
            features,
            output,
            train_options,
            weights=weights,
            ray=ray,
            allow_mixed=allow_mixed,
            progress=progress,
            step=step,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, per_class=per_class, verbose=verbose, with_next=not quiet)


def _options(given: Mapping[str, Any], features: Path) -> TrainOptions:
    """Return the options of the stage; what was not given has the default there."""
    from featx.heads.solvers.mlp import parse_hidden
    from featx.training.options import train_options
    from featx.training.samples import read_excluded

    chosen = dict(given)
    for name in ("use_views", "calibrate"):
        chosen[name] = not chosen.pop(f"no_{name}", False)
    if "hidden" in chosen:
        chosen["hidden"] = parse_hidden(chosen["hidden"])
    if "exclude" in chosen:
        chosen["exclude"] = read_excluded(chosen["exclude"], features)
    if chosen.get("head") == "mlp":
        names = {"epochs": "max_epochs", "seeds": "num_seeds"}
        chosen = {names.get(name, name): value for name, value in chosen.items()}
    elif "learning_rate" in chosen:
        *others, chosen["learning_rate"] = chosen["learning_rate"]
        if others:
            raise click.UsageError("--learning-rate may be repeated for --head mlp only.")
    return train_options(None, chosen)


_SGD = {"learning_rate", "batch_size", "epochs", "momentum", "step_size", "gamma"}
_MLP = {"hidden", "dropout", "learning_rate", "weight_decay", "seeds", "batch_size", "epochs"}
_USED = {
    "mlp": _MLP,
    **{solver: {"solver", "strengths"} for solver in ("lbfgs", "sklearn", "ridge")},
    "centroid": {"solver"},
    "sgd": {"solver"} | _SGD,
}


def _require_used(task: str, head: str, solver: str | None) -> None:
    """Refuse options that the chosen head would ignore."""
    from featx.heads.tasks import SINGLE_LABEL, TASKS

    context = click.get_current_context()
    solver = solver or TASKS.get(task, SINGLE_LABEL).solvers[0]
    kind = "mlp" if head == "mlp" else solver
    for name in sorted(set().union(*_USED.values()) - _USED[kind]):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "-C" if name == "strengths" else f"--{name.replace('_', '-')}"
            is_head = head == "mlp" or name in _MLP - _SGD
            chosen = f"--head {head}" if is_head else f"--solver {solver}"
            raise click.UsageError(f"{option} has no meaning for {chosen}.")
    if context.params["repeats"] is not None and context.params["shots"] is None:
        raise click.UsageError("--repeats has no meaning without --shots.")


def _print_epoch(scores: EpochScores) -> None:
    click.echo(
        f"epoch {scores.epoch:>3}  loss {scores.loss:.4f}  accuracy {scores.accuracy:.4f}  "
        f"{scores.seconds:.2f} s"
    )


def _print(report: TrainReport, *, per_class: bool, verbose: bool, with_next: bool) -> None:
    from featx.heads.verdict import verdict

    if with_next and report.choice.get("solver") == "sgd" and not report.is_unchanged:
        click.echo()  # below the epochs
    classes, cross_validated = report.head.classes, report.cross_validated
    in_turn = {"cross-val.": cross_validated.scores} if cross_validated else {}
    print_metrics({**report.metrics, **in_turn})
    click.echo()
    if report.few_shot:
        _print_few_shot(report.few_shot)
    if per_class:
        unseen = {split: scores for split, scores in report.metrics.items() if split != "train"}
        print_per_class(unseen or report.metrics, classes)
    if verbose and print_path(report.choice):
        click.echo()
    fields = dict(data_fields(report.metrics, classes)) | dict(head_fields(report.head.header))
    own = cross_validated.scores if cross_validated else None
    if said := verdict(report.metrics, classes, own):
        fields["verdict"] = said
    if not report.is_unchanged:
        fields["time"] = human_seconds(report.seconds)
    fields |= written(report)
    if with_next:
        fields["next"] = next_command("export", report.path, options.HEAD)
    print_fields(fields)


def _print_few_shot(scores: Mapping[str, FewShotScores]) -> None:
    """Print mean and deviation over the draws; the table above is that of the first."""
    columns = ("top1", "balanced_accuracy", "macro_f1", "log_loss")
    rows = []
    for split, own in scores.items():
        spreads = [getattr(own, column) for column in columns]
        rows.append([split, *(f"{each.mean:.4f} ± {each.deviation:.4f}" for each in spreads)])
    print_table(["over draws", "top-1", "balanced", "macro F1", "log loss"], rows)
    click.echo()
