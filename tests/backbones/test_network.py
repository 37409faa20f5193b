from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models

from featx.backbones import tiny
from featx.backbones.catalog import (
    build_model,
    build_skeleton,
    classifier_layer,
    default_preprocess,
    graph_nodes,
    penultimate_layer,
)
from featx.backbones.network import (
    Network,
    build_network,
    find_end,
    layer_names,
    layer_shapes,
)
from featx.backbones.spec import Pool
from featx.backbones.weights import Weights, open_weights
from featx.errors import BackboneError, ConfigError
from featx.images.preprocess import PreprocessSpec

Pixels = Callable[..., np.ndarray]

# The model's last layer on featx's features gives the model's logits

QUICK = {  # backbone: image size
    "alexnet": 96,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "mnasnet0_5": 64,
    "mobilenet_v3_small": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "tiny": 32,
    "vit_b_32": 224,
}
FIXED_SIZE = ("vit_", "maxvit")
TOO_LARGE = {"vit_h_14", "regnet_y_128gf", "vit_l_16", "vit_l_32"}  # over 250 M parameters
SLOW = [name for name in models.list_models(module=models) if name not in QUICK.keys() | TOO_LARGE]


@pytest.mark.parametrize("name", QUICK)
def test_last_layer_on_features_gives_the_logits(name, pixels):
    _check_logits(name, QUICK[name], pixels)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_last_layer_on_features_gives_the_logits_for_all(name, pixels):
    fixed = name.startswith(FIXED_SIZE)
    size = default_preprocess(name).image_size if fixed else 299 if "inception" in name else 96
    _check_logits(name, size, pixels)


def _check_logits(name: str, size: int, pixels: Pixels) -> None:
    preprocess = default_preprocess(name).with_overrides(image_size=size, resize=None, crop=None)
    weights = open_weights(name, "none")
    model = _spread(build_model(name), weights)
    weights = Weights(weights.origin, weights.sha256, model.state_dict())
    network, spec = build_network(name, weights, preprocess)
    batch = torch.from_numpy(pixels(2, size))
    with torch.inference_mode():
        images = (batch.permute(0, 3, 1, 2) / 255 - network.mean) / network.std
        expected = model(images)
        features = network(batch)
        assert features.shape == (2, spec.num_features)
        if spec.pool == "none":
            found = model.get_submodule(classifier_layer(model))(features)
        else:  # the last layer reads maps (SqueezeNet): apply what is left of the model to them
            maps = network.trunk(images)["features"]
            torch.testing.assert_close(features, maps.mean((2, 3)))
            last = model.get_submodule(classifier_layer(model))
            found = last(maps).relu().mean((2, 3))
    scale = float(expected.abs().max())
    assert scale > 0
    assert float(expected.std()) > 1e-3 * scale  # the logits say something
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * scale)


def _spread(model: nn.Module, weights: Weights) -> nn.Module:
    """Load the weights, then give a zero last layer (ConvNeXt, ViT) something to say."""
    state = model.state_dict()
    state.update(weights.state)
    model.load_state_dict(state)
    last = model.get_submodule(classifier_layer(model))
    assert isinstance(last.weight, Tensor)
    if not last.weight.any():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            nn.init.normal_(last.weight, std=0.02)
    return model.eval()


# Layers


@pytest.mark.parametrize(
    ("backbone", "layer", "num_features"),
    [
        ("vgg16", "features", 512),
        ("resnet18", "layer1", 64),
        ("resnet18", "layer3.0", 256),
        ("resnet18", "layer3.0.conv1", 256),
        ("resnet18", "layer4.1.add", 512),
        ("tiny", "stage2", 128),
        ("tiny", "stage1.1.conv2.1", 64),
        ("densenet121", "features.denseblock1", 256),
    ],
)
def test_layers_by_node_and_by_module(backbone, layer, num_features):
    cut = find_end(backbone, 32, layer=layer)
    assert (cut.layer, cut.pool, cut.num_features) == (layer, "avg", num_features)


