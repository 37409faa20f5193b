"""``featx compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.artifact import is_own
from featx.cli import options
from featx.cli.output import (
    headline,
    human_bytes,
    human_count,
    human_seconds,
    print_fields,
    print_json,
    print_table,
    step_status,
)
from featx.errors import counted

if TYPE_CHECKING:
    from featx.stages.compare import ComparedHead, CompareHeadsReport, CompareReport

_WIDTH = 80


@click.command()
@click.argument("files", metavar="FEATURES...|HEADS...", nargs=-1, required=True, type=options.FILE)
@click.option("--split", help="Whose images are scored.  [val, or test where there is no val]")
@options.task
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--no-onnx", is_flag=True, help="Leave out size and speed of the model, for which it is made."
)
@options.as_json
@options.quiet
def compare(
    files: tuple[Path, ...],
    split: str | None,
    task: Any,
    seed: int,
    no_onnx: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare feature files, or heads: scores on the same images, and cost.

    Of several FEATURES files it trains the default head on each: which backbone suits my images?
    Of several HEADS, tuned ones among them, it compares each with the first: is training more of
    the network worth it? Nothing is written.
    """
    if any(is_own(path, "head") for path in files):
        print_heads(compare_these(files, split, onnx=not no_onnx, quiet=quiet), as_json=as_json)
        return
    from featx.stages.compare import compare as run
    from featx.training.options import TrainOptions

    with step_status(quiet=quiet) as progress:
        report = run(files, TrainOptions(task=task, seed=seed), split=split, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        _print_caches(report)


def compare_these(
    heads: Sequence[Path], split: str | None, *, onnx: bool, quiet: bool, **settings: Any
) -> CompareHeadsReport:
    """Return the comparison of some heads, with their models where ``onnx``."""
    from featx.stages.compare import compare_heads
    from featx.stages.export import ExportOptions, export_onnx

    unproven = ExportOptions(verify=False)
    with step_status(quiet=quiet) as progress:
        return compare_heads(
            heads,
            split=split,
            export=(lambda head, model: export_onnx(head, model, unproven)) if onnx else None,
            progress=progress,
            **settings,
        )


def _print_caches(report: CompareReport) -> None:
    rows = [
        [
            str(cache.path),
            f"{cache.backbone} {cache.image_size}px",
            cache.layer,
            f"{cache.num_features:,}",
            *headline(cache.metrics).values(),
            human_seconds(cache.seconds),
        ]
        for cache in report.caches
    ]
    best = report.caches[0].metrics
    first, *others = headline(best)
    columns = ("backbone", "layer", "dim", f"{report.split} {first}", *others, "time")
    print_table(["features", *columns], rows)
    click.echo()
    scored = f"{counted(best.num_samples, 'image')} of the {report.split} split"
    print_fields({"scored on": scored})


def print_heads(report: CompareHeadsReport, *, as_json: bool) -> None:
    """Print three tables: which heads, how they did, what they cost."""
    if as_json:
        print_json(report.to_dict())
        return
    heads = report.heads
    _print_which(heads)
    click.echo()
    _print_scores(report)
    if any(head.num_bytes or head.timing.extraction or head.timing.training for head in heads):
        click.echo()
        _print_cost(heads)
    click.echo()
    print_fields(
        {
            "scored on": f"{counted(heads[0].metrics.num_samples, 'image')} of the {report.split} "
            "split",
            "difference": "paired with 1: points of top-1, and McNemar's p",
        }
        if heads[-1].comparison
        else {"scored on": f"{counted(heads[0].metrics.num_samples, 'image')}"}
    )


def _print_which(heads: Sequence[ComparedHead]) -> None:
    one_backbone = len({(head.backbone, head.image_size) for head in heads}) == 1
    rows = [
        [
            f"{number}  {_shortened(str(head.path), 30)}",
            *([] if one_backbone else [f"{head.backbone} {head.image_size}px"]),
            _shortened(head.cut, 26),
            "scratch" if head.start == "scratch" else "",
            human_count(head.num_trained),
        ]
        for number, head in enumerate(heads, start=1)
    ]
    backbone = [] if one_backbone else ["backbone"]
    print_table(["   head", *backbone, "cut", "from", "trained"], rows)


def _print_scores(report: CompareHeadsReport) -> None:
    from featx.heads.tasks import TASKS

    task = TASKS[report.heads[0].metrics.task]
    columns = [column for column in task.columns if column.is_main or column.title == "ECE"]
    is_paired = any(head.comparison for head in report.heads)
    rows = []
    for number, head in enumerate(report.heads, start=1):
        cells = [f"{number}", *(column.text(head.metrics) for column in columns)]
        if is_paired:
            paired, difference = head.comparison, head.difference
            cells += (
                ["–", "–"]
                if paired is None or difference is None
                else [f"{100 * difference:+.1f}", f"{paired.p_value:.2g}"]
            )
        rows.append(cells)
    paired_columns = ["difference", "p"] if is_paired else []
    print_table([report.split, *(column.title for column in columns), *paired_columns], rows)


def _print_cost(heads: Sequence[ComparedHead]) -> None:
    def seconds(value: float | None) -> str:
        return "–" if value is None else human_seconds(value)

    rows = [
        [
            f"{number}",
            seconds(head.timing.extraction),
            seconds(head.timing.training),
            seconds(head.timing.total),
            "–" if head.num_bytes is None else human_bytes(head.num_bytes),
            "–" if head.milliseconds is None else f"{head.milliseconds:.1f} ms",
        ]
        for number, head in enumerate(heads, start=1)
    ]
    print_table(["cost", "extraction", "training", "both", "model.onnx", "an image"], rows)


def _shortened(text: str, width: int) -> str:
    """Return a text of at most so many characters, without its beginning where it is longer."""
    return text if len(text) <= width else f"…{text[1 - width :]}"
