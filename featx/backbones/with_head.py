"""The whole model of a backbone with a head as its last layer, and its state dict."""

from __future__ import annotations

import io

import numpy as np
import safetensors.torch
import torch
from torch import nn

from featx.backbones.catalog import (
    build_model,
    build_skeleton,
    classifier_layer,
    default_preprocess,
    penultimate_layer,
)
from featx.backbones.network import Network, tensors_of
from featx.backbones.spec import BackboneSpec
from featx.backbones.with_timm import full_name, uses_timm
from featx.errors import BackboneError

_BATCH = 16


def require_last_layer(spec: BackboneSpec) -> None:
    """Check that a model of the backbone can have a linear head of these features as last layer.

    Raises:
        BackboneError: It cannot; the message says why.
    """
    model = build_skeleton(spec.backbone, spec.preprocess.image_size)
    name = classifier_layer(model)
    last, reason = model.get_submodule(name), ""
    if not isinstance(last, nn.Linear):
        reason = (
            f"its last layer '{name}' is a convolution whose outputs are cut off at zero before "
            "they are averaged, which a head of averaged features is not"
        )
    elif (spec.layer, spec.pool) != (penultimate_layer(model), "none"):
        reason = f"the features are those of '{spec.layer}', and not what '{name}' takes"
    elif last.in_features != spec.num_features:
        reason = f"'{name}' takes {last.in_features} features, and not {spec.num_features}"
    elif getattr(last, "bias", None) is None:  # as MaxViT's
        reason = f"its last layer '{name}' has no bias, and a head has one"
    if reason:
        raise BackboneError(
            f"{spec.backbone} with this head cannot be written as a state dict: {reason}. An ONNX "
            "file holds it as it is."
        )


def build_whole(
    spec: BackboneSpec, network: Network, weight: np.ndarray, bias: np.ndarray
) -> nn.Module:
    """Return the whole model, with a network's tensors and a linear head as its last layer.

    What takes no part in its outputs, auxiliary heads and counters, is that of a fresh model.

    Args:
        spec: Of the network's features, as ``require_last_layer`` takes it.
        network: Its tensors have the names of the model.
        weight: ``(num_outputs, num_features)`` float32.
        bias: ``(num_outputs,)`` float32.
    """
    size = spec.preprocess.image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(spec.backbone, size, num_classes=len(bias))
    name = classifier_layer(model)
    state = model.state_dict()
    own = tensors_of(network, spec.backbone, size)
    state.update({key: value for key, value in own.items() if value.is_floating_point()})
    state.update({f"{name}.weight": torch.tensor(weight), f"{name}.bias": torch.tensor(bias)})
    model.load_state_dict(state)
    return model.eval()


def how_to_load(spec: BackboneSpec, num_outputs: int) -> str:
    """Return the Python expression of a fresh model that takes the state dict."""
    if spec.backbone == "tiny":
        return f"featx.backbones.tiny.Tiny(num_classes={num_outputs})"
    size = spec.preprocess.image_size
    if uses_timm(spec.backbone):
        name = full_name(spec.backbone).partition("/")[2]
        is_other = size != default_preprocess(spec.backbone).image_size
        takes_size = is_other and hasattr(build_skeleton(spec.backbone), "set_input_size")
        more = f", img_size={size}" if takes_size else ""
        return f'timm.create_model("{name}", num_classes={num_outputs}{more})'
    takes_size = spec.backbone.startswith("vit_")
    is_other = takes_size and size != default_preprocess(spec.backbone).image_size
    more = f", image_size={size}" if is_other else ""
    return f'torchvision.models.get_model("{spec.backbone}", num_classes={num_outputs}{more})'


def largest_difference(model: nn.Module, network: Network, pixels: np.ndarray) -> float:
    """Return the largest difference of logits from those of network and last layer.

    It is a share of the largest logit; pixels are ``(n, size, size, 3)`` uint8.
    """
    last = model.get_submodule(classifier_layer(model))
    found, expected = [], []
    with torch.inference_mode():
        for start in range(0, len(pixels), _BATCH):
            batch = torch.from_numpy(pixels[start : start + _BATCH])
            images = batch.permute(0, 3, 1, 2).float() / 255
            found.append(model((images - network.mean) / network.std))
            expected.append(last(network(batch)))
    exact = torch.cat(expected)
    return float((torch.cat(found) - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def state_dict_bytes(model: nn.Module, *, suffix: str) -> bytes:
    """Return a file of a model's state dict: safetensors for that suffix, else torch's own."""
    state = model.state_dict()
    if suffix == ".safetensors":
        content: bytes = safetensors.torch.save(
            {name: value.contiguous().clone() for name, value in state.items()}
        )
        return content
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()
