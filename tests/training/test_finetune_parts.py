"""Rates that are tried, groups of parameters, and probabilities after class weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
from torch import nn

from featx.backbones.catalog import build_skeleton, penultimate_layer
from featx.backbones.cuts import split_model
from featx.errors import TrainingError
from featx.heads.tasks.calibration import fit_temperature, restore_shares
from featx.heads.tasks.losses import softmax_in_place
from featx.training.finetune.groups import is_transformer, parameter_groups
from featx.training.finetune.options import Recipe
from featx.training.finetune.training import choose_rate


@pytest.mark.parametrize("best", [1e-5, 3e-4, 1e-3, 3e-2])
def test_the_grid_widens_until_the_best_rate_is_not_at_its_edge(best: float):
    tried: list[float] = []

    def trial(rate: float) -> float:
        tried.append(rate)
        return 0.1 + abs(math.log(rate / best))

    assert choose_rate(trial, optimizer="adamw") == best
    assert min(tried) < best < max(tried)
    assert len(tried) == len(set(tried)) <= 7


def test_rates_at_which_training_diverges_are_never_chosen():
    assert choose_rate(lambda r: math.inf if r > 2e-5 else 1 - r, optimizer="adamw") == 1e-5


def test_of_rates_that_do_nearly_as_well_the_larger_one_is_taken():
    losses = {1e-4: 0.66, 3e-4: 0.6238, 1e-3: 0.6427, 3e-3: 0.945}
    assert choose_rate(losses.__getitem__, optimizer="adamw") == 1e-3
    assert choose_rate((losses | {1e-3: 0.67}).__getitem__, optimizer="adamw") == 3e-4


def test_training_that_diverges_at_every_rate_is_an_error():
    with pytest.raises(TrainingError, match=r"diverges at every learning rate from 0\.003 down"):
        choose_rate(lambda _: math.inf, optimizer="adamw")


def parameters_of(model: nn.Module, *, decayed: bool) -> set[str]:
    groups = parameter_groups(model, nn.Linear(2, 2), Recipe(weight_decay=0.1))
    chosen = {
        id(each)
        for group in groups
        for each in group["params"]
        if bool(group["weight_decay"]) == decayed
    }
    return {name for name, each in model.named_parameters() if id(each) in chosen}


FAMILIES = ["resnet18", "vit_b_16", "swin_t", "swin_v2_t", "convnext_tiny", "efficientnet_b0"]
FAMILIES += ["mobilenet_v3_small", "densenet121", "regnet_y_400mf", "maxvit_t", "tiny"]


@pytest.mark.parametrize("backbone", FAMILIES)
def test_only_weights_of_convolutions_linear_layers_and_attention_decay(backbone: str):
    model = build_skeleton(backbone, 224)
    decayed = parameters_of(model, decayed=True)
    owners = {name: type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in decayed}
    assert set(owners.values()) <= {
        *("Conv2d", "Linear", "NonDynamicallyQuantizableLinear", "MultiheadAttention")
    }
    words = ("bias", "norm", "token", "embedding", "scale", "bn")
    assert not [name for name in decayed if any(word in name.lower() for word in words)]
    left = parameters_of(model, decayed=False)
    assert len(decayed) + len(left) == len(list(model.named_parameters()))


TAILS = [
    *(("swin_t", "features.6"), ("swin_v2_t", "features.6"), ("maxvit_t", "blocks.3")),
    *(("convnext_tiny", "features.6"), ("timm/eva02_tiny_patch14_224", "blocks.11")),
]


@pytest.mark.parametrize(("backbone", "cut"), TAILS)
def test_the_same_parameters_decay_in_a_tail_whose_layers_tracing_has_taken_apart(
    backbone: str, cut: str
):
    model = build_skeleton(backbone, 224)
    layers = (nn.Linear, nn.Conv2d)
    weights = {f"{name}.weight" for name, own in model.named_modules() if isinstance(own, layers)}
    _, tail = split_model(model, cut, layer=penultimate_layer(model))
    names = {name for name, _ in tail.named_parameters()}
    assert parameters_of(tail, decayed=True) == weights & names
    assert parameters_of(tail, decayed=False) == names - weights


def test_embeddings_have_the_lowest_rate_and_layers_behind_the_blocks_the_highest():
    model = build_skeleton("vit_b_16", 224)
    model.heads = nn.Identity()
    groups = parameter_groups(model, nn.Linear(2, 2), Recipe(lr=1.0, layer_decay=0.75))
    names = {id(each): name for name, each in model.named_parameters()}
    rate = {
        names[id(each)]: group["highest"]
        for group in groups
        for each in group["params"]
        if id(each) in names
    }
    first = [rate[name] for name in ("class_token", "conv_proj.weight", "encoder.pos_embedding")]
    assert first == [min(rate.values())] * 3 == pytest.approx([0.75**14] * 3)
    assert rate["encoder.ln.weight"] == max(rate.values()) == 0.75
    for number in range(12):
        name = f"encoder.layers.encoder_layer_{number}.mlp.0.weight"
        assert rate[name] == pytest.approx(0.75 ** (13 - number))


def test_transformers_are_told_from_convolutional_networks_by_their_tails():
    cuts = {
        "vit_b_16": "encoder.layers.encoder_layer_11",
        "swin_t": "features.6",
        "maxvit_t": "blocks.3",
        "convnext_tiny": "features.6",
        "resnet18": "layer4",
    }
    found = {}
    for name, cut in cuts.items():
        model = build_skeleton(name, 224)
        _, tail = split_model(model, cut, layer=penultimate_layer(model))
        found[name] = is_transformer(tail)
    transformers = {"vit_b_16", "swin_t", "maxvit_t"}
    assert found == {name: name in transformers for name in cuts}


def test_mean_probabilities_are_the_shares_of_the_classes_after_balanced_weights():
    random = np.random.default_rng(0)
    shares = np.array([0.7, 0.2, 0.1])
    labels = random.choice(3, 1000, p=shares)
    evidence = 1.5 * np.eye(3)[labels] + random.normal(size=(1000, 3))
    balanced = 2 * evidence - np.log(1)  # no prior, and too sure
    shift = restore_shares(balanced, labels, labels)
    logits = balanced + shift
    likely = softmax_in_place(logits / fit_temperature(logits, labels))
    counted = np.bincount(labels) / 1000
    assert likely.mean(axis=0) == pytest.approx(counted, rel=0.1)
    unshifted = softmax_in_place(balanced / fit_temperature(balanced, labels))
    assert abs(unshifted.mean(axis=0) / counted - 1).max() > 0.3


def test_a_class_that_nothing_was_held_out_of_keeps_some_probability():
    labels = np.array([0, 0, 1, 1, 0, 1])
    logits = np.random.default_rng(0).normal(size=(6, 4)) + 2 * np.eye(4)[labels]
    shift = restore_shares(logits, labels, np.array([0, 1, 2, 0, 1, 0, 1, 0, 1]))
    assert np.isfinite(shift).all()
    assert shift[3] == 0
