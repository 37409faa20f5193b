"""Images of one picture, by content, features and pixels; and what is wrong with them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from featx.errors import SourceError, counted
from featx.features.file import FeatureFile
from featx.features.search import nearest_neighbours, usable_rows, whitened
from featx.heads.samples.data import Step
from featx.stages.audit.findings import Finding, FindingKind, ImageSequence
from featx.stages.audit.pictures import LEAST_COSINE, Link, Links, Pictures, near_links
from featx.stages.audit.sequences import LIKE_THE_LAST, Run, find_sequences

NUM_NEIGHBOURS = 8
"""Candidates for copies of each image."""
_ALL_PAIRS_UP_TO = 400
"""Images of which every two are candidates: few rows say little about directions."""


@dataclass(frozen=True, eq=False)
class Same:
    """What was found of images that are the same.

    Attributes:
        findings: Conflicts, leaks, sequences and copies.
        sequences: Runs of frames.
        leaked: Whether a row's picture is in a split before its own, too, ``(N,)`` bool.
        rows: Those with usable features, ``(n,)``.
        pictures: None where they were not there.
        notes: What was not looked at.
    """

    findings: tuple[Finding, ...]
    sequences: tuple[ImageSequence, ...]
    leaked: np.ndarray
    rows: np.ndarray
    pictures: Pictures | None
    notes: tuple[str, ...]


def find_same(
    cache: FeatureFile, different: set[tuple[int, int]], source: str | None, step: Step
) -> Same:
    """Return the images that are the same, but for pairs that are known to be different.

    Raises:
        SourceError: ``source`` is given and cannot be used.
    """
    step("Nearest images")
    rows = usable_rows(cache.features)
    all_usable = len(rows) == len(cache)
    neighbours = nearest_neighbours(
        whitened(cache.features if all_usable else cache.features[rows]),
        NUM_NEIGHBOURS,
        progress=lambda share: step(f"Nearest images, {share:.0%}"),
    )
    notes = [*_torn(cache), *_left_out(cache, rows), *filter(None, [neighbours.note])]
    pictures, runs, near = None, list[Run](), Links.none()
    try:
        pictures = Pictures.of(cache, source, step)
    except SourceError as err:
        if source is not None:
            raise
        notes.append(f"Without pictures, only exact copies are found: {err}")
    links = exact_links(copies_of(cache))
    if pictures is not None:
        notes += _unread(pictures)
        runs = find_sequences(cache, pictures, step)
        if len(rows) <= _ALL_PAIRS_UP_TO:
            candidates = rows[np.stack(np.triu_indices(len(rows), 1), axis=1)]
        else:
            candidates = rows[neighbours.pairs(LEAST_COSINE)]
        candidates = _without(candidates, links, runs, different, len(cache))
        near = near_links(pictures, candidates, step)
        links |= near.by_pair()
        missing = _without(unlinked(group_links(links), links), (), runs, different, len(cache))
        links |= near_links(pictures, missing, step).by_pair()
    links = {pair: link for pair, link in links.items() if tuple(sorted(pair)) not in different}
    groups = group_links(links)
    findings = (
        *copy_findings(cache, groups, links, different),
        *_sequence_findings(cache, runs),
    )
    leaked = np.zeros(len(cache), bool)
    for each in (*(group.rows for group in groups), *(run.rows for run in runs)):
        members = np.asarray(each)
        leaked[members] |= cache.splits[members] > cache.splits[members].min()
    sequences = tuple(_sequence(cache, run) for run in runs)
    return Same(findings, sequences, leaked, rows, pictures, tuple(notes))


def _torn(cache: FeatureFile) -> Iterator[str]:
    grouped = np.flatnonzero(cache.groups >= 0)
    pairs = np.unique(np.stack([cache.groups[grouped], cache.splits[grouped]]), axis=1)
    numbers, counts = np.unique(pairs[0], return_counts=True)
    torn = numbers[counts > 1]
    if len(torn):
        first = cache.sample_ids[int(np.flatnonzero(cache.groups == torn[0])[0])]
        yield (
            f"{counted(len(torn), 'group has', 'groups have')} images in several splits, that of "
            f"'{first}' first: scores on them are too good."
        )


def _left_out(cache: FeatureFile, rows: np.ndarray) -> Iterator[str]:
    others = np.setdiff1d(np.arange(len(cache)), rows)
    if len(others):
        yield (
            f"{counted(len(others), 'image has', 'images have')} no usable features (NaN, infinite "
            f"or all zero) and no neighbours, '{cache.sample_ids[others[0]]}' first."
        )


def _unread(pictures: Pictures) -> Iterator[str]:
    others = np.flatnonzero(~pictures.read)
    if len(others):
        yield (
            f"{counted(len(others), 'image is', 'images are')} not there as extracted and "
            f"compared by content alone, '{pictures.cache.sample_ids[others[0]]}' first."
        )


def _without(
    pairs: np.ndarray,
    links: Container[tuple[int, int]],
    runs: list[Run],
    different: set[tuple[int, int]],
    num_rows: int,
) -> np.ndarray:
    """Return pairs that are not linked, not of one sequence and not known to be different."""
    run_of = np.full(num_rows, -1)
    for number, run in enumerate(runs):
        run_of[run.rows] = number
    first, second = run_of[pairs].T if len(pairs) else np.empty((2, 0))
    others = pairs[(first < 0) | (first != second)]
    known = [
        (a, b) in links or (a, b) in different or (b, a) in different for a, b in others.tolist()
    ]
    return np.asarray(others[~np.array(known, bool)])


def _sequence(cache: FeatureFile, run: Run) -> ImageSequence:
    splits = Counter(cache.split_names[split] for split in cache.splits[run.rows].tolist())
    names = tuple(cache.sample_ids[row] for row in run.rows.tolist())
    return ImageSequence(run.name, names, dict(splits))


def _sequence_findings(cache: FeatureFile, runs: list[Run]) -> Iterator[Finding]:
    """Yield one finding for each sequence in several splits."""
    for run in runs:
        sequence = _sequence(cache, run)
        if len(sequence.splits) > 1:
            first, last = int(run.rows[0]), int(run.rows[-1])
            extent = ", ".join(f"{count} {name}" for name, count in sequence.splits.items())
            yield Finding.of(cache, first, "sequence", run.likeness)._replace(
                other=cache.sample_ids[last],
                limit=LIKE_THE_LAST,
                note=f"sequence {run.name}: {len(run.rows)} images, {extent}",
            )


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
    return Finding.of(cache, row, kind, link.score if link else group.weakest)._replace(
        other=cache.sample_ids[other],
        group=number,
        note=", ".join(notes),
    )
