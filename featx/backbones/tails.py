"""Networks with a trained tail: their tensors, the features of activations, the whole network.

A tail is all floating-point tensors of the network behind a cut, by the names of the whole model.
None may be missing: what is not trained is the weights' own, and a part of a tail is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cache

import numpy as np
import torch
from torch import Tensor

from featx.backbones.catalog import build_skeleton
from featx.backbones.cuts import split_model
from featx.backbones.network import (
    Network,
    Tail,
    build_network,
    build_parts,
    create_feature_extractor_quietly,
    tensors_for,
)
from featx.backbones.spec import INPUT, BackboneSpec, Pool, spec_from
from featx.backbones.timm_features import ending_at_features
from featx.backbones.torch_engine import TorchEngine
from featx.backbones.weights import Weights
from featx.backbones.with_timm import FEATURES
from featx.errors import BackboneError, listed
from featx.images.reading import map_ahead, num_cores

_BATCH_BYTES = 2**24
_MAX_BATCH = 64
_SHOWN = 8


def tail_shapes(spec: BackboneSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each floating-point tensor behind a spec's cut, without weights.

    At the input these are all of the network's, up to its layer; of a spec without a cut, none.

    Raises:
        BackboneError: The backbone has no such cut or layer.
    """
    if spec.cut is None:
        return {}
    size = spec.preprocess.image_size
    return dict(_shapes(spec.backbone, size, spec.cut, spec.layer, spec.pool))


@cache
def _shapes(
    backbone: str, image_size: int, cut: str, layer: str, pool: Pool
) -> Mapping[str, tuple[int, ...]]:
    model = build_skeleton(backbone, image_size)
    known = model.state_dict()
    with torch.device("meta"):
        if cut == INPUT:
            behind = (
                ending_at_features(model, pool)
                if layer == FEATURES
                else create_feature_extractor_quietly(model, {layer: "features"})
            )
        else:
            _, behind = split_model(model, cut, image_size=image_size, layer=layer, pool=pool)
        names = behind.state_dict()
    return {
        name: tuple(tensor.shape)
        for name, tensor in known.items()
        if name in names and tensor.is_floating_point()
    }


def _require_tail(spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors, by names and shapes, are all of those behind the cut, and no others."""
    expected = tail_shapes(spec)
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    problems = [f"missing: {name}" for name in expected if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in expected]
    problems += [
        f"shape of {name}: expected {shape}, found {found[name]}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        fitting = sum(shape == expected.get(name) for name, shape in found.items())
        raise BackboneError(
            f"The tensors do not fit {spec.backbone} behind its cut '{spec.cut}': {fitting} of "
            f"{len(found)} fit, and {len(expected)} are needed: {listed(problems, _SHOWN, '; ')}. "
            "Nothing was loaded."
        )


def build_tuned(
    spec: BackboneSpec, tensors: Mapping[str, np.ndarray], weights: Weights | None
) -> Network:
    """Return the whole network of a spec with a cut, with a trained tail in place of its own.

    Args:
        spec: Has a cut.
        tensors: All that ``tail_shapes`` names.
        weights: Those of the stem, as ``build_network`` takes them; None where the cut is the
            input, as the tail is the whole network then.

    Raises:
        BackboneError: Weights or tail do not fit, or the network that is built here is not the one
            that the spec describes.
    """
    own = {name: torch.tensor(value) for name, value in tensors.items()}
    _require_tail(spec, own)
    if weights is None:
        if spec.cut != INPUT:
            raise BackboneError(f"The weights before the cut at '{spec.cut}' are needed.")
        return build_parts(spec, own)[0]
    network = build_recorded(spec, weights)
    left = network.trunk.load_state_dict(own, strict=False)
    if left.unexpected_keys:
        raise BackboneError(f"The network has no tensors {left.unexpected_keys}.")
    return network


def build_recorded(spec: BackboneSpec, weights: Weights) -> Network:
    """Return the whole network of a recorded spec in float32, whether it has a cut or not.

    Raises:
        BackboneError: The weights do not fit, or the network that is built here is not the one that
            the spec describes.
    """
    network, rebuilt = build_network(
        spec.backbone, weights, spec.preprocess, layer=spec.layer, pool=spec.pool
    )
    if rebuilt != spec.in_float32.without_cut:
        versions = " and ".join(spec_from(spec.backbone)[1:])
        raise BackboneError(
            f"The backbone {spec.backbone} built here differs from the one the features were made "
            f"with. Use the versions of {versions} that extracted them."
        )
    return network


def build_tail(
    spec: BackboneSpec, tensors: Mapping[str, np.ndarray], weights: Weights | None
) -> Tail:
    """Return the network behind a spec's cut: of the given tensors, or of the weights.

    Args:
        spec: Has a cut.
        tensors: All that ``tail_shapes`` names, or none.
        weights: Where there are no tensors.

    Raises:
        BackboneError: They do not fit.
    """
    own = {name: torch.tensor(value) for name, value in tensors.items()}
    if weights and not tensors:
        state = tensors_for(spec, weights)
        own = {name: state[name] for name in tail_shapes(spec) if name in state}
    _require_tail(spec, own)
    return build_parts(spec, own)[1]


def features_of(
    tail: Tail, num_features: int, *, device: str = "cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from activations ``(n, …)`` to features ``(n, num_features)`` float32.

    Activations are float16 or float32, at the input pixels ``(n, size, size, 3)`` uint8. It
    calculates in float32, in batches, on the CPU on all cores. The tail is put in eval mode: a copy
    of one is not in it, whatever the original is.
    """
    engine = TorchEngine(tail.eval(), device=device)

    def features(rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.empty((0, num_features), np.float32)
        size = max(1, min(_MAX_BATCH, _BATCH_BYTES // (4 * math.prod(rows.shape[1:]))))

        def batch(start: int) -> np.ndarray:
            part = rows[start : start + size]
            kind = np.uint8 if part.dtype == np.uint8 else np.float32
            return engine.features(np.array(part, kind, order="C"))

        starts = range(0, len(rows), size)
        cores = num_cores()
        with closing(map_ahead(batch, starts, workers=cores, window=2 * cores)) as parts:
            return np.concatenate(list(parts))

    return features
