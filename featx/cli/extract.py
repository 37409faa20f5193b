"""``featx extract``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featx.cli import options
from featx.cli.help import Command
from featx.cli.output import (
    PREFIX,
    human_seconds,
    next_command,
    print_fields,
    print_json,
    print_skipped,
    print_table,
    print_text,
    progress_bars,
)
from featx.errors import counted

if TYPE_CHECKING:
    from featx.extraction.options import ExtractReport, Profile


_SOURCE_OPTIONS = {
    "path_column": ("NAME", "Column of a table with the paths of images.  [a common name]"),
    "label_column": ("NAME", "Column with labels.  [a common name]"),
    "split_column": ("NAME", "Column with train, val or test.  [split]"),
    "group_column": ("NAME", "Column with groups that stay in one split.  [group]"),
    "root": ("FOLDER", "What paths in a table are relative to.  [the table's folder]"),
    "suffix": ("TEXT", "Ending that is added to paths without it, such as .jpg."),
    "encoding": ("NAME", "Encoding of names in a zip of an old program.  [cp437]"),
}


def _source_options(command: click.decorators.FC) -> click.decorators.FC:
    for name, (metavar, text) in reversed(_SOURCE_OPTIONS.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, metavar=metavar, help=text)(command)
    return command


@click.command(cls=Command)
@options.source
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    help="The feature file to write.  "
    f"[{options.FEATURES}, at a cut {options.features_path('CUT')}; of --part .parts]",
)
@options.backbone(
    several={"layer": "Repeat it for a file each, OUTPUT-LAYER.h5; images are read and run once."}
)
@options.views
@click.option(
    "--val-fraction",
    type=float,
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Share of each class's training images held out where the source has no validation split, "
    "0 to 0.5.",
)
@click.option(
    "--resplit",
    is_flag=True,
    help="Choose the validation images again; by default those of the file keep their split.",
)
@options.on_error
@click.option(
    "--max-bad",
    type=float,
    metavar="SHARE",
    help="Largest share of images that --on-error skip leaves out, 0 to 1.  [no limit]",
)
@options.max_pixels
@click.option(
    "--report", type=options.FILE, help="Write the images that cannot be used to this JSON file."
)
@options.verify_content
@click.option(
    "--restart",
    is_flag=True,
    help="Extract everything again; discard what an unfinished extraction left.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace a file that was made with other settings, or is damaged.",
)
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:i]",
    help="Processor or GPU; cuda: every GPU there is, cuda:0 the first alone.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "onnxruntime"]),
    default="auto",
    show_default=True,
    help="What runs the backbone; auto: ONNX Runtime on the CPU, torch on a GPU.",
)
@click.option("--batch-size", type=int, help="Images per forward pass.  [by engine and image size]")
@click.option(
    "--workers",
    type=int,
    help="Threads that decode and run the backbone; beside a GPU each has a process that decodes.  "
    "[one per core]",
)
@click.option(
    "--part",
    metavar="NUMBER/COUNT",
    help="Extract one of COUNT ranges of SOURCE, numbered from 1, into the folder OUTPUT, "
    "NAME.parts; commands take that folder like one file once all parts are there.",
)
@click.option("--parts", type=int, metavar="COUNT", help="Extract all parts, one after the other.")
@options.ray
@click.option(
    "--ray-workers", metavar="N|A:B", help="Workers on the cluster, or fewest and most.  [all]"
)
@options.allow_mixed
@_source_options
@click.option("--profile", is_flag=True, help="Print a table of where the time went.")
@options.as_json
@options.quiet
def extract(
    source: str | None,
    output: Path | None,
    parts: int | None,
    quiet: bool,
    profile: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Run a frozen backbone once over SOURCE and cache its features.

    SOURCE is a folder of class folders; a folder of train, val and test folders of class folders;
    a folder of images; a .zip or .tar of any of these; WebDataset shards, 'train-{000..099}.tar'; a
    .parquet file, or a folder of them, or hf:NAME; a .csv or .tsv with the columns
    path,label[,split][,group] or others; s3://bucket/folder/, gs://… and the like; a .csv, .zip,
    .tar or .parquet file there or at https://…; cifar10:FOLDER with CIFAR-10's python pickles; or
    digits:, scikit-learn's built-in digits.

    Run it again to resume after an interruption, or to bring the file up to date: only new and
    changed images are extracted. What is not given then, SOURCE included, is as the file was made;
    the defaults below are those of a new file.
    """
    default = options.features_path(settings["cut"])
    output = output or (default.with_suffix(".parts") if parts or settings["part"] else default)
    if settings["part"]:
        click.get_current_context().meta[PREFIX] = f"Part {settings['part']}: "
    source = _address(source, {name: settings.pop(name) for name in _SOURCE_OPTIONS})
    given, layers = options.given(settings), tuple(dict.fromkeys(settings["layer"]))
    if parts is not None:
        if settings["part"] or len(layers) > 1 or settings["report"]:
            other = "part" if settings["part"] else "report" if settings["report"] else "layer"
            raise click.UsageError(f"--parts makes each part itself; leave out --{other}.")
        given |= {"layer": layers[0]} if layers else {}
        _extract_parts(parts, output, source, given, quiet=quiet, as_json=as_json)
        return
    if len(layers) > 1:
        outputs = {layer: options.path_of(output, layer) for layer in layers}
        del given["layer"]
        reports = extract_layers_to(outputs, source, given, quiet=quiet)
    else:
        given |= {"layer": layers[0]} if layers else {}
        reports = (extract_to(output, source, given, quiet=quiet),)
    if as_json:
        found = list(map(_json_values, reports))
        print_json(found if len(layers) > 1 else found[0])
        return
    for number, report in enumerate(reports):
        if number:
            click.echo()
        fields = dict(_fields(report))
        after = {}
        if not quiet and len(reports) == 1 and len(report.classes) > 1:
            after["next"] = _next(output, report)
        if report.missing_parts:
            after = {
                "missing": _missing(report),
                "next": f"featx check {shlex.quote(str(output))}",
            }
        print_fields(fields if report.skipped else fields | after)
        if report.skipped:
            print_skipped(report.skipped, rest="featx info --json")
            print_fields(after)
    if profile and (ran := [report.profile for report in reports if report.profile]):
        _print_profile(ran[0])


