from __future__ import annotations

import safetensors.torch
import torch

from featx.backbones import tiny
from featx.backbones.catalog import classifier_layer, default_preprocess
from featx.backbones.weights import open_weights


def test_the_bundled_file_is_small_and_float16():
    assert tiny.WEIGHTS_FILE.stat().st_size <= 1.5e6
    state = safetensors.torch.load_file(tiny.WEIGHTS_FILE)
    assert all(v.dtype == torch.float16 for v in state.values() if v.is_floating_point())


def test_the_bundled_file_fits_the_network_and_is_finite():
    weights = open_weights("tiny")
    expected = tiny.Tiny().state_dict()
    missing = {n for n in expected if n not in weights.state}
    assert all(name.endswith("num_batches_tracked") for name in missing)
    for name, tensor in weights.state.items():
        assert tensor.shape == expected[name].shape
        assert tensor.isfinite().all()


def test_the_running_variances_are_positive():
    state = open_weights("tiny").state
    variances = [tensor for name, tensor in state.items() if name.endswith("running_var")]
    assert variances
    assert all((tensor > 0).all() for tensor in variances)


def test_features_come_before_the_head_and_are_not_negative():
    model = tiny.Tiny().eval()
    with torch.inference_mode():
        images = torch.randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
        maps = model.stage3(model.stage2(model.stage1(model.stem(images))))
        features = model.flatten(model.pool(maps))
        assert features.shape == (2, 192)
        assert (features >= 0).all()
        torch.testing.assert_close(model.head(features), model(images))


def test_the_smallest_image_and_other_class_counts():
    model = tiny.Tiny(num_classes=3).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 3)
        assert model(torch.zeros(1, 3, 33, 47)).shape == (1, 3)


def test_constants_agree():
    spec = default_preprocess("tiny")
    assert (spec.image_size, spec.resize) == (tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    assert (spec.mean, spec.std) == (tiny.MEAN, tiny.STD)
    assert len(set(tiny.CLASSES)) == 10
    assert classifier_layer(tiny.Tiny()) == "head"
