"""Extract features: lock the output, compare, compute what is missing, publish."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from featx.artifact.bars import drawing
from featx.artifact.keywords import by_keyword, record_of
from featx.artifact.parts import is_parts
from featx.backbones.spec import PENULTIMATE
from featx.errors import ConfigError, SourceError, counted
from featx.extraction.backbone import LazyBackbone
from featx.extraction.bad_images import require_own_files, require_report_path
from featx.extraction.options import ExtractKeywords, ExtractOptions, ExtractReport
from featx.extraction.parts import PartOf
from featx.extraction.resume import find_existing, recorded_source, settle
from featx.extraction.run import OutputRun, Progress
from featx.extraction.splitting import Splitting
from featx.extraction.together import fill_together
from featx.features.journal import Journal
from featx.features.lock import locked
from featx.features.parts import read_plan
from featx.features.publish import ExistingRows
from featx.features.settle import complete_if_all_there
from featx.images.sources import (
    ImageSource,
    open_source,
    warn_of_odd_classes,
    warn_of_split_groups,
)


@by_keyword(ExtractOptions)
def extract(
    source: str | Path | None,
    output: str | Path,
    options: ExtractOptions | None = None,
    *,
    progress: Progress | bool | None = None,
    download_progress: Progress | None = None,
    **keywords: Unpack[ExtractKeywords],
) -> ExtractReport:
    """Write the features of a source's images to an HDF5 file, or bring that file up to date.

    Rows there are already, in the file or in the journal of an unfinished extraction, are kept
    where image and settings are the same. Whatever ends a run, the next one resumes from there.
    Options that are not given are those that the file was made with.

    Args:
        source: A folder, an archive, shards, a table, ``.parquet`` files, ``hf:NAME``,
            ``s3://bucket/folder/`` or another address that docs/images.md lists; None takes the
            one that the output was made from.
        output: The feature file; with ``part`` the folder ``NAME.parts`` that has the part.
        options: Backbone, preprocessing and the rest.
        keywords: The same by name: ``backbone="tiny"``.
        progress: Called after each batch, with images. None draws bars in a terminal or notebook,
            False draws none.
        download_progress: Called while weights are downloaded, with bytes.

    Raises:
        SourceError: The source is missing, empty or malformed; or a process that decodes images
            does not start, or is gone.
        BadImages: Images cannot be used (with ``on_error="skip"``: more than ``max_bad`` of them);
            what was made of the others is kept.
        BackboneError: Backbone or weights cannot be used, or give NaN or infinite features.
        ConfigError: An option does not fit.
        ClusterError: There is no cluster where ``ray`` says, or its nodes cannot be used.
        ArtifactBusy: Another process is writing the output.
        ArtifactMismatch: The output, or an unfinished extraction, was made with other settings.
        ArtifactError: The output is something else, or cannot be written.
    """
    given, output = record_of(ExtractOptions, options, keywords), Path(output)
    images = _open_source(source, output)  # nothing is made before it is accepted
    if given.part is None:
        _require_one_file(output)
        (report,) = _extract_drawing(images, {output: given}, progress, download_progress)
        return report
    part = PartOf.of(output, given.part, images)
    one = {part.path: given}
    (report,) = _extract_drawing(part.images, one, progress, download_progress, part)
    missing = complete_if_all_there(output)
    return replace(report, part=(part.number, part.num_parts), missing_parts=tuple(missing))


@by_keyword(ExtractOptions)
def extract_layers(
    source: str | Path | None,
    outputs: Mapping[str, str | Path],
    options: ExtractOptions | None = None,
    *,
    progress: Progress | bool | None = None,
    download_progress: Progress | None = None,
    **keywords: Unpack[ExtractKeywords],
) -> tuple[ExtractReport, ...]:
    """Write the features of several layers, each to a file, or bring those up to date.

    Each file is the one that ``extract`` writes with that layer. Where files lack the same images,
    these are read, decoded and run through the network once.

    Args:
        source: As of ``extract``; None takes the one that the first output was made from.
        outputs: The feature file of each layer; ``"penultimate"`` is the input of the last layer.
        options: Of all of them; ``layer`` and ``report`` are left out.
        keywords: The same by name.
        progress: As of ``extract``.
        download_progress: As of ``extract``.

    Returns:
        The report of each output, in their order.

    Raises:
        ConfigError: There is no layer, two have one file, or an option does not fit.
        FeatxError: As of ``extract``.
    """
    given = record_of(ExtractOptions, options, keywords)
    paths = {layer: Path(path) for layer, path in outputs.items()}
    if not paths or len({path.resolve() for path in paths.values()}) < len(paths):
        raise ConfigError("each layer needs an output of its own, and one layer at least is given.")
    if given.report or given.cut or given.part:
        option = "report" if given.report else "cut" if given.cut else "part"
        raise ConfigError(f"several layers have no {option}=…; extract them one at a time.")
    for path in paths.values():
        _require_one_file(path)
    images = _open_source(source, next(iter(paths.values())))
    wanted = {
        path: replace(given, layer=None if layer == PENULTIMATE else layer)
        for layer, path in paths.items()
    }
    return _extract_drawing(images, wanted, progress, download_progress)


def _extract_drawing(
    images: ImageSource,
    wanted: Mapping[Path, ExtractOptions],
    progress: Progress | bool | None,
    download_progress: Progress | None,
    part: PartOf | None = None,
) -> tuple[ExtractReport, ...]:
    words = f"Extracting part {part.number} of {part.num_parts}" if part else "Extracting"
    with drawing(progress) as draw:
        return _extract(
            *(images, wanted, draw.bar(progress, words)),
            draw.bar(download_progress, "Downloading MB", scale=1e-6),
            part,
        )


def _extract(
    images: ImageSource,
    wanted: Mapping[Path, ExtractOptions],
    progress: Progress | None,
    download_progress: Progress | None,
    part: PartOf | None,
) -> tuple[ExtractReport, ...]:
    """Bring outputs up to date with the images, all locked at once."""
    for output, options in wanted.items():
        require_own_files(images.uri, output, options)
        if options.ray:
            from featx.extraction.nodes import find_address

            find_address(options.ray)
    reports, start = [], time.perf_counter()
    with ExitStack() as stack:
        runs = [
            stack.enter_context(_opened(output, options, images, download_progress, part))
            for output, options in wanted.items()
        ]
        samples = part.whole.samples if part else images.samples
        warn_of_odd_classes(images.uri, images.classes, samples, has_tags=images.has_tags)
        warn_of_split_groups(images.uri, samples)
        for run in runs:
            run.begin()
        fill_together(runs, progress)
        for run in runs:
            report = run.finish(progress)
            run.existing.journal.remove()
            loading = sum(each.backbone.seconds for each in runs)
            reports.append(replace(report, seconds=time.perf_counter() - start - loading))
    return tuple(reports)


@contextmanager
def _opened(
    output: Path,
    given: ExtractOptions,
    images: ImageSource,
    download_progress: Progress | None,
    part: PartOf | None,
) -> Iterator[OutputRun]:
    """Yield a run with settled options; its output is locked."""
    with locked(output):
        existing = find_existing(output, given)
        whole = None if part is None else part.whole
        if part:
            existing = part.with_plan(existing, given)
        options = existing.resolve(given)
        if options.report:
            require_report_path(options.report)
        splitting = Splitting.of(images, existing.file, given, options, whole=whole)
        options = replace(options, val_fraction=splitting.fraction)
        backbone = LazyBackbone(options, download_progress)
        settings = settle(options, whole or images, existing.settings, backbone)
        details = part.fix_plan(settings, options) if part else None
        file = existing.file_for(settings, options)
        with Journal(output, layout=settings.layout) as journal:
            if options.restart or not (journal.num_rows or existing.has_journal_for(settings)):
                journal.begin({})  # a journal of bad images alone blocks no other settings
            existing.require_journal_for(settings, journal.num_images)
            rows = ExistingRows(file, journal)
            retry = existing.had_lower_limit(settings)
            try:
                yield OutputRun(
                    *(output, images, options, settings, rows, backbone, splitting, retry),
                    part_details=details,
                )
            except KeyboardInterrupt as stop:
                if journal.num_images:
                    stop.add_note(
                        f"{counted(journal.num_images, 'image is', 'images are')} kept in "
                        f"'{journal.path}'; run the same command again to resume."
                    )
                raise


def _require_one_file(output: Path) -> None:
    if is_parts(output):
        raise ConfigError(
            f"'{output}' is a folder of parts by its name. Extract one of them with part='1/16' "
            "and so on, or give the output another ending, such as .h5."
        )


def _open_source(source: str | Path | None, output: Path) -> ImageSource:
    if source is not None:
        return open_source(str(source), output=output)
    recorded = read_plan(output).source if is_parts(output) else recorded_source(output)
    try:
        return open_source(recorded, output=output)
    except SourceError as err:
        raise SourceError(
            f"{err} '{output}' was made from it. If the images were moved, give their new place, "
            "with verify_content=True."
        ) from err
