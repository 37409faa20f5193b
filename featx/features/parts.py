"""Feature files in parts: the plan that all parts share, and the index that completes them.

A folder ``NAME.parts`` holds ``plan.json``, which the first part writes; ``part-00001.h5`` and so
on, each an ordinary feature file of a range of the plan's images, with the splits that the source
gives; and, once all parts are there, ``index.json``, replaced atomically last. What is decided over
all of them lies beside it, in ``settled-….bin``: the split of each row, its group where the source
has any, and rows whose content an earlier part has, with the first such row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from featx.artifact import Header, canonical_json, fingerprint_of, publishing
from featx.artifact.parts import INDEX, MAX_PARTS, PLAN, part_path, ranges
from featx.errors import (
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMissing,
    counted,
)
from featx.features.hdf5 import opened_hdf5
from featx.features.journal import read_progress
from featx.features.part_columns import Part

T = TypeVar("T")
_FORMAT = 1
_BATCH = 64
"""Images that all default batches divide."""
_MAX_PLAN_BYTES, _MAX_INDEX_BYTES = 2**25, 2**26


@dataclass(frozen=True)
class PartsPlan:
    """What all parts of a folder have in common, fixed by the first.

    Attributes:
        num_parts: Of the folder; parts have the numbers from 1 to this.
        num_images: Of the whole source.
        source: Its address.
        images_sha256: Of the names of its images, in order.
        labels_sha256: Of its classes, and the label, split and group of each image.
        settings: On which rows depend, as an extraction records them.
        handling: Options that a file keeps beside its settings.
        groups: File with the number of each image's group; empty without groups.
    """

    num_parts: int
    num_images: int
    source: str
    images_sha256: str
    labels_sha256: str
    settings: Mapping[str, Any]
    handling: Mapping[str, Any]
    groups: str = ""

    @property
    def fingerprint(self) -> str:
        """Identity of source, order and number of parts."""
        values = asdict(self)
        return fingerprint_of({name: values[name] for name in _IDENTITY})

    def range(self, number: int) -> tuple[int, int]:
        """Return the first image of a part, and the one behind its last.

        Parts begin where batches of one extraction do, unless there are hardly as many images: a
        backbone gives the same bits for the same batch.

        >>> plan = PartsPlan(3, 1000, "photos", "", "", {}, {})
        >>> [plan.range(number) for number in (1, 2, 3)]
        [(0, 320), (320, 640), (640, 1000)]
        """
        whole = _BATCH
        while whole > 1 and whole * self.num_parts > self.num_images:
            whole //= 2
        first, stop = (self.num_images * k // self.num_parts for k in (number - 1, number))
        is_last = number == self.num_parts
        return first // whole * whole, stop if is_last else stop // whole * whole

    def fix(self, folder: Path) -> None:
        """Write the plan, unless another part has written one meanwhile."""
        text = canonical_json(asdict(self) | {"format": _FORMAT}) + "\n"
        with suppress(ArtifactExists), publishing(plan_path(folder), overwrite=False) as temporary:
            temporary.write_text(text, encoding="utf-8")

    @classmethod
    def of(cls, values: dict[str, Any], path: Path) -> Self:
        """Return the plan of a file's values, checked."""
        _require_format(values, path)
        plan = cls(**{name: values[name] for name in values if name != "format"})
        kinds = {"num_parts": int, "num_images": int, "settings": dict, "handling": dict}
        for name, value in asdict(plan).items():
            if not isinstance(value, kinds.get(name, str)):
                raise TypeError(f"its {name} is not a {kinds.get(name, str).__name__}")
        if not 1 <= plan.num_parts <= min(MAX_PARTS, plan.num_images):
            raise ValueError(f"it has {plan.num_parts} parts of {plan.num_images} images")
        if "/" in plan.groups:
            raise ValueError("its groups are in another folder")
        return plan


_IDENTITY = ("num_parts", "num_images", "source", "images_sha256", "labels_sha256")


def index_path(folder: Path) -> Path:
    """Return where the index of parts is."""
    return folder / INDEX


