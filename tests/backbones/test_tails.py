"""Trained tails: all of their tensors or a refusal, and the whole network with them."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from featx.backbones.catalog import default_preprocess
from featx.backbones.network import build_network, build_parts, tensors_of
from featx.backbones.spec import BackboneSpec
from featx.backbones.tails import build_tail, build_tuned, features_of, tail_shapes
from featx.backbones.weights import Weights, open_weights
from featx.errors import BackboneError


def spec_of(backbone: str, cut: str, size: int = 32) -> tuple[BackboneSpec, Weights]:
    geometry = default_preprocess(backbone)
    geometry = type(geometry)(size, size, geometry.mean, geometry.std, crop="none")
    choice = "default" if backbone == "tiny" else "none"
    weights = open_weights(backbone, choice)
    return build_network(backbone, weights, geometry, cut=cut)[1], weights


def shaken(spec: BackboneSpec, weights: Weights) -> dict[str, np.ndarray]:
    """Return a tail that training has moved a little."""
    _, tail = build_parts(spec, weights.state)
    random = np.random.default_rng(0)
    found = {}
    for name, value in tensors_of(tail, spec.backbone, spec.preprocess.image_size).items():
        if value.is_floating_point():
            size = 0.05 * float(value.std()) if value.numel() > 1 else 0.05
            noise = random.normal(scale=size + 1e-3, size=value.shape)
            found[name] = (value.numpy() + np.abs(noise)).astype(np.float32)
    return found


def pixels_of(spec: BackboneSpec, count: int = 3) -> np.ndarray:
    size = spec.preprocess.image_size
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3), np.uint8)


@pytest.mark.parametrize(
    ("backbone", "cut", "size"),
    [
        *[("tiny", cut, 32) for cut in ("stage2", "stage3", "input")],
        *[("resnet18", "layer4", 64), ("squeezenet1_1", "features.11", 64)],
        *[("mobilenet_v3_small", "features.9", 64), ("regnet_y_400mf", "trunk_output.block4", 64)],
    ],
)
def test_stem_and_trained_tail_give_what_the_tuned_network_gives(backbone, cut, size):
    spec, weights = spec_of(backbone, cut, size)
    tail = shaken(spec, weights)
    assert tail_shapes(spec) == {name: value.shape for name, value in tail.items()}
    pixels = pixels_of(spec)
    stem, _ = build_parts(spec, weights.state)
    activations = pixels if cut == "input" else stem(torch.from_numpy(pixels)).numpy()
    found = features_of(build_tail(spec, tail, None), spec.num_features)(activations)
    assert (found.shape, found.dtype) == ((3, spec.num_features), np.float32)
    whole = build_tuned(spec, tail, None if cut == "input" else weights)
    expected = whole(torch.from_numpy(pixels)).numpy()
    assert np.allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    plain = build_parts(spec.without_cut, weights.state)[0](torch.from_numpy(pixels)).numpy()
    assert not np.allclose(plain, expected, rtol=1e-3)
    own = features_of(build_tail(spec, {}, weights), spec.num_features)(activations)
    assert np.allclose(own, plain, atol=1e-4 * np.abs(plain).max())


def test_features_do_not_depend_on_how_many_activations_are_given_at_once():
    spec, weights = spec_of("tiny", "stage2")
    features = features_of(build_tail(spec, {}, weights), spec.num_features)
    activations = np.random.default_rng(0).normal(size=(130, *spec.row_shape)).astype(np.float16)
    whole = features(activations)
    assert np.allclose(whole[:1], features(activations[:1]), atol=1e-5)
    assert np.allclose(whole[64:67], features(activations[64:67]), atol=1e-5)
    assert features(activations[:0]).shape == (0, spec.num_features)


def test_at_the_input_no_weights_are_needed_and_behind_it_they_are():
    spec, weights = spec_of("tiny", "input")
    tail = shaken(spec, weights)
    pixels = torch.from_numpy(pixels_of(spec))
    expected = build_tuned(spec, tail, weights)(pixels)
    assert torch.equal(build_tuned(spec, tail, None)(pixels), expected)
    spec, weights = spec_of("tiny", "stage3")
    with pytest.raises(BackboneError, match="weights before the cut at 'stage3' are needed"):
        build_tuned(spec, shaken(spec, weights), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tail: dict(list(tail.items())[:-1]), r"4 of 4 fit, and 5 are needed: missing: sta"),
        (lambda tail: {}, "0 of 0 fit, and 5 are needed"),
        (lambda tail: tail | {"head.weight": np.zeros(1)}, "5 of 6 .*unexpected: head.weight"),
        (
            lambda tail: tail | {"stage3.1.weight": np.zeros(3)},
            r"4 of 5 .*stage3\.1\.weight: expected \(192,\), found \(3,\)",
        ),
        (lambda tail: {f"module.{n}": v for n, v in tail.items()}, "0 of 5 fit"),
    ],
)
def test_a_part_of_a_tail_is_refused_with_numbers(change, message):
    spec, weights = spec_of("tiny", "stage3")
    tail = change(shaken(spec, weights))
    with pytest.raises(BackboneError, match=rf"do not fit tiny .*{message}.* Nothing was loaded"):
        build_tuned(spec, tail, weights)
    if tail:
        with pytest.raises(BackboneError, match=message):
            build_tail(spec, tail, None)


def test_weights_of_another_network_give_no_tail():
    spec, _ = spec_of("tiny", "stage3")
    other = open_weights("resnet18", "none")
    with pytest.raises(BackboneError, match="0 of 0 fit, and 5 are needed"):
        build_tail(spec, {}, other)


def test_a_stem_tensor_that_the_weights_lack_is_named_and_never_random():
    spec, weights = spec_of("tiny", "stage3")
    tail = shaken(spec, weights)
    lacking = {name: v for name, v in weights.state.items() if name != "stem.0.weight"}
    with pytest.raises(BackboneError, match=r"missing: stem\.0\.weight"):
        build_tuned(spec, tail, replace(weights, state=lacking))
    without_tail = {name: v for name, v in weights.state.items() if name not in tail}
    with pytest.raises(BackboneError, match="0 of 0 fit, and 5 are needed: missing: stage3"):
        build_tail(spec, {}, replace(weights, state=without_tail))


@pytest.mark.parametrize("cut", ["stage3", "input"])
def test_a_copy_of_a_tail_gives_the_same_features_and_keeps_its_statistics(cut):
    spec, weights = spec_of("tiny", cut)
    tail = build_tail(spec, {}, weights)
    copied = deepcopy(tail)  # of torchvision's trunks it is in train mode
    rows = pixels_of(spec)
    if cut != "input":
        rows = np.random.default_rng(0).normal(size=(3, *spec.row_shape)).astype(np.float32)
    expected = features_of(tail, spec.num_features)(rows)
    assert np.array_equal(features_of(copied, spec.num_features)(rows), expected)
    for name, value in tail.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value), name
