"""``featx compare``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from featx.artifact import is_own, publishing
from featx.cli import options
from featx.cli.extract import extract_to
from featx.cli.finetune import step_events
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
    from featx.extraction.options import ExtractReport
    from featx.stages.compare import ComparedHead, CompareHeadsReport, CompareReport, Timing
    from featx.stages.finetune import FinetuneReport
    from featx.training.options import TrainReport

_WIDTH = 80


@click.command()
@click.argument("files", metavar="FEATURES...|HEADS...|SOURCE", nargs=-1)
@click.option("--split", help="Whose images are scored.  [val, or test where there is no val]")
@click.option(
    "--cut",
    "cuts",
    multiple=True,
    help="Of a SOURCE: train what is behind this module, or penultimate for a head alone; repeat "
    "to compare several.",
)
@click.option("--scratch", is_flag=True, help="Of a SOURCE: train from scratch at the input too.")
@options.output(options.FOLDER / "compare", "Of a SOURCE: the folder for features and heads.")
@options.extraction(without=["cut"])
@click.option("--epochs", "max_epochs", type=int, help="Of fine-tuning, at most.")
@click.option("--device", metavar="auto|cpu|cuda[:i]", help="What fine-tunes.  [auto]")
@options.task
@click.option("--seed", type=int, default=0, show_default=True)
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

    Of several FEATURES files it trains the default head on each: which backbone suits my images?

    Of several HEADS, tuned ones among them, it compares each with the first, on the same images.

    Of a SOURCE it extracts, trains and compares at each --cut: is training more of the network
    worth it? Run it again to resume, or to add a cut. Of files, nothing is written.
    """
    paths, given = [Path(file) for file in files], options.given(settings)
    quiet = quiet or as_json
    if given or not files:
        rows = rows_of(files, given.pop("cuts", ()), scratch=given.pop("scratch", False))
        training = {name: given.pop(name) for name in ("max_epochs",) if name in given}
        training |= {"task": task, "seed": seed}
        maker = _Maker(files[0] if files else None, output, given, training, quiet=quiet)
        timings = {row.head(output): maker.make(row) for row in rows}
        report = compare_these(list(timings), split, onnx=not no_onnx, quiet=quiet, timings=timings)
        print_heads(report, as_json=as_json)
    elif any(is_own(path, "head") for path in paths):
        print_heads(compare_these(paths, split, onnx=not no_onnx, quiet=quiet), as_json=as_json)
    else:
        from featx.stages.compare import compare as run
        from featx.training.options import TrainOptions

        with step_status(quiet=quiet) as progress:
            caches = run(paths, TrainOptions(task=task, seed=seed), split=split, progress=progress)
        if as_json:
            print_json(caches.to_dict())
        else:
            _print_caches(caches)


# --- from a source --------------------------------------------------------------------------------


class _Row(NamedTuple):
    """A row of the comparison: where the network is cut, and what is behind starts from."""

    cut: str
    scratch: bool = False

    def features(self, folder: Path) -> Path:
        return folder / options.features_path(self.cut).name

    def head(self, folder: Path) -> Path:
        if self.scratch:
            return folder / "scratch.safetensors"
        kind = "head" if self.cut == "penultimate" else "tuned"
        name = self.features(folder).stem.replace("features", kind, 1)
        return folder / f"{name}.safetensors"


def rows_of(files: Sequence[str], cuts: Sequence[str], *, scratch: bool) -> list[_Row]:
    """Return the rows to compare, after checking that there are several of one source."""
    rows = [*map(_Row, dict.fromkeys(cuts)), *([_Row("input", scratch=True)] if scratch else [])]
    if len(files) > 1 or any(is_own(Path(file), "head") for file in files):
        raise click.UsageError("--cut and other options of a SOURCE need one SOURCE of images.")
    if len(rows) < 2:
        raise click.UsageError(
            "A SOURCE needs two or more of --cut NAME and --scratch to compare; --cut penultimate "
            "is the head alone."
        )
    return rows


class _Maker:
    """Makes what a comparison needs, as far as it is not there, and knows the seconds it took.

    Those of earlier runs are kept in ``seconds.json``.
    """

    def __init__(
        self,
        source: str | None,
        folder: Path,
        extraction: Mapping[str, Any],
        training: Mapping[str, Any],
        *,
        quiet: bool,
    ) -> None:
        self._source, self._folder, self._quiet = source, folder, quiet
        self._extraction, self._training = dict(extraction), dict(training)
        self._device = self._extraction.get("device", "auto")
        self._notes = folder / "seconds.json"
        self._seconds: dict[str, float] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):
            known = json.loads(self._notes.read_text())
            self._seconds = {name: float(seconds) for name, seconds in known.items()}

    def make(self, row: _Row) -> Timing:
        """Extract and train, as far as needed; return the seconds of both."""
        from featx.stages.compare import Timing

        features, head = row.features(self._folder), row.head(self._folder)
        extracted = extract_to(
            features, self._source, self._extraction | {"cut": row.cut}, quiet=self._quiet
        )
        is_whole = not (extracted.num_resumed or extracted.changes)
        self._note(features, extracted, is_whole=is_whole)
        trained = self._train(row, features, head)
        self._note(head, trained, is_whole=not getattr(trained, "is_resumed", False))
        return Timing(self._seconds.get(features.name), self._seconds.get(head.name))

    def _train(self, row: _Row, features: Path, head: Path) -> TrainReport | FinetuneReport:
        with step_status(quiet=self._quiet) as tell:
            if row.cut == "penultimate":
                from featx.stages.train import train_head
                from featx.training.options import TrainOptions

                chosen = {name: self._training[name] for name in ("task", "seed")}
                return train_head(features, head, TrainOptions(**chosen), step=tell)
            from featx.stages.finetune import finetune
            from featx.training.finetune.options import FinetuneOptions

            chosen = self._training | {"scratch": row.scratch, "device": self._device}
            return finetune(
                features, head, FinetuneOptions(**chosen), events=step_events(tell, head.name)
            )

    def _note(
        self, path: Path, report: ExtractReport | TrainReport | FinetuneReport, *, is_whole: bool
    ) -> None:
        """Keep the seconds of a file that was made in this run; of a part they say nothing."""
        if report.is_unchanged:
            return
        self._seconds.pop(path.name, None)
        if is_whole:
            self._seconds[path.name] = report.seconds
        with publishing(self._notes, overwrite=True) as temporary:
            temporary.write_text(json.dumps(self._seconds, indent=2) + "\n")


# --- printing -------------------------------------------------------------------------------------


def compare_these(
    heads: Sequence[Path],
    split: str | None,
    *,
    onnx: bool,
    quiet: bool,
    timings: Mapping[Path, Timing] | None = None,
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
            timings=timings,
            progress=progress,
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
    """Print three tables: the heads, their scores, their cost."""
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
    images = counted(heads[0].metrics.num_samples, "image")
    fields = {"scored on": f"{images} of the {report.split} split"}
    if heads[-1].comparison:
        fields["difference"] = "paired with 1: points of top-1, and McNemar's p"
    print_fields(fields)


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