def _extract_parts(
    count: int,
    output: Path,
    source: str | None,
    settings: Mapping[str, Any],
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Extract all parts, and print a line for each."""
    reports = []
    for number in range(1, max(1, count) + 1):
        click.get_current_context().meta[PREFIX] = f"Part {number}/{count}: "
        report = extract_to(output, source, {**settings, "part": f"{number}/{count}"}, quiet=quiet)
        reports.append(report)
        if not as_json:
            images = counted(report.num_images, "image")
            state = "up to date" if report.is_unchanged else "written"
            print_text(f"part {number:>{len(str(count))}} of {count}  {images}, {state}")
            print_skipped(report.skipped, rest="featx info --json")
    if as_json:
        print_json(list(map(_json_values, reports)))
    elif not quiet:
        print_fields({"next": _next(output, report)})


def extract_to(
    output: Path, source: str | None, settings: Mapping[str, Any], *, quiet: bool
) -> ExtractReport:
    """Extract with progress bars, by the options that were given; return the report."""
    from featx.extraction.options import ExtractOptions
    from featx.stages.extract import extract

    extract_options = ExtractOptions(**settings)
    words = f"Part {extract_options.part}" if extract_options.part else "Extracting"
    with _bars(words, quiet=quiet) as bars:
        return extract(source, output, extract_options, **bars)


def extract_layers_to(
    outputs: Mapping[str, Path], source: str | None, settings: Mapping[str, Any], *, quiet: bool
) -> tuple[ExtractReport, ...]:
    """Extract several layers, each to its output, like ``extract_to``."""
    from featx.extraction.options import ExtractOptions
    from featx.stages.extract import extract_layers

    extract_options = ExtractOptions(**settings)
    with _bars(quiet=quiet) as bars:
        return extract_layers(source, outputs, extract_options, **bars)


@contextmanager
def _bars(words: str = "Extracting", *, quiet: bool) -> Iterator[dict[str, Any]]:
    with progress_bars(quiet=quiet) as bar:
        yield {
            "progress": bar(words),
            "download_progress": bar("Downloading", unit="MB", scale=1e-6),
        }


def _address(source: str | None, settings: dict[str, str | None]) -> str | None:
    """Return the source with how to read it, which files keep."""
    from featx.images.sources import with_options

    given = {name: value for name, value in settings.items() if value}
    if given and source is None:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs SOURCE.")
    return with_options(source, given) if source is not None and given else source


def _json_values(report: ExtractReport) -> dict[str, Any]:
    names = [f"num_{name}" for name in ("images", "unlabelled", "extracted", "resumed")]
    names += [f"num_{name}" for name in ("duplicates", "new", "changed", "removed", "relabelled")]
    names += ["is_unchanged", "seconds", "device", "engine", "dtype"]
    return {
        "path": str(report.path),
        "backbone": report.spec.backbone,
        "shape": list(report.spec.row_shape),
        "classes": list(report.classes),
        "splits": report.split_sizes,
        **{name: getattr(report, name) for name in names},
        "ignored": dict(report.ignored),
        "skipped": [{"sample_id": name, "reason": why} for name, why in report.skipped],
        "missing_parts": list(report.missing_parts),
    }


def _fields(report: ExtractReport) -> Iterator[tuple[str, object]]:
    from featx.images.sources.entries import describe_ignored

    splits = ", ".join(f"{size:,} {split}" for split, size in report.split_sizes.items())
    pool = f", pool {report.spec.pool}" if report.spec.pool != "none" else ""
    shape = "×".join(map(str, report.spec.row_shape))
    dtype = "" if report.spec.cut is None else f" {report.dtype}"
    views = f", {counted(report.views.num_views, 'view')}" if report.views else ""
    yield "features", f"{report.num_images:,} × {shape}{dtype}{views}  ({splits})"
    yield "classes", len(report.classes)
    precision = f", {report.spec.precision}" if report.spec.precision != "fp32" else ""
    place = f"cut {report.spec.cut}" if report.spec.cut else f"layer {report.spec.layer}{pool}"
    yield "backbone", f"{report.spec.backbone}, {place}{precision}"
    if report.views:
        from featx.images.views import describe_views

        yield "views", f"{describe_views(report.views)}: {report.num_viewed:,} images"
    if report.num_extracted:
        speed = f"{report.num_extracted / report.seconds:,.0f} images/s"
        ran_on = "no network" if report.engine == "none" else f"{report.engine}, {report.device}"
        yield "time", f"{human_seconds(report.seconds)} ({speed}, {ran_on})"
    if report.num_duplicates:
        images = counted(report.num_duplicates, "image")
        yield "duplicates", f"{images} with the content of another, and its row"
    if report.num_resumed:
        images = counted(report.num_resumed, "image")
        yield "resumed", f"{images} kept from an unfinished extraction"
    if report.changes:
        yield "updated", report.changes
    if report.part:
        yield "part", "{:,} of {:,}".format(*report.part)
    yield ("up to date" if report.is_unchanged else "written"), report.path
    if report.num_unlabelled:
        yield "unlabelled", counted(report.num_unlabelled, "image")
    if report.num_animated:
        yield "animated", f"{counted(report.num_animated, 'image')}, first frame used"
    if others := describe_ignored(report.ignored):
        yield "skipped", others
    if report.skipped:
        yield "bad images", f"{len(report.skipped):,} that cannot be used:"


def _missing(report: ExtractReport) -> str:
    from featx.artifact.parts import ranges

    count = len(report.missing_parts)
    return f"{'part' if count == 1 else 'parts'} {ranges(list(report.missing_parts))}"


def _next(output: Path, report: ExtractReport) -> str:
    if report.spec.cut is None:
        return next_command("train-head", output, options.FEATURES)
    return next_command("finetune", output, Path())


def _print_profile(profile: Profile) -> None:
    """Print the time of each step, summed over threads, and its share of the workers' time."""
    total = profile.workers * profile.wall
    steps = {**profile.seconds, "idle": profile.idle}
    rows = [
        [
            step,
            f"{seconds:.2f} s",
            f"{1e3 * seconds / profile.num_images:.2f} ms",
            f"{seconds / total:.1%}",
        ]
        for step, seconds in steps.items()
    ]
    print_table(
        [f"{profile.workers} workers, {profile.wall:.2f} s", "time", "an image", "share"], rows
    )
