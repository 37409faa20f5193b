"""Pictures that are odd on their own: far from all others, of one colour, empty, or blurred."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from featx.features.file import FeatureFile
from featx.images.quality import BLURRED_BELOW, CONSTANT_BELOW, EMPTY_ABOVE, Quality
from featx.stages.audit.findings import Finding, FindingKind
from featx.stages.audit.pictures import Pictures

_FAR = 4.0
"""Deviations of the logarithms of distances from their medians above which an image is far away."""
_NORMAL = 1.4826  # of a normal distribution, deviation by median absolute deviation
_FEWEST = 50
"""Images below which none is called far from the others."""
_NEIGHBOUR = 10
"""Which of the nearest images the distance is measured to: as many odd ones may be alike."""
_COMPARED = 5_000
"""Images, evenly spread over the file, that all are compared with."""
_BLOCK = 512


def outlier_findings(
    cache: FeatureFile, rows: np.ndarray, pictures: Pictures | None
) -> Iterator[Finding]:
    """Yield images that are unusually far from the others, the most unusual first.

    Far by their features and by what their pixels look like: a network that was trained on photos
    may see nothing in a page of text, or noise. The score is by how many deviations the distances
    to the tenth nearest are above the usual ones, both together (root of the sum of squares).

    Args:
        cache: The feature file.
        rows: Those with usable features, ``(n,)``.
        pictures: None where they are not there.
    """
    above = np.zeros((2, len(cache)))
    above[0, rows] = _deviations(lambda some: _units(cache, rows[some]), len(rows))
    if pictures is not None:
        read = np.flatnonzero(pictures.read)
        looks = _whitened(looks_of(pictures.small[read], pictures.quality[read]))
        above[1, read] = _deviations(lambda some: looks[some], len(read))
    scores = np.hypot(*above)
    found = np.flatnonzero(scores > _FAR)
    for row in found[np.argsort(-scores[found], kind="stable")].tolist():
        yield Finding.of(cache, row, "outlier", float(scores[row]))._replace(limit=_FAR)


def _deviations(vectors: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return by how many deviations vectors are farther away than usual, at least 0; ``(n,)``."""
    if count < _FEWEST:
        return np.zeros(count)
    logs = np.log(np.maximum(_distances(vectors, count), 1e-6))
    logs -= np.median(logs)
    deviation = _NORMAL * float(np.median(np.abs(logs)))
    return np.asarray(np.maximum(logs / deviation, 0) if deviation > 0 else np.zeros(count))


def _distances(vectors: Callable[[np.ndarray], np.ndarray], count: int) -> np.ndarray:
    """Return the distance of each vector to its tenth nearest, of few to an earlier one."""
    compared = np.linspace(0, count - 1, min(count, _COMPARED)).astype(np.int64)
    others = vectors(compared)
    squares = np.einsum("nd,nd->n", others, others)
    place = min(_NEIGHBOUR, count // 20) - 1
    found = np.empty(count)
    for start in range(0, count, _BLOCK):
        here = np.arange(start, min(start + _BLOCK, count))
        own = vectors(here)
        steps = np.einsum("nd,nd->n", own, own)[:, None] + squares - 2 * own @ others.T
        steps[here[:, None] == compared] = np.inf
        found[here] = np.partition(steps, place, axis=1)[:, place]
    return np.sqrt(np.maximum(found, 0))


def _units(cache: FeatureFile, rows: np.ndarray) -> np.ndarray:
    """Return features of length 1: how strongly a network responds tells little of what it sees."""
    features = cache.features[rows]
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True))


_SHADES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
_SCALES = 4
_STEADY = 0.1
"""Added to variances of 1, so that measures which nearly follow from others are not blown up."""


def looks_of(small: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Return what pictures look like, whatever they show; ``(n, 19)``.

    That is how dark their pixels are, how steep on four scales, and how many are flat or plain.

    Args:
        small: Grey pictures ``(n, side, side)`` uint8.
        quality: ``Quality`` of each, ``(n, 4)``.
    """
    parts = [_shades_and_slopes(small[at : at + _BLOCK]) for at in range(0, len(small), _BLOCK)]
    span, plain, sharpness = quality.T[:3]
    known = sharpness[np.isfinite(sharpness)]
    usual = float(np.median(known)) if len(known) else 1.0
    sharpness = np.where(np.isfinite(sharpness), sharpness, usual)
    return np.column_stack([np.concatenate(parts), span / 255, np.sqrt(plain), sharpness])


def _shades_and_slopes(small: np.ndarray) -> np.ndarray:
    count, side, _ = small.shape
    shades = np.sort(small.reshape(count, -1), axis=1, kind="stable")
    picture = small.astype(np.float32)
    flat = (np.abs(np.diff(picture, axis=2)) < 2).mean(axis=(1, 2))
    columns = [*(shades[:, int(share * side**2)] / 255 for share in _SHADES), flat]
    for _ in range(_SCALES):
        columns += [
            np.log(np.abs(np.diff(picture, axis=axis)).mean(axis=(1, 2)) + 0.5) for axis in (1, 2)
        ]
        half = picture.shape[1] // 2
        picture = picture.reshape(count, half, 2, half, 2).mean(axis=(2, 4))
    return np.column_stack(columns)


def _whitened(looks: np.ndarray) -> np.ndarray:
    """Return measures in directions that vary about alike among ordinary pictures, float32.

    What is ordinary is measured twice, the second time without the tenth that is farthest away:
    else many odd ones would make themselves usual.
    """
    ordinary = np.ones(len(looks), bool)
    for _ in range(2):
        some = looks[ordinary]
        middle, spread = some.mean(axis=0), np.maximum(some.std(axis=0), 1e-12)
        scaled = (some - middle) / spread
        variances, directions = np.linalg.eigh(scaled.T @ scaled / len(some))
        found = (looks - middle) / spread @ directions / np.sqrt(variances + _STEADY)
        lengths = np.linalg.norm(found, axis=1)
        ordinary = lengths <= np.quantile(lengths, 0.9)
    return np.asarray(found, np.float32)


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
            made = Finding.of(pictures.cache, row, kind, float(values[row]))
            yield made._replace(limit=limit)


def _smallest(pictures: Pictures) -> float:
    """Return the shorter side in pixels below which an image is tiny.

    That is a quarter of what is usual in the file, and at most half of the backbone's input, or 32.
    """
    sides = pictures.quality[pictures.read, -1]
    size = int(pictures.cache.header.spec["preprocess"]["image_size"])
    return min(float(np.median(sides)) / 4, max(size / 2, 32.0)) if len(sides) else 0.0
