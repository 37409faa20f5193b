"""The graph of a recorded spec: the cached one, which needs no torch, or one that is built."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from featx.backbones.graph_cache import cache_graph, read_graph
from featx.backbones.spec import BackboneSpec

if TYPE_CHECKING:
    from featx.backbones.network import Network

log = logging.getLogger(__name__)


def graph_of(spec: BackboneSpec, build: Callable[[BackboneSpec], Network]) -> bytes:
    """Return the graph of a spec in fp32 or int8: the cached one, or one that is built and cached.

    Args:
        spec: Of another precision, the graph is that in fp32.
        build: Called for the network of the spec in fp32, if it is needed.

    Raises:
        ExportError: There can be no graph of this network.
    """
    spec = spec if spec.calibration else spec.in_float32
    graph = read_graph(spec)
    if graph is not None:
        return graph
    if spec.calibration is not None:
        from featx.backbones.int8 import quantize_graph

        graph = quantize_graph(graph_of(spec.in_float32, build), spec.calibration)
    else:
        from featx.backbones.onnx_graph import build_graph

        network = build(spec)
        part = f" up to {spec.cut}" if spec.cut else ""
        log.info("Building the graph of %s%s for ONNX Runtime, once.", spec.backbone, part)
        graph = build_graph(network, image_size=spec.preprocess.image_size)
    cache_graph(spec, graph)
    return graph
