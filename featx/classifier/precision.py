"""The backbone of a file in less than float32.

In fp16, weights and arithmetic are float16 inside the trunk; what goes in and out of it, the
resize, the normalisation and the head stay float32. In int8 the graph comes quantised from
``backbones.int8``.
"""

from __future__ import annotations

import warnings
from typing import Literal

import onnx

from featx.classifier.trunk import TENSOR
from featx.errors import ExportError

Precision = Literal["fp32", "fp16", "int8"]


def to_float16(trunk: onnx.ModelProto) -> onnx.ModelProto:
    """Return a trunk whose weights and arithmetic are float16; features stay float32.

    Values beyond float16's range are cut off; the proof measures what that costs.

    Raises:
        ExportError: The graph cannot be converted.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that is too small
            converted: onnx.ModelProto = convert_float_to_float16(
                trunk, keep_io_types=True, disable_shape_infer=True
            )
    except (ValueError, RuntimeError, AttributeError) as err:
        raise ExportError(f"The backbone cannot be converted to float16: {err}") from err
    nodes = sorted(converted.graph.node, key=lambda node: TENSOR not in node.input)
    del converted.graph.node[:]  # the converter puts the cast of the input last
    converted.graph.node.extend(nodes)
    return converted
