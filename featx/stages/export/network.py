"""The network of a head with its weights, in torch: what a graph or a state dict is made from."""

from __future__ import annotations

from collections.abc import Callable

from featx.backbones.network import Network, build_network
from featx.backbones.spec import INPUT, BackboneSpec
from featx.backbones.tails import build_tuned, other_network
from featx.backbones.weights import Weights, open_recorded
from featx.errors import ExportError
from featx.heads.head import Head


def network_of(head: Head, weights: str | None, progress: Callable[[str], None]) -> Network:
    """Return the float32 network of a head: pixels in, features out, with its tail if it has one.

    Args:
        head: Of any backbone of the catalog.
        weights: As ``extract`` takes them; None takes those that the head recorded.
        progress: Called while weights are downloaded.

    Raises:
        BackboneError: Weights or tail cannot be found, are others, or do not fit.
        ExportError: torchvision builds another network here.
    """
    spec = BackboneSpec.from_dict(head.header.spec).in_float32
    if head.tail:
        known = None if spec.cut == INPUT else weights_of(head, weights, progress)
        return build_tuned(spec, head.tail, known)
    network, rebuilt = build_network(
        spec.backbone,
        weights_of(head, weights, progress),
        spec.preprocess,
        layer=spec.layer,
        pool=spec.pool,
    )
    if rebuilt != spec.without_cut:
        raise ExportError(other_network(spec))
    return network


def weights_of(head: Head, weights: str | None, progress: Callable[[str], None]) -> Weights:
    """Return the weights that made a head's features, checked by their sha256."""

    def downloaded(done: int, total: int) -> None:
        progress(f"Downloading the weights, {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    spec = BackboneSpec.from_dict(head.header.spec)
    return open_recorded(spec, str(head.header.details["weights"]), weights, progress=downloaded)
