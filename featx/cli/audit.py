"""``featx audit``."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featx.cli import options
from featx.cli.help import Command
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
    from featx.stages.audit import AuditReport, Finding, FindingKind, GroupedImages
    from featx.training.options import TaskChoice

_FAILS: dict[str, tuple[FindingKind, ...]] = {
    "labels": ("label", "missing", "surplus", "value"),
    "conflicts": ("conflict",),
    "leaks": ("leak", "sequence"),
    "copies": ("copy",),
}
_TITLES: dict[FindingKind, str] = {
    "conflict": "The same picture with different labels",
    "leak": "The same picture in different splits",
    "sequence": "Numbered images that are alike, in different splits",
    "copy": "The same picture twice",
    "outlier": "Far from all other images",
    "constant": "A single colour",
    "empty": "Nearly empty",
    "tiny": "Very small",
    "blurred": "Blurred",
}
_OWN: dict[FindingKind, str] = {
    "outlier": "{} deviations",
    "constant": "range {}",
    "empty": "plain {}",
    "tiny": "shorter side {}",
    "blurred": "sharpness {}",
}
"""What the score of a finding about one picture means."""
_COUNTED: dict[FindingKind, str] = {"sequence": "sequence"}
_MANY = 50
"""Images of one picture above which they are one line."""


def _parts(_context: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...]:
    names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if unknown := [name for name in names if name not in _FAILS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(_FAILS)}.")
    return names


@click.command(cls=Command)
@click.argument("features", type=options.FILE, default=options.FEATURES)
@click.option("--html", type=options.FILE, help="The page.  [audit.html beside FEATURES]")
@click.option("--no-html", is_flag=True, help="Write no page.")
@click.option("--source", help="Where the images are now.  [where they were]")
@click.option(
    "--marks",
    type=options.FILE,
    help="An earlier table: what it marks as different or kept stays away, other marks stay.",
)
@click.option("--csv", "table", type=options.FILE, help="Write every finding to this table.")
@click.option(
    "--groups",
    type=options.FILE,
    help="Write a manifest that keeps sequences and copies together, for featx extract.",
)
@click.option(
    "--top", type=click.IntRange(min=0), default=10, show_default=True, help="Findings shown."
)
@click.option(
    "--fail-on",
    metavar="leaks,conflicts,copies,labels",
    callback=_parts,
    help="Exit with 1 where there is any of these.",
)
@click.option(
    "--overwrite", is_flag=True, help="Replace table and manifest, and the marks in them."
)
@click.option(
    "--seed", type=int, default=0, help="Seed of the parts that are left out in turn.  [0]"
)
@options.task
@options.as_json
@options.quiet
def audit(
    features: Path,
    html: Path | None,
    no_html: bool,
    source: str | None,
    marks: Path | None,
    table: Path | None,
    groups: Path | None,
    top: int,
    fail_on: tuple[str, ...],
    overwrite: bool,
    seed: int,
    task: TaskChoice,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what may be wrong with the images of FEATURES: labels, copies, leaks.

    Each label is compared with what heads say that were not trained on the image. Look at the page,
    mark what is wrong there, and save the marks as a table: featx train-head --exclude TABLE leaves
    out what is dropped, featx relabel TABLE corrects labels.
    """
    from featx.artifact import require_replaceable, require_writable
    from featx.stages.audit import audit as run
    from featx.stages.audit import write_audit_page, write_findings, write_groups

    page = None if no_html else html or features.with_name("audit.html")
    if page is not None:
        require_replaceable(page, "page")
    if groups is not None and groups.suffix.lower() != ".csv":
        raise click.BadParameter(f"'{groups}' must end in .csv.", param_hint="--groups")
    for output in (table, groups):
        if output is not None:
            require_writable(output, overwrite=overwrite)
    with step_status(quiet=quiet) as step:
        report = run(features, source=source, marks=marks, task=task, seed=seed, step=step)
        if page is not None:
            write_audit_page(report, page, source=source, step=step)
    if table is not None:
        write_findings(report, table, overwrite=overwrite)
    grouped = write_groups(report, groups, overwrite=overwrite) if groups is not None else None
    if as_json:
        print_json(report.to_dict())
    else:
        written = {"page": page, "table": table}
        fields: dict[str, object] = {name: path for name, path in written.items() if path}
        if grouped is not None:
            fields |= _of_groups(grouped, features)
        elif report.of_kind("sequence"):
            fields["sequences"] = "--groups FILE.csv writes a manifest that keeps each in one split"
        _print(report, top, table, fields)
    found = [name for name in fail_on if any(map(report.of_kind, _FAILS[name]))]
    if found:
        click.echo(f"Found: {', '.join(found)}.", err=True)
        sys.exit(1)


def _of_groups(made: GroupedImages, features: Path) -> dict[str, object]:
    command = f"featx extract {shlex.quote(str(made.path))}"
    if features != options.FEATURES:
        command += f" -o {shlex.quote(str(features))}"
    moved = f"; {counted(made.num_moved, 'image')} in another split" if made.num_moved else ""
    of_groups = f"{counted(made.num_groups, 'group')} of {counted(made.num_images, 'image')}{moved}"
    return {"groups": f"{made.path}: {of_groups}", "next": command}


