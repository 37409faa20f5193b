from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from featx.backbones import tiny
from featx.backbones.catalog import (
    backbone_names,
    build_model,
    build_skeleton,
    classifier_layer,
    default_preprocess,
    describe_backbone,
    torchvision_weights,
)
from featx.errors import BackboneError

NAMES = models.list_models(module=models)
ALL_WEIGHTS = [(name, entry.name) for name in NAMES for entry in models.get_model_weights(name)]


def test_names_are_tiny_and_every_classification_model():
    assert backbone_names()[0] == "tiny"
    assert set(backbone_names()[1:]) == set(NAMES)
    assert len(set(backbone_names())) == len(backbone_names()) > 70


@pytest.mark.parametrize("name", ["zzzzzzzz", "", "RESNET\n18"])
def test_a_far_miss_still_says_where_to_look(name):
    with pytest.raises(BackboneError, match="featx backbones"):
        build_model(name)


@pytest.mark.parametrize(
    ("name", "num_features"),
    [
        ("tiny", 192),
        ("resnet18", 512),
        ("resnet50", 2048),
        ("vgg16", 4096),
        ("alexnet", 4096),
        ("squeezenet1_1", 512),
        ("mobilenet_v3_small", 1024),
        ("googlenet", 1024),
        ("vit_b_32", 768),
        ("swin_t", 768),
        ("convnext_tiny", 768),
    ],
)
def test_penultimate_sizes_of_well_known_networks(name, num_features):
    info = describe_backbone(name)
    assert info.name == name
    assert info.num_features == num_features


def test_tiny_describes_itself():
    info = describe_backbone("tiny")
    assert info.num_parameters == sum(p.numel() for p in tiny.Tiny().parameters())
    assert (info.image_size, info.weights) == (32, ("CIFAR10_V1",))
    assert info.num_features >= 128


def test_preprocessing_is_that_of_the_weights():
    for name, weights in ALL_WEIGHTS:
        preset = models.get_model_weights(name)[weights].transforms()
        spec = default_preprocess(name, weights)
        expected = (*preset.crop_size, *preset.resize_size, tuple(preset.mean), tuple(preset.std))
        assert (spec.image_size, spec.resize, spec.mean, spec.std) == expected, (name, weights)
        assert InterpolationMode[spec.interpolation.upper()] == preset.interpolation, name
        assert spec.crop == "center"


def test_default_preprocessing_is_that_of_the_default_weights():
    entry = models.ResNet50_Weights.DEFAULT
    assert default_preprocess("resnet50") == default_preprocess("resnet50", entry.name)
    assert default_preprocess("resnet50") != default_preprocess("resnet50", "IMAGENET1K_V1")


def test_preprocessing_of_unknown_names():
    with pytest.raises(BackboneError, match="Unknown backbone 'nope'"):
        default_preprocess("nope")
    with pytest.raises(BackboneError, match=r"no weights 'V9'; it has IMAGENET1K_V1, IMAGENET1K"):
        default_preprocess("resnet50", "V9")


def test_weights_go_by_their_long_name_too():
    entry = torchvision_weights("resnet50", "ResNet50_Weights.IMAGENET1K_V2")
    assert entry is models.ResNet50_Weights.IMAGENET1K_V2


def test_tiny_has_no_torchvision_weights():
    with pytest.raises(BackboneError, match="tiny has no torchvision weights"):
        torchvision_weights("tiny", "DEFAULT")


def test_models_are_built_by_names_however_they_are_written():
    assert type(build_skeleton("ResNet-18")) is models.ResNet
    assert default_preprocess("ResNet-50") == default_preprocess("resnet50")
    assert describe_backbone("Tiny").name == "tiny"


def test_a_skeleton_has_the_models_names_and_shapes_but_no_values():
    skeleton, model = build_skeleton("resnet18").state_dict(), build_model("resnet18").state_dict()
    assert {k: v.shape for k, v in skeleton.items()} == {k: v.shape for k, v in model.items()}
    assert all(value.is_meta for value in skeleton.values())


def test_building_is_in_eval_mode_and_quiet(recwarn):
    assert not any(module.training for module in build_skeleton("googlenet").modules())
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "fc"),
        ("vgg16", "classifier.6"),
        ("squeezenet1_1", "classifier.1"),
        ("vit_b_32", "heads.head"),
        ("googlenet", "fc"),
        ("inception_v3", "fc"),
        ("swin_t", "head"),
        ("tiny", "head"),
    ],
)
def test_the_last_layer_is_found_past_auxiliary_heads(name, layer):
    assert classifier_layer(build_skeleton(name)) == layer


def test_a_model_without_a_last_layer_is_refused():
    with pytest.raises(BackboneError, match="Sequential has no Linear or Conv2d"):
        classifier_layer(nn.Sequential(nn.ReLU()))


def test_building_does_not_touch_the_default_dtype_or_device():
    build_skeleton("regnet_y_400mf")
    assert torch.empty(1).device == torch.device("cpu")
    assert torch.empty(1).dtype == torch.float32
