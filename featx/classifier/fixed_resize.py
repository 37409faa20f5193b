"""Resize and crop of images of one shape, as products with matrices.

Runtimes differ in how they resize, and few take a size that is computed. All multiply matrices.
Pillow's arithmetic is repeated to the last bit: its weights are whole numbers, of which float32
holds neither the products nor their sums. So each weight is split in two, ``high · 2¹¹ + low``, and
both sums are exact in any order:

    (Σ weight · pixel + 2²¹) // 2²²  =  (Σ high · pixel + (Σ low · pixel) // 2¹¹ + 2¹⁰) // 2¹¹
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from featx.backbones.graph_builder import CHANNELS_FIRST, GraphBuilder
from featx.images.preprocess import PreprocessSpec, border_colour, crop_offset, resized_shape

_BITS = 22
"""Fractional bits of a weight: Pillow's PRECISION_BITS."""
_HALF = 2 ** (_BITS // 2)
_CHANNELS_LAST = [0, 2, 3, 1]


def add_fixed_geometry(
    builder: GraphBuilder,
    spec: PreprocessSpec,
    *,
    image: str,
    output: str,
    shape: tuple[int, int],
) -> None:
    """Add the nodes from ``image`` ``(batch, *shape, 3)`` uint8 to ``output``.

    The output has whole numbers, float32 ``(batch, size, size, 3)``: what
    ``images.preprocess.preprocess`` gives.
    """
    new = resized_shape(*shape, spec)
    weights = [resize_weights(*lengths, spec) for lengths in zip(shape, new, strict=True)]
    used = [np.flatnonzero(own.any(axis=0)) for own in weights]  # rows and columns that are read
    start = builder.integers("used_start", *(int(own[0]) for own in used))
    end = builder.integers("used_end", *(int(own[-1]) + 1 for own in used))
    axes = builder.integers("image_axes", 1, 2)
    values = builder.node("Slice", [image, start, end, axes], "used")
    perm, to_float = {"perm": CHANNELS_FIRST}, {"to": TensorProto.FLOAT}
    values = builder.node("Transpose", [values], "used_channels", attributes=perm)
    values = builder.node("Cast", [values], "used_values", attributes=to_float)
    matrices = {
        name: own[:, at[0] : at[-1] + 1]
        for name, own, at in zip(("rows", "columns"), weights, used, strict=True)
    }
    lost_height, lost_width = shape[0] - new[0], shape[1] - new[1]
    height_first = lost_height > max(2 * lost_width, 0)  # as ``image_nodes`` has it
    for axis in ("rows", "columns") if height_first else ("columns", "rows"):
        values = _add_product(builder, matrices[axis], axis, values)
    if any(colour := border_colour(spec)):  # zero where the matrices reach beyond the image
        rows, columns = (np.asarray(own.any(axis=1)) for own in weights)
        inside = rows[:, None] & columns  # (size, size)
        paint = np.where(inside, 0, np.reshape(colour, (3, 1, 1))).astype(np.float32)
        values = builder.node("Add", [values, builder.constant("border", paint)], "bordered")
    last = {"perm": _CHANNELS_LAST}
    builder.node("Transpose", [values], "pixels", output=output, attributes=last)


def _add_product(builder: GraphBuilder, weights: np.ndarray, axis: str, values: str) -> str:
    """Add the resize of rows or columns of ``values`` ``(batch, 3, height, width)``."""

    def product(name: str, part: np.ndarray) -> str:
        matrix = np.ascontiguousarray(part if axis == "rows" else part.T, np.float32)
        factor = builder.constant(f"{axis}_{name}_weights", matrix)
        pair = [factor, values] if axis == "rows" else [values, factor]
        return builder.node("MatMul", pair, f"{axis}_{name}")

    def number(name: str, value: float) -> str:
        return builder.constant(f"{axis}_{name}", np.array(value, np.float32))

    high = (weights + _HALF // 2) // _HALF
    scale = number("scale", 1 / _HALF)
    carried = builder.node("Mul", [product("low", weights - high * _HALF), scale], f"{axis}_carry")
    carried = builder.node("Floor", [carried], f"{axis}_carried")
    total = builder.node("Add", [product("high", high), carried], f"{axis}_total")
    total = builder.node("Add", [total, number("half", _HALF / 2)], f"{axis}_raised")
    total = builder.node("Mul", [total, scale], f"{axis}_scaled")
    total = builder.node("Floor", [total], f"{axis}_whole")
    bounds = [number("black", 0), number("white", 255)]
    return builder.node("Clip", [total, *bounds], f"{axis}_resized")


def resize_weights(length: int, new_length: int, spec: PreprocessSpec) -> np.ndarray:
    """Return what Pillow multiplies rows of pixels by, ``(image_size, length)`` int64.

    In units of 2⁻²². Rows of the crop beyond the image are zero.
    Source: https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
    """
    scale = length / new_length
    width = max(scale, 1.0)
    support = width * (1 if spec.interpolation == "bilinear" else 2)
    start = crop_offset(new_length, spec.image_size)
    weights = np.zeros((spec.image_size, length), np.int64)
    for row, index in enumerate(range(start, start + spec.image_size)):
        if not 0 <= index < new_length:
            continue
        centre = (index + 0.5) * scale
        first, last = max(0, int(centre - support + 0.5)), min(length, int(centre + support + 0.5))
        own = _kernel((np.arange(first, last) - centre + 0.5) / width, spec)
        exact = own / own.sum() * 2**_BITS
        weights[row, first:last] = np.trunc(exact + np.copysign(0.5, exact))
    return weights


def _kernel(x: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return the filter at distances ``(n,)`` in pixels of the result."""
    x = np.abs(x)
    if spec.interpolation == "bilinear":
        return np.asarray(np.maximum(1 - x, 0))
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0))
