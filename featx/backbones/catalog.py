"""Which backbones there are.

Every classification model of torchvision goes by its torchvision name, timm's by ``timm/NAME``;
``tiny`` is featx's own and needs no download. ``table`` has torchvision's names without torch, and
takes them written loosely.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision import models
from torchvision.models.feature_extraction import get_graph_node_names
from torchvision.transforms import InterpolationMode

from featx.backbones import tiny
from featx.backbones.table import BackboneInfo, require_backbone
from featx.backbones.with_timm import (
    FEATURES,
    build_timm,
    classifier_of,
    is_timm_model,
    timm_preprocess,
    tracing,
    uses_timm,
)
from featx.errors import BackboneError
from featx.images.preprocess import PreprocessSpec


@cache
def backbone_names() -> tuple[str, ...]:
    """Return all names, ``tiny`` first, the rest in alphabetical order."""
    return ("tiny", *models.list_models(module=models))


def build_model(
    name: str, image_size: int | None = None, *, num_classes: int | None = None
) -> nn.Module:
    """Return the whole model, head included, in eval mode, with torch's random initial weights.

    Its head has the classes of the backbone's own weights, unless their number is given.
    """
    name = require_backbone(name)
    if uses_timm(name):
        return build_timm(name, image_size, num_classes)
    classes = {} if num_classes is None else {"num_classes": num_classes}
    if name == "tiny":
        return tiny.Tiny(**classes).eval()
    with warnings.catch_warnings():
        # GoogLeNet and Inception announce a change of their random initialisation.
        warnings.filterwarnings("ignore", message="The default weight initialization")
        model: nn.Module = models.get_model(
            name, weights=None, **_size_option(name, image_size), **classes
        )
    return model.eval()


def _size_option(name: str, image_size: int | None) -> dict[str, int]:
    if not name.startswith("vit_"):
        return {}
    size = image_size or default_preprocess(name).image_size
    known = {entry.transforms().crop_size[0] for entry in models.get_model_weights(name)}
    return {"image_size": size} if size in known else {}


def build_skeleton(name: str, image_size: int | None = None) -> nn.Module:
    """Return ``build_model`` without weights, at once: names and shapes only."""
    with _ShapesOnly():
        model = build_model(name, image_size)
    return model.to("meta")


class _ShapesOnly(TorchFunctionMode):
    """Allocates no parameters: ``torch.empty``, which modules create them with, goes to meta.

    A plain ``torch.device("meta")`` context also catches the small tensors that RegNet's builder
    computes its widths with, and fails on them.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs = kwargs | {"device": "meta"}
        return func(*args, **kwargs)


def graph_nodes(model: nn.Module) -> list[str]:
    """Return the names of the model's graph nodes in eval mode, in order of computation."""
    with tracing(model) as options:
        return list(get_graph_node_names(model, tracer_kwargs=options)[1])


def classifier_layer(model: nn.Module) -> str:
    """Return the layer that makes the logits: the last ``Linear`` or ``Conv2d`` of the eval graph.

    Auxiliary heads are not in that graph. The layer's input is the penultimate feature.
    """
    if is_timm_model(model):
        if name := classifier_of(model):
            return name
        raise BackboneError(f"timm's {type(model).__name__} has no single Linear as classifier.")
    modules = dict(model.named_modules())
    for node in reversed(graph_nodes(model)):
        if isinstance(modules.get(node), (nn.Linear, nn.Conv2d)):
            return node
    raise BackboneError(f"{type(model).__name__} has no Linear or Conv2d layer to cut before.")


def penultimate_layer(model: nn.Module) -> str:
    """Return the node whose output the model's last layer reads."""
    if is_timm_model(model):
        return FEATURES
    nodes = graph_nodes(model)
    return nodes[nodes.index(classifier_layer(model)) - 1]


def default_preprocess(name: str, weights: str | None = None) -> PreprocessSpec:
    """Return the preprocessing that belongs to a backbone's weights.

    Those of timm's are part of the name. Of torchvision's, None takes that of the default ones,
    also for weights from a file, which as a rule were fine-tuned from them.

    Raises:
        BackboneError: The backbone or its weights are unknown.
    """
    name = require_backbone(name)
    if uses_timm(name):
        return timm_preprocess(name)
    if name == "tiny":
        return PreprocessSpec(
            image_size=tiny.IMAGE_SIZE, resize=tiny.IMAGE_SIZE, mean=tiny.MEAN, std=tiny.STD
        )
    preset = torchvision_weights(name, weights or "DEFAULT").transforms()
    bicubic = preset.interpolation is InterpolationMode.BICUBIC
    return PreprocessSpec(
        image_size=preset.crop_size[0],
        resize=preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation="bicubic" if bicubic else "bilinear",
    )


def torchvision_weights(name: str, weights: str) -> models.WeightsEnum:
    """Return torchvision's entry for weights (``"IMAGENET1K_V1"``, ``"DEFAULT"``) of a model."""
    if name == "tiny":
        raise BackboneError(f"tiny has no torchvision weights '{weights}'; its own are bundled.")
    entries = models.get_model_weights(name)
    key = weights.rpartition(".")[2]
    if key not in entries.__members__:
        known = ", ".join(entry.name for entry in entries)
        raise BackboneError(f"{name} has no weights '{weights}'; it has {known}.")
    entry: models.WeightsEnum = entries[key]
    return entry


def describe_backbone(name: str) -> BackboneInfo:
    """Return one row of the catalog, from the model itself and torchvision's records."""
    name = require_backbone(name)
    model = build_skeleton(name)
    weight = model.get_parameter(f"{classifier_layer(model)}.weight")  # (out, in) or more
    num_features, image_size = weight.shape[1], default_preprocess(name).image_size
    if name == "tiny":
        return BackboneInfo(
            name=name,
            family="tiny",
            num_features=num_features,
            image_size=image_size,
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            gflops=tiny.GFLOPS,
            top1=None,
            weights=("CIFAR10_V1",),
            licences={"CIFAR10_V1": "MIT"},
        )
    entries = models.get_model_weights(name)
    default = entries.DEFAULT
    return BackboneInfo(
        name=name,
        family=models.get_model_builder(name).__module__.rpartition(".")[2],
        num_features=num_features,
        image_size=image_size,
        num_parameters=int(default.meta["num_params"]),  # GoogLeNet's without auxiliary heads
        gflops=float(default.meta["_ops"]),
        top1=float(default.meta["_metrics"]["ImageNet-1K"]["acc@1"]),
        weights=(default.name, *(entry.name for entry in entries if entry is not default)),
        licences={
            entry.name: entry.meta["license"] for entry in entries if "license" in entry.meta
        },
    )
