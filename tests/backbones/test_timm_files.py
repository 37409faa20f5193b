"""Files of weights with the names of a model's original, which timm turns into its own."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from featx.backbones.network import build_network, tensors_of
from featx.backbones.onnx_graph import relative_error
from featx.backbones.table import require_backbone
from featx.backbones.tails import build_tail, tail_shapes
from featx.backbones.weights import open_weights
from featx.backbones.with_timm import timm_preprocess
from featx.errors import BackboneError

timm = pytest.importorskip("timm")
SLOW = pytest.mark.slow


def of_clip(state):
    """Return OpenAI's names of a CLIP vision tower, with a text tower beside it."""
    swaps = (
        *(("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks.")),
        *((r"\.norm", ".ln_"), ("qkv.", "in_proj_"), ("attn.proj", "attn.out_proj")),
        *(
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("pos_embed", "positional_embedding"),
        ),
    )
    found = {"text_projection": torch.zeros(3, 3), "logit_scale": torch.zeros(())}
    for name, value in state.items():
        if name == "cls_token":
            found["visual.class_embedding"] = value[0, 0]
        elif not name.startswith("head."):
            theirs = "ln_post" + name[4:] if name.startswith("norm.") else renamed(name, swaps)
            found[f"visual.{theirs}"] = value[0] if name == "pos_embed" else value
    return found


def renamed(name, swaps):
    for own, theirs in swaps:
        name = re.sub(own, theirs, name)
    return name


def of_dinov2(state):
    """Return the names of DINOv2 with registers, whose class token has a position of its own."""
    found = dict(state)
    position = torch.full((1, 1, state["pos_embed"].shape[2]), 2**-20)
    found["register_tokens"] = found.pop("reg_token")
    found["cls_token"] = state["cls_token"] - position
    found["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    return found | {"mask_token": torch.zeros(1, position.shape[2])}


def with_mask(state):
    """Return the names of DINOv2 without registers: timm's, and a token that is not used."""
    return dict(state) | {"mask_token": torch.zeros(1, state["pos_embed"].shape[2])}


def of_convnext(state):
    """Return the names of ConvNeXt's authors, nested as theirs."""
    swaps = (
        *((r"stages\.(\d)\.blocks\.", r"stages.\1."), (r"conv_dw", "dwconv")),
        *((r"stages\.(\d)\.downsample\.", r"downsample_layers.\1."), (r"mlp\.fc", "pwconv")),
        *((r"stem\.", "downsample_layers.0."), (r"head\.norm", "norm"), (r"head\.fc", "head")),
    )
    found = {renamed(name, swaps): value for name, value in state.items()}
    flat = {n: v.flatten(1) for n, v in found.items() if "pwconv" in n and n.endswith("weight")}
    return {"model": found | flat}


def of_swin(state):
    """Return the names of Swin's authors, who downsample at the end of a stage, with its tables."""
    down = re.compile(r"layers\.(\d)\.downsample")
    found = {
        down.sub(lambda m: f"layers.{int(m[1]) - 1}.downsample", name).replace(
            "head.fc.", "head."
        ): v
        for name, v in state.items()
    }
    for name in [name for name in found if name.endswith("attn.qkv.weight")]:
        found[name.replace("qkv.weight", "relative_position_index")] = torch.zeros(49, 49).long()
    return {"model": found | {"layers.0.blocks.1.attn_mask": torch.zeros(64, 49, 49)}}


def of_beit(state):
    """Return the names of BEiT's authors: timm's, with tables, nested as DeepSpeed leaves them."""
    tables = {
        name.replace("qkv.weight", "relative_position_index"): torch.zeros(197, 197).long()
        for name in state
        if name.endswith("attn.qkv.weight")
    }
    return {"module": dict(state) | tables, "optimizer": {"state": {}}}


def of_eva02(state):
    """Return the names of EVA-02's authors, as of pretraining by masked images."""
    swaps = (("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3"))
    swaps += (("mlp.norm", "mlp.ffn_ln"), ("q_proj.bias", "q_bias"), ("v_proj.bias", "v_bias"))
    swaps += (("fc_norm", "norm"),)
    found = {renamed(name, swaps): value for name, value in state.items()}
    found["mask_token"] = torch.zeros(1, 1, state["cls_token"].shape[2])
    found["lm_head.weight"] = torch.zeros(16, state["cls_token"].shape[2])
    found["rope.freqs_cos"] = found["blocks.0.attn.rope.freqs_sin"] = torch.zeros(256, 64)
    return {"module": found}


@pytest.mark.parametrize(
    ("name", "original", "cut", "size"),
    [
        ("timm/test_vit", of_clip, "blocks.3", 160),
        ("timm/convnext_atto", of_convnext, "stages.2", 64),
        ("timm/vit_small_patch14_reg4_dinov2", of_dinov2, "blocks.9", 56),
        ("timm/vit_small_patch14_dinov2", with_mask, "blocks.9", 518),
        ("timm/swin_tiny_patch4_window7_224", of_swin, "layers.2", 64),
        pytest.param("timm/swinv2_tiny_window8_256", of_swin, "layers.2", 64, marks=SLOW),
        ("timm/eva02_tiny_patch14_224", of_eva02, "blocks.9", 56),
        pytest.param("timm/eva02_base_patch14_224", of_eva02, "blocks.9", 56, marks=SLOW),
        pytest.param("timm/beit_base_patch16_224", of_beit, "blocks.9", 64, marks=SLOW),
    ],
)
def test_a_file_with_the_originals_names_gives_the_same_features(
    name, original, cut, size, tmp_path
):
    name, file = require_backbone(name), tmp_path / "original.pth"
    own = open_weights(name, "none")
    torch.save(original(own.state), file)
    weights, spec = open_weights(name, str(file)), timm_preprocess(name, size)
    network, found = build_network(name, weights, spec)
    expected, same = build_network(name, own, spec)
    assert found.num_features == same.num_features
    if size < 500:
        pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
        with torch.inference_mode():
            features = [each(torch.from_numpy(pixels)).numpy() for each in (network, expected)]
        assert relative_error(*features) < 1e-5
    else:  # too slow to run
        theirs = expected.state_dict()
        assert all(torch.equal(own, theirs[key]) for key, own in network.state_dict().items())
    _, at_cut = build_network(name, weights, spec, cut=cut)
    tail = tensors_of(build_tail(at_cut, {}, weights), name, size)
    assert set(tail_shapes(at_cut)) == set(tail)


def test_a_file_that_is_no_such_model_is_refused_with_what_is_missing(tmp_path):
    file = tmp_path / "other.pth"
    torch.save({"visual.class_embedding": torch.zeros(64), "visual.odd": torch.zeros(2)}, file)
    weights = open_weights("timm/test_vit", str(file))
    with pytest.raises(BackboneError, match=r"missing: (cls_token|pos_embed)"):
        build_network("timm/test_vit.r160_in1k", weights, timm_preprocess("timm/test_vit", 160))


def test_tensors_of_timms_own_names_are_left_as_they_are():
    from featx.backbones.catalog import build_model
    from featx.backbones.with_timm import adapted

    model = build_model("timm/test_vit")
    tail = {n: v for n, v in model.state_dict().items() if n.startswith("blocks.5")}
    assert adapted(model, model.state_dict(), tail) is tail
