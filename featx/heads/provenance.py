"""The rows that a head was trained and scored on, as digests, and changes since then.

A row is the content digest of its image, its label as the task reads it, and its features. Neither
their order nor file names matter. Besides the hash of all rows, a head stores short digests of the
``SAMPLE_ROWS`` rows that sort first, a random sample from which changes are counted or estimated.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Self

import numpy as np

from featx.errors import counted
from featx.heads.tasks import Task

SAMPLE_ROWS = 2048
_AT_ONCE = 2**20
_PART = 16
"""Bytes of each part of a row: content, label, features."""
_ROW_BYTES = 3 * _PART
_SHORT = (8, 4, 4)
"""Bytes of each part in a short digest."""
_SHORT_BYTES = sum(_SHORT)


def digest_labels(labels: Sequence[str], task: Task) -> np.ndarray:
    """Return a digest of each label, ``(num_labels + 1, 16)`` uint8; the last stands for no label.

    Labels that mean the same to the task have the same digest: tags in another order, or a number
    written otherwise.
    """
    table = np.zeros((len(labels) + 1, _PART), np.uint8)
    for row, label in enumerate(labels):
        meant = task.canonical(label).encode("utf-8", "surrogateescape")
        table[row] = np.frombuffer(hashlib.sha256(meant).digest()[:_PART], np.uint8)
    return table


@dataclass(frozen=True, eq=False)
class LabelDigests:
    """The digest of each row's label: one of those of ``digest_labels``, by its number."""

    digests: np.ndarray
    labels: np.ndarray

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.asarray(self.digests[self.labels[rows]])


class SomeRows(NamedTuple):
    """Digests of rows, ``(N, 48)`` uint8, and a mask that selects some, ``(N,)`` bool."""

    rows: np.ndarray
    chosen: np.ndarray


def digest_rows(
    contents: np.ndarray, labels: LabelDigests, blocks: Iterable[tuple[slice, np.ndarray]]
) -> np.ndarray:
    """Return a digest of each row, ``(N, 48)`` uint8: content, label and features.

    Digests of contents are ``(N, 16)`` uint8; blocks are positions and features ``(n, size)``,
    which cover all rows: float32 vectors, or activations as they are stored.
    """
    rows = np.zeros((len(contents), _ROW_BYTES), np.uint8)
    rows[:, :_PART] = contents
    del contents  # large; where nobody else has them, they go
    for where, features in blocks:
        rows[where, _PART : 2 * _PART] = labels[where]
        values = np.ascontiguousarray(features, features.dtype.newbyteorder("<"))
        digests = b"".join(hashlib.sha256(row.data).digest()[:_PART] for row in values)
        rows[where, 2 * _PART :] = np.frombuffer(digests, np.uint8).reshape(-1, _PART)
    return rows


def add_to_features(rows: np.ndarray, content: bytes) -> np.ndarray:
    """Return row digests ``(n, 48)`` whose features' part stands for this content as well."""
    changed = rows.copy()
    for row in changed:
        own = hashlib.sha256(row[2 * _PART :].tobytes() + content).digest()
        row[2 * _PART :] = np.frombuffer(own[:_PART], np.uint8)
    return changed


@dataclass(frozen=True)
class RowSet:
    """Digest of rows, and one of contents and labels alone, which needs no features."""

    num_rows: int
    sha256: str
    labels_sha256: str

    @classmethod
    def of(cls, rows: np.ndarray | SomeRows) -> Self:
        """Return the digest of rows ``(n, 48)`` uint8, in any order."""
        count = int(rows.chosen.sum()) if isinstance(rows, SomeRows) else len(rows)
        return cls(count, _sha256(rows), _sha256(rows, 2 * _PART))


def digest_labelled(contents: np.ndarray, labels: np.ndarray) -> str:
    """Return the ``labels_sha256`` of images in any order; both digests are ``(n, 16)`` uint8."""
    return _sha256(np.concatenate([contents, labels], axis=1))