def plan_path(folder: Path) -> Path:
    """Return where the plan of parts is."""
    return folder / PLAN


def read_plan(folder: Path) -> PartsPlan:
    """Return the plan of a folder.

    Raises:
        ArtifactMissing: There is no folder, or no part was begun in it.
        ArtifactInvalid: The plan is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        raise ArtifactMissing(
            folder,
            f"'{folder}' has no parts of features. Make them by 'featx extract SOURCE -o {folder}' "
            "with part='1/16' and so on.",
        )
    return _read_json(path, _MAX_PLAN_BYTES, PartsPlan.of)


def missing_parts(folder: Path, plan: PartsPlan) -> list[int]:
    """Return the numbers of the parts that are not there, ascending."""
    return [n for n in range(1, plan.num_parts + 1) if not part_path(folder, n).exists()]


def describe_missing(plan: PartsPlan, missing: list[int]) -> str:
    """Return how many parts there are, and which are missing.

    >>> describe_missing(PartsPlan(16, 1000, "photos", "", "", {}, {}), [3, 7, 8])
    '13 of 16 parts; missing: parts 3, 7-8'
    """
    several = "part" if len(missing) == 1 else "parts"
    there = plan.num_parts - len(missing)
    return f"{there} of {plan.num_parts} parts; missing: {several} {ranges(missing)}"


def require_parts(folder: Path, plan: PartsPlan) -> None:
    """Check that all parts are there; name those that are not, with how far they are."""
    missing = missing_parts(folder, plan)
    if not missing:
        return
    begun = []
    for number in missing:
        with suppress(ArtifactInvalid, OSError):
            done, total = read_progress(part_path(folder, number).with_suffix(".h5.partial"))
            begun += [f"{done:,} of {counted(total, 'image')} of part {number}"] if total else []
    done_so_far = f" ({'; '.join(begun[:3])} are done)" if begun else ""
    raise ArtifactIncomplete(
        folder,
        f"'{folder}' has {describe_missing(plan, missing)}{done_so_far}. Run "
        f"'featx extract SOURCE -o {folder}' with part='{missing[0]}/{plan.num_parts}'.",
    )


# --- the index ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PartsIndex:
    """All parts, and what was settled over them.

    Attributes:
        header: Of all rows, as of one file; the sha256 of features and views are over those of the
            parts.
        parts: In order.
        settled: Name of the file with splits, groups and copies.
        sha256: Of its content.
        has_groups: Whether it has groups.
        num_copies: Rows whose content an earlier part has.
    """

    header: Header
    parts: tuple[Part, ...]
    settled: str
    sha256: str
    has_groups: bool
    num_copies: int

    @property
    def num_rows(self) -> int:
        """Rows of all parts."""
        return sum(part.num_rows for part in self.parts)

    def to_json(self) -> str:
        """Return the index as one line of JSON."""
        values = {
            "format": _FORMAT,
            "header": self.header.to_json(),
            "parts": [
                {"file": part.path.name, "rows": part.num_rows, "sha256": header_sha256(part)}
                for part in self.parts
            ],
            "settled": self.settled,
            "sha256": self.sha256,
            "has_groups": self.has_groups,
            "num_copies": self.num_copies,
        }
        return canonical_json(values | {"checksum": fingerprint_of(values)})

    def read_settled(self, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return splits ``(N,)`` uint8, groups ``(N,)`` int64, and copies, ``(C, 2)`` int64.

        A copy is the number of a row, then that of the first row with its content.
        """
        path, count = folder / self.settled, self.num_rows
        num_groups = count if self.has_groups else 0
        sizes = [count, 8 * num_groups, 16 * self.num_copies]
        try:
            content = path.read_bytes() if path.stat().st_size == sum(sizes) else b""
        except OSError as err:
            raise ArtifactInvalid(path, f"Cannot read '{path}': {err.strerror}.") from err
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ArtifactInvalid(
                path,
                f"'{path}' is damaged. Delete '{folder / INDEX}', and run featx merge {folder}.",
            )
        splits = np.frombuffer(content, np.uint8, count)
        groups = np.frombuffer(content, "<i8", num_groups, sizes[0])
        copies = np.frombuffer(content, "<i8", 2 * self.num_copies, sizes[0] + sizes[1])
        if not ((copies >= 0) & (copies < count)).all():
            raise ArtifactInvalid(path, f"'{path}' names copies that are not rows.")
        none = np.broadcast_to(np.int64(-1), (count,))
        return splits, groups if self.has_groups else none, copies.reshape(-1, 2)


