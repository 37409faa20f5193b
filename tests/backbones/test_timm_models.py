"""What differs from one of timm's families to the next: tokens, last layers, sizes, kernels."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from commands import featx_cli
from PIL import Image

from featx.backbones import with_timm
from featx.backbones.catalog import build_model, default_preprocess
from featx.backbones.engines import OnnxEngine
from featx.backbones.network import build_network, find_end
from featx.backbones.onnx_graph import build_graph, relative_error
from featx.backbones.spec import BackboneSpec
from featx.backbones.table import backbone_table, require_backbone
from featx.backbones.timm_features import relative_cost
from featx.backbones.weights import open_weights
from featx.backbones.with_head import require_last_layer
from featx.backbones.with_timm import timm_preprocess
from featx.errors import BackboneError
from featx.images.preprocess import preprocess

timm = pytest.importorskip("timm")


def network_of(name, size, **options):
    name = require_backbone(f"timm/{name}")
    weights = open_weights(name, "none")
    return build_network(name, weights, timm_preprocess(name, size), **options)


def pixels_of(size, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def outputs_of(model, module, network, pixels):
    """Return what a module of timm's whole model gives."""
    found = []
    hook = model.get_submodule(module).register_forward_hook(lambda *given: found.append(given[2]))
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        model((images - network.mean) / network.std)
    hook.remove()
    return found[-1]


@pytest.mark.parametrize(("layer", "is_normed"), [("blocks.5", False), ("norm", True)])
@pytest.mark.parametrize("pool", ["auto", "cls", "avg", "max", "cls+avg", "flatten"])
def test_a_layer_is_its_modules_output_and_patches_are_pooled_without_prefix(
    layer, is_normed, pool
):
    network, spec = network_of("test_vit", 64, layer=layer, pool=pool)
    name = require_backbone("timm/test_vit")
    model = build_model(name, 64)
    model.load_state_dict(
        with_timm.adapted(model, model.state_dict(), open_weights(name, "none").state)
    )
    pixels = pixels_of(64)
    tokens = outputs_of(model, layer, network, pixels)
    assert tokens.shape == (2, 17, 64)
    cls, patches = tokens[:, 0], tokens[:, 1:]
    pooled = {
        "auto": cls,
        "cls": cls,
        "avg": patches.mean(1),
        "max": patches.amax(1),
        "cls+avg": torch.cat([cls, patches.mean(1)], 1),
        "flatten": tokens.flatten(1),
    }
    with torch.inference_mode():
        features = network(torch.from_numpy(pixels))
    torch.testing.assert_close(features, pooled[pool])
    assert spec.pool == ("cls" if pool == "auto" else pool)
    length = float(tokens.std(-1).mean())
    assert (abs(length - 1) < 1e-2) == is_normed  # the last block is without the final norm


@pytest.mark.parametrize(
    ("name", "layer", "pool", "num_prefix"),
    [
        ("vit_small_patch16_dinov3", "blocks.3", "avg", 5),
        ("vit_small_patch14_reg4_dinov2", "blocks.3", "avg", 5),
        ("deit_tiny_distilled_patch16_224", "blocks.3", "avg", 2),
        ("vit_base_patch16_siglip_224", "blocks.3", "avg", 0),
        ("xcit_nano_12_p16_224", "blocks.3", "avg", 0),
        ("swin_tiny_patch4_window7_224", "layers.2", "avg", 0),
    ],
)
def test_means_of_tokens_leave_out_as_many_as_the_model_puts_before(name, layer, pool, num_prefix):
    name = require_backbone(f"timm/{name}")
    size = default_preprocess(name).image_size if "swin" in name else 224
    assert find_end(name, size, layer=layer, pool=pool).form.num_prefix == num_prefix


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "levit_128s", "repvit_m0_9"])
def test_a_model_without_one_linear_as_last_layer_takes_no_head_in_its_place(name):
    name = require_backbone(f"timm/{name}")
    with pytest.raises(BackboneError, match="no single Linear as classifier"):
        require_last_layer(spec_of(name))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_a_model_with_one_linear_on_its_features_takes_a_head_in_its_place(name):
    require_last_layer(spec_of(require_backbone(f"timm/{name}")))


def spec_of(name):
    spec = default_preprocess(name)
    cut = find_end(name, spec.image_size)
    return BackboneSpec(name, "0" * 64, cut.layer, cut.pool, cut.num_features, spec)


def test_a_tower_of_clip_gives_its_features_and_by_name_its_projection():
    name = require_backbone("timm/vit_base_patch32_clip_224.openai")
    assert find_end(name, 224).num_features == 768
    assert find_end(name, 224, layer="head").num_features == 512


