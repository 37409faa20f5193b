"""Images of one picture: by their content hashes, and by their pixels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from featx.features.file import FeatureFile
from featx.stages.audit.findings import Finding, FindingKind
from featx.stages.audit.near import Link

MANY = 50
"""Images of a group above which not every two of them are compared."""
Pairs = Collection[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Group:
    """Images of one picture.

    Attributes:
        rows: Ascending.
        weakest: Correlation of the weakest link that holds them together; 1 for one content.
        is_chain: Whether some two of them are not alike, but only by others in between.
    """

    rows: tuple[int, ...]
    weakest: float
    is_chain: bool


def copies_of(cache: FeatureFile) -> list[np.ndarray]:
    """Return the rows of each content that several images have, ascending, first rows first."""
    digests = np.ascontiguousarray(cache.digests).view(f"V{cache.digests.shape[1]}")[:, 0]
    known = np.flatnonzero(cache.digests.any(axis=1))
    _, contents, counts = np.unique(digests[known], return_inverse=True, return_counts=True)
    several = known[counts[contents] > 1]
    keys = contents[counts[contents] > 1]
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    parts = np.split(several[order], ends) if len(order) else []
    return sorted(parts, key=lambda rows: int(rows[0]))


def exact_links(copies: list[np.ndarray]) -> dict[tuple[int, int], Link]:
    """Return links between copies of one content; of many, from the first to each."""
    links = {}
    for rows in copies:
        pairs = combinations(rows.tolist(), 2) if len(rows) <= MANY else _star(rows)
        for a, b in pairs:
            links[a, b] = links[b, a] = Link(1.0, flipped=False)
    return links


def _star(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    return ((int(rows[0]), int(row)) for row in rows[1:])


def group_links(links: dict[tuple[int, int], Link]) -> list[Group]:
    """Return the images that links join; small groups first, then those held together best."""
    owner: dict[int, int] = {}
    members: dict[int, list[int]] = {}
    weakest: dict[int, float] = {}
    for (a, b), link in sorted(links.items(), key=lambda item: (-item[1].score, item[0])):
        for row in (a, b):
            if row not in owner:
                owner[row], members[row], weakest[row] = row, [row], 1.0
        first, second = sorted((owner[a], owner[b]))
        if first != second:
            for row in members[second]:
                owner[row] = first
            members[first] += members.pop(second)
            weakest[first] = min(weakest[first], weakest.pop(second), link.score)
    numbers: dict[int, int] = defaultdict(int)
    for a, _ in links:
        numbers[owner[a]] += 1  # each link counts twice
    found = [
        Group(tuple(sorted(rows)), weakest[own], numbers[own] < len(rows) * (len(rows) - 1))
        for own, rows in members.items()
    ]
    return sorted(found, key=lambda group: (len(group.rows), -group.weakest, group.rows))


def unlinked(groups: list[Group], links: dict[tuple[int, int], Link]) -> np.ndarray:
    """Return the pairs within groups without a link, but for very large ones; ``(M, 2)``."""
    missing = [
        pair
        for group in groups
        if group.is_chain and len(group.rows) <= MANY
        for pair in combinations(group.rows, 2)
        if pair not in links
    ]
    return np.array(missing, np.int64).reshape(-1, 2)


def copy_findings(
    cache: FeatureFile,
    groups: list[Group],
    links: dict[tuple[int, int], Link],
    different: Pairs,
) -> Iterator[Finding]:
    """Yield copies: those with several labels, then those in several splits, then the others.

    Args:
        cache: The feature file.
        groups: Images of one picture each.
        links: Of the pairs that were found to be one picture.
        different: Pairs, lower row first, that somebody has seen to be none.
    """
    kinds: tuple[FindingKind, ...] = ("conflict", "leak", "copy")
    found: dict[FindingKind, list[Finding]] = {kind: [] for kind in kinds}
    for number, group in enumerate(groups, 1):
        for row in group.rows:
            for kind, others in _opposites(cache, group.rows, row):
                allowed = [each for each in others if tuple(sorted((row, each))) not in different]
                if allowed:
                    found[kind].append(
                        _finding(cache, kind, (row, allowed), (number, group), links)
                    )
    for kind in kinds:
        yield from found[kind]


def _opposites(
    cache: FeatureFile, rows: tuple[int, ...], row: int
) -> Iterator[tuple[FindingKind, list[int]]]:
    """Yield what a row of a group is, with the rows that make it so.

    The split that comes first keeps its images, training above all; so does the label that most of
    a group have, or else the first of them; and so does the first of copies.
    """
    labels, splits = cache.labels[list(rows)], cache.splits[list(rows)]
    own_label, own_split = cache.labels[row], cache.splits[row]
    is_other = False
    if own_label >= 0 and own_label != _usual_label(labels):
        yield "conflict", [each for each in rows if cache.labels[each] not in (own_label, -1)]
        is_other = True
    if own_split > splits.min():
        yield "leak", [each for each in rows if cache.splits[each] < own_split]
        is_other = True
    if not is_other:
        before = [each for each in rows if each < row and cache.splits[each] == own_split]
        if before:
            yield "copy", before


def _usual_label(labels: np.ndarray) -> int:
    labels = labels[labels >= 0]
    if not len(labels):
        return -1
    values, first, counts = np.unique(labels, return_index=True, return_counts=True)
    return int(values[np.lexsort((first, -counts))[0]])


def _finding(
    cache: FeatureFile,
    kind: FindingKind,
    of_row: tuple[int, list[int]],
    of_group: tuple[int, Group],
    links: dict[tuple[int, int], Link],
) -> Finding:
    (row, others), (number, group) = of_row, of_group
    linked = [each for each in others if (row, each) in links]
    other = max(linked, key=lambda each: (links[row, each].score, -each), default=others[0])
    link = links.get((row, other))
    notes = ["flipped"] if link and link.flipped else []
    if group.is_chain:
        notes.append(f"chain, weakest link {group.weakest:.2f}")
    label = int(cache.labels[row])
    return Finding(
        cache.sample_ids[row],
        kind,
        cache.split_names[cache.splits[row]],
        cache.classes[label] if label >= 0 else "",
        score=link.score if link else group.weakest,
        other=cache.sample_ids[other],
        group=number,
        note=", ".join(notes),
    )