def _print(
    report: AuditReport, top: int, table: Path | None, written: Mapping[str, object]
) -> None:
    rest = f"{table or '--csv FILE'} has them all"
    _print_labels(report, top, rest)
    for kind in _TITLES:
        _print_kind(report, kind, top, rest)
    click.echo()
    fields: dict[str, object] = {}
    if report.confusions:
        pairs = [f"{each.given} → {each.likely} {each.num_images}" for each in report.confusions]
        fields["mix-ups"] = listed(pairs, 4)
    if report.small_classes:
        few = [f"{name} ({count})" for name, count in report.small_classes]
        fields["small"] = f"few training images, not in the estimate: {listed(few)}"
    fields |= _of_classes(report)
    for note in report.notes:
        print_text(note)
    print_fields({**fields, "time": human_seconds(report.seconds), **written})


def _print_labels(report: AuditReport, top: int, rest: str) -> None:
    found = [each for each in report.findings if each.kind in _FAILS["labels"]]
    if report.num_evaluated:
        print_fields(
            {"labels": f"{report.num_evaluated:,} checked, {_contradicted(report, found)}"}
        )
    if not found[:top]:
        return
    title, likely, margin = ("label", "likely", "doubt")
    if found[0].kind == "value":
        title, margin = "number", "deviations"
    elif found[0].kind != "label":
        title, likely = "tags", "tag"
    rows = []
    for each in found[:top]:
        near = sum(neighbour.label == each.likely for neighbour in each.neighbours)
        change = {"missing": f"+ {each.note}", "surplus": f"− {each.note}"}
        row = [each.sample_id, each.given, change.get(each.kind, each.likely), f"{each.score:.2f}"]
        rows.append([*row, f"{near} of {len(each.neighbours)}"] if each.kind == "label" else row)
    of_neighbours = ["neighbours"] if found[0].kind == "label" else []
    click.echo()
    print_table([title, "given", likely, margin, *of_neighbours], rows)
    _print_rest(len(found), top, rest)


def _contradicted(report: AuditReport, found: Sequence[Finding]) -> str:
    if not found or found[0].kind == "label":
        wrong = counted(round(report.num_wrong), "is wrong", "are wrong")
        return f"{len(found):,} contradicted; about {wrong}, at a guess"
    if found[0].kind == "value":
        return f"{len(found):,} far from what heads say"
    tags = Counter((each.note, each.kind) for each in found)
    names = dict.fromkeys(each.note for each in found)
    counts = [f"{name} +{tags[name, 'missing']} −{tags[name, 'surplus']}" for name in names]
    return f"{len(found):,} tags contradicted: {listed(counts, 4)}"


def _of_classes(report: AuditReport) -> dict[str, str]:
    """Return what is said of classes as a whole."""
    fields = {}
    for leak in report.leaks:
        fields[f"{leak.split} leaks"] = (
            f"accuracy {leak.accuracy:.1%}, without {counted(leak.num_leaked, 'leaked image')} "
            f"{leak.accuracy_without:.1%}"
        )
    if report.alike:
        pairs = [
            f"{each.first} ({each.num_first:,}) / {each.second} ({each.num_second:,}) "
            f"{each.accuracy:.0%}"
            for each in report.alike
        ]
        fields["alike"] = f"hard to tell apart: {listed(pairs, 4)}"
    if len(report.curve) > 1:
        points = [f"{each.num_images:,}: {each.accuracy:.1%}" for each in report.curve]
        fields["curve"] = f"accuracy by training images, {', '.join(points)}"
    if report.gains:
        names = [f"{each.name} ({each.num_images})" for each in report.gains]
        fields["more"] = f"more images would help most of {listed(names, 4)}"
    return fields


def _print_kind(report: AuditReport, kind: FindingKind, top: int, rest: str) -> None:
    """Print the findings of a kind, a very large group of copies as one line."""
    found = report.of_kind(kind)
    if not found:
        return
    click.echo(f"\n{_TITLES[kind]}: {counted(len(found), _COUNTED.get(kind, 'image'))}")
    here = Counter(each.group for each in found)
    members = {(each.group, each.sample_id) for each in report.findings if each.group}
    sizes = Counter(group for group, _ in members)
    lines = dict[str | int, str]()
    for number, each in enumerate(found):
        if sizes[each.group] + 1 > _MANY:  # and the one that they are copies of
            text = f"{here[each.group]:,} images like {each.other}"
            lines.setdefault(f"group {each.group}", text)
        else:
            lines[number] = _line(each, kind)
    for line in list(lines.values())[:top]:
        print_text(f"  {line}")
    _print_rest(len(lines), top, rest)


def _line(each: Finding, kind: FindingKind) -> str:
    if kind == "sequence":
        return f"{each.note}; {each.sample_id} to {each.other}"
    if kind in _OWN:
        score = _OWN[kind].format(f"{each.score:.3g}")
        return f"{each.sample_id} ({score}, limit {each.limit:.3g})"
    own = {"conflict": each.given, "leak": each.split}.get(kind, "")
    name = f"{each.sample_id}{f' ({own})' if own else ''}"
    if each.score == 1:
        return f"{name} is {each.other}"
    notes = ", ".join(part for part in (f"{each.score:.2f} alike", each.note) if part)
    return f"{name} is like {each.other} ({notes})"


def _print_rest(count: int, top: int, rest: str) -> None:
    if count > top:
        print_text(f"  … {count - top:,} more; {rest}")
