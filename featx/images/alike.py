"""Whether two images show the same picture: saved again, resized, cropped, mirrored, brightened.

Small grey pictures are laid on each other: a shift and a stretch along each axis, by Gauss-Newton
steps on the squared difference (Lucas and Kanade 1981), from coarse to fine. What counts then is
the correlation of their slopes, divided by how strong the slopes around are: a frame, a shadow or
a caption weighs no more than its area, and flat regions, where all images are alike, nothing.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 32
"""Side of the pictures that are compared, pixels."""
DETAIL = 192
"""Side of those that are compared again where images are large enough."""
SCREEN = 0.35
"""Correlation of outlines, unaligned, below which no alignment is tried."""
_OUTLINE = SIDE // 2
_CHUNK = 128
_AROUND = 16
_LARGEST_STRETCH, _LARGEST_SHIFT = 1.25, 0.3
"""A shift is in halves of the side."""


class Alike(NamedTuple):
    """Similarity of pairs of pictures, ``(n,)`` each, and the transformation between them."""

    scores: np.ndarray  # correlation of slopes, [-1, 1]
    flipped: np.ndarray  # whether the second one is mirrored
    moves: np.ndarray  # stretch and shift of rows, then of columns, (n, 4)


def small_grey(image: Image.Image | np.ndarray, side: int = SIDE) -> np.ndarray:
    """Return a whole image squeezed to grey ``(side, side)`` uint8."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BILINEAR))


def outlines(pictures: np.ndarray) -> np.ndarray:
    """Return the coarse slopes of grey pictures ``(n, SIDE, SIDE)``; ``(n, 512)`` float16."""
    parts = [np.empty((0, 2 * _OUTLINE**2), np.float16)]
    for start in range(0, len(pictures), _CHUNK):
        slopes = _slopes(_smooth(_halved(_even(pictures[start : start + _CHUNK]))))
        slopes = slopes.reshape(len(slopes), -1)
        lengths = np.linalg.norm(slopes, axis=1, keepdims=True)
        parts.append((slopes / np.maximum(lengths, np.float32(1e-6))).astype(np.float16))
    return np.concatenate(parts)


