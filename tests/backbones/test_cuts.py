"""Cuts: stem and tail give what the network gives, and what is not a cut is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from featx.backbones.catalog import build_model, default_preprocess, penultimate_layer
from featx.backbones.cuts import INPUT, list_cuts, main_cuts, split_model
from featx.backbones.network import (
    build_network,
    build_parts,
    create_feature_extractor_quietly,
    tensors_of,
)
from featx.backbones.spec import BackboneSpec
from featx.backbones.weights import open_weights
from featx.errors import BackboneError

FAMILIES = (
    *("tiny", "resnet18", "squeezenet1_1", "efficientnet_b0", "convnext_tiny", "densenet121"),
    *("mobilenet_v3_small", "shufflenet_v2_x0_5", "vgg11_bn", "googlenet", "vit_b_32", "swin_t"),
)


def randomised(name: str) -> nn.Module:
    """Return a model whose batch norms are not the identity."""
    torch.manual_seed(0)
    model = build_model(name)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.uniform_(-0.1, 0.1)
    return model


def last_linear(model: nn.Module, num_features: int) -> nn.Linear | None:
    """Return the network's own head; None of squeezenet, whose head is a convolution."""
    linears = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "aux" not in name
    ]
    return linears[-1] if linears and linears[-1].in_features == num_features else None


@pytest.mark.parametrize("name", FAMILIES)
def test_stem_and_tail_give_what_the_network_gives(name):
    size = {"tiny": 32, "vit_b_32": 224}.get(name, 64)
    model = randomised(name)
    layer = penultimate_layer(model)
    network = create_feature_extractor_quietly(model, {layer: "features"})
    cuts = list_cuts(name, size)[1:]
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        expected = network(images)["features"]
        logits, head = model(images), last_linear(model, expected.shape[1])
        assert head is None or torch.allclose(head(expected), logits, atol=1e-5)
        for cut in (cuts[1], cuts[len(cuts) // 2], cuts[-2]):
            stem, tail = split_model(model, cut.name, layer=layer)
            activations = stem(images)["features"]
            before = activations.clone()
            features = tail(activations)["features"]
            assert activations.shape[1:] == cut.shape, cut
            assert torch.equal(activations, before), f"{cut.name}: the tail changes its input"
            torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
            stored = tail(activations.half().float())["features"]  # as a file keeps them
            if head is not None:
                assert (head(features) - logits).abs().max() <= 1e-4 * logits.abs().max()
                assert (head(stored) - logits).abs().max() <= 2e-2 * logits.abs().max()
            assert (stored - expected).abs().max() <= 2e-2 * expected.abs().max()
            assert torch.equal(tail(activations[:1])["features"], tail(activations[:1])["features"])


@pytest.mark.parametrize("name", ["tiny", "resnet18", "vit_b_16"])
def test_what_is_said_of_a_cut_is_what_its_tail_has(name):
    cuts = list_cuts(name, default_preprocess(name).image_size)
    model = build_model(name)
    layer = penultimate_layer(model)
    for cut in cuts[1::7]:
        _, tail = split_model(model, cut.name, layer=layer)
        assert cut.num_parameters == sum(parameter.numel() for parameter in tail.parameters())
    shares = [cut.share for cut in cuts]
    assert shares == sorted(shares, reverse=True)
    assert (cuts[0].name, shares[0]) == (INPUT, 1.0)
    assert shares[-1] < 0.1


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_an_auxiliary_head_is_in_no_tail_as_nothing_trains_it(name):
    model = build_model(name)
    layer = penultimate_layer(model)
    cut = main_cuts(list_cuts(name, 224 if name == "googlenet" else 299))[3].name
    whole = create_feature_extractor_quietly(model, {layer: "features"})
    for part in (whole, split_model(model, cut, layer=layer)[1]):
        assert not any("aux" in parameter.lower() for parameter, _ in part.named_parameters())
        assert any(True for _ in part.parameters())


def test_resnet_has_the_cuts_that_its_users_know():
    cuts = {cut.name: cut for cut in list_cuts("resnet18", 224)}
    assert [name for name in cuts if name.startswith("layer") and "." not in name] == [
        *("layer1", "layer2", "layer3", "layer4")
    ]
    assert cuts["layer4"].shape == (256, 14, 14)
    assert cuts["layer4"].num_bytes == 100_352
    assert cuts["layer4"].num_parameters == 8_393_728
    assert cuts[INPUT].num_bytes == 224 * 224 * 3


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("resnet18", "layer5", "no module 'layer5'. Did you mean layer"),
        ("resnet18", "inptu", "Did you mean input"),
        ("resnet18", "penultimat", "Did you mean penultimate"),
        (
            "resnet18",
            "nope",
            "'nope'. Cuts are input, .*layer1, .*layer4.*, and penultimate;",
        ),
        ("resnet18", "layer4.0.bn2", "another branch of the network runs beside it"),
        ("resnet18", "layer4.0.relu", "runs more than once"),
        ("resnet18", "fc", "computes nothing before the last layer"),
        ("googlenet", "inception4a.branch2.1", "another branch"),
        ("densenet121", "features.denseblock1.denselayer2", "choose another cut"),
    ],
)
def test_what_is_no_cut_is_refused(name, cut, message):
    model = build_model(name)
    with pytest.raises(BackboneError, match=message):
        split_model(model, cut, layer=penultimate_layer(model))
    assert cut not in [known.name for known in list_cuts(name, 224)]


