"""timm's models as backbones: pixels and features are timm's own, and the graph's are theirs."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import onnxruntime as ort
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper
from PIL import Image

from featx.backbones import with_timm
from featx.backbones.catalog import build_model, default_preprocess
from featx.backbones.engines import OnnxEngine
from featx.backbones.graph_builder import GraphBuilder
from featx.backbones.network import build_network, find_end
from featx.backbones.onnx_graph import build_graph, relative_error
from featx.backbones.table import require_backbone
from featx.backbones.weights import Weights, open_weights
from featx.classifier.image_nodes import add_geometry
from featx.errors import BackboneError, ConfigError
from featx.images.preprocess import PreprocessSpec, preprocess

timm = pytest.importorskip("timm")

QUICK = (
    *("convnext_atto", "mobilenetv3_small_100", "regnety_002", "resnet18", "tf_efficientnet_lite0"),
    *("mobilenetv4_conv_small", "vit_tiny_patch16_224", "levit_128s"),
)
SLOW = (
    *("deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2", "eca_nfnet_l0"),
    *("vit_small_patch16_dinov3", "convnext_tiny.dinov3_lvd1689m", "eva02_tiny_patch14_224"),
    *("vit_base_patch32_siglip_256.v2_webli", "swinv2_tiny_window8_256", "convnextv2_atto"),
    *("efficientnet_b0", "vit_base_patch32_clip_224.openai", "xcit_nano_12_p16_224"),
    *("efficientvit_b0", "repvit_m0_9", "caformer_s18", "hgnetv2_b0"),
)
SIZES = ((300, 200), (30, 2000), (2000, 30), (5, 5))
OF_EACH_CROP = {
    "resnet18": "center",
    "vit_base_patch16_siglip_224.v2_webli": "center",
    "volo_d5_448.sail_in1k": "center",
    "coat_lite_medium_384.in1k": "squash",
    "deepseek_vit_412m.deepseek_v4_flash_vision_exp": "border",
}


def image_of(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def timm_pixels(image: Image.Image, **config) -> np.ndarray:
    transform = timm.data.create_transform(**config, is_training=False, normalize=False)
    return np.asarray(transform(image)).transpose(1, 2, 0)


def by_graph(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    builder = GraphBuilder()
    add_geometry(builder, spec, image="image", output="crop")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        builder.nodes,
        "geometry",
        [value("image", TensorProto.UINT8, [None, None, None, 3])],
        [value("crop", TensorProto.UINT8, [None, None, None, 3])],
        builder.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": pixels[None]})[0][0]


@pytest.mark.parametrize("name", OF_EACH_CROP)
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_timms_transform(name, size):
    spec = default_preprocess(f"timm/{name}")
    config = timm.data.resolve_data_config(pretrained_cfg=with_timm.pretrained_cfg(f"timm/{name}"))
    assert spec.crop == OF_EACH_CROP[name]
    image = image_of(*size)
    assert np.array_equal(preprocess(image, spec), timm_pixels(image, **config))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [0.875, 0.965, 1.0, 1.15])
@pytest.mark.parametrize("crop", ["center", "squash", "border"])
def test_pixels_and_graph_equal_timms_for_each_crop(crop, crop_pct, size):
    if crop == "squash" and crop_pct > 1:
        pytest.skip("no model has that")
    mean, resize = (0.485, 0.456, 0.406), int(64 / crop_pct)
    spec = PreprocessSpec(
        64, resize, mean, (0.2,) * 3, crop, "bicubic", pad=crop == "center" and crop_pct > 1
    )
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    image = image_of(*size)
    expected = timm_pixels(
        image,
        input_size=(3, 64, 64),
        crop_pct=crop_pct,
        crop_mode=crop,
        interpolation="bicubic",
        mean=mean,
    )
    found = preprocess(image, spec)
    assert np.array_equal(found, expected)
    graph = by_graph(np.asarray(image), spec)
    assert np.abs(graph.astype(int) - found.astype(int)).max() <= 2


def test_what_is_at_its_default_is_left_out_of_old_specs():
    assert "pad" not in PreprocessSpec(64, 64, (0.5,) * 3, (0.5,) * 3).to_dict()


@pytest.mark.parametrize("name", QUICK)
def test_features_and_graph_are_timms_own(name):
    check_features(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_features_and_graph_are_timms_own_for_more(name):
    check_features(name)


def check_features(name: str) -> None:
    name = require_backbone(f"timm/{name}")
    weights, spec = open_weights(name, "none"), default_preprocess(name)
    network, found = build_network(name, weights, spec)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, spec.image_size, spec.image_size, 3), np.uint8)
    expected = timms_features(name, weights, network, pixels)
    with torch.inference_mode():
        features = network(torch.from_numpy(pixels)).numpy()
    assert found.num_features == expected.shape[1]
    assert relative_error(features, expected) < 1e-4
    engine = OnnxEngine(build_graph(network, image_size=spec.image_size))
    for count in (1, 3):
        assert relative_error(engine.features(pixels[:count]), expected[:count]) < 1e-4


def timms_features(name, weights, network, pixels) -> np.ndarray:
    model = build_model(name)
    model.load_state_dict(weights.state)
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        images = (images - network.mean) / network.std
        return model.forward_head(model.forward_features(images), pre_logits=True).numpy()


VIT = "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.mark.parametrize("pool", ["avg", "cls", "cls+avg"])
def test_pooling_takes_the_patches_without_prefix_tokens(pool):
    name = require_backbone("timm/deit_tiny_distilled_patch16_224")
    weights, spec = open_weights(name, "none"), default_preprocess(name)
    network, found = build_network(name, weights, spec, pool=pool)
    model = build_model(name)
    model.load_state_dict(weights.state)
    pixels = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - network.mean) / network.std
        tokens = model.forward_features(images)
        parts = {"cls": tokens[:, 0], "avg": tokens[:, 2:].mean(1)}
        expected = torch.cat([parts[part] for part in pool.split("+")], 1)
        features = network(pixels)
    assert torch.allclose(features, expected, atol=1e-5)
    assert found.num_features == expected.shape[1]


@pytest.mark.parametrize(
    ("name", "pool"), [(VIT, "map"), ("timm/resnet50_clip", "avg"), ("timm/resnet18", "cls")]
)
def test_a_pooling_that_a_model_cannot_have_is_answered_with_those_it_can(name, pool):
    name = require_backbone(name)
    with pytest.raises(ConfigError, match=rf"no pooling '{pool}'; it can have auto"):
        build_network(name, open_weights(name, "none"), default_preprocess(name), pool=pool)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv4_conv_small", "regnety_002", "eca_nfnet_l0", "levit_128s"]
)
def test_avg_of_a_model_that_averages_its_maps_is_its_own_pooling(name):
    name = require_backbone(f"timm/{name}")
    size = default_preprocess(name).image_size
    assert find_end(name, size, pool="avg") == find_end(name, size)
    with pytest.raises(ConfigError, match="no pooling 'max'; it can have auto, avg"):
        find_end(name, size, pool="max")


def test_position_embeddings_of_a_file_are_resampled_as_timm_does(tmp_path):
    file = tmp_path / "vit.pth"
    torch.manual_seed(0)
    model = timm.create_model(VIT.removeprefix("timm/"), num_classes=3).eval()
    torch.save(model.state_dict(), file)
    overlay = {"file": str(file), "num_classes": 3}
    own = timm.create_model(
        VIT.removeprefix("timm/"),
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=3,
        img_size=288,
    ).eval()
    spec = with_timm.timm_preprocess(VIT, 288)
    network, _ = build_network(VIT, open_weights(VIT, str(file)), spec)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 288, 288, 3), np.uint8)
    expected = timms_features_of(own, network, pixels)
    with torch.inference_mode():
        features = network(torch.from_numpy(pixels)).numpy()
    assert relative_error(features, expected) < 1e-5


def timms_features_of(model, network, pixels) -> np.ndarray:
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        images = (images - network.mean) / network.std
        return model.forward_head(model.forward_features(images), pre_logits=True).numpy()


def test_a_size_that_does_not_go_is_answered_with_sizes_that_do():
    weights = Weights("random:0", "0" * 64, {})
    with pytest.raises(BackboneError, match=r"levit_128s.* 250 pixels"):
        build_network("timm/levit_128s", weights, with_timm.timm_preprocess("timm/levit_128s", 250))


def test_names_get_their_tag_and_wrong_ones_the_nearest():
    assert require_backbone("timm/resnet18") == "timm/resnet18.a1_in1k"
    with pytest.raises(BackboneError, match="Did you mean timm/resnet18"):
        require_backbone("timm/resnt18")
    with pytest.raises(BackboneError, match="no weights 'a9'; it has a1_in1k"):
        require_backbone("timm/resnet18.a9")


def test_without_timm_the_install_command_is_said(monkeypatch):
    monkeypatch.setattr(with_timm.importlib.util, "find_spec", lambda _: None)
    for name, extra in ((VIT, "timm"), ("lite0", "imagenet")):
        with_timm.full_name.cache_clear()
        with pytest.raises(BackboneError, match=rf"needs the package timm: .*featx\[{extra}\]"):
            with_timm.full_name(name)


def test_without_the_package_of_lite0_its_install_command_is_said(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(BackboneError, match=r"model, which is not installed: .*featx\[imagenet"):
        open_weights("lite0")


@pytest.mark.real_data
def test_the_package_of_lite0_holds_the_weights_that_timm_has(data):
    own = safetensors.torch.load_file(data / "weights/tf_efficientnet_lite0-imagenet.safetensors")
    state = open_weights("lite0").state
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    assert own.keys() == state.keys() - counters
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())
