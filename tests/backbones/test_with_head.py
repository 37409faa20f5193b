"""State dicts: the library's own model takes them, strictly, and gives the head's logits."""

from __future__ import annotations

import io

import numpy as np
import pytest
import safetensors.torch
import torch
from torchvision import models

from featx.backbones.catalog import build_model, default_preprocess
from featx.backbones.network import build_network
from featx.backbones.spec import BackboneSpec
from featx.backbones.weights import Weights
from featx.backbones.with_head import (
    build_whole,
    how_to_load,
    largest_difference,
    require_last_layer,
    state_dict_bytes,
)
from featx.errors import BackboneError
from featx.images.preprocess import PreprocessSpec

NUM_CLASSES = 3


def network_of(backbone, size, **options):
    """Return a network with quickly made random weights, and its spec."""
    torch.manual_seed(1)
    state = {
        name: value if not value.is_floating_point() else torch.rand(value.shape) * 0.1 + 0.01
        for name, value in build_model(backbone, size).state_dict().items()
    }
    mean = default_preprocess(backbone).mean
    geometry = PreprocessSpec(size, size, mean, mean, crop="none")
    return build_network(backbone, Weights("file:w", "0" * 64, state), geometry, **options)


def head_of(spec: BackboneSpec) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(2)
    weight = random.normal(size=(NUM_CLASSES, spec.num_features)).astype(np.float32)
    return weight, random.normal(size=NUM_CLASSES).astype(np.float32)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        *[("resnet18", 64), ("mobilenet_v3_small", 64), ("efficientnet_b0", 64)],
        *[("googlenet", 64), ("mnasnet0_5", 64), ("vit_b_32", 224)],
    ],
)
def test_torchvisions_model_takes_it_strictly_and_gives_the_same_logits(backbone, size):
    network, spec = network_of(backbone, size)
    require_last_layer(spec)
    weight, bias = head_of(spec)
    whole = build_whole(spec, network, weight, bias)
    pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    assert largest_difference(whole, network, pixels) <= 1e-4
    content = state_dict_bytes(whole, suffix=".pth")
    assert content == state_dict_bytes(build_whole(spec, network, weight, bias), suffix=".pth")
    options = {"init_weights": False} if backbone == "googlenet" else {}  # else it warns
    fresh = models.get_model(backbone, num_classes=NUM_CLASSES, **options)
    state = torch.load(io.BytesIO(content), weights_only=True)
    fresh.load_state_dict(state, strict=True)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        found = fresh.eval()((images - network.mean) / network.std)
        expected = network(torch.from_numpy(pixels)) @ torch.tensor(weight.T) + torch.tensor(bias)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    again = safetensors.torch.load(state_dict_bytes(whole, suffix=".safetensors"))
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert all(state[name] == 0 for name in counters)
    assert how_to_load(spec, 3) == f'torchvision.models.get_model("{backbone}", num_classes=3)'


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("squeezenet1_1", {}, r"'classifier\.1' is a convolution whose outputs are cut off at"),
        ("resnet18", {"layer": "layer3"}, r"features are those of 'layer3', and not what 'fc' tak"),
        ("tiny", {"layer": "stage3", "pool": "max"}, "features are those of 'stage3'"),
    ],
)
def test_what_no_last_layer_can_be_is_refused_with_the_reason(backbone, options, message):
    size = 32 if backbone == "tiny" else 64
    _, spec = network_of(backbone, size, **options)
    with pytest.raises(BackboneError, match=rf"{message}.* An ONNX file holds it"):
        require_last_layer(spec)


def test_how_a_model_of_another_size_is_made():
    geometry = PreprocessSpec(384, 384, (0.5,) * 3, (0.5,) * 3, crop="none")
    spec = BackboneSpec("vit_b_16", "0" * 64, "getitem_5", "none", 768, geometry)
    assert how_to_load(spec, 2).endswith('get_model("vit_b_16", num_classes=2, image_size=384)')


def test_a_network_with_another_tensor_gives_other_logits():
    network, spec = network_of("tiny", 32)
    whole = build_whole(spec, network, *head_of(spec))
    with torch.no_grad():
        network.trunk.get_parameter("stem.0.weight").mul_(1.5)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert largest_difference(whole, network, pixels) > 1e-3


@pytest.mark.parametrize(("size", "more"), [(224, ""), (288, ", img_size=288")])
def test_a_model_of_timm_is_made_by_timm(size, more):
    pytest.importorskip("timm")
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    geometry = PreprocessSpec(size, size, (0.5,) * 3, (0.5,) * 3, crop="none")
    spec = BackboneSpec(f"timm/{name}", "0" * 64, "pre_logits", "cls", 192, geometry)
    assert how_to_load(spec, 2) == f'timm.create_model("{name}", num_classes=2{more})'
