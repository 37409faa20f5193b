"""The graph that made the features: the one that extraction kept, or built again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from featx.artifact import file_sha256
from featx.backbones.graph_cache import cache_graph, read_graph
from featx.backbones.int8.calibrate import calibrate
from featx.backbones.int8.quantize import quantize_graph
from featx.backbones.spec import BackboneSpec, Calibration, weights_file
from featx.errors import BackboneError, ExportError
from featx.heads.head import Head
from featx.stages.export.options import ExportOptions, Precision

NUM_CALIBRATION = 128
"""Training images whose activations give int8 its ranges."""


def precision_of(head: Head, options: ExportOptions) -> Precision:
    """Return the precision that is asked for, or else int8 where the head's features have it."""
    if options.precision is not None:
        return options.precision
    return "fp32" if _own_ranges(head) is None else "int8"


def repeats_features(head: Head, precision: Precision) -> bool:
    """Return whether a file in some precision calculates as the head's features were calculated.

    None does so for features in tf32, bf16 or fp16: what these leave out, no graph can repeat.
    """
    own = BackboneSpec.from_dict(head.header.spec).precision
    return precision == own and own in ("fp32", "int8")


def float_graph(head: Head, options: ExportOptions, progress: Callable[[str], None]) -> bytes:
    """Return the float32 graph ``pixels → features`` of the very weights that made the features."""
    spec = BackboneSpec.from_dict(head.header.spec)
    plain = replace(spec, precision="fp32", calibration=None)
    origin = str(head.header.details["weights"])
    opset = options.opset
    graph = read_graph(plain, opset=opset)
    if graph is not None and _weights_are_there(plain, origin, options):
        return graph
    graph = _built_anew(plain, origin, options, progress)
    cache_graph(plain, graph, opset=opset)
    return graph


def shipped_graph(
    graph: bytes,
    head: Head,
    precision: Precision,
    training_pixels: Callable[[], Iterable[np.ndarray]],
) -> bytes:
    """Return a float32 graph in int8 where that is wanted.

    Args:
        graph: As ``float_graph`` gives it.
        head: Holds the ranges where its features were made in int8.
        precision: What the file is to have.
        training_pixels: Gives batches ``(n, size, size, 3)`` uint8 of training images.
    """
    if precision != "int8":
        return graph
    return quantize_graph(graph, _own_ranges(head) or calibrate(graph, training_pixels()))


def features_graph(graph: bytes, head: Head) -> bytes:
    """Return the graph at the precision that the features were made with."""
    ranges = _own_ranges(head)
    return graph if ranges is None else quantize_graph(graph, ranges)


def _own_ranges(head: Head) -> Calibration | None:
    return BackboneSpec.from_dict(head.header.spec).calibration


def _weights_are_there(spec: BackboneSpec, origin: str, options: ExportOptions) -> bool:
    """Return whether the weights are known to be where they should, without loading them."""
    if options.weights is None:
        scheme, _, rest = origin.partition(":")
        if scheme != "file":
            return True  # an official name stands for one file, a seed for one set of numbers
        path = weights_file(rest)
    else:
        path = weights_file(options.weights)
    try:
        return path is not None and file_sha256(path) == spec.weights_sha256
    except OSError:
        return False


def _built_anew(
    spec: BackboneSpec, origin: str, options: ExportOptions, progress: Callable[[str], None]
) -> bytes:
    from featx.backbones.network import build_network
    from featx.backbones.onnx_graph import build_graph
    from featx.backbones.weights import open_origin, open_weights, require_sha256

    def downloaded(done: int, total: int) -> None:
        progress(f"Downloading the weights, {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    if options.weights is None:
        weights = open_origin(spec.backbone, origin, progress=downloaded)
    else:
        weights = open_weights(spec.backbone, options.weights, progress=downloaded)
    require_sha256(weights, spec.weights_sha256)
    network, rebuilt = build_network(
        spec.backbone, weights, spec.preprocess, layer=spec.layer, pool=spec.pool
    )
    if rebuilt != spec:
        raise ExportError(
            f"The backbone {spec.backbone} built here differs from the one the features were made "
            "with. Use the versions of torch and torchvision that extracted them."
        )
    try:
        return build_graph(network, image_size=spec.preprocess.image_size, opset=options.opset)
    except BackboneError as err:
        raise ExportError(str(err)) from err
