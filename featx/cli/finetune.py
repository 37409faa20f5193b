"""``featx finetune``."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.completion import files
from featx.cli.extract import extract_to
from featx.cli.head_text import describe_calibration
from featx.cli.help import Command
from featx.cli.output import (
    human_seconds,
    next_command,
    print_fields,
    print_json,
    print_per_class,
    print_skipped,
    print_table,
    step_status,
    written,
)
from featx.errors import counted

if TYPE_CHECKING:
    from featx.extraction.options import ExtractReport
    from featx.stages.finetune import FinetuneReport
    from featx.training.finetune.options import FinetuneOptions
    from featx.training.finetune.outcome import Comparison, Epoch, Events


@click.command(cls=Command)
@click.argument("features", metavar="FEATURES|SOURCE", required=False, shell_complete=files)
@options.output(options.TUNED, "The head file to write, with the trained tail.")
@options.extraction()
@click.option(
    "--start",
    type=options.FILE,
    help="A linear head to start from.  [one is fitted first]",
)
@click.option(
    "--scratch", is_flag=True, help="Start from random weights behind the cut, and a random head."
)
@options.task
@click.option(
    "--lr", type=float, help="Highest learning rate of the head.  [chosen on held-out images]"
)
@click.option(
    "--backbone-lr",
    type=float,
    help="Highest learning rate of all behind the cut.  [by --layer-decay]",
)
@click.option(
    "--layer-decay",
    type=float,
    help="Learning rate of a block divided by that of the next.  [0.9; transformers 0.75]",
)
@click.option(
    "--epochs",
    "max_epochs",
    type=int,
    help="Passes over the images, at most.  [12; from scratch 30]",
)
@click.option(
    "--patience", type=int, help="Epochs without a lower held-out loss before it stops.  [4]"
)
@click.option("--batch-size", type=int, help="Images in a step.  [64]")
@click.option(
    "--optimizer", type=click.Choice(["adamw", "sgd"]), help="How weights are changed.  [adamw]"
)
@click.option("--momentum", type=float, help="Momentum of --optimizer sgd.  [0.9]")
@click.option("--weight-decay", type=float, help="Weight decay, but of norms and biases.  [0.01]")
@click.option("--warmup", type=float, help="Share of the steps in which the rate rises.  [0.1]")
@click.option(
    "--step-size", type=int, help="Epochs until the rate falls by --gamma.  [it falls by a cosine]"
)
@click.option(
    "--gamma", type=float, help="Factor by which the rate falls every --step-size epochs.  [0.1]"
)
@click.option("--clip", type=float, help="Largest norm of the gradient.  [1]")
@click.option(
    "--train-bn/--no-train-bn",
    default=None,
    help="Let the statistics of batch norms move.  [from scratch only]",
)
@click.option(
    "--average",
    type=click.Choice(["none", "ema"]),
    help="ema: a moving average of the weights, over about an epoch.  [ema]",
)
@options.class_weight
@options.exclude
@options.no_calibrate
@click.option(
    "--memory",
    metavar="SIZE",
    help="What activations may take, like 2GB; more are read from the file in each epoch.  "
    "[half of what is free]",
)
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="Processor or GPU that trains.  [auto]")
@click.option("--seed", type=int, help="Seed of order, dropout and random weights.  [0]")
@click.option("--restart", is_flag=True, help="Train again; discard an unfinished training.")
@click.option(
    "--finish",
    is_flag=True,
    help="Train no further: write the best epoch of an unfinished training.",
)
@click.option("--list", "list_all", is_flag=True, help="Name all parameters to learn, one a line.")
@options.per_class
@options.as_json
@options.quiet
def finetune(
    features: str | None,
    output: Path,
    start: Path | None,
    restart: bool,
    finish: bool,
    list_all: bool,
    per_class: bool,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Train the network behind a cut, and a head on it, from cached activations.

    FEATURES is a file that featx extract made with --cut; by default the features-CUT.h5 beside the
    output. Anything else is a SOURCE of images: it is extracted first, with --cut and the other
    options of the backbone, into such a file. With --cut alone, that file is brought up to date.

    Learning rate and epoch are chosen on a tenth of the training images; validation and test
    splits are only reported. Run it again to resume after an interruption, with --finish to write
    the best epoch until then.
    """
    from featx.stages.finetune import finetune as run

    given = options.given(chosen)
    extraction = {name: given.pop(name) for name in options.EXTRACTION if name in given}
    if features is None and "cut" not in extraction:
        features = _only_features(output.parent)
    finetune_options = _options(given, features)
    if features is not None and is_feature_file(features):
        path, weights = Path(features), extraction.pop("weights", None)
        if extraction:
            raise click.UsageError(
                f"--{next(iter(extraction)).replace('_', '-')} has no meaning for '{features}', "
                "whose features have been extracted."
            )
    else:
        if "device" in given:
            extraction["device"] = given["device"]
        path, weights = output.with_name(_name_for(extraction.get("cut"), finetune_options)), None
        if finetune_options.scratch and extraction["cut"] == "input" and not path.exists():
            extraction.setdefault("weights", "none")  # none are looked at
        extracted = extract_to(path, features, extraction, quiet=quiet or as_json)
        if not (as_json or quiet):
            _print_extracted(extracted)
    score = "R²" if finetune_options.task == "regression" else "accuracy"
    with step_status(quiet=quiet or as_json) as step:
        events = None if as_json or quiet else _events(step, list_all=list_all, score=score)
        report = run(
            path,
            output,
            finetune_options,
            start=start,
            weights=weights,
            restart=restart,
            finish=finish,
            events=events,
        )
    if as_json:
        print_json(report.to_dict())
        return
    if not (quiet or report.is_unchanged):
        click.echo()
    _print(report, per_class=per_class, with_next=not quiet)