def test_a_second_size_is_named_and_not_taken(photos, tmp_path, monkeypatch):
    assert with_timm.larger_size("timm/resnet18.a1_in1k") == 288
    assert with_timm.larger_size("lite0") is None
    assert default_preprocess("timm/resnet18").image_size == 224
    monkeypatch.setattr(with_timm, "larger_size", lambda _: 192)
    command = ("extract", photos({"ants": 2}), "-b", "timm/test_resnet", "-w", "none")
    text = " ".join(featx_cli(*command, "-o", tmp_path / "f.h5").stderr.split())
    assert "takes images of 160 pixels; timm tests it with 192 as well: --image-size=192" in text


def test_the_work_of_a_larger_size_is_told_before_it_begins(photos, tmp_path):
    assert relative_cost("timm/test_vit.r160_in1k", 448) > 4  # each patch looks at all others
    command = ("extract", photos({"ants": 2}), "-b", "timm/test_vit", "-w", "none")
    text = " ".join(
        featx_cli(*command, "--image-size", 256, "-o", tmp_path / "f.h5").stderr.split()
    )
    assert re.search(r"takes images of 256 pixels, 1\.\d times the work of 224", text)


@pytest.mark.parametrize("key", ["input_size", "mean", "std", "crop_pct"])
def test_how_images_are_prepared_is_not_guessed(key, monkeypatch):
    known = with_timm.pretrained_cfg("timm/test_vit")
    monkeypatch.setattr(with_timm, "pretrained_cfg", lambda _: known | {key: None})
    with pytest.raises(BackboneError, match=f"does not say how images are prepared.*no {key}"):
        timm_preprocess("timm/test_vit")


def test_weights_of_which_nothing_is_loaded_are_refused(monkeypatch):
    name, tensors = "test_vit.r160_in1k", {"odd": torch.zeros(3)}
    known = {
        key: tuple(value.shape) for key, value in build_model(f"timm/{name}").state_dict().items()
    }
    with pytest.raises(BackboneError, match="do not fit its model"):
        with_timm.as_timm_loads(name, tensors, known)
    model = build_model(f"timm/{name}")
    monkeypatch.setattr("timm.create_model", lambda *_, **__: model)  # as one that loads nothing
    with pytest.raises(BackboneError, match="No tensor of the weights"):
        with_timm.as_timm_loads(name, tensors, known)


def test_what_enters_a_network_is_scaled_once():
    ramp = np.arange(256, dtype=np.uint8)  # from black to white
    photo = Image.fromarray(np.broadcast_to(ramp[:, None, None], (256, 256, 3)).copy())
    names = [row.name for row in backbone_table() if row.name.startswith("timm/")]
    for name in names:
        spec = replace(default_preprocess(name), image_size=32, resize=32)
        crop = preprocess(photo, spec).astype(np.float64) / 255
        seen = (crop - spec.mean) / spec.std
        assert abs(seen.mean()) < 3, name
        assert 0.2 < seen.std() < 3, name


def test_a_graph_resizes_no_positions_and_takes_every_number_of_images():
    network, _ = network_of("test_vit", 96)
    graph = build_graph(network, image_size=96)
    assert "Resize" not in kinds_of(graph)
    pixels, engine = pixels_of(96, 7), OnnxEngine(graph)
    with torch.inference_mode():
        expected = network(torch.from_numpy(pixels)).numpy()
    for count in (1, 3, 5, 7):
        assert relative_error(engine.features(pixels[:count]), expected[:count]) < 1e-4


def kinds_of(graph):
    return Counter(node.op_type for node in onnx.load_from_string(graph).graph.node)


@pytest.mark.parametrize("name", ["test_vit", "test_vit3"])
def test_features_do_not_depend_on_which_attention_is_used(name):
    from timm.layers import set_fused_attn, use_fused_attn

    features = []
    before = use_fused_attn()
    for is_fused in (True, False):
        set_fused_attn(is_fused)
        try:
            network, _ = network_of(name, 96)
        finally:
            set_fused_attn(bool(before))
        with torch.inference_mode():
            features.append(network(torch.from_numpy(pixels_of(96))).numpy())
    assert relative_error(*features) < 1e-5


def test_kernels_that_are_standardised_are_numbers_in_the_graph():
    network, _ = network_of("test_nfnet", 64)
    graph = build_graph(network, image_size=64)
    assert not kinds_of(graph)["BatchNormalization"]
    nodes = onnx.load_from_string(graph).graph
    weights = {tensor.name for tensor in nodes.initializer}
    assert all(node.input[1] in weights for node in nodes.node if node.op_type == "Conv")
