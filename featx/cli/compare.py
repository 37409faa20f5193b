"""``featx compare``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.compare_source import Maker, rows_of
from featx.cli.completion import cuts, files
from featx.cli.help import Command
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
    from featx.stages.compare import ComparedHead, CompareHeadsReport, CompareReport, Timing

_SEVERAL = ("backbone", "layer", "image_size")
_LONG = 40
_LESS = "less 1's"
_ALIKE = 0.05
"""From this p on, a paired test does not tell two heads apart."""


@click.command(cls=Command)
@click.argument("files", metavar="FEATURES...|HEADS...|SOURCE", nargs=-1, shell_complete=files)
@click.option("--split", help="Whose images are scored.  [val, or test where there is no val]")
@click.option(
    "--cut",
    "cuts",
    multiple=True,
    shell_complete=cuts,
    help="With a SOURCE: train what is behind this module, or penultimate for a head alone; repeat "
    "to compare several.",
)
@click.option("--scratch", is_flag=True, help="With a SOURCE: train from scratch at the input too.")
@options.output(options.FOLDER / "compare", "With a SOURCE: the folder for features and heads.")
@options.backbone(
    *_SEVERAL,
    several=dict.fromkeys(_SEVERAL, "Repeat it to compare several."),
)
@options.extraction(without=["cut", "backbone", "image_size"])
@click.option("--epochs", "max_epochs", type=int, help="Passes of fine-tuning, at most.")
@click.option(
    "--device", metavar="auto|cpu|cuda[:i]", help="Processor or GPU that fine-tunes.  [auto]"
)
@options.task
@options.class_weight
@options.exclude
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all trainings.")
@click.option(
    "--no-onnx", is_flag=True, help="Leave out size and speed of the model, for which it is made."
)
@options.as_json
@options.quiet
def compare(
    files: tuple[str, ...],
    split: str | None,
    output: Path,
    task: Any,
    seed: int,
    no_onnx: bool,
    as_json: bool,
    quiet: bool,
    **settings: Any,
) -> None:
    """Compare feature files, heads, or how much of a network to train.

    FEATURES: several files; the default head is trained on each. Which backbone suits my images?

    HEADS: several, tuned or not; each is compared with the first, on the same images.

    SOURCE: images, from which is extracted, trained and compared with each --backbone, --layer and
    --image-size, the best first; or at each --cut: is training more of the network worth it? Run it
    again to resume, or to add one. With FEATURES and HEADS nothing is written.
    """
    from featx.artifact import is_own

    paths, given = [Path(file) for file in files], options.given(settings)
    quiet = quiet or as_json
    training = _training(given) | {"task": task, "seed": seed}
    are_heads = any(is_own(path, "head") for path in paths)
    is_of_files = are_heads or any(is_own(path, "features") for path in paths)
    weights = given.pop("weights", None) if is_of_files else None
    if given or not files:
        rows = rows_of(files, given)
        training |= {name: given.pop(name) for name in ("max_epochs",) if name in given}
        maker = Maker(files[0] if files else None, output, given, training, quiet=quiet)
        timings = maker.make(rows)
        report = compare_these(
            list(timings),
            split,
            onnx=not no_onnx,
            quiet=quiet,
            timings=timings,
            best_first=rows[0].backbone is not None,
        )
        are_chosen = any(row.layer for row in rows)
        print_heads(report, as_json=as_json, is_made=True, with_layers=are_chosen)
    elif are_heads:
        if len(training) > 2:
            raise click.UsageError(
                "HEADS are trained: --class-weight and --exclude have no effect."
            )
        report = compare_these(paths, split, onnx=not no_onnx, quiet=quiet, weights=weights)
        print_heads(report, as_json=as_json)
    else:
        for path in paths:
            if path.exists() and not is_own(path, "features"):
                raise click.UsageError(
                    f"'{path}' is neither a feature file nor a head. For a SOURCE of images, say "
                    "what to compare: two or more of --backbone, --layer, --image-size or --cut."
                )
        from featx.stages.compare import compare as run
        from featx.training.options import TrainOptions

        with step_status(quiet=quiet) as progress:
            chosen = TrainOptions(**training)
            caches = run(paths, chosen, split=split, weights=weights, progress=progress)
        if as_json:
            print_json(caches.to_dict())
        else:
            _print_caches(caches)


def _training(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of training, which are taken out of those given."""
    from featx.training.samples import read_excluded

    chosen = {"class_weight": given.pop("class_weight")} if "class_weight" in given else {}
    if "exclude" in given:
        chosen["exclude"] = read_excluded(given.pop("exclude"))
    return chosen


