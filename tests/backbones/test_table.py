from __future__ import annotations

import pytest
from torchvision import models

from featx.backbones import table
from featx.backbones.catalog import backbone_names, build_skeleton, describe_backbone
from featx.backbones.spec import BackboneOptions
from featx.backbones.table import (
    UNSAID,
    backbone_table,
    find_backbone,
    public_version,
    require_backbone,
    search_backbones,
    sort_backbones,
)
from featx.backbones.with_timm import full_name, pretrained_cfg
from featx.errors import BackboneError

ROWS = {row.name: row for row in backbone_table()}
NAMES = backbone_names()


OF_TIMM = [name for name in ROWS if name.startswith("timm/")]


def test_the_table_has_the_names_and_versions_of_the_libraries():
    assert tuple(ROWS) == ("tiny", "lite0", *NAMES[1:], *OF_TIMM)
    assert table._content()["versions"] == {
        name: public_version(name) for name in ("torchvision", "timm")
    }
    assert len(OF_TIMM) > 60


@pytest.mark.parametrize("name", [*OF_TIMM, "lite0"])
def test_a_row_agrees_with_timms_configuration(name):
    row, cfg = ROWS[name], pretrained_cfg(name)
    assert full_name(name) == (name if name != "lite0" else "timm/tf_efficientnet_lite0.in1k")
    assert row.image_size == cfg["input_size"][-1]
    assert row.licence.lower() == cfg.get("license", "unknown")


@pytest.mark.parametrize("name", ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "lite0"])
def test_a_row_has_the_parameters_and_features_of_timms_model(name):
    row, model = ROWS[name], build_skeleton(name)
    assert row.num_parameters == sum(p.numel() for p in model.parameters())
    assert row.num_features == model.head_hidden_size


def test_the_first_row_of_a_model_of_timm_is_its_default():
    for name in OF_TIMM:
        short = name.partition(".")[0]
        if find_backbone(short) == name:
            assert full_name(short) == name


def test_names_of_timm_need_no_tag_and_no_exact_writing():
    expected = "timm/vit_small_patch14_dinov2.lvd142m"
    for written in ("timm/vit_small_patch14_dinov2", "timm/ViT-Small-Patch14-DINOv2", expected):
        assert require_backbone(written) == expected
    with pytest.raises(BackboneError, match="timm/vit_small_patch14_dinov2"):
        require_backbone("vit_small_patch14_dinov2")


@pytest.mark.parametrize("part", ["dino", "siglip", "clip", "timm/", "eva02"])
def test_models_of_timm_are_found_by_a_part_of_their_name(part):
    assert any(row.name.startswith("timm/") for row in search_backbones(part))


@pytest.mark.parametrize("name", ["tiny", "resnet18", "googlenet", "inception_v3", "vit_b_32"])
def test_a_row_is_what_the_model_and_torchvision_say(name):
    _check_row(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_what_the_model_and_torchvision_say(name):
    _check_row(name)


def _check_row(name: str) -> None:
    row = ROWS[name]
    assert row == describe_backbone(name)  # else: python tools/backbone_table.py
    parameters = build_skeleton(name).named_parameters()
    assert row.num_parameters == sum(p.numel() for k, p in parameters if not k.startswith("aux"))


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_row_agrees_with_torchvisions_record(name):
    row, entries = ROWS[name], models.get_model_weights(name)
    default = entries.DEFAULT
    assert row.weights[0] == default.name
    assert set(row.weights) == {entry.name for entry in entries}
    assert row.image_size == default.transforms().crop_size[0]
    assert row.num_parameters == default.meta["num_params"]
    assert row.gflops == default.meta["_ops"]
    assert row.top1 == default.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    for entry in entries:
        assert row.licences.get(entry.name) == entry.meta.get("license")


def test_licences_are_told_as_far_as_torchvision_knows_them():
    assert ROWS["resnet18"].licence == UNSAID
    assert ROWS["tiny"].licence == "MIT"
    assert "SWAG" in ROWS["vit_b_16"].licences["IMAGENET1K_SWAG_E2E_V1"]


@pytest.mark.parametrize(
    ("written", "name"),
    [("ResNet18", "resnet18"), ("resnet-18", "resnet18"), ("resnet_18", "resnet18"),
     ("ViT-B/16", "vit_b_16"), ("vitb16", "vit_b_16"), ("EfficientNet B0", "efficientnet_b0"),
     ("VGG-11-BN", "vgg11_bn"), ("RegNetX-16GF", "regnet_x_16gf"),
     ("RegNetX-1.6GF", "regnet_x_1_6gf"), ("squeezenet1.1", "squeezenet1_1"), ("TINY", "tiny")],
)  # fmt: skip
def test_names_are_recognised_however_they_are_written(written, name):
    assert require_backbone(written) == find_backbone(written) == name
    assert BackboneOptions(backbone=written).backbone == name


def test_names_stay_different_without_case_and_separators():
    assert len({table._plain(name) for name in NAMES}) == len(NAMES)
    assert all(find_backbone(name) == name for name in NAMES)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("resnet19", "resnet18"), ("mobilenet_v3", "mobilenet_v3_small"), ("ResNeXt50",
     "resnext50_32x4d"), ("tinny", "tiny"), ("RESNET\n18", "resnet18")],
)  # fmt: skip
def test_a_near_miss_gets_a_suggestion(typo, meant):
    with pytest.raises(BackboneError, match=rf"Unknown backbone '{typo}'.*{meant}"):
        require_backbone(typo)
    with pytest.raises(BackboneError, match="Unknown backbone"):
        BackboneOptions(backbone=typo)


@pytest.mark.parametrize("name", ["", "-", "timm/resnot18", "resnet", "regnet_x_1__6_gf_"])
def test_parts_of_names_and_other_libraries_names_are_no_names(name):
    expected = "regnet_x_1_6gf" if name.startswith("reg") else None
    assert find_backbone(name) == expected


def test_names_of_another_torchvision_are_asked_of_it(monkeypatch):
    monkeypatch.setattr(table, "public_version", lambda _: "99.0")
    monkeypatch.setattr(models, "list_models", lambda **_: ["resnet18", "newnet_b"])
    table._added_names.cache_clear()
    try:
        assert require_backbone("newnet_b") == "newnet_b"
        assert find_backbone("newnet_c") is None
    finally:
        table._added_names.cache_clear()


def test_backbones_are_found_by_a_part_of_name_or_family():
    assert {row.name for row in search_backbones("ResNeXt") if row.name not in OF_TIMM} == {
        *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
    }
    assert {row.family for row in search_backbones("transformer")} > {
        *("swin_transformer", "vision_transformer")
    }
    assert search_backbones("dinosaur") == search_backbones("") == search_backbones("-") == []


@pytest.mark.parametrize(
    ("order", "first"),
    [("name", "alexnet"), ("params", "tiny"), ("gflops", "shufflenet_v2_x0_5"),
     ("features", "tiny"), ("top1", "vit_h_14")],
)  # fmt: skip
def test_the_order_of_a_list(order, first):
    rows = sort_backbones((ROWS[name] for name in reversed(NAMES)), order)
    assert rows[0].name == first
    assert len(rows) == len(NAMES)
    if order == "top1":
        assert rows[-1].top1 is None