def test_vgg16_at_32_pixels_gives_the_512_of_its_convolutions(pixels):
    preprocess = default_preprocess("vgg16").with_overrides(image_size=32, resize=None, crop=None)
    weights = open_weights("vgg16", "none")
    network, spec = build_network("vgg16", weights, preprocess, layer="features")
    assert (spec.num_features, spec.pool, spec.layer) == (512, "avg", "features")
    model = build_model("vgg16")
    model.load_state_dict(dict(weights.state))
    batch = torch.from_numpy(pixels(2, 32))
    with torch.inference_mode():
        images = (batch.permute(0, 3, 1, 2) / 255 - network.mean) / network.std
        maps = model.get_submodule("features")(images)
        assert maps.shape == (2, 512, 1, 1)
        torch.testing.assert_close(network(batch), maps.flatten(1))


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "vit_b_32", "swin_t", "tiny"])
def test_penultimate_is_the_node_before_the_last_layer(name):
    model = build_skeleton(name)
    nodes = graph_nodes(model)
    assert nodes[nodes.index(penultimate_layer(model)) + 1] == classifier_layer(model)


@pytest.mark.parametrize("layer", ["layer9", "layer", "layer1.", "LAYER1", "x", "relu6"])
def test_an_unknown_layer(layer):
    with pytest.raises(BackboneError, match=rf"resnet18 has no layer '{layer}'.*lists them"):
        find_end("resnet18", 64, layer=layer)


@pytest.mark.parametrize(
    "layer", ["getattr", "getitem", "encoder.layers.encoder_layer_0.self_attention"]
)
def test_a_layer_that_gives_no_tensor(layer):
    with pytest.raises(BackboneError, match=rf"'{layer}' of vit_b_32 gives no tensor"):
        find_end("vit_b_32", 224, layer=layer)


def test_a_layer_that_mixes_the_batch():
    with pytest.raises(BackboneError, match="mixes the images"):
        find_end("vit_b_32", 224, layer="class_token")


def test_names_are_listed_in_order_of_computation():
    names = layer_names(build_skeleton("resnet18"), depth=1)
    assert names[0] == "conv1"
    assert names[-1] == "fc"
    assert names.index("layer1") < names.index("layer2") < names.index("avgpool")
    assert "x" not in names
    assert all("." not in name for name in names)
    assert set(names) < set(layer_names(build_skeleton("resnet18")))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "squeezenet1_1"])
def test_every_listed_layer_can_be_used(name):
    model = build_skeleton(name)
    names = layer_names(model)
    shapes = layer_shapes(name, 64, names, model=model)
    assert shapes.keys() == set(names)
    assert all(shape[0] == 2 for shape in shapes.values())


# Pooling


_random_weights = cache(open_weights)


@cache
def _values(backbone: str, layer: str | None, pool: Pool) -> tuple[Tensor, Tensor, Network]:
    """Return the layer's output, the network's features, and the network."""
    size = default_preprocess(backbone).image_size if backbone.startswith("vit") else 64
    preprocess = default_preprocess(backbone).with_overrides(
        image_size=size, resize=None, crop=None
    )
    weights = open_weights(backbone, "none")
    network, _ = build_network(backbone, weights, preprocess, layer=layer, pool=pool)
    batch = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    )
    with torch.inference_mode():
        images = (batch.permute(0, 3, 1, 2) / 255 - network.mean) / network.std
        return network.trunk(images)["features"], network(batch), network