def _sha256(rows: np.ndarray | SomeRows, size: int | None = None) -> str:
    """Return the sha256 of rows in ascending order, or of so many bytes of each."""
    digest = hashlib.sha256()
    for block in _ascending(rows):
        digest.update(_sorted(block[:, :size]).view(np.uint8).data)
    return digest.hexdigest()


def _ascending(rows: np.ndarray | SomeRows) -> Iterator[np.ndarray]:
    """Yield rows in blocks that are not sorted, but come one after the other: by first bytes."""
    own, chosen = rows if isinstance(rows, SomeRows) else (rows, None)
    if len(own) <= _AT_ONCE:
        yield own if chosen is None else own[chosen]
        return
    first = own[:, 0].copy()
    for byte in range(256):
        block = first == byte
        yield own[block if chosen is None else block & chosen]


def _sorted(rows: np.ndarray) -> np.ndarray:
    """Return byte rows ``(n, bytes)`` in ascending order, ``(n,)`` of byte strings."""
    return np.sort(np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").ravel())


def _sample(rows: np.ndarray | SomeRows, most: int | None) -> np.ndarray:
    """Return the short digests that sort first, ``(m,)`` of byte strings."""
    found: list[np.ndarray] = []
    for block in _ascending(rows):
        found.append(_sorted(_short(block)))
        if most is not None and sum(map(len, found)) >= most:
            break
    return np.concatenate(found)[:most]


def _short(rows: np.ndarray) -> np.ndarray:
    parts = [rows[:, i * _PART : i * _PART + size] for i, size in enumerate(_SHORT)]
    return np.concatenate(parts, axis=1)


@dataclass(frozen=True, eq=False)
class Provenance:
    """The rows that a head was trained and scored on."""

    trained: RowSet
    scored: Mapping[str, RowSet]  # labelled rows of each split that has scores
    sample: np.ndarray  # short digests of the first that trained it, of a draw all, (n, 16) uint8
    drawn: bool = False  # whether it was trained on a draw from the training split

    @classmethod
    def of(
        cls, splits: Mapping[str, np.ndarray | SomeRows], drawn: np.ndarray | None = None
    ) -> Self:
        """Return the provenance of a head, from the labelled rows of splits ``(n, 48)`` uint8.

        The rows ``drawn`` trained it where these are not the whole training split.
        """
        rows = splits["train"] if drawn is None else drawn
        sample = _sample(rows, SAMPLE_ROWS if drawn is None else None)
        return cls(
            trained=RowSet.of(rows),
            scored={split: RowSet.of(own) for split, own in splits.items()},
            sample=sample.view(np.uint8).reshape(-1, _SHORT_BYTES),
            drawn=drawn is not None,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the provenance that ``to_dict`` described.

        Raises:
            ValueError: It is something else.
        """
        try:
            content = base64.b64decode(values["sample"], validate=True)
            sample = np.frombuffer(content, np.uint8).reshape(-1, _SHORT_BYTES)
            trained, *scored = (
                RowSet(*(own[field.name] for field in fields(RowSet)))
                for own in (values["trained"], *values["scored"].values())
            )
            splits = dict(zip(values["scored"], scored, strict=True))
            return cls(trained, splits, sample, bool(values["drawn"]))
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise ValueError(f"it does not say which rows trained it ({err})") from err

    def to_dict(self) -> dict[str, Any]:
        """Return the provenance as JSON values."""
        return asdict(self) | {"sample": base64.b64encode(self.sample.tobytes()).decode()}


@dataclass(frozen=True)
class Changes:
    """Differences between training rows and those that trained a head."""

    num_rows: int  # that trained the head
    new: int = 0
    gone: int = 0  # no longer exist, or no longer train
    relabelled: int = 0
    recomputed: int = 0  # have other features
    estimated: bool = False

    def __str__(self) -> str:
        counts = {
            "new": self.new,
            "gone": self.gone,
            "relabelled": self.relabelled,
            "with other features": self.recomputed,
        }
        about = "about " if self.estimated else ""
        told = [f"{about}{count:,} {what}" for what, count in counts.items() if count]
        changes = ", ".join(told) or "a few differ"
        return f"trained on {counted(self.num_rows, 'row')}; since then {changes}"


def num_trained(head: Provenance, contents: np.ndarray) -> int:
    """Return how many images, given by content digests ``(n, 16)`` uint8, trained a head.

    For a head of more than ``SAMPLE_ROWS`` rows only those of its sample are found.
    """
    size = _SHORT[0]
    known = {row[:size].tobytes() for row in head.sample}
    return sum(digest[:size].tobytes() in known for digest in contents)


def changes_since(head: Provenance, splits: Mapping[str, np.ndarray]) -> Changes | None:
    """Return how the rows that trained a head differ from those of ``splits``; None if not.

    A draw is unchanged as long as all of its rows are in the training split.
    """
    now = _drawn_again(head, splits["train"]) if head.drawn else splits["train"]
    if RowSet.of(now).sha256 == head.trained.sha256:
        return None
    limit = None if head.drawn else SAMPLE_ROWS
    return _count(head, _sorted(_short(splits["train"]))[:limit], len(splits["train"]))


def outdated_splits(head: Provenance, splits: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Return the splits whose rows are not those that a head was scored on."""
    empty = RowSet.of(np.zeros((0, _ROW_BYTES), np.uint8))
    now = {name: RowSet.of(rows) for name, rows in splits.items()}
    return tuple(
        name
        for name in dict.fromkeys((*head.scored, *now))
        if head.scored.get(name, empty).sha256 != now.get(name, empty).sha256
    )


def _drawn_again(head: Provenance, rows: np.ndarray) -> np.ndarray:
    """Return those of the training rows that were drawn for a head."""
    wanted = Counter(head.sample.view(f"S{_SHORT_BYTES}").ravel().tolist())
    chosen = np.zeros(len(rows), bool)
    for number, row in enumerate(_short(rows).view(f"S{_SHORT_BYTES}").ravel().tolist()):
        if wanted[row]:
            wanted[row] -= 1
            chosen[number] = True
    return rows[chosen]


def _count(head: Provenance, now: np.ndarray, num_now: int) -> Changes:
    """Count the changes between two samples, each of the rows that sort first."""
    then = head.sample.view(f"S{_SHORT_BYTES}").ravel()
    size, whole = _SHORT[0], len(then) == head.trained.num_rows and len(now) == num_now
    before, after = _padded(then), _padded(now)
    scale = 1.0
    if not whole:  # both are known only up to the earlier end of the two
        ends = [rows[-1][:size] for rows in (before, after) if len(rows) >= SAMPLE_ROWS]
        end = min(ends, default=b"")
        before, after = ([row for row in rows if row[:size] < end] for rows in (before, after))
        scale = head.trained.num_rows / max(1, len(before))
    gone, new = Counter(before) - Counter(after), Counter(after) - Counter(before)
    labels_gone, labels_new = _labels_by_content(gone), _labels_by_content(new)
    counts = Counter[str]()
    for content in {*labels_gone, *labels_new}:
        lost, found = labels_gone[content], labels_new[content]
        same = (lost & found).total()
        others = min(lost.total(), found.total()) - same
        counts["recomputed"] += same
        counts["relabelled"] += others
        counts["gone"] += lost.total() - same - others
        counts["new"] += found.total() - same - others
    if head.drawn:
        counts["new"] = 0
    rounded = {name: round(scale * count) for name, count in counts.items()}
    return Changes(head.trained.num_rows, **rounded, estimated=not whole)


def _padded(rows: np.ndarray) -> list[bytes]:
    """Return byte strings with the zeros at their end that numpy drops."""
    return [row.ljust(_SHORT_BYTES, b"\0") for row in rows.tolist()]


def _labels_by_content(rows: Counter[bytes]) -> defaultdict[bytes, Counter[bytes]]:
    """Return how often each content has each label."""
    found: defaultdict[bytes, Counter[bytes]] = defaultdict(Counter)
    first, second = _SHORT[0], _SHORT[0] + _SHORT[1]
    for row, count in rows.items():
        found[row[:first]][row[first:second]] += count
    return found
