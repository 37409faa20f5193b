"""``featx run``."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.extract import extract_to
from featx.cli.help import Command
from featx.cli.output import (
    headline,
    human_bytes,
    human_seconds,
    print_skipped,
    print_table,
    print_text,
    short_measure,
    step_status,
)
from featx.errors import ArtifactError, ArtifactMismatch, ConfigError, counted

if TYPE_CHECKING:
    from featx.extraction.options import ExtractReport
    from featx.heads.samples.data import Step
    from featx.stages.export import ExportReport
    from featx.stages.finetune import FinetuneReport
    from featx.stages.train import TrainReport
    from featx.training.options import TaskChoice

    _Trained = TrainReport | FinetuneReport


@click.command(cls=Command)
@options.source
@options.output(
    options.FOLDER,
    "The folder for features.h5, head.safetensors and model.onnx; with --cut for features-CUT.h5 "
    "and tuned.safetensors.",
)
@options.backbone("backbone", "weights", "image_size", "cut")
@options.views
@options.on_error
@options.task
@options.replace_features
@options.quiet
def run(source: str | None, output: Path, task: Any, quiet: bool, **settings: Any) -> None:
    """Extract features of SOURCE, train a head and export a model, as far as needed.

    With --cut, the network behind it is trained too, as featx finetune does.

    Run it again whenever images or labels have changed. SOURCE and options that are not given are
    then as before, those of train-head and finetune too. The command of each step has more options.
    """
    from featx.stages.export import export_onnx

    _require_no_parts(source, output)
    given = options.given(settings)
    tuned = given.get("cut", "penultimate") != "penultimate"
    features = output / options.features_path(given.get("cut")).name
    head = output / (options.TUNED if tuned else options.HEAD).name
    try:
        extracted = extract_to(features, source, given, quiet=quiet)
    except ArtifactMismatch as err:
        raise click.ClickException(_with_folder(err, output, given.get("backbone"))) from err
    chosen = _as_before(head, features, task, tuned=tuned)
    with step_status(quiet=quiet) as tell:
        trained = train_to(features, head, chosen, tuned=tuned, tell=tell)
        exported = export_onnx(head, output / options.MODEL.name, progress=tell)
    _print(extracted, trained, exported)


def _require_no_parts(source: str | None, output: Path) -> None:
    """Refuse parts, which take jobs of their own: this command makes one feature file."""
    from featx.artifact.parts import has_parts, is_parts
    from featx.errors import ConfigError

    if is_parts(output):
        name = shlex.quote(str(output))
        raise ConfigError(
            f"featx run makes one feature file, and '{output}' names parts. Make those by "
            f"'featx extract SOURCE -o {name} --parts COUNT', and train by 'featx train-head "
            f"{name}'; or give a folder of another name."
        )
    features = output / options.FEATURES.name
    beside = [] if features.exists() else [features.with_suffix(".parts")]
    for parts in [*([Path(source)] if source else []), *beside]:
        if has_parts(parts):
            raise ConfigError(
                f"'{parts}' has features in parts, and featx run makes one feature file of images. "
                f"Run 'featx train-head {shlex.quote(str(parts))}', then 'featx export'."
            )


def train_to(
    features: Path,
    head: Path,
    options: Mapping[str, Any],
    *,
    tuned: bool,
    tell: Step | None,
    epochs: list[float] | None = None,
) -> _Trained:
    """Train a head, or what lies behind the cut as well.

    ``tell`` is called with the step; ``epochs`` takes the seconds of each epoch behind a cut.
    """
    if not tuned:
        from featx.stages.train import train_head
        from featx.training.options import TrainOptions

        if tell:
            tell("Training the head")
        return train_head(features, head, TrainOptions(**options), step=tell)
    from featx.stages.finetune import finetune as run
    from featx.training.finetune.options import FinetuneOptions
    from featx.training.finetune.outcome import Epoch, Events

    told = tell or (lambda _: None)
    taken = [] if epochs is None else epochs

    def on_epoch(epoch: Epoch, seconds: float, _: float) -> None:
        taken.append(seconds)
        told(f"{head.name}: epoch {epoch.number + 1}")

    events = Events(
        on_step=lambda step: told(f"{head.name}: {step}"),
        on_parameters=lambda *_: told(f"{head.name}: epoch 1"),
        on_epoch=on_epoch,
    )
    return run(features, head, FinetuneOptions(**options), events=events)


def _as_before(head: Path, features: Path, task: TaskChoice, *, tuned: bool) -> dict[str, Any]:
    """Return the options of the head that is there, unless another task is given."""
    from featx.artifact import is_own
    from featx.features.file import open_features
    from featx.heads.head import open_head
    from featx.training.finetune.options import FinetuneOptions
    from featx.training.options import TrainOptions, parts_of

    chosen = options.given({"task": task})
    if not is_own(head, "head"):
        return chosen
    with contextlib.suppress(ArtifactError, ConfigError, KeyError, TypeError, ValueError):
        details = open_head(head).header.details  # where it is damaged, it is replaced
        before = details["made_from"]["options"]
        if chosen.get("task", before["task"]) == before["task"]:
            there = set(open_features(features, verify=False).sample_ids)
            left_out = tuple(own for own in details.get("excluded", ()) if own in there)
            found = {**before, **({} if tuned else parts_of(before)), "exclude": left_out}
            (FinetuneOptions if tuned else TrainOptions)(**found)  # they must fit
            return found
    return chosen


def _with_folder(err: ArtifactMismatch, output: Path, backbone: str | None) -> str:
    """Return an error about other settings with the advice to use another folder."""
    from featx.artifact import free_path

    problem, found, _ = str(err).partition(" Use overwrite=True")
    free = free_path(output, backbone or "")
    return (
        f"{problem} Use --overwrite to replace it, or -o {shlex.quote(str(free))}."
        if found
        else problem
    )


def _print(extracted: ExtractReport, trained: _Trained, exported: ExportReport) -> None:
    """Print a row for each file, then what was replaced and left out."""
    from featx.images.sources.entries import describe_ignored

    spec = extracted.spec
    made = f"updated: {extracted.changes}" if extracted.changes else "written"
    shape = " × ".join(map(str, (f"{extracted.num_images:,}", *spec.row_shape)))
    rows: list[tuple[ExtractReport | _Trained | ExportReport, str, str]] = [
        (extracted, made, f"{shape}, {spec.backbone}"),
        (trained, "replaced" if trained.replaced else "written", _score(trained)),
        (exported, "replaced" if exported.replaced else "written", _proof(exported)),
    ]
    cells = [
        [str(report.path), "up to date", result, ""]
        if report.is_unchanged
        else [str(report.path), state, result, human_seconds(report.seconds)]
        for report, state, result in rows
    ]
    print_table(["file", "state", "result", "time"], cells)
    for report in (trained, exported):
        if report.replaced:
            print_text(f"replaced {report.path}  (was {report.replaced})")
    if others := describe_ignored(extracted.ignored):
        print_text(f"skipped {others}")
    if extracted.skipped:
        print_text(f"left out {counted(len(extracted.skipped), 'image')} that cannot be used:")
        print_skipped(extracted.skipped, rest="featx info --json")


def _score(trained: _Trained) -> str:
    """Return the first score of the first split that the head was not trained on."""
    for split in ("val", "test", "train"):
        if split in trained.metrics:
            name, score = next(iter(headline(trained.metrics[split]).items()))
            return f"{split} {name} {score}"
    return "–"


def _proof(exported: ExportReport) -> str:
    size, accuracy = human_bytes(exported.num_bytes), exported.header.details["proof"]["accuracy"]
    if not accuracy:
        return size
    measure = short_measure(accuracy)
    of = "" if measure == "accuracy" else f"{measure} "
    return f"{size}, val {of}{accuracy['file']:.4f} through the file"
