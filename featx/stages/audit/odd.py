"""Pictures that are odd on their own: far from all others, of one colour, empty, or blurred."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from featx.features.file import FeatureFile
from featx.features.search import Neighbours
from featx.features.shown import label_of
from featx.images.quality import BLURRED_BELOW, CONSTANT_BELOW, EMPTY_ABOVE, Quality
from featx.stages.audit.findings import Finding, FindingKind
from featx.stages.audit.pictures import Pictures

_FAR = 4.0
"""Deviations of the logarithm of a distance from its median above which an image is far away."""
_NORMAL = 1.4826  # of a normal distribution, deviation by median absolute deviation
_BLOCK = 512
_FEWEST = 50
"""Images below which none is called far from the others."""


def outlier_findings(
    cache: FeatureFile, rows: np.ndarray, neighbours: Neighbours
) -> Iterator[Finding]:
    """Yield images whose distance to their neighbours is unusually large, the farthest first.

    The score is that distance, of standardised features, by the median of all images.

    Args:
        cache: The feature file.
        rows: Those that have neighbours, ``(n,)``.
        neighbours: Of these rows, numbered among themselves.
    """
    if len(rows) < _FEWEST or neighbours.rows.shape[1] == 0:
        return
    distances = _distances(cache.features, rows, neighbours)
    logs = np.log(np.maximum(distances, 1e-12))
    middle = np.median(logs)
    deviation = _NORMAL * np.median(np.abs(logs - middle))
    far = np.flatnonzero((logs - middle > _FAR * deviation) & (deviation > 0))
    for number in far[np.argsort(-distances[far], kind="stable")].tolist():
        row, other = int(rows[number]), int(rows[neighbours.rows[number, 0]])
        yield _finding(
            *(cache, row, "outlier", float(np.exp(logs[number] - middle))),
            limit=float(np.exp(_FAR * deviation)),
            other=cache.sample_ids[other],
        )


def _distances(features: np.ndarray, rows: np.ndarray, neighbours: Neighbours) -> np.ndarray:
    """Return the mean distance of each row to its neighbours, by standardised features."""
    sums, squares = np.zeros((2, features.shape[1]))
    for start in range(0, len(rows), _BLOCK):
        block = features[rows[start : start + _BLOCK]].astype(np.float64)
        sums += block.sum(axis=0)
        squares += np.square(block - features[rows[0]]).sum(axis=0)
    shift = sums / len(rows) - features[rows[0]]
    deviation = np.sqrt(np.maximum(squares / len(rows) - np.square(shift), 0))
    weights = (1 / np.maximum(deviation, 1e-12)).astype(np.float32)
    distances = np.zeros(len(rows))
    for start in range(0, len(rows), _BLOCK):
        places = neighbours.rows[start : start + _BLOCK]
        there = places >= 0
        own = features[rows[start : start + _BLOCK], None]
        steps = np.linalg.norm((own - features[rows[places]]) * weights, axis=2)
        counts = np.maximum(there.sum(axis=1), 1)
        distances[start : start + _BLOCK] = (steps * there).sum(axis=1) / counts
    return distances


def quality_findings(pictures: Pictures) -> Iterator[Finding]:
    """Yield pictures of one colour, nearly empty, tiny and blurred ones, worst of each first."""
    columns = zip(Quality._fields, pictures.quality.T, strict=True)
    measured: dict[str, np.ndarray] = dict(columns)
    spans, plain, sharpness = (measured[name] for name in ("range", "plain", "sharpness"))
    constant = spans < CONSTANT_BELOW
    smallest = _smallest(pictures)
    kinds: tuple[tuple[FindingKind, np.ndarray, np.ndarray, float, int], ...] = (
        ("constant", constant, spans, CONSTANT_BELOW, 1),
        ("empty", (plain > EMPTY_ABOVE) & ~constant, plain, EMPTY_ABOVE, -1),
        ("tiny", measured["shorter_side"] < smallest, measured["shorter_side"], smallest, 1),
        ("blurred", (sharpness < BLURRED_BELOW) & ~constant, sharpness, BLURRED_BELOW, 1),
    )
    for kind, found, values, limit, sign in kinds:
        rows = np.flatnonzero(found)
        for row in rows[np.argsort(sign * values[rows], kind="stable")].tolist():
            yield _finding(pictures.cache, row, kind, float(values[row]), limit=limit)


def _smallest(pictures: Pictures) -> float:
    """Return the shorter side in pixels below which an image is tiny.

    That is a quarter of what is usual in the file, and at most half of the backbone's input.
    """
    sides = pictures.quality[pictures.read, -1]
    size = int(pictures.cache.header.spec["preprocess"]["image_size"])
    return min(float(np.median(sides)) / 4, size / 2) if len(sides) else 0.0


def _finding(
    cache: FeatureFile,
    row: int,
    kind: FindingKind,
    score: float,
    *,
    limit: float,
    other: str = "",
) -> Finding:
    return Finding(
        *(cache.sample_ids[row], kind, cache.split_names[cache.splits[row]], label_of(cache, row)),
        score=score,
        limit=limit,
        other=other,
    )