# --- printing -------------------------------------------------------------------------------------


def compare_these(
    heads: Sequence[Path],
    split: str | None,
    *,
    onnx: bool,
    quiet: bool,
    weights: str | None = None,
    timings: Mapping[Path, Timing] | None = None,
    best_first: bool = False,
) -> CompareHeadsReport:
    """Return the comparison of some heads, with their models where ``onnx``."""
    from featx.stages.compare import compare_heads
    from featx.stages.export import ExportOptions, export_onnx

    unproven = ExportOptions(verify=False, weights=weights)
    with step_status(quiet=quiet) as progress:
        return compare_heads(
            heads,
            split=split,
            weights=weights,
            export=(lambda head, model: export_onnx(head, model, unproven)) if onnx else None,
            timings=timings,
            best_first=best_first,
            progress=progress,
        )


def _print_caches(report: CompareReport) -> None:
    from featx.heads.verdict import compare_verdict

    first = report.caches[0]
    other = [name for name in first.settings if len({c.settings[name] for c in report.caches}) > 1]
    if len({cache.backbone for cache in report.caches}) > 1:  # whose weights are others anyway
        other = [name for name in other if name != "weights"]
    rows = [
        [
            str(cache.path),
            f"{cache.backbone} {cache.image_size}px",
            cache.layer,
            *(cache.settings[name] for name in other),
            f"{cache.num_features:,}",
            *headline(cache.metrics).values(),
            human_seconds(cache.seconds),
        ]
        for cache in report.caches
    ]
    best = first.metrics
    main, *others = headline(best)
    columns = ("backbone", "layer", *other, "dim", f"{report.split} {main}", *others, "time")
    print_table(["features", *columns], rows, chosen=0)
    click.echo()
    fields = {"scored on": f"{counted(best.num_samples, 'image')} of the {report.split} split"}
    if said := compare_verdict([cache.metrics for cache in report.caches]):
        fields["verdict"] = said
    print_fields(fields)


def print_heads(
    report: CompareHeadsReport, *, as_json: bool, is_made: bool = False, with_layers: bool = True
) -> None:
    """Print three tables: the heads, their scores, their cost; and what may be done next.

    With ``is_made``, heads whose seconds are not known were made by an earlier run. Without
    ``with_layers``, the layers are those of the networks themselves, and not shown.
    """
    if as_json:
        print_json(report.to_dict())
        return
    heads = report.heads
    _print_which(heads, with_layers=with_layers)
    click.echo()
    _print_scores(report)
    click.echo()
    _print_differences(heads)
    if any(head.num_bytes or head.timing.extraction or head.timing.training for head in heads):
        click.echo()
        _print_cost(heads, "made before" if is_made else "–")
    click.echo()
    images = counted(heads[0].metrics.num_samples, "image")
    fields = {"scored on": f"{images} of the {report.split} split"}
    if heads[-1].comparison:
        share = "points of top-1" if heads[0].metrics.task == "single-label" else "all tags right"
        fields["difference"] = f"paired with 1: {share}, McNemar's p; alike from p {_ALIKE} on"
    fields[_LESS] = "p by the spread over samples drawn from the images (bootstrap)"
    if all(map(_is_like_the_first, heads[1:])):
        fields["verdict"] = f"These differ by less than {images} can show."
    if is_made:
        from featx.heads.tasks import TASKS

        best = min(heads, key=lambda head: TASKS[head.metrics.task].rank(head.metrics))
        fields["next"] = f"featx export {shlex.quote(_shown(best.path))}"
    print_fields(fields)


