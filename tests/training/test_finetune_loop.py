"""Training a tail: what moves, what stays, at which rate, and that it can be resumed to the bit."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tails import GOAL, Memory, problem
from torch import Tensor, nn

from featx.errors import ConfigError, TrainingError
from featx.training.finetune.groups import block_of, parameter_groups
from featx.training.finetune.loop import State, _is_over, train_tail
from featx.training.finetune.options import Recipe
from featx.training.finetune.outcome import Epoch
from featx.training.finetune.problem import evaluate

RECIPE = Recipe(lr=0.05, max_epochs=4, batch_size=32, average="none")


def test_training_lowers_the_held_out_loss_and_keeps_the_statistics():
    tail, head, data = problem()
    statistics = {name: value.clone() for name, value in tail.named_buffers()}
    before = {name: value.detach().clone() for name, value in tail.named_parameters()}
    epochs: list[Epoch] = []
    state = train_tail(
        tail, head, data, GOAL, RECIPE, after_epoch=lambda epoch, _: epochs.append(epoch)
    )
    assert state.best_loss < 0.8 * 1.1
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]
    assert all(torch.equal(value, statistics[name]) for name, value in tail.named_buffers())
    assert not any(torch.equal(value, before[name]) for name, value in tail.named_parameters())


def test_batch_norms_move_where_they_are_trained_also_with_one_image_left_over():
    tail, head, data = problem(33 + 16)
    before = {name: value.clone() for name, value in tail.named_buffers()}
    train_tail(tail, head, data, GOAL, replace(RECIPE, train_bn=True))
    assert not any(torch.equal(value, before[name]) for name, value in tail.named_buffers())


def test_each_image_is_seen_once_an_epoch_in_another_order():
    *_, data = parts = problem()
    train_tail(*parts, GOAL, RECIPE)
    assert [sorted(order) for order in data.order] == [list(range(96))] * 4
    assert len({tuple(order) for order in data.order}) == 4


def test_a_run_is_repeated_and_resumed_to_the_bit():
    states: list[State] = []
    whole = train_tail(
        *problem(), GOAL, RECIPE, after_epoch=lambda _, state: states.append(copy.deepcopy(state))
    )
    again = train_tail(*problem(), GOAL, RECIPE)
    assert_equal(whole, again)
    for state in states[:-1]:
        assert_equal(whole, train_tail(*problem(), GOAL, RECIPE, resumed=state))


def assert_equal(a: State, b: State) -> None:
    assert a.epochs == b.epochs
    assert (a.step, a.best_epoch, a.best_loss) == (b.step, b.best_epoch, b.best_loss)
    for name in ("model", "best"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_best_epoch_is_kept_as_it_was():
    tail, head, data = problem()
    seen: dict[int, dict[str, Tensor]] = {}

    def after(epoch: Epoch, state: State) -> None:
        seen[epoch.number] = {name: value.clone() for name, value in state.model.items()}

    state = train_tail(
        tail, head, data, GOAL, replace(RECIPE, lr=2.0, patience=10, clip=None), after_epoch=after
    )
    kept = nn.ModuleDict({"tail": tail, "head": head}).state_dict()
    best = seen.get(state.best_epoch) or problem_tensors()
    assert all(torch.equal(kept[name], value) for name, value in best.items())
    assert state.best_epoch < 4


def problem_tensors() -> dict[str, Tensor]:
    tail, head, _ = problem()
    return dict(nn.ModuleDict({"tail": tail, "head": head}).state_dict())


def test_training_stops_after_epochs_without_a_better_one():
    recipe = replace(RECIPE, lr=2.0, clip=None, max_epochs=9, patience=2)
    state = train_tail(*problem(), GOAL, recipe)
    losses = [epoch.held_out for epoch in state.epochs]
    assert len(losses) == 9 or losses.index(min(losses)) == len(losses) - 3


def test_rates_rise_to_the_full_one_and_fall_to_nearly_nothing():
    recipe = Recipe(max_epochs=3, warmup=0.1)
    rates = [recipe.rate(step, steps_per_epoch=10) for step in range(30)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert max(rates) == rates[2]
    assert rates[29] < 1e-3
    steps = Recipe(step_size=7, gamma=0.1)
    assert [steps.rate(10 * epoch, steps_per_epoch=10) for epoch in (0, 6, 7, 14)] == (
        pytest.approx([1, 1, 0.1, 0.01])
    )


def test_blocks_have_their_rates_wherever_the_network_is_cut():
    recipe = replace(
        RECIPE, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip=None, max_epochs=1
    )
    moved = {}
    for decay in (1.0, 0.5):
        tail, head, data = problem(num_held_out=112 - 32)
        before = {name: value.detach().clone() for name, value in tail.named_parameters()}
        train_tail(tail, head, data, GOAL, replace(recipe, layer_decay=decay, patience=99))
        moved[decay] = {
            n: float((v.detach() - before[n]).norm()) for n, v in tail.named_parameters()
        }
    for name, full in moved[1.0].items():
        depth = 4 - ["0.0", "0.1", "1.0", "1.1"].index(block_of(name))
        assert moved[0.5][name] == pytest.approx(full * 0.5**depth, rel=0.02)


def test_norms_biases_and_embeddings_do_not_decay():
    tail, head, _ = problem()
    tail.register_parameter("pos_embedding", nn.Parameter(torch.zeros(1, 3, 8)))
    decayed = [
        parameter
        for group in parameter_groups(tail, head, RECIPE)
        for parameter in group["params"]  # type: ignore[attr-defined]
        if group["weight_decay"]
    ]
    names = {id(p): n for m in (tail, head) for n, p in m.named_parameters()}
    assert sorted(names[id(p)] for p in decayed) == ["0.0.weight", "1.0.weight", "weight"]


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("layer4.0.conv1.weight", "layer4.0"),
        ("features.6.0.block.1.2.weight", "features.6.0"),
        ("features.9.squeeze.weight", "features.9"),
        ("encoder.layers.encoder_layer_11.mlp.0.weight", "encoder.layers.encoder_layer_11"),
        ("features.denseblock4.denselayer16.conv1.weight", "features.denseblock4.denselayer16"),
        ("Mixed_7c.branch1x1.conv.weight", "Mixed_7c"),
        ("encoder.layers.encoder_layer_3.ln_1.weight", "encoder.layers.encoder_layer_3"),
        ("trunk_output.block4.block4-1.f.a.0.weight", "trunk_output.block4.block4-1"),
        ("features.5.2.norm1.weight", "features.5.2"),
        ("stages.3.blocks.0.token_mixer.layer_scale.gamma", "stages.3.blocks.0"),
        ("stages.3.downsample.0.weight", "stages.3"),
        ("layers.2.blocks.11.mlp.fc1.weight", "layers.2.blocks.11"),
        ("blocks.3.layers.1.layers.MBconv.layers.conv_a.0.weight", "blocks.3.layers.1"),
        ("encoder.ln.weight", "encoder"),
    ],
)
def test_blocks_are_named_by_their_numbers(name: str, block: str):
    assert block_of(name) == block


def test_activations_that_are_not_finite_are_named():
    tail, head, data = problem()
    assert isinstance(data.source, Memory)
    data.source.values[0, 5] = np.nan
    with pytest.raises(TrainingError, match=r"activations of '5\.jpg' are not finite"):
        train_tail(tail, head, data, GOAL, RECIPE)


def test_where_training_diverges_the_best_epoch_before_is_kept(caplog: pytest.LogCaptureFixture):
    tail, head, data = problem()
    recipe = replace(RECIPE, lr=1e20, clip=None, optimizer="sgd")
    before = copy.deepcopy(tail.state_dict())
    state = train_tail(tail, head, data, GOAL, recipe)
    assert "not finite" in caplog.text
    assert state.best_epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in tail.state_dict().items())
    with pytest.raises(TrainingError, match="not finite in epoch 1, at step 2"):
        train_tail(*problem(), GOAL, recipe, keep_start=False)


def test_a_parameter_that_no_gradient_reaches_is_named():
    tail, head, data = problem()
    tail.register_parameter("unused", nn.Parameter(torch.zeros(2)))
    with pytest.raises(TrainingError, match=r"No gradient reaches tail\.unused"):
        train_tail(tail, head, data, GOAL, RECIPE)


def test_a_run_of_other_tensors_is_not_resumed():
    state = train_tail(*problem(), GOAL, RECIPE)
    tail, head, data = problem()
    tail.register_parameter("other", nn.Parameter(torch.zeros(2)))
    with pytest.raises(ConfigError, match=r"other tensors \(tail\.other, …\)"):
        train_tail(tail, head, data, GOAL, RECIPE, resumed=state)


@pytest.mark.parametrize("average", ["none", "ema"])
def test_what_is_kept_is_what_was_evaluated(average: Any):
    tail, head, data = problem()
    state = train_tail(tail, head, data, GOAL, replace(RECIPE, average=average, train_bn=True))
    for _ in range(2):
        loss, _ = evaluate(tail, head, data, GOAL, RECIPE.batch_size)
        assert loss == state.epochs[state.best_epoch - 1].held_out == state.best_loss


def test_a_step_with_infinite_gradients_is_skipped_and_the_schedule_waits(
    caplog: pytest.LogCaptureFixture,
):
    tail, head, data = problem()
    calls = 0

    def spoil(gradient: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return gradient * torch.inf if calls == 2 else gradient

    head.weight.register_hook(spoil)  # type: ignore[union-attr, operator]
    state = train_tail(tail, head, data, GOAL, replace(RECIPE, max_epochs=2))
    assert [epoch.skipped for epoch in state.epochs] == [1, 0]
    assert state.step == 5
    assert "1 step" in caplog.text
    assert all(torch.isfinite(value).all() for value in state.model.values())


def test_many_steps_with_infinite_gradients_end_the_training():
    tail, head, data = problem()
    head.weight.register_hook(lambda gradient: gradient * torch.nan)  # type: ignore[union-attr, operator]
    with pytest.raises(TrainingError, match="10 steps in a row had infinite gradients"):
        train_tail(tail, head, data, GOAL, replace(RECIPE, batch_size=8), keep_start=False)


class Counting(nn.Module):
    """Moves a statistic although it is in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, activations: Tensor) -> Tensor:
        self.seen += 1
        return activations


def test_statistics_that_move_although_they_are_to_stay_are_an_error():
    tail, head, data = problem()
    tail.append(Counting())  # type: ignore[operator]
    with pytest.raises(TrainingError, match=r"tail\.5\.seen moved in training"):
        train_tail(tail, head, data, GOAL, RECIPE)


def test_a_batch_norm_that_leaves_its_mode_is_an_error():
    tail, head, data = problem()

    def forget(module: nn.Module, *_: object) -> None:
        module.train()

    tail.register_forward_hook(forget)
    with pytest.raises(TrainingError, match="batch norm has left the mode"):
        train_tail(tail, head, data, GOAL, RECIPE)


@pytest.mark.parametrize(
    ("losses", "is_over"), [((0.9, 0.8, 0.7), False), ((0.7, 0.9, 0.8), True), ((), False)]
)
def test_a_start_that_is_better_than_the_first_epochs_does_not_end_training(losses, is_over):
    epochs = tuple(Epoch(i, 1.0, loss, None, 1e-3, 0) for i, loss in enumerate(losses, start=1))
    state = State(epochs, 0, {}, {}, {}, {}, best_epoch=0, best_loss=0.5)
    assert _is_over(state, replace(RECIPE, patience=2)) == is_over
