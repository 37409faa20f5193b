"""Near copies: images of the same picture that are not the same file.

Candidates are the nearest images by whitened features; what decides are the pixels. Features alone
take images of one subject for copies.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from featx.heads.samples.data import Step
from featx.images.alike import Alike, compare_details, compare_outlines, compare_pictures
from featx.images.reading import map_ahead
from featx.stages.audit.pictures import Pictures

ALIKE = 0.9
"""Correlation of small pictures from which they are one, where there is no more to see.

Of 116,333 pairs of neighbours among CIFAR-10's training images that have different labels, 6 reach
0.85, and none 0.88.
"""
ALIKE_IF_DETAILS = 0.75
DETAILS_ALIKE = 0.65
"""Share of structure in common from which larger pictures are one, too."""
_ALMOST_EQUAL, _DETAILS_IF_EQUAL = 0.98, 0.5
"""Of pictures that are almost equal when they are small, compression may have taken details."""
DETAILS_FROM = 128
"""Shorter side in pixels from which an image has details."""
LEAST_COSINE = 0.1
"""Of whitened features, below which images are no candidates."""
_CHUNK = 4096
_DETAILS_AT_ONCE = 2048
_EXACTLY = 0.9999  # of pictures that are not the same file


class Link(NamedTuple):
    """Two images of one picture."""

    score: float
    flipped: bool


@dataclass(frozen=True, eq=False)
class Links:
    """Pairs of images whose pixels were compared and found the same.

    Attributes:
        pairs: Lower row first, each pair once, ascending, ``(M, 2)``.
        scores: Of each pair, below 1, ``(M,)``.
        flipped: Whether the one mirrors the other, ``(M,)``.
    """

    pairs: np.ndarray
    scores: np.ndarray
    flipped: np.ndarray

    @classmethod
    def none(cls) -> Links:
        return cls(np.empty((0, 2), np.int64), np.empty(0), np.empty(0, bool))

    def where(self, kept: np.ndarray) -> Links:
        """Return some of the links; ``kept`` is ``(M,)`` bool."""
        return Links(self.pairs[kept], self.scores[kept], self.flipped[kept])

    def by_pair(self) -> dict[tuple[int, int], Link]:
        """Return the links by their rows, in either order."""
        links = {}
        for (a, b), score, flipped in zip(
            self.pairs.tolist(), self.scores.tolist(), self.flipped.tolist(), strict=True
        ):
            links[a, b] = links[b, a] = Link(score, flipped)
        return links


def near_links(pictures: Pictures, candidates: np.ndarray, step: Step) -> Links:
    """Return those candidates, ``(M, 2)`` rows, that show the same picture."""
    pairs = candidates[pictures.read[candidates].all(axis=1)]
    found = compare_rows(pictures, pairs, step)
    sides = pictures.quality[:, -1]
    detailed = (sides[pairs] >= DETAILS_FROM).all(axis=1)
    sure = found.scores >= np.where(detailed, ALIKE_IF_DETAILS, ALIKE)
    pairs, detailed, found = pairs[sure], detailed[sure], Alike(*(each[sure] for each in found))
    sure = ~detailed
    numbers = np.flatnonzero(detailed)
    for start in range(0, len(numbers), _DETAILS_AT_ONCE):
        some = numbers[start : start + _DETAILS_AT_ONCE]
        sure[some] = _details_alike(
            pictures, pairs[some], Alike(*(each[some] for each in found)), step
        )
    scores = np.minimum(found.scores, _EXACTLY)
    return Links(pairs[sure], scores[sure], found.flipped[sure])


def compare_rows(pictures: Pictures, pairs: np.ndarray, step: Step) -> Alike:
    """Return how alike the small pictures of pairs of rows ``(M, 2)`` are."""
    outlines = pictures.outlines

    def compare(start: int) -> Alike:
        first, second = pairs[start : start + _CHUNK].T
        screened = compare_outlines(outlines[first], outlines[second])
        return compare_pictures(pictures.small[first], pictures.small[second], screened)

    parts = []
    with closing(map_ahead(compare, range(0, max(len(pairs), 1), _CHUNK))) as compared:
        for done, part in enumerate(compared):
            step(f"Comparing pictures, {done * _CHUNK:,} of {len(pairs):,} pairs")
            parts.append(part)
    return Alike(*map(np.concatenate, zip(*parts, strict=True)))


def _details_alike(pictures: Pictures, pairs: np.ndarray, found: Alike, step: Step) -> np.ndarray:
    larger = pictures.details(np.unique(pairs), step)
    there = np.array([a in larger and b in larger for a, b in pairs.tolist()], bool)
    alike = np.zeros(len(pairs), bool)
    if there.any():
        first, second = (
            np.stack([larger[row] for row in pairs[there, end].tolist()]) for end in (0, 1)
        )
        shares = compare_details(first, second, Alike(*(each[there] for each in found)))
        sure = np.where(found.scores[there] >= _ALMOST_EQUAL, _DETAILS_IF_EQUAL, DETAILS_ALIKE)
        alike[there] = shares >= sure
    return alike