def _options(given: Mapping[str, Any], features: str | None) -> FinetuneOptions:
    """Return the options of the stage; what was not given has the default there."""
    from featx.training.finetune.options import FinetuneOptions
    from featx.training.samples import read_excluded

    if "momentum" in given and given.get("optimizer") != "sgd":
        raise click.UsageError("--momentum has an effect with --optimizer sgd only.")
    if "gamma" in given and "step_size" not in given:
        raise click.UsageError("--gamma has an effect with --step-size only.")
    if "warmup" in given and "step_size" in given:
        raise click.UsageError("--warmup has no effect with --step-size.")
    chosen = dict(given)
    chosen["calibrate"] = not chosen.pop("no_calibrate", False)
    if "exclude" in chosen:
        own = Path(features) if features is not None and is_feature_file(features) else None
        chosen["exclude"] = read_excluded(chosen["exclude"], own)
    return FinetuneOptions(**chosen)


def is_feature_file(given: str) -> bool:
    """Return whether an argument names a feature file, and not a source of images."""
    from featx.artifact import is_own

    return Path(given).suffix in (".h5", ".hdf5", ".parts") or is_own(Path(given), "features")


def _only_features(folder: Path) -> str:
    """Return the feature file of a cut in a folder, where there is one and no other."""
    from featx.artifact import is_own

    found = sorted(path for path in folder.glob("features-*.h5") if is_own(path, "features"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "no features-CUT.h5"
        raise click.UsageError(
            f"Say which FEATURES, or which SOURCE of images with --cut: '{folder}' has {names}."
        )
    return str(found[0])


def _name_for(cut: str | None, finetune_options: FinetuneOptions) -> str:
    """Return the name of the feature file, after checking that there is something to train."""
    if cut is None:
        raise click.UsageError(
            "A SOURCE needs --cut, the module behind which is trained, or --cut input for all of "
            "the network; 'featx backbones NAME' lists the cuts."
        )
    if cut == "penultimate":
        what = "--scratch needs --cut input" if finetune_options.scratch else "use train-head"
        raise click.UsageError(f"Nothing is behind --cut penultimate that can be trained: {what}.")
    return options.features_path(cut).name


def _print_extracted(report: ExtractReport) -> None:
    shape = " × ".join(map(str, report.spec.row_shape))
    state = "up to date" if report.is_unchanged else report.changes or "written"
    fields = {
        "features": f"{report.num_images:,} × {shape}, {state}",
        "file": report.path,
    }
    if report.skipped:
        fields["left out"] = f"{counted(len(report.skipped), 'image')} that cannot be used:"
    print_fields(fields)
    print_skipped(report.skipped, rest="featx info --json")
    click.echo()


# --- progress -------------------------------------------------------------------------------------

_EPOCH_COLUMNS = (
    *("epoch", "    loss", "held-out loss", "accuracy", "    rate", "       time", "images/s"),
)
_MOST_MODULES = 24
_WIDTH = 80


def _events(step: Callable[[str], None] | None, *, list_all: bool, score: str) -> Events:
    """Return what prints parameters and epochs, and draws the step under way."""
    from featx.training.finetune.outcome import Events

    return Events(
        on_step=step or (lambda _: None),
        on_parameters=lambda names, whole: _print_parameters(
            names, whole, list_all=list_all, score=score
        ),
        on_epoch=_print_epoch,
    )


def _print_parameters(
    parameters: Sequence[tuple[str, int]], whole: int, *, list_all: bool, score: str
) -> None:
    rows = list(parameters) if list_all else _by_module(parameters)
    rows += [("all", sum(count for _, count in parameters))]
    columns = ["parameters to learn", "number", "share"]
    print_table(columns, [[name, f"{count:,}", f"{count / whole:.1%}"] for name, count in rows])
    click.echo()
    titles = (column.replace("accuracy", score.rjust(8)) for column in _EPOCH_COLUMNS)
    click.echo("  ".join(titles))
    click.echo("  ".join("─" * len(column) for column in _EPOCH_COLUMNS))


def _by_module(parameters: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the number of parameters of each block; of its parent where there are many blocks."""
    from featx.training.finetune.groups import block_of

    names = ["head" if name.startswith("head.") else block_of(name) for name, _ in parameters]
    while True:
        pairs = zip(names, (count for _, count in parameters), strict=True)
        rows = [
            (name, sum(count for _, count in group))
            for name, group in groupby(pairs, key=lambda each: each[0])
        ]
        if len(rows) <= _MOST_MODULES or not any("." in name for name in names):
            return rows
        names = [name.rpartition(".")[0] or name for name in names]


def _print_epoch(epoch: Epoch, seconds: float, images_per_second: float) -> None:
    cells = (
        f"{epoch.number}",
        f"{epoch.loss:.4f}",
        "–" if epoch.held_out is None else f"{epoch.held_out:.4f}",
        "–" if epoch.accuracy is None else f"{epoch.accuracy:.4f}",
        f"{epoch.rate:.1e}",
        human_seconds(seconds),
        f"{images_per_second:,.0f}",
    )
    line = "  ".join(
        cell.rjust(len(column)) for cell, column in zip(cells, _EPOCH_COLUMNS, strict=True)
    )
    click.echo(line)
    if epoch.skipped:
        steps = counted(epoch.skipped, "step")
        click.echo(f"       {steps} with infinite gradients left everything as it was")


# --- result ---------------------------------------------------------------------------------------


def _print(report: FinetuneReport, *, per_class: bool, with_next: bool) -> None:
    print_heads({"probe": report.probe, "tuned": report.metrics})
    click.echo()
    if per_class:
        unseen = {split: scores for split, scores in report.metrics.items() if split != "train"}
        print_per_class(unseen or report.metrics, report.head.classes)
    if report.comparison and "val" in report.metrics:
        sentence = describe_comparison(report.comparison, report.metrics["val"].num_samples)
        click.echo(f"{textwrap.fill(sentence, _WIDTH)}\n")
    fields = _describe(report)
    if made := report.head.header.details["calibration"]:
        fields["calibration"] = describe_calibration(made)
    if not report.is_unchanged:
        fields["time"] = human_seconds(report.seconds)
    fields |= written(report)
    if with_next:
        fields["next"] = next_command("export", report.path, Path())
    print_fields(fields)


_LEFT_OUT = ("top-5", "macro F1")


def print_heads(heads: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the scores of several heads side by side, a row for each split and head."""
    from featx.heads.tasks import TASKS
    from featx.images.sources import SPLITS

    splits = [split for split in SPLITS if any(split in own for own in heads.values())]
    task = TASKS[next(scores.task for own in heads.values() for scores in own.values())]
    columns = [column for column in task.columns if column.title not in _LEFT_OUT]
    rows = [
        [split, name.ljust(5), *(column.text(own[split]) for column in columns)]
        for split in splits
        for name, own in heads.items()
        if split in own
    ]
    print_table(["split", "head ", *(column.title for column in columns)], rows)


def describe_comparison(comparison: Comparison, num_images: int) -> str:
    """Return McNemar's test of probe and tuned head in a sentence."""
    better, worse = comparison.num_only_tuned, comparison.num_only_probe
    outcome = "no significant difference"
    if comparison.p_value < 0.05:
        outcome = "significantly better" if better > worse else "significantly worse"
    return (
        f"Of {counted(num_images, 'validation image')}, the tuned head alone has {better:,} right, "
        f"the probe alone {worse:,}: {outcome} (McNemar, p = {comparison.p_value:.2g})."
    )


def _describe(report: FinetuneReport) -> dict[str, object]:
    """Return cut, best epoch and learning rate of a training."""
    choice = report.choice
    start = "from scratch" if choice["scratch"] else "from the probe"
    best, num_epochs, rates = choice["best_epoch"], len(choice["epochs"]), choice["learning_rates"]
    epoch = f"epoch {best} of {num_epochs}"
    if not best:
        epoch = f"none of {counted(num_epochs, 'epoch')} was better"
    fitted = f"{choice['num_fitted']:,}" if "num_fitted" in choice else "all"
    kept = {} if best else {"kept": f"the probe, fitted to {fitted} training images"}
    chosen = f", chosen among {len(rates)}" if len(rates) > 1 else ""
    return {
        "trained": f"behind {choice['cut']}, {start}, {epoch}",
        **kept,
        "rate": f"{choice['recipe']['lr']:g}{chosen}",
    }
