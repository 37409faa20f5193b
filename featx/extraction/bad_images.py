"""Images that were not used: as an error, or as a JSON report."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from featx.artifact import (
    publishing,
    require_apart,
    require_no_links,
    require_writable,
    run_files,
)
from featx.backbones.spec import weights_file
from featx.errors import ArtifactExists, BadImages, ConfigError, counted
from featx.extraction.options import ExtractOptions, ResolvedOptions
from featx.extraction.plan import Plan
from featx.images.sources import ImageSource
from featx.images.sources.entries import extension_of, image_extensions

log = logging.getLogger(__name__)

_KEYS = ("source", "output", "num_images", "num_rows", "ignored", "bad")


def require_own_files(source: str | Path, output: Path, options: ExtractOptions) -> None:
    """Check that the output is none of the files that an extraction reads.

    Of a report, that is a warning here, so that it costs no extraction; ``report_bad`` raises once
    the rows are kept.
    """
    require_no_links(output)
    require_apart({"the feature file": output}, _files_read(source, options))
    if options.report:
        try:
            _require_own_report(options.report, source, output, options)
        except ConfigError as err:
            log.warning("No report will be written: %s", err)


def _require_own_report(
    report: Path, source: str | Path, output: Path, options: ExtractOptions
) -> None:
    if extension_of(report.name) in image_extensions():
        raise ConfigError(f"the report '{report}' is named like an image; give another path.")
    require_apart({"the report": report}, _files_read(source, options) | run_files(output))


def _files_read(source: str | Path, options: ExtractOptions) -> dict[str, Path]:
    read = {f"the source '{source}'": Path(source)}
    if options.weights and (weights := weights_file(options.weights)):
        read[f"the weights '{options.weights}'"] = weights
    return read


def require_report_path(path: Path) -> None:
    """Check that a report may be written: the path is free, or holds a report of a previous run."""
    require_writable(path, overwrite=True)
    try:
        there = json.loads(path.read_bytes())
        is_report = isinstance(there, dict) and there.keys() == set(_KEYS)
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        is_report = False
    if not is_report:
        raise ArtifactExists(
            path, f"'{path}' exists, and is not an earlier report. Give report=… another path."
        )


def bad_images(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Return ``(sample_id, reason)`` of each image without a row, in source order."""
    return tuple((plan.skipped[i].sample_id, plan.skipped[i].reason) for i in sorted(plan.skipped))


def warn_of_temporary(plan: Plan) -> None:
    """Warn of images that are left out this time only, for reasons that do not lie in them."""
    temporary = [image for image in plan.skipped.values() if not image.is_permanent]
    if temporary:
        log.warning(
            "%s left out for reasons other than content, and will be tried again by "
            "the next run: the first is '%s': %s",
            counted(len(temporary), "image is", "images are"),
            *temporary[0][:2],
        )


def too_many_are_bad(plan: Plan, options: ResolvedOptions) -> bool:
    """Return whether more images are bad than may be left out."""
    return options.on_error == "skip" and len(plan.skipped) > options.max_bad * len(plan.rows)


def report_bad(plan: Plan, images: ImageSource, output: Path, options: ResolvedOptions) -> None:
    """Write the report that was asked for; raise if the bad images are no longer acceptable."""
    bad, total, num_rows = bad_images(plan), len(plan.rows), int((plan.rows >= 0).sum())
    if options.report:
        _require_own_report(options.report, images.uri, output, options)
        listed = [{"sample_id": name, "reason": reason} for name, reason in bad]
        values = (images.uri, str(output), total, num_rows, dict(images.ignored), listed)
        report = dict(zip(_KEYS, values, strict=True))
        with publishing(options.report, overwrite=True) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not bad:
        return
    kept = f"{counted(num_rows, 'other is', 'others are')} kept."
    if len(bad) == total:
        raise BadImages(bad, total, "None is left.")
    if options.on_error == "fail":
        raise BadImages(
            bad,
            total,
            "Repair or remove them, or leave them out with on_error='skip', and run the command "
            f"again: the {kept}",
        )
    if too_many_are_bad(plan, options):
        raise BadImages(
            bad,
            total,
            f"That is more than the {options.max_bad:.2%} allowed by max_bad. Repair them or "
            f"allow more, and run the command again: the {kept}",
        )
