"""``featx train-head``."""

from __future__ import annotations

import json
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
    written,
)
from featx.errors import ConfigError, counted

if TYPE_CHECKING:
    from featx.heads.samples.selection import ClassWeight, FewShotScores
    from featx.heads.solvers.sgd import EpochScores
    from featx.heads.tasks.calibration import Calibration
    from featx.training.options import TrainOptions, TrainReport

SOLVERS = ("lbfgs", "sklearn", "ridge", "centroid", "sgd")
_SHARED = ("task", "head", "solver", "memory", "seed", "overwrite")


@click.command("train-head")
@click.argument("features", type=options.FILE, default=options.FEATURES)
@options.output(options.HEAD, "The head file to write.")
@options.task
@click.option("--head", type=click.Choice(["linear", "mlp"]), default="linear", show_default=True)
@click.option(
    "--solver",
    type=click.Choice(SOLVERS),
    help="Of a linear head: logistic regression by lbfgs or sklearn, or the others by name.  "
    "[lbfgs; of regression ridge]",
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
@click.option("--hidden", help="Hidden sizes of an MLP, like 256,128.  [100]")
@click.option("--dropout", type=float, multiple=True, help="Of an MLP.  [0]")
@click.option("--weight-decay", type=float, multiple=True, help="Of an MLP.  [0.01]")
@click.option(
    "--learning-rate",
    "--lr",
    type=float,
    multiple=True,
    help="Of an MLP, and of sgd. Repeat it, --dropout or --weight-decay to train an MLP with each, "
    "side by side.  [0.001]",
)
@click.option("--seeds", type=int, help="Initial weights of an MLP that are tried.  [1]")
@click.option("--batch-size", type=int, help="Of an MLP [128], and of sgd [512].")
@click.option("--epochs", type=int, help="Of an MLP at most [100], and of sgd [20].")
@click.option("--momentum", type=float, help="Of sgd.  [0.9]")
@click.option("--step-size", type=int, help="Of sgd: epochs until the rate falls.  [7]")
@click.option("--gamma", type=float, help="Of sgd: factor by which it falls.  [0.1]")
@options.class_weight
@click.option("--shots", type=int, help="Train on so many images of each class.")
@click.option("--repeats", type=int, help="Draws of --shots.  [10]")
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
@options.exclude
@click.option(
    "--weights",
    "-w",
    metavar="NAME|FILE",
    help="At a cut, where the pretrained weights are now.  [where they were]",
)
@options.per_class
@click.option("--seed", type=int, default=0, show_default=True)
@options.overwrite
@options.as_json
@options.quiet
def train_head(
    features: Path,
    output: Path,
    weights: str | None,
    per_class: bool,
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
    train_options = _options(features=features, **chosen)
    report = run(features, output, train_options, weights=weights, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, per_class=per_class)


def _options(
    *,
    features: Path,
    strengths: tuple[float, ...],
    class_weight: str | None,
    shots: int | None,
    repeats: int | None,
    no_use_views: bool,
    no_calibrate: bool,
    exclude: Path | None,
    **chosen: Any,
) -> TrainOptions:
    """Return the options of the stage; what was not given has the default there."""
    from featx.heads.samples.selection import FewShot
    from featx.heads.solvers.linear import STRENGTHS
    from featx.heads.solvers.mlp import MLPOptions, parse_hidden
    from featx.heads.solvers.sgd import SGDOptions
    from featx.training.options import TrainOptions
    from featx.training.samples import read_excluded

    shared = {name: chosen.pop(name) for name in _SHARED}
    given = {name: value for name, value in chosen.items() if value not in (None, ())}
    mlp, sgd = MLPOptions(), SGDOptions()
    if shared["head"] == "mlp":
        if "hidden" in given:
            given["hidden"] = parse_hidden(given["hidden"])
        names = {"epochs": "max_epochs", "seeds": "num_seeds"}
        mlp = MLPOptions(**{names.get(name, name): value for name, value in given.items()})
    elif shared["solver"] == "sgd":
        if "learning_rate" in given:
            *others, given["learning_rate"] = given["learning_rate"]
            if others:
                raise click.UsageError("--learning-rate may be repeated for --head mlp only.")
        sgd = SGDOptions(**given)
    return TrainOptions(
        **shared,
        strengths=strengths or STRENGTHS,
        mlp=mlp,
        sgd=sgd,
        class_weight=class_weight_of(class_weight),
        few_shot=None if shots is None else FewShot(shots, 10 if repeats is None else repeats),
        use_views=not no_use_views,
        calibrate=not no_calibrate,
        exclude=read_excluded(exclude, features) if exclude else (),
    )


def class_weight_of(text: str | None) -> ClassWeight:
    """Return ``"balanced"``, the content of a JSON file, or None."""
    if text is None or text == "balanced":
        return text  # type: ignore[return-value]
    try:
        weights = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(
            f"--class-weight must be 'balanced' or a JSON file; '{text}' cannot be read "
            f"({err.strerror})."
        ) from err
    except ValueError as err:
        raise ConfigError(f"'{text}' is not JSON ({err}).") from err
    if not isinstance(weights, dict):
        raise ConfigError(f'\'{text}\' must hold an object like {{"ants": 2, "bees": 1}}.')
    return weights


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


def _print(report: TrainReport, *, per_class: bool) -> None:
    from featx.heads.tasks import TASKS

    cross_validated = report.cross_validated
    in_turn = {"cross-val.": cross_validated.scores} if cross_validated else {}
    print_metrics({**report.metrics, **in_turn})
    click.echo()
    if report.few_shot:
        _print_few_shot(report.few_shot)
    if per_class:
        unseen = {split: scores for split, scores in report.metrics.items() if split != "train"}
        print_per_class(unseen or report.metrics, report.head.classes)
    path = report.choice.get("path", [])
    if len(path) > 1:
        _print_path(path, report.choice["strength"])
    fields: dict[str, object] = {}
    if not TASKS[report.head.task].has_classes:
        fields["task"] = report.head.task
    fields["head"] = _describe(report.choice)
    if blocks := report.choice.get("in_blocks"):
        size = f"{blocks['bytes_read'] / 1e9:.1f} GB read in blocks"
        fields["features"] = f"{size}, {blocks['kept']:,} samples kept in memory"
    if views := report.choice.get("views"):
        fields["views"] = _describe_views(views)
    if cross_validated:
        folds = cross_validated.num_folds
        images = counted(cross_validated.scores.num_samples, "training image")
        fields["cross-val."] = (
            f"{images} in {folds} folds, each scored by a head that was not trained on it"
            if folds
            else f"{images}, each scored by the head without it"
        )
    if made := report.calibration:
        fields["calibration"] = describe_calibration(made)
    if not report.is_unchanged:
        fields["time"] = human_seconds(report.seconds)
    print_fields(fields | written(report))


def describe_calibration(made: Calibration) -> str:
    """Return temperature and calibration error of a head in words."""
    errors = f"held-out ECE {made.ece_before:.4f} → {made.ece_after:.4f}"
    return f"temperature {made.temperature:.3g}, {errors}"


def _print_few_shot(scores: Mapping[str, FewShotScores]) -> None:
    """Print mean and deviation over the draws; the table above is that of the first."""
    columns = ("top1", "balanced_accuracy", "macro_f1", "log_loss")
    rows = []
    for split, own in scores.items():
        spreads = [getattr(own, column) for column in columns]
        rows.append([split, *(f"{each.mean:.4f} ± {each.deviation:.4f}" for each in spreads)])
    print_table(["over draws", "top-1", "balanced", "macro F1", "log loss"], rows)
    click.echo()


_PATH_COLUMNS = {
    "log_loss": ("held-out log loss", ".4f"),
    "error": ("left-out error", ".4f"),
    "top1": ("top-1", ".4f"),
    "objective": ("objective", ".5f"),
    "gradient_norm": ("gradient", ".0e"),
}


def _print_path(path: Sequence[Mapping[str, Any]], chosen: float) -> None:
    """Print every strength that was solved; the chosen one has a star."""
    known = {
        name: column for name, column in _PATH_COLUMNS.items() if path[0].get(name) is not None
    }
    rows = [
        [
            f"{point['strength']:g}{' *' if point['strength'] == chosen else ''}",
            *(format(point[name], form) for name, (_, form) in known.items()),
        ]
        for point in path
    ]
    print_table(["C", *(title for title, _ in known.values())], rows)
    click.echo()


def _describe_views(views: Mapping[str, Any]) -> str:
    """Return the scores of held-out images without and with views, in words."""
    count = f"{counted(views['num_views'], 'view')} of each image"
    if not (views["with"] and views["without"]):
        return f"{count}; nothing was held out to compare"
    titles = {"mean_average_precision": "mAP", "mae": "MAE", "r2": "R²", "top1": "top-1"}
    scores = (
        f"{titles.get(name, name.replace('_', ' '))} {without:.4f} → {views['with'][name]:.4f}"
        for name, without in views["without"].items()
        if name in views["with"]
    )
    return f"{count}, held out: {', '.join(scores)} with them"


def _describe(choice: dict[str, Any]) -> str:
    if choice["head"] == "mlp":
        sizes = "-".join(str(size) for size in choice["hidden"])
        stopped = "trained for {} epochs"
        if choice.get("held_out_loss") is not None:
            stopped = "stopped at epoch {}"
        text = f"MLP with hidden {sizes}, {stopped.format(choice['num_epochs'])}"
        if len(choice["candidates"]) > 1:
            text += (
                f", the best of {len(choice['candidates'])}: learning rate "
                f"{choice['learning_rate']:g}, weight decay {choice['weight_decay']:g}, dropout "
                f"{choice['dropout']:g}"
            )
        return text
    if choice["solver"] == "centroid":
        return "linear, nearest centroid by cosine"
    if choice["solver"] == "sgd":
        return f"linear, SGD for {choice['epochs']} epochs"
    text = f"linear, {'ridge, ' if choice['solver'] == 'ridge' else ''}C = {choice['strength']:g}"
    if len(choice["path"]) < 2:
        return text
    folds = choice.get("num_folds") or 0
    how = {0: "by leave-one-out", 1: "on a hold-out"}.get(
        folds, f"by {folds}-fold cross-validation"
    )
    return f"{text}, the best of {len(choice['path'])} {how}"