_SCORES = {"log_loss": ("log loss", "+.4f"), "ece": ("ECE", "+.4f"), "mae": ("MAE", "+.4g")}


def _print_differences(heads: Sequence[ComparedHead]) -> None:
    """Print how far losses and calibration errors are from the first head's, and how surely."""
    titles, rows = [_LESS], []
    for name in heads[-1].differences:
        titles += [_SCORES[name][0], "p", ""]
    for number, head in enumerate(heads[1:], start=2):
        row = [f"{number}"]
        for name, own in head.differences.items():
            value = format(own.value, _SCORES[name][1])
            row += [value, f"{own.p_value:.2g}", _against(-own.value, own.p_value)]
        rows.append(row)
    print_table(titles, rows)


def _is_like_the_first(head: ComparedHead) -> bool:
    """Return whether the images do not show which is better, by the main score."""
    if head.comparison:
        return head.comparison.p_value >= _ALIKE
    return all(own.p_value >= _ALIKE for own in head.differences.values())


def _print_which(heads: Sequence[ComparedHead], *, with_layers: bool) -> None:
    """Print the heads, with the settings in which they differ."""
    names = [_shown(head.path) for head in heads]
    if len({head.path.name for head in heads}) == len(heads) and max(map(len, names)) > _LONG:
        names = [head.path.name for head in heads]
    columns: dict[str, list[str]] = {
        "   head": [f"{number}  {name}" for number, name in enumerate(names, start=1)],
        "backbone": [head.backbone for head in heads],
        "pixels": [str(head.image_size) for head in heads],
        "layer": [head.layer if head.cut == "penultimate" else "" for head in heads],
        "cut": [head.cut for head in heads],
        "from": ["scratch" if head.start == "scratch" else "" for head in heads],
        "trained": [human_count(head.num_trained) for head in heads],
    }
    if len(set(columns["cut"])) > 1 or not with_layers:
        del columns["layer"]
    shown = {
        title: cells
        for title, cells in columns.items()
        if title in ("   head", "trained") or len(set(cells)) > 1
    }
    print_table(list(shown), list(zip(*shown.values(), strict=True)))


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
                ["–", "–", ""]
                if paired is None or difference is None
                else [
                    f"{100 * difference:+.1f}",
                    f"{paired.p_value:.2g}",
                    _against(difference, paired.p_value),
                ]
            )
        rows.append(cells)
    paired_columns = ["difference", "p", "against 1"] if is_paired else []
    print_table([report.split, *(column.title for column in columns), *paired_columns], rows)


def _against(gain: float, p_value: float) -> str:
    """Return how a head compares with the first one, by a paired test."""
    if p_value >= _ALIKE:
        return "alike"
    return "better" if gain > 0 else "worse"


def _print_cost(heads: Sequence[ComparedHead], unknown: str) -> None:
    def seconds(value: float | None) -> str:
        return unknown if value is None else human_seconds(value)

    rows = [
        [
            f"{number}",
            seconds(head.timing.extraction),
            seconds(head.timing.training),
            "–" if head.timing.epoch is None else seconds(head.timing.epoch),
            "–" if head.timing.total is None else seconds(head.timing.total),
            "–" if head.num_bytes is None else human_bytes(head.num_bytes),
            "–" if head.milliseconds is None else f"{head.milliseconds:.1f} ms",
        ]
        for number, head in enumerate(heads, start=1)
    ]
    titles = ["extraction", "training", "an epoch", "both", "model.onnx", "an image"]
    print_table(["cost", *titles], rows)


def _shown(path: Path) -> str:
    """Return a path relative to the current folder, or as it is where it lies elsewhere."""
    own = path.absolute()
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else path)