@pytest.mark.parametrize(
    ("backbone", "layer", "pool", "reference"),
    [
        ("tiny", "stage2", "auto", lambda out: out.mean((2, 3))),
        ("tiny", "stage2", "avg", lambda out: out.mean((2, 3))),
        ("tiny", "stage2", "max", lambda out: out.amax((2, 3))),
        ("tiny", "stage2", "flatten", lambda out: out.reshape(2, -1)),
        ("tiny", "flatten", "auto", lambda out: out),
        ("tiny", "flatten", "none", lambda out: out),
        ("tiny", "flatten", "flatten", lambda out: out),
        ("vit_b_32", "encoder", "auto", lambda out: out[:, 0]),
        ("vit_b_32", "encoder", "cls", lambda out: out[:, 0]),
        ("vit_b_32", "encoder", "avg", lambda out: out.mean(1)),
        ("vit_b_32", "encoder", "max", lambda out: out.amax(1)),
        ("vit_b_32", "encoder", "cls+avg", lambda o: torch.cat([o[:, 0], o[:, 1:].mean(1)], 1)),
        ("vit_b_32", "encoder", "flatten", lambda out: out.reshape(2, -1)),
        ("vit_b_32", "permute", "auto", lambda out: out.mean(1)),  # no class token yet
        ("vit_b_32", "conv_proj", "auto", lambda out: out.mean((2, 3))),
        ("swin_t", "features.1", "auto", lambda out: out.mean((1, 2))),
        ("swin_t", "norm", "max", lambda out: out.amax((1, 2))),
        ("swin_t", "permute", "avg", lambda out: out.mean((2, 3))),
    ],
)
def test_pooling(backbone, layer, pool, reference):
    output, features, _ = _values(backbone, layer, pool)
    torch.testing.assert_close(features, reference(output))


@pytest.mark.parametrize(
    ("backbone", "layer", "size"),
    [("swin_t", "features.1", 384), ("convnext_tiny", "features.1.0.block.2", 384)],
)
def test_maps_as_wide_as_their_channels_are_told_apart(backbone, layer, size):
    assert layer_shapes(backbone, size, [layer])[layer] == (2, 96, 96, 96)
    assert find_end(backbone, size, layer=layer).form.channels_last


def test_ordinary_maps_as_wide_as_their_channels():
    assert layer_shapes("resnet18", 128, ["conv1"])["conv1"] == (2, 64, 64, 64)
    assert not find_end("resnet18", 128, layer="conv1").form.channels_last


@pytest.mark.parametrize(
    ("backbone", "layer", "pool", "message"),
    [
        ("tiny", "flatten", "avg", "gives a vector already"),
        ("tiny", "flatten", "max", "gives a vector already"),
        ("tiny", "flatten", "cls", "gives a vector already"),
        ("tiny", "stage2", "cls", "has no class token"),
        ("tiny", "stage2", "none", r"gives \(128, 8, 8\), no vector"),
        ("swin_t", "norm", "cls", "has no class token"),
        ("vit_b_32", "encoder", "none", "no vector"),
        ("vit_b_32", "conv_proj", "cls", "has no class token"),
        ("vit_b_32", "permute", "cls", "has no class token"),
        ("tiny", "stage2", "cls+avg", "has no class token"),
        ("tiny", "stage2", "map", "has no attention pooling"),
        ("vit_b_32", "encoder", "map", "has no attention pooling"),
    ],
)
def test_pooling_that_does_not_fit(backbone, layer, pool, message):
    size = 224 if backbone.startswith("vit") else 32
    with pytest.raises(ConfigError, match=message) as caught:
        find_end(backbone, size, layer=layer, pool=pool)
    assert f"layer '{layer}'" in str(caught.value)


@pytest.mark.parametrize(("backbone", "size"), [("tiny", 32), ("squeezenet1_1", 64)])
def test_what_was_worked_out_from_shapes_is_what_comes_out(backbone, size, pixels):
    preprocess = default_preprocess(backbone).with_overrides(
        image_size=size, resize=None, crop=None
    )
    cut = find_end(backbone, size)
    network, spec = build_network(backbone, open_weights(backbone, "none"), preprocess)
    assert (spec.layer, spec.pool, spec.num_features) == (cut.layer, cut.pool, cut.num_features)
    with torch.inference_mode():
        assert network(torch.from_numpy(pixels(1, size))).shape == (1, cut.num_features)
    # and the spec builds the same network again
    again = find_end(backbone, size, layer=spec.layer, pool=spec.pool)
    assert again == cut


