"""The nodes between an image and the trunk.

Resize and crop repeat ``images.preprocess``, and so Pillow's rules, for images of any shape; those
of one batch have the same. Then comes the arithmetic on pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from featx.backbones.graph_builder import CHANNELS_FIRST, GraphBuilder, add_normalisation
from featx.images.preprocess import PreprocessSpec, border_colour

TENSOR = "tensor"
"""The trunk's input, normalised images ``(batch, 3, size, size)`` float32."""

# exclude_outside: Pillow gives no weight to what lies beyond the border; otherwise borders differ
# by more than rounding explains.
_FILTERS: dict[str, dict[str, Any]] = {
    "bilinear": {"mode": "linear", "exclude_outside": 1},
    "bicubic": {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
}


def add_geometry(builder: GraphBuilder, spec: PreprocessSpec, *, image: str, output: str) -> None:
    """Add the nodes from ``image`` ``(batch, height, width, 3)`` to ``output``, both uint8.

    The output is ``(batch, size, size, 3)``, as ``images.preprocess.preprocess`` gives it.
    """
    size = spec.image_size
    sides = {"start": 1, "end": 3}
    shape = builder.node("Shape", [image], "shape", attributes=sides)  # (height, width)
    if spec.crop in ("none", "squash"):
        new_shape = builder.integers("resized_shape", spec.resize, spec.resize)
    elif spec.crop == "border":
        new_shape = _add_border_shape(builder, shape, spec)
    else:
        short = builder.node("ReduceMin", [shape], "short_side", attributes={"keepdims": 1})
        scaled = builder.node("Mul", [shape, builder.integers("resize", spec.resize)], "scaled")
        new_shape = builder.node("Div", [scaled, short], "resized_shape")
    resized = _add_resize(builder, image, shape, new_shape, spec)
    if spec.crop == "none":
        builder.node("Identity", [resized], "pixels", output=output)
        return
    if spec.pad or spec.crop == "border":
        new_shape, resized = _add_border(builder, new_shape, resized, spec)
    # round((length - size) / 2), halves to even, as torchvision's CenterCrop has it
    margin = builder.node("Sub", [new_shape, builder.integers("size", size, size)], "margin")
    as_float = builder.node("Cast", [margin], "margin_float", attributes={"to": TensorProto.FLOAT})
    half = builder.constant("half", np.array(0.5, np.float32))
    halved = builder.node("Mul", [as_float, half], "half_margin")
    rounded = builder.node("Round", [halved], "rounded_margin")
    start = builder.node("Cast", [rounded], "crop_start", attributes={"to": TensorProto.INT64})
    end = builder.node("Add", [start, "featx_size"], "crop_end")
    axes = builder.integers("crop_axes", 1, 2)
    builder.node("Slice", [resized, start, end, axes], "pixels", output=output)


def _add_border_shape(builder: GraphBuilder, shape: str, spec: PreprocessSpec) -> str:
    """Add the height and width that make the longer side ``resize``, at least 1, and return them.

    In float64, as Python has them: halves are rounded to even.
    """
    to_double, to_int = {"to": TensorProto.DOUBLE}, {"to": TensorProto.INT64}
    exact = builder.node("Cast", [shape], "exact_shape", attributes=to_double)
    longest = builder.node("ReduceMax", [exact], "long_side", attributes={"keepdims": 1})
    target = builder.constant("resize_exact", np.array([spec.resize], np.float64))
    ratio = builder.node("Div", [longest, target], "ratio")
    scaled = builder.node("Round", [builder.node("Div", [exact, ratio], "scaled")], "rounded_shape")
    whole = builder.node("Cast", [scaled], "whole_shape", attributes=to_int)
    return builder.node("Max", [whole, builder.integers("least_side", 1)], "resized_shape")


def _add_border(
    builder: GraphBuilder, shape: str, image: str, spec: PreprocessSpec
) -> tuple[str, str]:
    """Add what makes both sides at least ``image_size``; return the new shape and image."""
    size, two = spec.image_size, builder.integers("two", 2)
    missing = builder.node("Sub", [builder.integers("border_size", size, size), shape], "missing")
    nothing = builder.integers("no_border", 0, 0)
    border = builder.node("Max", [missing, nothing], "border")
    before = builder.node("Div", [border, two], "border_before")
    after = builder.node("Sub", [border, before], "border_after")
    none = builder.integers("no_pad", 0)
    order = [none, before, none, none, after, none]
    pads = builder.node("Concat", order, "pads", attributes={"axis": 0})
    colour = border_colour(spec)
    if len(set(colour)) == 1:
        value = builder.constant("border_value", np.array(colour[0], np.uint8))
        padded = builder.node("Pad", [image, pads, value], "padded")
    else:
        zero = builder.constant("border_value", np.array(0, np.uint8))
        black = builder.node("Pad", [image, pads, zero], "padded_black")
        inside = builder.node("Equal", [image, image], "inside")
        no = builder.constant("outside", np.array(False))
        within = builder.node("Pad", [inside, pads, no], "within")
        paint = builder.constant("border_colour", np.array(colour, np.uint8))
        padded = builder.node("Where", [within, black, paint], "padded")
    return builder.node("Add", [shape, border], "bordered_shape"), padded


def _add_resize(
    builder: GraphBuilder, image: str, shape: str, new_shape: str, spec: PreprocessSpec
) -> str:
    """Add the resize of ``image`` to ``new_shape`` (height, width) and return its output.

    Pillow resizes one axis after the other and rounds to uint8 in between, so the order shows,
    most where bicubic overshoots. It takes the width first, but from version 13 on the height where
    that loses more than twice as many pixels. So there are two nodes, each for one axis.
    """
    zero, one = builder.integers("zero", 0), builder.integers("one", 1)
    lost = builder.node("Sub", [shape, new_shape], "lost")
    lost_height = builder.node("Gather", [lost, zero], "lost_height")
    lost_width = builder.node("Gather", [lost, one], "lost_width")
    twice = builder.node("Add", [lost_width, lost_width], "lost_width_twice")
    limit = builder.node("Max", [twice, zero], "lost_limit")
    height_first = builder.node("Greater", [lost_height, limit], "height_first")
    is_height = builder.constant("is_height", np.array([True, False]))
    goes_first = builder.node("Equal", [is_height, height_first], "goes_first")
    between = builder.node("Where", [goes_first, new_shape, shape], "shape_between")
    attributes = {
        "antialias": 1,
        "axes": [1, 2],
        "coordinate_transformation_mode": "half_pixel",
        **_FILTERS[spec.interpolation],
    }
    values = image
    for name, target in (("half_resized", between), ("resized", new_shape)):
        values = builder.node("Resize", [values, "", "", target], name, attributes=attributes)
    return values


def add_arithmetic(
    builder: GraphBuilder, trunk: onnx.GraphProto, spec: PreprocessSpec, *, pixels: str, fold: bool
) -> None:
    """Add the nodes from ``pixels`` ``(batch, size, size, 3)`` uint8 to the trunk's input.

    The arithmetic is done in fewer steps than in extraction:

        (x / 255 - mean) / std  =  (x - 255 mean) · 1 / (255 std)

    The factor goes into the weights of the first convolution. The mean goes into its bias only
    where it has no padding: beyond the border of a normalised image there are zeros, which is the
    mean, not black.
    """
    mean = 255 * np.array(spec.mean, np.float64)
    factor = 1 / (255 * np.array(spec.std, np.float64))
    first = _first_convolution(trunk) if fold else None
    if first is None:
        steps = [("Sub", "centred", mean), ("Mul", "normalised", factor)]
        add_normalisation(builder, steps, pixels=pixels, width=spec.image_size, output=TENSOR)
        return
    whole = not _is_padded(first)
    _fold_into(first, trunk, shift=-mean if whole else None, factor=factor)
    perm, to_float = {"perm": CHANNELS_FIRST}, {"to": TensorProto.FLOAT}
    arranged = builder.node("Transpose", [pixels], "channels_first", attributes=perm)
    output = TENSOR if whole else None
    value = builder.node("Cast", [arranged], "values", output=output, attributes=to_float)
    if not whole:
        by = builder.constant("centred_by", mean.astype(np.float32).reshape(1, 3, 1, 1))
        builder.node("Sub", [value, by], "centred", output=TENSOR)


def _first_convolution(trunk: onnx.GraphProto) -> onnx.NodeProto | None:
    """Return the convolution that alone reads the input and alone its weights, if there is one."""
    readers = [node for node in trunk.node if TENSOR in node.input and node.op_type != "Shape"]
    if len(readers) != 1 or readers[0].op_type != "Conv":
        return None
    node = readers[0]
    constants = {tensor.name for tensor in trunk.initializer}
    own = list(node.input[1:])
    uses = [name for other in trunk.node for name in other.input if name in own]
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    return node if set(own) <= constants and len(uses) == len(own) and groups == 1 else None


def _is_padded(convolution: onnx.NodeProto) -> bool:
    attributes = {attribute.name: attribute for attribute in convolution.attribute}
    if "auto_pad" in attributes and attributes["auto_pad"].s not in (b"", b"NOTSET", b"VALID"):
        return True
    return "pads" in attributes and any(attributes["pads"].ints)


def _fold_into(
    convolution: onnx.NodeProto,
    trunk: onnx.GraphProto,
    *,
    shift: np.ndarray | None,
    factor: np.ndarray,
) -> None:
    """Change a convolution of normalised images to read ``x``, or ``x + shift``."""
    tensors = {tensor.name: tensor for tensor in trunk.initializer}
    weight = numpy_helper.to_array(tensors[convolution.input[1]]).astype(np.float64)
    scaled = weight * factor[None, :, None, None]
    _replace(tensors[convolution.input[1]], scaled)
    if shift is None:
        return
    added = (scaled * shift[None, :, None, None]).sum(axis=(1, 2, 3))
    if len(convolution.input) == 3:
        bias = tensors[convolution.input[2]]
        _replace(bias, numpy_helper.to_array(bias) + added)
    else:
        name = f"{convolution.input[1]}_shift"
        trunk.initializer.append(numpy_helper.from_array(added.astype(np.float32), name))
        convolution.input.append(name)


def _replace(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
