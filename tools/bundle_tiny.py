"""Make the graph that comes with the bundled backbone, so that it never needs torch on the CPU.

    python tools/bundle_tiny.py

It writes ``featx/backbones/bundled``: the graph, and which spec the default request comes to. Run
it after a change of the weights, of the network or of the spec; a test tells when.
"""

import shutil

from featx.backbones.graph_cache import (
    BUNDLED,
    ResolvedRequest,
    bundled_graph_path,
    bundled_request_path,
    remembered,
    sealed,
)
from featx.backbones.onnx_graph import build_graph
from featx.extraction.backbone import open_backbone
from featx.extraction.options import ExtractOptions


def main() -> None:
    """Write both files."""
    options = ExtractOptions(backbone="tiny").resolved()
    network, spec, weights = open_backbone(options)
    graph = build_graph(network, image_size=spec.preprocess.image_size)
    shutil.rmtree(BUNDLED, ignore_errors=True)
    for path, content in (
        (bundled_graph_path(spec), sealed(graph)),
        (
            bundled_request_path(options.request),
            remembered(options.request, ResolvedRequest(spec, weights.origin)),
        ),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
