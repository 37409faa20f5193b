"""Feature files of activations, read as the features that the network behind the cut makes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as cached

import numpy as np

from featx.backbones.spec import BackboneSpec
from featx.features.file import FeatureFile
from featx.heads.head import Head


def features_through(
    head: Head | None, cache: FeatureFile, weights: str | None = None
) -> FeatureFile:
    """Return a feature file whose features are vectors ``(n, num_features)`` float32.

    Of a file with a cut these are its activations after the network behind it, which is built when
    the first features are read: with the head's tail, or where it has none, with the weights. A
    file of vectors is returned as it is.

    Args:
        head: Of the same spec as the file; None takes the weights' own tail.
        cache: Opened and checked.
        weights: The backbone's weights as ``extract`` takes them; None takes those that the file
            was made with.

    Raises:
        BackboneError: When features are read: the weights are missing or others, or the tail does
            not fit.
    """
    spec = BackboneSpec.from_dict(cache.header.spec)
    if spec.cut is None:
        return cache
    origin = str(cache.header.details["weights"])

    @cached
    def network() -> Callable[[np.ndarray], np.ndarray]:
        from featx.backbones.tails import build_tail, features_of
        from featx.backbones.weights import open_recorded

        tensors = {} if head is None else head.tail
        found = None if tensors else open_recorded(spec, origin, weights)
        return features_of(build_tail(spec, tensors, found), spec.num_features)

    def through(rows: np.ndarray) -> np.ndarray:
        return network()(rows)

    return cache.with_network(through)
