"""``featx compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from featx.cli import options
from featx.cli.output import (
    human_seconds,
    print_fields,
    print_json,
    print_table,
    step_status,
)
from featx.cli.scores import headline
from featx.errors import counted


@click.command()
@click.argument("features", type=options.FILE, nargs=-1, required=True)
@click.option(
    "--split",
    help="Whose images are scored.  [val, or test where there is no val]",
)
@options.task
@click.option("--seed", type=int, default=0, show_default=True)
@options.as_json
@options.quiet
def compare(
    features: tuple[Path, ...],
    split: str | None,
    task: Any,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the default head on each of several FEATURES files: which backbone suits my images.

    The files must hold the same images. Nothing is written.
    """
    from featx.stages.compare import compare as run
    from featx.training.options import TrainOptions

    with step_status(quiet=quiet) as progress:
        report = run(features, TrainOptions(task=task, seed=seed), split=split, progress=progress)
    if as_json:
        print_json(report.to_dict())
        return
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
    best = report.caches[0]
    first, *others = headline(best.metrics)
    columns = ("backbone", "layer", "dim", f"{report.split} {first}", *others, "time")
    print_table(["features", *columns], rows)
    click.echo()
    print_fields(
        {"scored on": f"{counted(best.metrics.num_samples, 'image')} of the {report.split} split"}
    )