def compare_outlines(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the correlations of outlines pair by pair, and whether that is of the mirrored one.

    ``first`` and ``second`` are ``(n, num_values)``, rows of unit length.
    """
    straight, turned = np.empty(len(first)), np.empty(len(first))
    for start in range(0, len(first), _CHUNK):
        some = slice(start, start + _CHUNK)
        ours, theirs = (each[some].astype(np.float32) for each in (first, second))
        mirrored = theirs.reshape(-1, 2, _OUTLINE, _OUTLINE)[..., ::-1].copy()
        mirrored[:, 1] *= -1
        straight[some] = np.einsum("ij,ij->i", ours, theirs)
        turned[some] = np.einsum("ij,ij->i", ours, mirrored.reshape(len(ours), -1))
    return np.maximum(straight, turned), turned > straight


def compare_pictures(
    first: np.ndarray, second: np.ndarray, screened: tuple[np.ndarray, np.ndarray] | None = None
) -> Alike:
    """Return how alike pictures are pair by pair, after the best flip, shift and stretch.

    Args:
        first: Grey pictures ``(n, SIDE, SIDE)`` uint8.
        second: What each is compared with, of the same shape.
        screened: Of ``compare_outlines`` for the same pairs, where that is known.
    """
    likeness, flipped = screened or compare_outlines(outlines(first), outlines(second))
    moves = np.tile(np.array([1.0, 0.0, 1.0, 0.0]), (len(first), 1))
    scores = np.minimum(likeness, SCREEN)  # of pictures that are not aligned
    likely = np.flatnonzero(likeness >= SCREEN)
    for start in range(0, len(likely), _CHUNK):
        some = likely[start : start + _CHUNK]
        a, b = _even(first[some]), _turned(_even(second[some]), flipped[some])
        moves[some], scores[some] = _better(
            *((each, _correlations(a, b, each)) for each in (moves[some], _aligned(a, b)))
        )
    return Alike(scores, flipped, moves)


def compare_details(first: np.ndarray, second: np.ndarray, found: Alike) -> np.ndarray:
    """Return the share of a picture's structure that is in the other one, too; ``(n,)``, [0, 1].

    Pages of one form are alike when they are small; here their text must be the same.

    Args:
        first: Grey pictures ``(n, side, side)`` uint8, larger than ``SIDE``.
        second: What each is compared with.
        found: Of ``compare_pictures`` for the same pairs.
    """
    parts = [
        _shared_structure(*(each[start : start + 32] for each in (first, second, *found[1:])))
        for start in range(0, len(first), 32)
    ]
    return np.concatenate([np.empty(0), *parts])


def _better(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return moves ``(n, 4)`` and scores ``(n,)``, of two the ones that score higher."""
    second_wins = second[1] > first[1]
    return (
        np.where(second_wins[:, None], second[0], first[0]),
        np.where(second_wins, second[1], first[1]),
    )


def _turned(pictures: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    return np.where(flipped[:, None, None], pictures[:, :, ::-1], pictures)


def _shared_structure(
    first: np.ndarray, second: np.ndarray, flipped: np.ndarray, moves: np.ndarray
) -> np.ndarray:
    a, b = _even(first), _turned(_even(second), flipped)
    refined = _steps(_smooth(_halved(a)), _smooth(_halved(b)), moves, 2)
    refined = _steps(_smooth(a), _smooth(b), refined, 2)
    _, shares = _better(*((each, _matched(a, b, each)) for each in (moves, refined)))
    return shares


def _matched(first: np.ndarray, second: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Return the share of cells that match, of slopes down or to the right, the lower one."""
    laid, inside = _laid(second, moves)
    ours, theirs = (_even_slopes(each, apart=True) * inside[:, None] for each in (first, laid))
    both, own, other = (
        _cells((x * y).reshape(-1, *first.shape[1:]), _CELL).reshape(len(first), 2, -1)
        for x, y in ((ours, theirs), (ours, ours), (theirs, theirs))
    )
    weights = own + other
    matched = weights * (both / np.sqrt(np.maximum(own * other, 1e-12)) >= _CELL_ALIKE)
    shares = matched.sum(axis=2) / np.maximum(weights.sum(axis=2), 1e-12)
    return np.asarray(shares.min(axis=1))


_CELL_ALIKE, _CELL = 0.6, 12
_SMALL_CELL, _LEFT_OUT = 4, 0.15


def _cells(values: np.ndarray, cell: int) -> np.ndarray:
    """Return sums over square cells of pictures ``(n, side, side)``."""
    count = values.shape[1] // cell
    return np.asarray(values.reshape(-1, count, cell, count, cell).sum(axis=(2, 4)))


def _even(pictures: np.ndarray) -> np.ndarray:
    """Return pictures of the same brightness and contrast everywhere, float32."""
    values = pictures.astype(np.float32)
    values -= _smooth(values, _AROUND)
    strength = _smooth(np.square(values), _AROUND)
    strength += 0.1 * strength.mean(axis=(1, 2), keepdims=True) + 1.0
    return np.asarray(values / np.sqrt(strength))


@cache
def _binomial(side: int, times: int = 1) -> np.ndarray:
    """Return the matrix that smooths rows with the weights 1, 2, 1, edges repeated."""
    matrix = np.zeros((side, side))
    for row in range(side):
        for step, weight in ((-1, 1), (0, 2), (1, 1)):
            matrix[row, min(max(row + step, 0), side - 1)] += weight / 4
    return np.linalg.matrix_power(matrix, times).astype(np.float32)


def _smooth(pictures: np.ndarray, times: int = 1) -> np.ndarray:
    matrix = _binomial(pictures.shape[-1], times)
    return np.asarray(matrix @ pictures @ matrix.T)


def _halved(pictures: np.ndarray) -> np.ndarray:
    count, side, _ = pictures.shape
    return np.asarray(pictures.reshape(count, side // 2, 2, side // 2, 2).mean(axis=(2, 4)))


def _slopes(pictures: np.ndarray) -> np.ndarray:
    """Return the slopes down and to the right, 0 at the edges; ``(n, 2, side, side)``."""
    slopes = np.zeros((len(pictures), 2, *pictures.shape[1:]), np.float32)
    slopes[:, 0, 1:-1] = pictures[:, 2:] - pictures[:, :-2]
    slopes[:, 1, :, 1:-1] = pictures[:, :, 2:] - pictures[:, :, :-2]
    return slopes


def _even_slopes(pictures: np.ndarray, *, apart: bool = False) -> np.ndarray:
    """Return slopes, each divided by the strength of those around it, or ``apart``, of its kind."""
    slopes = _slopes(_smooth(pictures))
    strength = np.square(slopes).sum(axis=1, keepdims=True)
    floor = 0.3 * strength.mean(axis=(1, 2, 3), keepdims=True) + 1e-12
    strength = _smooth(np.square(slopes) if apart else strength, 4)
    return np.asarray(slopes / np.sqrt(strength + floor))


def _correlations(first: np.ndarray, second: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Return the correlations ``(n,)`` of slopes where both pictures are, the second one moved.

    The cells that fit worst are left out, so that a caption does not hide that the rest is equal.
    """
    laid, inside = _laid(second, moves)
    first, second = _even_slopes(first), _even_slopes(laid)
    both, own, other = (
        _cells(np.sum(x * y, axis=1) * inside, _SMALL_CELL).reshape(len(first), -1).astype(float)
        for x, y in ((first, second), (first, first), (second, second))
    )
    order = np.argsort(own + other - 2 * both, axis=1)[:, : round(own.shape[1] * (1 - _LEFT_OUT))]
    both, own, other = (
        np.take_along_axis(each, order, axis=1).sum(axis=1) for each in (both, own, other)
    )
    return np.asarray(both / np.sqrt(np.maximum(own * other, 1e-12)))


def _places(side: int) -> np.ndarray:
    """Return the centres of pixels in halves of the side, from the middle."""
    return ((2 * np.arange(side) + 1) / side - 1).astype(np.float32)


def _weights(stretch: np.ndarray, shift: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return weights ``(n, side, side)`` that read a line elsewhere, and what is inside of it."""
    wanted = ((stretch[:, None] * _places(side) + shift[:, None] + 1) * side - 1) / 2
    inside = (wanted >= -0.5) & (wanted <= side - 0.5)
    wanted = np.clip(wanted, 0, side - 1)[:, :, None]
    return np.maximum(0, 1 - np.abs(wanted - np.arange(side))).astype(np.float32), inside


def _laid(pictures: np.ndarray, moves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures moved, and where they have pixels, both ``(n, side, side)`` float32."""
    side = pictures.shape[-1]
    rows, inside_rows = _weights(moves[:, 0], moves[:, 1], side)
    columns, inside_columns = _weights(moves[:, 2], moves[:, 3], side)
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :]).astype(np.float32)
    return np.asarray(rows @ pictures @ columns.transpose(0, 2, 1)), inside


def _aligned(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the moves, ``(n, 4)``, that lay the second pictures on the first."""
    moves = np.tile([1.0, 0.0, 1.0, 0.0], (len(first), 1))
    a, b = _halved(first), _halved(second)
    moves = _steps(_smooth(a, 2), _smooth(b, 2), moves, 3)
    moves = _steps(a, b, moves, 2)
    return _steps(_smooth(first), _smooth(second), moves, 2)


def _steps(first: np.ndarray, second: np.ndarray, moves: np.ndarray, count: int) -> np.ndarray:
    """Return moves after Gauss-Newton steps; brightness and contrast are fitted, too."""
    places = _places(first.shape[-1])
    to_slope = first.shape[-1] / 4  # of a difference over two pixels, by half a side
    weights = np.ones_like(first)
    for _ in range(count):
        laid, inside = _laid(second, moves)
        down, right = _slopes(laid).transpose(1, 0, 2, 3) * to_slope
        columns = [down * places[:, None], down, right * places, right, laid, np.ones_like(laid)]
        jacobian = np.stack(columns, axis=1) * (weights * inside)[:, None]
        jacobian = jacobian.reshape(len(first), 6, -1)
        products = (jacobian @ jacobian.transpose(0, 2, 1)).astype(np.float64)
        wanted = (jacobian @ (weights * first).reshape(len(first), -1, 1)).astype(np.float64)
        damping = 1e-3 * np.trace(products, axis1=1, axis2=2) / 6 + 1e-9
        products += damping[:, None, None] * np.diag([1.0, 1, 1, 1, 1e-3, 1e-3])
        solved = np.linalg.solve(products, wanted)[..., 0]
        contrast = np.where(np.abs(solved[:, 4]) < 0.1, 0.1, solved[:, 4])[:, None]
        weights = _trusted(first - solved[:, 4:5, None] * laid - solved[:, 5:, None])
        moves = moves + np.clip(solved[:, :4] / contrast, -0.12, 0.12)
        moves[:, ::2] = np.clip(moves[:, ::2], 1 / _LARGEST_STRETCH, _LARGEST_STRETCH)
        moves[:, 1::2] = np.clip(moves[:, 1::2], -_LARGEST_SHIFT, _LARGEST_SHIFT)
    return moves


def _trusted(errors: np.ndarray) -> np.ndarray:
    """Return weights ``(n, side, side)`` that keep a caption from moving a picture."""
    typical = 2 * np.median(np.abs(errors), axis=(1, 2), keepdims=True) + 1e-3
    return np.asarray(1 / (1 + np.square(errors / typical)), np.float32)
