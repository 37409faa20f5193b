"""What is decided over all parts once they are there: splits, groups, duplicates; and the index.

Memory is about 100 bytes for each row: features are not read.
"""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from featx.artifact import MAX_HEADER_BYTES, Header, fingerprint_of, publishing
from featx.errors import (
    ArtifactBusy,
    ArtifactError,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMismatch,
    listed,
)
from featx.features.contents import number_contents
from featx.features.hdf5 import blocks_of, stamps_of, translated
from featx.features.lock import locked
from featx.features.part_columns import Part, joined
from featx.features.parts import (
    PartsIndex,
    PartsPlan,
    index_path,
    missing_parts,
    read_index,
    read_parts,
    read_plan,
    require_parts,
)
from featx.features.splits import assign_splits

log = logging.getLogger(__name__)

_WAIT_SECONDS = 3600.0
_LOOK_SECONDS = 0.2
_ALIKE = ("source", "dtype", "views", "splits", "label_kind", "own_validation", "val_fraction")


def complete_if_all_there(folder: Path) -> list[int]:
    """Write the index where all parts are there; return the numbers of those that are missing."""
    missing = missing_parts(folder, read_plan(folder))
    if not missing:
        complete_index(folder)
    return missing


def complete_index(folder: Path) -> PartsIndex:
    """Return the index of a folder, written anew unless it agrees with the parts that are there.

    Where another process writes it, that is waited for.

    Raises:
        ArtifactMissing: There are no parts.
        ArtifactIncomplete: Parts are missing.
        ArtifactMismatch: A part is of another plan, or has other settings.
        ArtifactInvalid: A part is damaged.
        ArtifactError: The disk refused.
    """
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        require_parts(folder, read_plan(folder))
        with suppress(ArtifactIncomplete, ArtifactInvalid):
            index = read_index(folder)
            index.read_settled(folder)
            return index
        try:
            with locked(index_path(folder)):
                return _complete(folder)
        except ArtifactBusy:
            if time.monotonic() > until:
                raise
            time.sleep(_LOOK_SECONDS)


def _complete(folder: Path) -> PartsIndex:
    """Write the index, whose lock is held."""
    plan = read_plan(folder)
    parts = tuple(read_parts(folder, plan))
    _require_alike(folder, plan, parts)
    first = parts[0].header
    digests = [joined(parts, lambda file: file["digests"][:])]
    copies = _copies(parts, digests[0])
    groups = _groups(folder, plan, parts)
    splits = joined(parts, lambda file: file["splits"][:])
    if not first.details.get("own_validation"):
        splits = assign_splits(
            digests.pop(),  # so that they are let go when they have been read
            joined(parts, lambda file: file["labels"][:]),
            splits,
            classes=first.classes,
            fraction=float(first.details["val_fraction"]),
            has_tags=first.details.get("label_kind") == "tags",
            groups=groups,
        )
    digests.clear()
    content = [splits] if groups is None else [splits, groups.astype("<i8", copy=False)]
    content.append(copies.astype("<i8", copy=False))
    digest = hashlib.sha256()
    for values in content:
        digest.update(np.ascontiguousarray(values).data)
    name = f"settled-{digest.hexdigest()[:16]}.bin"
    index = PartsIndex(
        header=_header(folder, parts, splits, groups),
        parts=parts,
        settled=name,
        sha256=digest.hexdigest(),
        has_groups=groups is not None,
        num_copies=len(copies),
    )
    with publishing(folder / name, overwrite=True) as temporary, temporary.open("wb") as file:
        for values in content:
            file.write(np.ascontiguousarray(values).data)
    with publishing(index_path(folder), overwrite=True) as temporary:
        temporary.write_text(index.to_json() + "\n", encoding="utf-8")
    for old in folder.glob("settled-????????????????.bin"):
        if old.name != name:
            with suppress(OSError):
                old.unlink()
    return index


def _require_alike(folder: Path, plan: PartsPlan, parts: tuple[Part, ...]) -> None:
    """Check that all parts are of the plan and have one specification; name one that is not."""
    first = parts[0].header
    for number, part in enumerate(parts, start=1):
        own = part.header.details.get("part")
        expected = {"number": number, "of": plan.num_parts, "plan": plan.fingerprint}
        found = dict(own) if isinstance(own, dict) else {}
        found.pop("skipped_at", None)
        differing = [name for name in _ALIKE if _detail(part, name) != _detail(parts[0], name)]
        if part.header.spec != first.spec or part.header.classes != first.classes:
            differing.append("backbone, preprocessing or classes")
        if found != expected or differing:
            what = f"other settings than part 1: {listed(differing)}" if differing else "no such"
            raise ArtifactMismatch(
                part.path,
                f"'{part.path}' does not belong to the parts of '{folder}': it "
                f"{f'has {what}' if differing else f'is not part {number} of this plan'}. Delete "
                f"it, and extract part {number} of {plan.num_parts} again.",
            )
        if part.header.environment != first.environment:
            names = sorted(
                dict(set(part.header.environment.items()) ^ set(first.environment.items()))
            )
            log.warning(
                "Part %d was made in another environment than part 1 (%s): features of the same "
                "image may differ in their last digits.",
                *(number, ", ".join(names)),
            )


