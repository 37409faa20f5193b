"""The network of a head with its weights, in torch: what a graph or a state dict is made from."""

from __future__ import annotations

from collections.abc import Callable

from featx.backbones.network import Network
from featx.backbones.spec import INPUT, BackboneSpec
from featx.backbones.tails import build_recorded, build_tuned
from featx.backbones.weights import open_recorded
from featx.heads.head import Head


def network_of(head: Head, weights: str | None, progress: Callable[[str], None]) -> Network:
    """Return the float32 network of a head: pixels in, features out, with its tail if it has one.

    Args:
        head: Of any backbone of the catalog.
        weights: As ``extract`` takes them; None takes those that the head recorded.
        progress: Called while weights are downloaded.

    Raises:
        BackboneError: Weights or tail cannot be found, are others, or do not fit, or the network
            that is built here is another.
    """

    def downloaded(done: int, total: int) -> None:
        progress(f"Downloading the weights, {done / 1e6:.0f} of {total / 1e6:.0f} MB")

    spec = BackboneSpec.from_dict(head.header.spec).in_float32
    if head.tail and spec.cut == INPUT:
        return build_tuned(spec, head.tail, None)
    found = open_recorded(spec, str(head.header.details["weights"]), weights, progress=downloaded)
    if head.tail:
        return build_tuned(spec, head.tail, found)
    return build_recorded(spec, found)
