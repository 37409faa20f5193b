"""The states of parts: which are missing, begun or stale, and the command that comes next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from featx.artifact import free_path, partial_path
from featx.artifact.parts import part_path
from featx.errors import ArtifactError, ArtifactIncomplete, ArtifactMissing, SourceError, counted
from featx.stages.check.stage import CheckOptions, compare_features
from featx.stages.check.state import FileStatus


def parts_status(folder: Path) -> Iterator[FileStatus]:
    """Yield the status of a folder of parts, then those of parts that were begun and are not done.

    Images are compared with their source once all parts are there.
    """
    from featx.features.parts import describe_missing, missing_parts, read_index, read_plan

    name = shlex.quote(str(folder))
    try:
        plan = read_plan(folder)
    except ArtifactMissing:
        yield FileStatus(folder, "missing", command=f"featx extract photos/ -o {name} --part 1/16")
        return
    except ArtifactError as err:
        yield FileStatus(folder, "damaged", str(err))
        return
    count, one = plan.num_parts, f"featx extract -o {name} --part {{}}/{plan.num_parts}"
    if missing := missing_parts(folder, plan):
        begun = [n for n in missing if partial_path(part_path(folder, n)).exists()]
        first = next((n for n in missing if n not in begun), missing[0])
        reason = describe_missing(plan, missing)
        yield FileStatus(folder, "unfinished", reason, one.format(first))
        for number in begun:
            path = part_path(folder, number)
            yield FileStatus(path, "unfinished", _progress(path), one.format(number))
        return
    try:
        read_index(folder)
        found = compare_features(folder, None, CheckOptions())
    except ArtifactIncomplete as err:
        yield FileStatus(folder, "unfinished", str(err), f"featx merge {name}")
    except SourceError as err:
        yield FileStatus(folder, "unchecked", str(err))
    except ArtifactError as err:
        yield FileStatus(folder, "damaged", str(err))
    else:
        if found.is_fresh:
            yield FileStatus(folder, "current")
        elif found.num_new or found.num_removed or found.num_relabelled:
            other = shlex.quote(str(free_path(folder)))
            backbone = dict(plan.settings).get("request", {}).get("backbone", "BACKBONE")
            source = shlex.quote(plan.source)
            again = f"featx extract {source} -b {backbone} -o {other} --parts {count}"
            reason = f"{found.changes}: they need other parts, in another folder"
            yield FileStatus(folder, "stale", reason, again)
        else:
            again = f"featx extract -o {name} --parts {count}"
            yield FileStatus(folder, "stale", found.changes, again)


def _progress(path: Path) -> str:
    from featx.features.journal import read_progress
    from featx.features.lock import holder

    try:
        done, total = read_progress(partial_path(path))
    except ArtifactError as err:
        return str(err)
    writer = holder(path)
    how = f"written by {writer}, or interrupted since" if writer else "interrupted"
    return f"{done:,} of {counted(total, 'image')} done; {how}"