def _detail(part: Part, name: str) -> Any:
    return part.header.details.get(name)


def _copies(parts: tuple[Part, ...], digests: np.ndarray) -> np.ndarray:
    """Return rows whose content an earlier part has, with the first such row; ``(C, 2)`` int64."""
    numbers, firsts = number_contents(digests)
    is_copy = np.ones(len(numbers), bool)
    is_copy[firsts] = False
    rows = np.flatnonzero(is_copy)
    first = firsts[numbers[rows]]
    ends = np.cumsum([part.num_rows for part in parts])
    across = np.searchsorted(ends, rows, "right") != np.searchsorted(ends, first, "right")
    across &= digests[rows].any(axis=1)  # zeros stand for no content
    return np.stack([rows[across], first[across]], axis=1)


def _groups(folder: Path, plan: PartsPlan, parts: tuple[Part, ...]) -> np.ndarray | None:
    """Return each row's group in order of first appearance, -1 for none; None without groups."""
    if not plan.groups:
        return None
    path = folder / plan.groups
    try:
        of_images = np.fromfile(path, "<i8")
    except OSError as err:
        raise ArtifactInvalid(path, f"Cannot read '{path}': {err.strerror}.") from err
    groups = []
    for number, part in enumerate(parts, start=1):
        first, stop = plan.range(number)
        own = of_images[first:stop]
        with suppress(KeyError, IndexError, TypeError, ValueError):  # told below
            own = np.delete(own, part.header.details["part"]["skipped_at"])
        if len(of_images) != plan.num_images or len(own) != part.num_rows:
            raise ArtifactInvalid(path, f"'{path}' does not fit '{part.path}'. Extract it again.")
        groups.append(own)
    found = np.concatenate(groups)
    grouped = found >= 0
    _, places, numbers = np.unique(found[grouped], return_index=True, return_inverse=True)
    rank = np.empty(len(places), np.int64)
    rank[np.argsort(places)] = np.arange(len(places))
    found[grouped] = rank[numbers]
    return found


def _header(
    folder: Path, parts: tuple[Part, ...], splits: np.ndarray, groups: np.ndarray | None
) -> Header:
    """Return the header of all rows, as of one file."""
    first = parts[0].header
    details = {name: value for name, value in first.details.items() if name != "part"}
    details["skipped"] = [image for part in parts for image in part.header.details["skipped"]]
    if any(_detail(part, "on_error") == "skip" for part in parts):
        details["on_error"] = "skip"
    details["max_bad"] = max(_detail(part, "max_bad") or 0 for part in parts)
    details["num_rows"] = len(splits)
    whole = [name for name in ("features", "views") if name in details["sha256"]]
    digests = {
        name: fingerprint_of({"parts": [part.header.details["sha256"][name] for part in parts]})
        for name in whole
    }
    none = np.broadcast_to(np.int64(-1), (len(splits),)) if groups is None else groups
    digests |= _small_columns(parts) | {"splits": _sha256(splits), "groups": _sha256(none)}
    header = replace(first, details=details | {"sha256": digests})
    if len(header.to_json()) > MAX_HEADER_BYTES // 2:
        raise ArtifactError(
            folder, f"'{folder}' cannot list all the images that were left out: there are too many."
        )
    return header


def _small_columns(parts: tuple[Part, ...]) -> dict[str, str]:
    """Return the sha256 of columns that one file would have like the parts."""
    digests = {name: hashlib.sha256() for name in ("labels", "sample_ids", "digests", "stamps")}
    width = 0
    for part in parts:
        with part.opened() as file, translated(part.path):
            width = max(width, file["sample_ids"].dtype.itemsize)
    for part in parts:
        with part.opened() as file, translated(part.path):
            for name, digest in digests.items():
                if name == "stamps":
                    digest.update(np.ascontiguousarray(stamps_of(file)).data)
                    continue
                for block in blocks_of(file[name]):
                    ids = name == "sample_ids"
                    digest.update(block.astype(f"S{width}").data if ids else block.data)
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _sha256(column: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(column), 2**20):
        digest.update(np.ascontiguousarray(column[start : start + 2**20]).data)
    return digest.hexdigest()
