"""The graph that made the features: the cached one, or built again."""

from __future__ import annotations

from collections.abc import Callable

from featx.backbones.graph_cache import cache_graph, read_graph
from featx.backbones.spec import BackboneSpec, has_sha256, weights_file
from featx.errors import BackboneError, ExportError
from featx.heads.head import Head
from featx.stages.export.options import ExportOptions, Precision


def repeats_features(head: Head, precision: Precision) -> bool:
    """Return whether a file in some precision calculates as the head's features were calculated.

    None does so for features in tf32, bf16 or fp16: what these leave out, no graph can repeat.
    """
    own = BackboneSpec.from_dict(head.header.spec).precision
    return precision == own and own in ("fp32", "int8")


def float_graph(head: Head, options: ExportOptions, progress: Callable[[str], None]) -> bytes:
    """Return the float32 graph ``pixels → features`` of the very weights that made the features."""
    plain = BackboneSpec.from_dict(head.header.spec).in_float32
    origin = str(head.header.details["weights"])
    if (graph := read_graph(plain, opset=options.opset)) is not None:
        file = None if options.weights is None else weights_file(options.weights)
        place = f"file:{file}" if file else origin
        if (file or options.weights is None) and has_sha256(place, plain.weights_sha256):
            return graph
    graph = _build_graph(plain, origin, options, progress)
    cache_graph(plain, graph, opset=options.opset)
    return graph


def _build_graph(
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