def header_sha256(part: Part) -> str:
    """Return a digest of all that is in a part, by its header."""
    return hashlib.sha256(part.header.to_json().encode()).hexdigest()


def read_index(folder: Path) -> PartsIndex:
    """Return the index of a folder, which agrees with the parts that are there.

    Raises:
        ArtifactMissing: There are no parts.
        ArtifactIncomplete: Parts are missing, or have changed since the index was written.
        ArtifactInvalid: The index or a part is damaged.
    """
    plan = read_plan(folder)
    require_parts(folder, plan)
    path = folder / INDEX
    if not path.exists():
        raise ArtifactIncomplete(
            folder,
            f"'{folder}' has all of its {plan.num_parts} parts, but no index, which decides splits "
            f"and duplicates across them. Run 'featx merge {folder}'.",
        )
    values = _read_json(path, _MAX_INDEX_BYTES, _index_values)
    header = Header.from_json(values["header"], path=path, kind="features")
    parts = tuple(read_parts(folder, plan))
    found = [[part.path.name, part.num_rows, header_sha256(part)] for part in parts]
    listed = [[each["file"], each["rows"], each["sha256"]] for each in values["parts"]]
    if found != listed:
        changed = next((own[0] for own in found if own not in listed), "a part")
        raise ArtifactIncomplete(
            folder,
            f"'{changed}' in '{folder}' has changed since the index was written. Run "
            f"'featx merge {folder}' to write it anew.",
        )
    names = ("settled", "sha256", "has_groups", "num_copies")
    index = PartsIndex(header, parts, *(values[name] for name in names))
    if index.num_rows != header.details.get("num_rows"):
        raise ArtifactInvalid(path, f"'{path}' is damaged: its rows are not those of the parts.")
    return index


def read_parts(folder: Path, plan: PartsPlan) -> Iterator[Part]:
    """Yield the parts of a folder in order, each opened for its header."""
    first = 0
    for number in range(1, plan.num_parts + 1):
        path = part_path(folder, number)
        with opened_hdf5(path) as (file, header):
            num_rows = len(file["labels"])
        yield Part(path, header, first, num_rows)
        first += num_rows


def _index_values(values: dict[str, Any], path: Path) -> dict[str, Any]:
    _require_format(values, path)
    own = {name: value for name, value in values.items() if name != "checksum"}
    if fingerprint_of(own) != values["checksum"]:
        raise ValueError("its checksum is another")
    kinds = {"header": str, "settled": str, "sha256": str, "has_groups": bool, "num_copies": int}
    if not all(isinstance(values[name], kind) for name, kind in kinds.items()):
        raise TypeError("a value is of another type")
    if "/" in values["settled"] or values["num_copies"] < 0:
        raise ValueError("a value is out of range")
    return values


def _require_format(values: dict[str, Any], path: Path) -> None:
    if values["format"] != _FORMAT:
        raise ArtifactInvalid(path, f"'{path}' was written by another version of featx: update it.")


def _read_json(path: Path, most: int, parse: Callable[[dict[str, Any], Path], T]) -> T:
    try:
        if path.stat().st_size > most:
            raise ValueError(f"it is larger than {most} bytes")
        return parse(dict(json.loads(path.read_bytes())), path)
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        if isinstance(err, ArtifactInvalid):
            raise
        raise ArtifactInvalid(path, f"'{path}' is damaged ({err}).") from err
    except OSError as err:
        raise ArtifactInvalid(path, f"Cannot read '{path}': {err.strerror}.") from err
