"""The frozen network: from normalised images to one vector each.

It is the part of a model's graph that leads to the chosen layer, followed by a pooling that turns
maps or tokens into a vector. What lies behind the layer is gone, and its weights with it. At a cut
it falls into a stem, which gives activations, and a tail, which makes the vector of them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from featx.backbones.catalog import (
    build_model,
    build_skeleton,
    classifier_layer,
    graph_nodes,
    penultimate_layer,
)
from featx.backbones.cuts import find_shape, split_model
from featx.backbones.pooling import MAPS, Form, Tokens, pooled, resolve_pool, tokens_of
from featx.backbones.spec import INPUT, PENULTIMATE, BackboneSpec, Pool
from featx.backbones.state_dict import (
    describe_tensors,
    guess_backbone,
    shape_of,
    shapes_of,
    unusable,
)
from featx.backbones.timm_features import ending_at_features, features_width, pool_of
from featx.backbones.weights import Weights
from featx.backbones.with_timm import (
    FEATURES,
    adapted,
    is_timm_model,
    tracing,
    uses_timm,
)
from featx.errors import BackboneError, first_line, listed
from featx.images.preprocess import PreprocessSpec

log = logging.getLogger(__name__)


class Tail(nn.Module):
    """The part of a network behind a cut: activations in, features out.

    Args:
        trunk: Module that maps its input to ``{"features": …}``; names of its tensors are those of
            the whole model.
        pool: Any but ``"auto"``; ``"none"`` where the trunk gives vectors.
        form: Of the trunk's maps or tokens.
    """

    def __init__(self, trunk: nn.Module, *, pool: Pool, form: Form = MAPS) -> None:
        super().__init__()
        self.trunk = trunk
        self.pool = pool
        self.form = form

    def forward(self, activations: Tensor) -> Tensor:
        """Return features ``(N, num_features)`` float32 of activations ``(N, …)`` float32."""
        return pooled(self.trunk(activations)["features"], self.pool, self.form)


class Network(Tail):
    """A frozen backbone: uint8 pixels in, features out; of a stem, activations.

    Args:
        trunk: Module that maps normalised images ``(N, 3, size, size)`` to ``{"features": …}``.
        pool: Any but ``"auto"``; ``"none"`` where the trunk gives vectors, and for a stem.
        form: Of the trunk's maps or tokens.
        preprocess: Its arithmetic is applied here.
    """

    def __init__(
        self, trunk: nn.Module, *, pool: Pool, form: Form = MAPS, preprocess: PreprocessSpec
    ) -> None:
        super().__init__(trunk, pool=pool, form=form)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return features ``(N, num_features)`` float32 of pixels ``(N, size, size, 3)`` uint8."""
        images = pixels.permute(0, 3, 1, 2).float() / 255  # (N, 3, size, size)
        return super().forward((images - self.mean) / self.std)


def build_network(
    backbone: str,
    weights: Weights,
    preprocess: PreprocessSpec,
    *,
    layer: str | None = None,
    pool: Pool = "auto",
    cut: str | None = None,
) -> tuple[Network, BackboneSpec]:
    """Return the frozen network, of a cut its stem, and the spec of its features.

    Args:
        backbone: Name in the catalog.
        weights: For that backbone; a head that does not fit is left out and named in the log.
        preprocess: Gives the input size and the arithmetic.
        layer: Node of the model's graph to end at; None takes the input of the last layer.
        pool: ``"auto"`` averages maps, takes a vision transformer's class token, and leaves
            vectors alone.
        cut: Module whose input the stem gives, or ``"input"``; None for the whole network.

    Raises:
        BackboneError: Unknown backbone, layer or cut, weights that do not match, or an image size
            the backbone does not take.
        ConfigError: The pooling does not fit the layer's output.
    """
    end = find_end(backbone, preprocess.image_size, layer=layer, pool=pool)
    spec = BackboneSpec(
        backbone=backbone,
        weights_sha256=weights.sha256,
        layer=end.layer,
        pool=end.pool,
        num_features=end.num_features,
        preprocess=preprocess,
    )
    if cut not in (None, PENULTIMATE):
        shape = find_shape(backbone, preprocess.image_size, cut, layer=end.layer)
        spec = replace(spec, cut=cut, shape=shape)
    model = build_model(backbone, preprocess.image_size)
    needed = _needed(build_skeleton(backbone, preprocess.image_size), end)
    if uses_timm(backbone):
        weights = replace(weights, state=adapted(model, needed, weights.state))
    _require_fit(backbone, weights, needed, heads=_heads(model))
    stem, _ = _parts(model, spec, weights.state, form=end.form)
    return stem, spec