def test_any_module_with_the_same_input_is_the_same_cut():
    model = build_model("resnet18")
    images = torch.randn(1, 3, 64, 64)
    found = [
        split_model(model, cut, layer="flatten")[0](images)["features"]
        for cut in ("layer4", "layer4.0", "layer4.0.conv1")
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_frozen_and_trained_parameters_are_those_of_the_model():
    model = build_model("resnet18")
    stem, tail = split_model(model, "layer4", layer="flatten")
    in_stem, in_tail = dict(stem.named_parameters()), dict(tail.named_parameters())
    own = dict(model.named_parameters())
    assert not set(in_stem) & set(in_tail)
    assert set(in_stem) | set(in_tail) == {name for name in own if not name.startswith("fc.")}
    assert all(own[name] is parameter for name, parameter in in_tail.items())


@pytest.mark.parametrize("cut", ["layer4", "layer2.0", INPUT])
def test_stem_and_tail_of_a_spec_are_the_network(cut):
    weights = open_weights("resnet18", "none")
    preprocess = default_preprocess("resnet18").with_overrides(image_size=64, resize=64, crop=None)
    network, spec = build_network("resnet18", weights, preprocess)
    stem, own = build_network("resnet18", weights, preprocess, cut=cut)
    again, tail = build_parts(own, weights.state)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected, activations = network(pixels), pixels
        if cut != INPUT:
            activations = stem(pixels)
            assert torch.equal(activations, again(pixels))
        found = tail(activations)
    assert own.without_cut == spec
    assert own.row_shape == tuple(activations.shape[1:])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    names = tensors_of(tail, "resnet18", 64)
    assert all(torch.equal(value, weights.state[name]) for name, value in names.items())
    assert BackboneSpec.from_dict(json.loads(json.dumps(own.to_dict()))) == own


def test_main_cuts_are_the_borders_of_blocks():
    main = {
        name: [cut.name for cut in main_cuts(list_cuts(name, 64))]
        for name in ("resnet18", "squeezenet1_1")
    }
    layers = [f"layer{n}{part}" for n in (1, 2, 3, 4) for part in ("", ".1")]
    assert main["resnet18"] == ["input", *layers]
    assert "features.6" in main["squeezenet1_1"]
    assert "features.5" not in main["squeezenet1_1"]  # a pooling, and then features.6
    deep = [cut.name for cut in main_cuts(list_cuts("vit_b_16", 224))]
    assert deep[-1] == "encoder.layers.encoder_layer_11"
