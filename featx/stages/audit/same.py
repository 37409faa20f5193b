"""Images of the same picture, and runs of frames; by content, features and pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass

import numpy as np

from featx.errors import SourceError, counted
from featx.features.file import FeatureFile
from featx.features.search import Neighbours, nearest_neighbours, usable_rows, whitened
from featx.heads.samples.data import Step
from featx.stages.audit.copies import copies_of, copy_findings, exact_links, group_links, unlinked
from featx.stages.audit.findings import Finding, ImageSequence
from featx.stages.audit.judged import label_of
from featx.stages.audit.near import LEAST_COSINE, Links, near_links
from featx.stages.audit.pictures import Pictures
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
        neighbours: Of these by whitened features, numbered among themselves.
        pictures: None where they were not there.
        notes: What was not looked at.
    """

    findings: tuple[Finding, ...]
    sequences: tuple[ImageSequence, ...]
    leaked: np.ndarray
    rows: np.ndarray
    neighbours: Neighbours
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
    neighbours = nearest_neighbours(
        whitened(cache.features[rows]),
        NUM_NEIGHBOURS,
        progress=lambda share: step(f"Nearest images, {share:.0%}"),
    )
    notes = list(_left_out(cache, rows))
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
    return Same(findings, sequences, leaked, rows, neighbours, pictures, tuple(notes))


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
            yield Finding(
                cache.sample_ids[first],
                "sequence",
                cache.split_names[cache.splits[first]],
                label_of(cache, first),
                score=run.likeness,
                other=cache.sample_ids[last],
                limit=LIKE_THE_LAST,
                note=f"sequence {run.name}: {len(run.rows)} images, {extent}",
            )