def build_parts(spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> tuple[Network, Tail]:
    """Return the stem and the tail of a spec with a cut, as ``build_network`` checked them.

    Args:
        spec: Whose cut splits the network; at the input the stem is of no use and the tail takes
            pixels ``(N, size, size, 3)`` uint8. Without a cut both are the whole network.
        tensors: By the names of the model; those that are missing stay random, by torch's
            generator.
    """
    size = spec.preprocess.image_size
    end = find_end(spec.backbone, size, layer=spec.layer, pool=spec.pool)
    model = build_model(spec.backbone, size)
    return _parts(model, spec, tensors, form=end.form)


def tensors_for(spec: BackboneSpec, weights: Weights) -> Mapping[str, Tensor]:
    """Return the tensors of weights by the names, and in the shapes, of a spec's model.

    Those of a file may have the names of timm's original, and another image size's positions.
    """
    if not uses_timm(spec.backbone):
        return weights.state
    size = spec.preprocess.image_size
    needed = _needed(build_skeleton(spec.backbone, size), spec)
    return adapted(build_model(spec.backbone, size), needed, weights.state)


def _parts(
    model: nn.Module, spec: BackboneSpec, tensors: Mapping[str, Tensor], *, form: Form
) -> tuple[Network, Tail]:
    state = model.state_dict()  # with the versions that load_state_dict asks MNASNet's for
    needed = _needed(build_skeleton(spec.backbone, spec.preprocess.image_size), spec)
    state.update({name: tensors[name] for name in needed if name in tensors})
    model.load_state_dict(state)
    if spec.cut is None or spec.cut == INPUT:
        trunk, pool = _trunk(model, spec), _pool_behind(spec)
        stem = Network(trunk, pool=pool, form=form, preprocess=spec.preprocess)
        tail: Tail = stem
    else:
        before, behind = split_model(
            model, spec.cut, image_size=spec.preprocess.image_size, layer=spec.layer, pool=spec.pool
        )
        stem = Network(before, pool="none", preprocess=spec.preprocess)
        tail = Tail(behind, pool=_pool_behind(spec), form=form)
    return stem.eval().requires_grad_(False), tail.eval().requires_grad_(False)


def tensors_of(part: Tail, backbone: str, image_size: int) -> dict[str, Tensor]:
    """Return the tensors of a network, stem or tail by the names that the whole model has.

    Constants that tracing puts beside them are left out.
    """
    known = build_skeleton(backbone, image_size).state_dict()
    return {name: value for name, value in part.trunk.state_dict().items() if name in known}


def _needed(model: nn.Module, end: End | BackboneSpec) -> dict[str, Tensor]:
    """Return the tensors that lead to a layer, without the constants that tracing adds.

    The model may lose its classifier.
    """
    state = model.state_dict()
    return {name: state[name] for name in _trunk(model, end).state_dict() if name in state}


def _pool_behind(spec: BackboneSpec) -> Pool:
    """Return the pooling that is left to do behind the trunk."""
    return "none" if spec.layer == FEATURES else spec.pool


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Return the modules that classify, which a file may have for other classes."""
    if not is_timm_model(model):
        return (classifier_layer(model),)
    names = model.pretrained_cfg.get("classifier") or "head"  # type: ignore[union-attr, operator]
    return (names,) if isinstance(names, str) else tuple(names)


@dataclass(frozen=True)
class End:
    """Where a network ends, and the pooling that ``"auto"`` became."""

    layer: str
    pool: Pool
    form: Form
    num_features: int


def find_end(
    backbone: str, image_size: int, *, layer: str | None = None, pool: Pool = "auto"
) -> End:
    """Return where the network of a backbone ends, without loading weights."""
    model = build_skeleton(backbone, image_size)
    layer = layer or penultimate_layer(model)
    if layer == FEATURES and uses_timm(backbone):
        own = cast("Pool", pool_of(model, pool))
        return End(layer, own, MAPS, features_width(backbone, image_size, model, own))
    shape = layer_shapes(backbone, image_size, [layer], model=model).get(layer)
    if shape is None:
        raise BackboneError(
            f"Layer '{layer}' of {backbone} gives no tensor; 'featx backbones {backbone}' lists "
            "those that do."
        )
    channels_last = len(shape) == 4 and shape[1] == shape[2] != shape[3]
    if len(shape) == 4 and shape[1] == shape[2] == shape[3]:  # only the maps grow with the image
        larger = layer_shapes(backbone, 2 * image_size, [layer], model=model)[layer]
        channels_last = larger[3] == shape[3] != larger[1]
    if backbone.startswith("vit_") and layer.startswith(("encoder", "cat")):
        tokens = Tokens(0, has_class=True, is_default=True)
    else:
        tokens = tokens_of(model, shape)
    form = Form(channels_last, tokens.num_prefix)
    resolved = resolve_pool(pool, shape, layer, tokens)
    vector = pooled(torch.empty(shape, device="meta"), resolved, form)
    return End(layer, resolved, form, vector.shape[1])


def layer_names(model: nn.Module, *, depth: int | None = None) -> list[str]:
    """Return the layers to choose from: the graph's nodes and the modules they belong to.

    Names have at most ``depth`` dotted parts, where one is given.
    """
    return [name for name in _output_nodes(model) if depth is None or name.count(".") < depth]


def _output_nodes(model: nn.Module) -> dict[str, str]:
    """Return the node that gives the output of each node and module, in order of computation."""
    names: dict[str, str] = {}
    for node in graph_nodes(model)[1:]:
        parts = node.split(".")
        for end in range(len(parts), 0, -1):  # a module stands behind its last part
            name = ".".join(parts[:end])
            names.pop(name, None)  # a module's output is its last node's: to the end
            names[name] = node
    return names


def layer_shapes(
    backbone: str, image_size: int, layers: Sequence[str], *, model: nn.Module | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each layer's output for a batch of two images.

    Layers whose output is not a tensor (a shape, a size) are left out.

    Raises:
        BackboneError: A layer is unknown, or the backbone does not take this image size.
    """
    model = model if model is not None else build_skeleton(backbone, image_size)
    nodes = _output_nodes(model)
    unknown = [layer for layer in layers if layer not in nodes]
    if unknown:
        raise BackboneError(
            f"{backbone} has no layer '{unknown[0]}'; 'featx backbones {backbone}' lists them."
        )
    trunk = create_feature_extractor_quietly(model, {nodes[name]: nodes[name] for name in layers})
    try:
        outputs = trunk(torch.empty(2, 3, image_size, image_size, device="meta"))
    except (RuntimeError, AssertionError, ValueError) as err:
        reason = first_line(err).rstrip(".")
        raise BackboneError(
            f"{backbone} does not take images of {image_size} pixels ({reason}). Leave out "
            "image_size, or try a larger one."
        ) from err
    found = {name: outputs[nodes[name]] for name in layers}
    return {name: tuple(out.shape) for name, out in found.items() if isinstance(out, Tensor)}


def create_feature_extractor_quietly(model: nn.Module, nodes: Mapping[str, str]) -> nn.Module:
    """Return the part of a model that leads to ``nodes``, as torchvision cuts it out."""
    with tracing(model) as options:
        trunk: nn.Module = create_feature_extractor(
            model, return_nodes=dict(nodes), suppress_diff_warning=True, tracer_kwargs=options
        )
    return trunk.eval()


def _trunk(model: nn.Module, end: End | BackboneSpec) -> nn.Module:
    if end.layer == FEATURES and is_timm_model(model):
        return ending_at_features(model, end.pool)
    return create_feature_extractor_quietly(model, {end.layer: "features"})


def _require_fit(
    backbone: str, weights: Weights, needed: Mapping[str, Tensor], *, heads: tuple[str, ...]
) -> None:
    """Check the weights against the tensors that the trunk needs."""
    found = weights.state
    problems = [
        f"missing: {name}"
        for name in needed
        if name not in found and not name.endswith("num_batches_tracked")
    ]
    for name, tensor in needed.items():
        if name in found and (reason := unusable(found[name], tensor)):
            problems.append(f"{name} is {reason}")
        elif name in found and found[name].shape != tensor.shape:
            problems.append(
                f"shape of {name}: expected {tuple(tensor.shape)}, found {tuple(found[name].shape)}"
            )
    known = shapes_of(backbone)
    beside = [name for name in found if name not in needed]
    roots = {head.partition(".")[0] for head in heads}
    problems += [
        f"unexpected: {name}"
        for name in beside
        if name not in known and name.partition(".")[0] not in roots
    ]
    if problems:
        guess = guess_backbone(found)
        hint = f" It looks like {guess}." if guess not in (None, backbone) else ""
        raise BackboneError(
            f"The weights '{weights.origin}' do not fit {backbone}: "
            f"{listed(problems, 12, '; ')}. The file has {describe_tensors(found)}.{hint}"
        )
    misfits = [n for n in beside if n not in known or shape_of(found[n]) != known[n]]
    if misfits:
        log.info("Left out a head of other classes: %s.", ", ".join(misfits))
