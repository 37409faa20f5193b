"""Resize and crop as nodes of a graph: Pillow's rules, for images of any height and width.

The geometry repeats ``images.preprocess`` with integer arithmetic on the image's shape; images of
one batch have the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from featx.classifier.graph_builder import Pieces
from featx.images.preprocess import PreprocessSpec

# exclude_outside: Pillow gives no weight to what lies beyond the border; otherwise borders differ
# by more than rounding explains.
_FILTERS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear", "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
}


def add_geometry(pieces: Pieces, spec: PreprocessSpec, *, image: str, output: str) -> None:
    """Add the nodes from ``image`` ``(batch, height, width, 3)`` to ``output``, both uint8.

    The output is ``(batch, size, size, 3)``, as ``images.preprocess.preprocess`` gives it.
    """
    size = spec.image_size
    shape = pieces.node(
        "Shape", [image], "shape", attributes={"start": 1, "end": 3}
    )  # (height, width)
    if spec.crop == "none":
        new_shape = pieces.integers("resized_shape", size, size)
    else:
        short = pieces.node("ReduceMin", [shape], "short_side", attributes={"keepdims": 1})
        scaled = pieces.node("Mul", [shape, pieces.integers("resize", spec.resize)], "scaled")
        new_shape = pieces.node("Div", [scaled, short], "resized_shape")
    resized = _add_resize(pieces, image, shape, new_shape, spec)
    if spec.crop == "none":
        pieces.node("Identity", [resized], "pixels", output=output)
        return
    # round((length - size) / 2), halves to even, as torchvision's CenterCrop has it
    margin = pieces.node("Sub", [new_shape, pieces.integers("size", size, size)], "margin")
    as_float = pieces.node("Cast", [margin], "margin_float", attributes={"to": TensorProto.FLOAT})
    half = pieces.node(
        "Mul", [as_float, pieces.constant("half", np.array(0.5, np.float32))], "half_margin"
    )
    rounded = pieces.node("Round", [half], "rounded_margin")
    start = pieces.node("Cast", [rounded], "crop_start", attributes={"to": TensorProto.INT64})
    end = pieces.node("Add", [start, "featx_size"], "crop_end")
    axes = pieces.integers("crop_axes", 1, 2)
    pieces.node("Slice", [resized, start, end, axes], "pixels", output=output)


def _add_resize(
    pieces: Pieces, image: str, shape: str, new_shape: str, spec: PreprocessSpec
) -> str:
    """Add the resize of ``image`` to ``new_shape`` (height, width) and return its output.

    Pillow resizes one axis after the other and rounds to uint8 in between, so the order shows,
    most where bicubic overshoots. It takes the width first, but from version 13 on
    the height where that loses more than twice as many pixels. So there are two nodes, each for
    one axis.
    """
    zero, one = pieces.integers("zero", 0), pieces.integers("one", 1)
    lost = pieces.node("Sub", [shape, new_shape], "lost")
    lost_height = pieces.node("Gather", [lost, zero], "lost_height")
    lost_width = pieces.node("Gather", [lost, one], "lost_width")
    twice = pieces.node("Add", [lost_width, lost_width], "lost_width_twice")
    limit = pieces.node("Max", [twice, zero], "lost_limit")
    height_first = pieces.node("Greater", [lost_height, limit], "height_first")
    is_height = pieces.constant("is_height", np.array([True, False]))
    goes_first = pieces.node("Equal", [is_height, height_first], "goes_first")
    between = pieces.node("Where", [goes_first, new_shape, shape], "shape_between")
    values = image
    for name, target in (("half_resized", between), ("resized", new_shape)):
        values = pieces.node(
            "Resize",
            [values, "", "", target],
            name,
            attributes={
                "antialias": 1,
                "axes": [1, 2],
                "coordinate_transformation_mode": "half_pixel",
                **_FILTERS[spec.interpolation],
            },
        )
    return values