# Image sizes


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("vit_b_32", 32), ("vit_b_32", 225), ("inception_v3", 32), ("alexnet", 32), ("vgg16", 16)],
)
def test_an_image_size_the_backbone_does_not_take(backbone, size):
    with pytest.raises(BackboneError, match=rf"{backbone} does not take images of {size} pixels"):
        find_end(backbone, size)


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "inception_v3", "swin_v2_t"])
def test_no_image_size_escapes_as_another_error(name):
    for size in (1, 2, 7, 16, 33):
        with contextlib.suppress(BackboneError):
            assert find_end(name, size).num_features > 0


def test_a_vision_transformer_is_built_for_the_size_of_its_weights():
    size = default_preprocess("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").image_size
    assert size == 384
    assert find_end("vit_b_16", size).num_features == 768
    assert layer_shapes("vit_b_16", size, ["encoder"])["encoder"] == (2, 577, 768)
    assert find_end("vit_h_14", default_preprocess("vit_h_14").image_size).num_features == 1280


def test_a_vision_transformers_weights_of_another_size_are_refused():
    preprocess = default_preprocess("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    with pytest.raises(BackboneError, match=r"shape of encoder\.pos_embedding"):
        build_network("vit_b_16", _random_weights("vit_b_16", "none"), preprocess)


# Frozen, and independent of company


def test_a_forward_pass_changes_nothing(pixels):
    network, _ = build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    assert not any(module.training for module in network.trunk.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    features = network(torch.from_numpy(pixels(8, 32)))
    assert not features.requires_grad
    assert features.dtype == torch.float32
    after = network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_dropout_is_off(pixels):
    _, _, network = _values("squeezenet1_1", None, "auto")
    batch = torch.from_numpy(pixels(2, 64))
    with torch.inference_mode():
        torch.testing.assert_close(network(batch), network(batch), rtol=0, atol=0)


@cache
def _tiny_network() -> Network:
    return build_network("tiny", open_weights("tiny"), default_preprocess("tiny"))[0]


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 9),
    start=st.integers(0, 8),
)
def test_features_do_not_depend_on_the_batch(seed, count, start):
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (9, 32, 32, 3), dtype=np.uint8))
    order = torch.from_numpy(rng.permutation(9))
    chosen = order[start : start + count]
    if not len(chosen):
        return
    with torch.inference_mode():
        whole, part = _tiny_network()(pixels), _tiny_network()(pixels[chosen])
    scale = float(whole.abs().max())
    torch.testing.assert_close(part, whole[chosen], rtol=1e-5, atol=1e-5 * scale)


def test_the_arithmetic_is_that_of_the_spec():
    preprocess = PreprocessSpec(
        image_size=32, resize=32, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125)
    )

    class Corner(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"features": images[:, :, 0, 0]}

    network = Network(Corner(), pool="none", preprocess=preprocess)
    pixels = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    pixels[0, 0, 0] = torch.tensor([255, 51, 0])  # red, green, blue
    expected = torch.tensor([[(1 - 0.1) / 0.5, (0.2 - 0.2) / 0.25, (0 - 0.3) / 0.125]])
    torch.testing.assert_close(network(pixels), expected)


def test_the_spec_records_all_of_it():
    weights = open_weights("tiny")
    preprocess = default_preprocess("tiny")
    _, spec = build_network("tiny", weights, preprocess, layer="stage3", pool="max")
    assert spec.backbone == "tiny"
    assert spec.weights_sha256 == weights.sha256
    assert (spec.layer, spec.pool, spec.num_features) == ("stage3", "max", 192)
    assert spec.preprocess == preprocess
    assert spec.precision == "fp32"


def test_what_lies_behind_the_layer_is_gone():
    network, _ = build_network(
        "tiny", open_weights("tiny"), default_preprocess("tiny"), layer="stage1"
    )
    kept = sum(parameter.numel() for parameter in network.parameters())
    assert kept < sum(parameter.numel() for parameter in tiny.Tiny().parameters()) / 4


def test_building_is_quiet(caplog):
    weights = open_weights("tiny")
    with caplog.at_level(logging.INFO):
        build_network("tiny", weights, default_preprocess("tiny"))
    assert caplog.text == ""
