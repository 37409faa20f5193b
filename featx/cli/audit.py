"""``featx audit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx.artifact import require_replaceable, require_writable
from featx.cli import options
from featx.cli.output import (
    human_seconds,
    print_fields,
    print_json,
    print_table,
    print_text,
    step_status,
)
from featx.errors import counted, listed

if TYPE_CHECKING:
    from featx.stages.audit import AuditReport, FindingKind

_FAILS: dict[str, FindingKind] = {
    "labels": "label",
    "conflicts": "conflict",
    "leaks": "leak",
    "copies": "copy",
}
_TITLES: dict[FindingKind, str] = {
    "conflict": "The same content with different labels",
    "leak": "The same content in different splits",
    "copy": "The same content twice",
}


def _parts(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if unknown := [name for name in names if name not in _FAILS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(_FAILS)}.")
    return names


@click.command()
@click.argument("features", type=options.FILE, default=options.FEATURES)
@click.option("--html", type=options.FILE, help="The page.  [audit.html beside FEATURES]")
@click.option("--no-html", is_flag=True, help="Write no page.")
@click.option("--source", help="Where the images are now, for the page.  [where they were]")
@click.option("--csv", "table", type=options.FILE, help="Write every finding to this table.")
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="Lines.")
@click.option(
    "--fail-on",
    metavar="leaks,conflicts,copies,labels",
    callback=_parts,
    help="Exit with 1 where there is any of these.",
)
@click.option("--overwrite", is_flag=True, help="Replace the table, and the marks in it.")
@click.option("--seed", type=int, default=0, help="Of the parts that are left out in turn.  [0]")
@options.as_json
@options.quiet
def audit(
    features: Path,
    html: Path | None,
    no_html: bool,
    source: str | None,
    table: Path | None,
    top: int,
    fail_on: tuple[str, ...],
    overwrite: bool,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what may be wrong with the images of FEATURES: labels, copies, leaks.

    Each label is compared with what heads say that were not trained on the image. Look at the page,
    mark what is wrong there, and save the marks as a table: featx train-head --exclude TABLE leaves
    out what is dropped, featx relabel TABLE corrects labels.
    """
    from featx.stages.audit import audit as run
    from featx.stages.audit import write_audit_page, write_findings

    page = None if no_html else html or features.with_name("audit.html")
    if page is not None:
        require_replaceable(page, "page")

    if table is not None:
        require_writable(table, overwrite=overwrite)
    with step_status(quiet=quiet) as step:
        report = run(features, seed=seed, step=step)
        if page is not None:
            write_audit_page(report, page, source=source, step=step)
    if table is not None:
        write_findings(report, table, overwrite=overwrite)
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report, top)
        written = {"page": page, "table": table}
        if fields := {name: path for name, path in written.items() if path is not None}:
            print_fields(fields)
    found = [name for name in fail_on if report.of_kind(_FAILS[name])]
    if found:
        click.echo(f"Found: {', '.join(found)}.", err=True)
        sys.exit(1)


def _print(report: AuditReport, top: int) -> None:
    labels = report.of_kind("label")
    if report.num_judged:
        print_fields(
            {
                "labels": f"{report.num_judged:,} checked, {len(labels):,} contradicted; about "
                f"{report.num_wrong:.0f} are wrong, at a guess"
            }
        )
    if labels[:top]:
        click.echo()
        rows = [[each.sample_id, each.given, each.likely, f"{each.score:.2f}"] for each in labels]
        print_table(["label", "given", "likely", "margin"], rows[:top])
        _print_rest(len(labels), top)
    for kind, title in _TITLES.items():
        found = report.of_kind(kind)
        if found:
            click.echo(f"\n{title}: {counted(len(found), 'image')}")
            for each in found[:top]:
                note = {"conflict": each.given, "leak": each.split}.get(kind, "")
                print_text(f"  {each.sample_id}{f' ({note})' if note else ''} is {each.other}")
            _print_rest(len(found), top)
    click.echo()
    fields = {}
    if report.confusions:
        pairs = [f"{each.given} → {each.likely} {each.num_images}" for each in report.confusions]
        fields["mix-ups"] = listed(pairs, 4)
    if report.small_classes:
        few = [f"{name} ({count})" for name, count in report.small_classes]
        fields["small"] = f"few training images: {listed(few)}"
    print_fields(fields | {"time": human_seconds(report.seconds)})


def _print_rest(count: int, top: int) -> None:
    if count > top:
        click.echo(f"  … {count - top:,} more; --csv FILE has them all")
