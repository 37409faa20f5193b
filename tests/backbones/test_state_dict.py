"""Checkpoints as trainers write them: found by names and shapes, or refused with what they hold."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from featx.backbones import tiny
from featx.backbones.catalog import default_preprocess
from featx.backbones.network import build_network
from featx.backbones.state_dict import find_state, guess_backbone, shapes_of, unusable
from featx.backbones.weights import Weights, open_weights
from featx.errors import BackboneError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(7)
    return tiny.Tiny(num_classes=3).state_dict()


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[object], Weights]:
    def write_and_open(content: object) -> Weights:
        torch.save(content, tmp_path / "w.pth")
        return open_weights("tiny", str(tmp_path / "w.pth"))

    return write_and_open


def fit(weights: Weights, backbone: str = "tiny") -> State:
    network, _ = build_network(backbone, weights, default_preprocess(backbone))
    return network.trunk.state_dict()


def with_prefix(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


PREFIXES = ["module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "network."]
WRAPPERS = ["net", "model_state_dict", "state_dict_ema", "ema", "model_ema", "teacher", "student"]


@pytest.mark.parametrize(
    "prefix", [*PREFIXES, "module._orig_mod.", "model.backbone.", "a.strange.one."]
)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "checkpoint"])
def test_prefixes_that_all_names_share(prefix, wrapper, state, opened):
    content: Any = with_prefix(state, prefix)
    weights = opened({wrapper: content, "epoch": 3} if wrapper else content)
    assert weights.state.keys() == state.keys()
    fit(weights)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_their_nesting(wrapper, state, opened):
    for content in ({wrapper: state}, {"a": {"b": {wrapper: with_prefix(state, "module.")}}}):
        assert opened({**content, "lr": 0.1}).state.keys() == state.keys()


def test_what_a_trainer_keeps_beside_the_network(state, opened):
    averaged = {"n_averaged": torch.tensor(3), **with_prefix(state, "module.")}
    lightning = {
        "state_dict": {"criterion.weight": torch.ones(3), **with_prefix(state, "model.")},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "hyper_parameters": {"lr": 0.1},
    }
    optimizer = {"optimizer": {"exp_avg": dict(state)}, "model": state}
    for content in (averaged, lightning, optimizer):
        weights = opened(content)
        assert weights.state.keys() == state.keys()
        fit(weights)


@pytest.mark.parametrize(
    "beside",
    [
        argparse.Namespace(lr=0.1, path=Path("runs")),
        {"best": np.float64(0.9), "curve": np.arange(3)},
        [Path("runs"), datetime(2024, 5, 1), OrderedDict(a=argparse.Namespace())],
        tiny.Tiny(num_classes=3),
    ],
    ids=["options", "numpy", "paths and dates", "a whole model"],
)
def test_objects_beside_the_tensors_are_not_read(beside, state, opened):
    assert opened({"args": beside, "state_dict": state}).state.keys() == state.keys()


def test_parts_that_were_wrapped_by_themselves(state, opened):
    for wrapper in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        content = {name.replace(".", f".{wrapper}.", 1): state[name] for name in state}
        assert opened({"model": with_prefix(content, "module.")}).state.keys() == state.keys()


@pytest.mark.parametrize("kept", ["exp_avg", "momentum_buffer", "optim_state", "optimizer"])
def test_what_an_optimiser_keeps_comes_after_everything_else(kept, state, opened):
    averages = {name: tensor + 1 for name, tensor in state.items()}
    found = opened({kept: averages, "my_weights": state})
    assert torch.equal(found.state["stem.0.weight"], state["stem.0.weight"])


def test_the_backbone_within_a_larger_model(state, opened):
    content = with_prefix(state, "backbone.body.")
    content |= {f"rpn.layer{i}.weight": torch.zeros(2) for i in range(30)}
    fit(opened(content))


def test_of_two_that_fit_one_is_taken_and_both_are_named(state, opened, caplog):
    other = {name: tensor + 1 for name, tensor in state.items()}
    for content, taken in (
        ({"model_ema": other, "model": state}, "model"),
        ({"ema": other, "state_dict": with_prefix(state, "module.")}, "state_dict → module."),
        (with_prefix(state, "encoder_q.") | with_prefix(other, "encoder_k."), "encoder_q."),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="featx"):
            weights = opened(content)
        assert torch.equal(weights.state["stem.0.weight"], state["stem.0.weight"])
        assert f"'{taken}' was taken, not '" in caplog.text


def test_the_one_that_fits_best_is_taken(state, opened):
    wrong = {name: torch.zeros(1) for name in state}
    found = opened({"state_dict": wrong, "something": {"else": state}})
    assert torch.equal(found.state["stem.0.weight"], state["stem.0.weight"])


# What does not fit


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_refusal_shows_what_the_file_has_and_what_it_looks_like(prefix, tmp_path):
    with torch.device("meta"):
        shapes = models.resnet34(num_classes=3).state_dict()
    content = {n: torch.zeros(t.shape) for n, t in with_prefix(shapes, prefix).items()}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="do not fit resnet18") as caught:
        fit(open_weights("resnet18", str(tmp_path / "w.pth")), "resnet18")
    assert "The file has 218 tensors: conv1.weight (64, 3, 7, 7), bn1.weight (64,)" in str(
        caught.value
    )
    assert str(caught.value).endswith("It looks like resnet34.")


def test_tensors_of_no_network_at_all(opened):
    with pytest.raises(BackboneError, match=r"The file has 1 tensor: x\.y \(3,\)\.$"):
        fit(opened({"x.y": torch.zeros(3)}))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_refused_with_advice(tmp_path):
    path = tmp_path / "w.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(BackboneError, match=r"TorchScript.*state_dict\(\) alone"):
        open_weights("tiny", str(path))


def test_guesses():
    for name in ("squeezenet1_0", "mobilenet_v3_small"):
        with torch.device("meta"):
            shapes = models.get_model(name, weights=None, num_classes=3).state_dict()
        assert guess_backbone(with_prefix(shapes, "a.b.")) == name
    assert guess_backbone({"a": torch.zeros(3)}) is None


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        *((torch.ones(2, dtype=d), "of type") for d in (torch.int32, torch.bool, torch.uint8)),
        (torch.ones(2, dtype=torch.complex64), "of type complex64, expected"),
        (torch.ones(2).to(torch.float8_e4m3fn), "of type float8_e4m3fn, expected"),
        (torch.ones(2).to_sparse(), "sparse"),
        (torch.ones(2, device="meta"), "meta device"),
        (torch.tensor([1, float("nan")]), "not finite"),
        (torch.tensor([1, -float("inf")]), "not finite"),
        (torch.tensor([1e300], dtype=torch.float64), "not finite in float32"),
    ],
    ids=str,
)
def test_tensors_that_are_no_weights(tensor, reason):
    assert reason in (unusable(tensor, torch.zeros(2)) or "")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_no_weights(state, opened):
    quantised = torch.quantize_per_tensor(state["stem.0.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(BackboneError, match=r"stem\.0\.weight is a quantised tensor"):
        fit(opened(state | {"stem.0.weight": quantised}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_other_sizes_are_weights(dtype):
    assert unusable(torch.ones(2, dtype=dtype), torch.zeros(2)) is None


def test_counters_are_whole_numbers():
    counter = torch.tensor(3)
    assert unusable(torch.tensor(3, dtype=torch.int32), counter) is None
    assert unusable(torch.tensor(3.5), counter) == "of type float32, expected whole numbers"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.int(), "stem.0.weight is of type int32"),
        (lambda t: t.to(torch.complex64), "stem.0.weight is of type complex64"),
        (lambda t: t.to_sparse(), "stem.0.weight is a sparse"),
        (lambda t: t * float("nan") if t.is_floating_point() else t, "stem.0.weight is not finite"),
        (lambda t: torch.zeros(t.shape, device="meta"), "meta device"),
    ],
)
def test_a_file_of_them_is_refused_by_name(change, reason, state, opened):
    weights = opened({name: change(tensor) for name, tensor in state.items()})
    with pytest.raises(BackboneError, match=reason):
        fit(weights)


def test_nothing_found_in_what_has_no_names():
    for content in (None, [torch.zeros(1)], {0: torch.zeros(1)}, {"a": {"b": 1}}):
        assert find_state(content, "tiny") is None
    nested: Any = {"x": torch.zeros(1)}
    for _ in range(500):
        nested = {"a": nested}
    assert find_state(nested, "tiny") is None
    assert len(shapes_of("tiny")) > 10
