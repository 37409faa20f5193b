"""The page of an audit: findings with pictures, which marks are made on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from featx.artifact import publishing, require_apart, require_replaceable, run_files
from featx.errors import SourceError, counted, listed
from featx.features.file import open_features
from featx.heads.samples.data import Step, no_step
from featx.images.sources import ImageSource, open_source
from featx.reporting.findings import FindingsPage, render_findings
from featx.stages.audit.findings import COLUMNS, AuditReport, cells_of

log = logging.getLogger(__name__)


def write_audit_page(
    report: AuditReport,
    output: str | Path,
    *,
    source: str | None = None,
    step: Step | None = None,
) -> Path:
    """Write the findings of an audit as one HTML page, pictures included, to be marked there.

    An earlier page of featx is replaced. The marks made on the page are saved by a button, as the
    table that ``write_findings`` writes.

    Args:
        report: Of ``audit``.
        output: The page.
        source: The images; None takes those that the features were made from, and where these
            have gone, the page has no pictures.
        step: Called with the step under way, in a few words.

    Raises:
        ArtifactError: Something else than a page lies there, or the feature file has gone.
        SourceError: ``source`` cannot be used.
        ConfigError: The output is one of the files that are read.
    """
    output = Path(output)
    cache = open_features(report.path, verify=False)
    recorded = str(cache.header.details["source"])
    given = {} if source is None else {f"the source '{source}'": Path(source)}
    require_apart({"the page": output}, {**run_files(report.path), **given})
    exists = require_replaceable(output, "page")
    page = FindingsPage(
        title=f"Audit of {counted(report.num_images, 'image')}",
        summary=_summary(report),
        facts=tuple(_facts(report)),
        columns=COLUMNS,
        rows=[cells_of(each) for each in report.findings],
        carried=[cells_of(each) for each in report.dismissed],
        near=[[near.sample_id for near in each.neighbours] for each in report.findings],
        cache=cache,
        images=_opened(source, recorded) if report.findings else None,
    )
    content = render_findings(page, step=step or no_step)
    with publishing(output, overwrite=exists) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return output


def _opened(source: str | None, recorded: str) -> ImageSource | None:
    try:
        return open_source(source or recorded)
    except SourceError as err:
        if source:
            raise
        log.warning("Findings without pictures: %s Give the images by source=….", err)
        return None


def _summary(report: AuditReport) -> str:
    if not report.findings:
        return "Nothing was found that has to be looked at."
    parts = [f"{counted(len(report.findings), 'finding')} to look at; nothing has been changed."]
    if report.num_evaluated:
        parts.append(
            f"{counted(report.num_evaluated, 'label was', 'labels were')} checked by heads that "
            "were not trained on the image."
        )
    if report.of_kind("label"):
        wrong = counted(round(report.num_wrong), "is wrong", "are wrong")
        parts.append(f"About {wrong}, at a guess.")
    return " ".join(parts)


def _facts(report: AuditReport) -> Iterator[tuple[str, str]]:
    yield "features", report.path.name
    if report.confusions:
        pairs = [f"{each.given} → {each.likely} ({each.num_images})" for each in report.confusions]
        yield "mix-ups", listed(pairs, 6)
    if report.alike:
        pairs = [
            f"{each.first} ({each.num_first:,}) and {each.second} ({each.num_second:,}), "
            f"{each.accuracy:.0%} told apart"
            for each in report.alike
        ]
        yield "alike", listed(pairs, 4)
    if report.small_classes:
        few = [f"{name} ({count})" for name, count in report.small_classes]
        yield "few training images", listed(few, 10)
    for leak in report.leaks:
        yield (
            f"leaks of {leak.split}",
            f"accuracy {leak.accuracy:.1%} on all images, {leak.accuracy_without:.1%} without "
            f"{counted(leak.num_leaked, 'copy', 'copies')} of training images",
        )
    if report.gains:
        gains = [f"{each.name} ({each.num_images} now)" for each in report.gains]
        yield "more images would help", listed(gains, 5)
    for note in report.notes:
        yield "note", note
