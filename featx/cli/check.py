"""``featx check`` and ``featx status``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import (
    next_command,
    print_fields,
    print_json,
    print_text,
    proof_fields,
    with_flags,
)
from featx.cli.streams import print_line
from featx.errors import counted, printable

if TYPE_CHECKING:
    from featx.stages.check import CheckReport

_WIDTH = len("unfinished")


@click.command(cls=Command)
@click.argument("path", type=options.FILE)
@options.source
@options.backbone(show_defaults=False)
@options.verify_content
@click.option(
    "--time-limit",
    "seconds",
    type=float,
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="Longest time that reading the file may take.",
)
@options.max_images("Labelled images that a model is run on.")
@options.as_json
@options.no_notes
def check(path: Path, source: str | None, as_json: bool, **settings: Any) -> None:
    """Check a feature, head or model file, and whether features are still what SOURCE gives.

    The file is read in a process of its own, under limits of time and memory, so that a damaged or
    hostile one is reported and does no harm. Features are then compared with their source, or with
    another SOURCE, and with the options of a backbone that are given, as 'featx extract' would:
    fresh, or what is stale and why, with exit code 1.

    A head is compared with its feature file, or with another one given as SOURCE: stale where the
    rows that trained it have changed.

    For a model, the proof is shown. With SOURCE it is repeated: the images that it names go through
    the file again, and the labelled ones are scored; exit code 1 if it does not hold.
    """
    from featx.stages.check import CheckOptions
    from featx.stages.check import check as run

    report = run(path, source, CheckOptions(**settings))
    if as_json:
        print_json(report.to_dict())
    else:
        print_fields(dict(_fields(report)))
    if not report.is_fresh:
        sys.exit(1)


def _fields(report: CheckReport) -> Iterator[tuple[str, object]]:
    yield "intact", f"{report.path}  ({report.kind})"
    if report.kind == "classifier":
        yield from _proof_fields(report)
    elif report.kind == "head":
        yield from _head_fields(report)
    elif report.is_fresh:
        yield "fresh", f"{counted(report.num_images, 'image')} of {report.source}"
    else:
        yield "stale", report.changes
        yield "source", f"{report.source}  ({counted(report.num_images, 'image')})"
    if report.num_touched:
        yield "touched", f"{counted(report.num_touched, 'image')}: other times, the same content"


def _head_fields(report: CheckReport) -> Iterator[tuple[str, object]]:
    found = report.staleness
    if report.source is None:
        yield "not compared", "its feature file is not there; give it as the second argument"
    elif found is None:
        yield "stale", f"it belongs to other features: {'; '.join(report.settings)}"
    elif not found.known:
        yield "not compared", "it comes from an earlier featx and does not say what trained it"
    elif found.changes:
        yield "stale", found.changes
    else:
        yield "fresh", "the rows that trained it are unchanged"
        if found.outdated:
            yield "outdated", f"its scores: the {' and '.join(found.outdated)} images changed"
    if report.source is not None:
        yield "features", report.source


def _proof_fields(report: CheckReport) -> Iterator[tuple[str, object]]:
    yield from proof_fields(report.proof).items()
    if date := (report.proof or {}).get("date"):
        yield "proven", date
    if (again := report.repeated) is None:
        return
    from featx.heads.tasks import task_of

    answer = task_of(report.proof or {}).answer
    difference = ""
    if again.max_difference is not None:
        difference = f", largest difference {again.max_difference:.1e} ({again.bound:.2g} allowed)"
    yield (
        "repeated",
        f"{'holds' if again.holds else 'DOES NOT HOLD'}: same {answer} in {again.num_agreeing} of "
        f"{counted(again.num_found, 'image')}{difference}",
    )
    if missing := again.num_witnesses - again.num_found:
        yield "missing", f"{missing} of {again.num_witnesses} images of the proof, or changed"
    if again.accuracy is not None:
        recorded = again.recorded_accuracy
        before = "" if recorded is None else f"; {recorded:.4f} when it was exported"
        images = counted(again.num_scored, "image")
        yield "accuracy now", f"{again.accuracy:.4f} on {images}{before}"
    yield "source", again.source


@click.command(cls=Command)
@click.argument("folder", type=options.FILE, default=options.FOLDER)
@options.as_json
@options.no_notes
def status(folder: Path, as_json: bool) -> None:
    """Say which of FOLDER's files are current, and the command that fixes each other one.

    Its features.h5 is compared with the images, head.safetensors with the features, model.onnx with
    the head; and so are features-CUT.h5 and tuned.safetensors. Of a folder of parts it says which
    are missing, and how far those are that were begun. Exit code 0 if all of them are current, else
    1. FOLDER is artifacts by default.
    """
    from featx.artifact.parts import SUFFIX
    from featx.stages.check import status as run

    report = run(folder)
    if as_json:
        print_json(report.to_dict())
    else:
        for file in report.files:
            style = "good" if file.state == "current" else "warning"
            print_line(printable(f"{file.state:<{_WIDTH}}  {file.path}"), style)
            if file.reason:
                print_text(f"{'':<{_WIDTH}}  {with_flags(file.reason)}")
            if file.command:
                print_line(printable(f"{'':<{_WIDTH}}  run: {file.command}"), "strong")
        if report.is_current and report.folder.suffix == SUFFIX:
            print_fields({"next": next_command("train-head", report.folder, options.FEATURES)})
    if not report.is_current:
        sys.exit(1)
