"""Choosing a rate and training: killed anywhere and resumed, interrupted, with nothing held out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tails import GOAL, problem

from featx.training.finetune.checkpoint import Checkpoint
from featx.training.finetune.loop import State, _Trainer
from featx.training.finetune.options import FinetuneOptions
from featx.training.finetune.outcome import Events
from featx.training.finetune.training import Training, repeatable

pytestmark = pytest.mark.usefixtures("unsynced")
OPTIONS = FinetuneOptions(max_epochs=4, batch_size=16, train_bn=True, average="ema")


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out waiting for the disk after each epoch."""
    monkeypatch.setattr("featx.artifact.files.sync", lambda _: None)


def train(path: Path, options: FinetuneOptions = OPTIONS, **events: Any) -> tuple[Any, State]:
    """Return rates and state of a training, resumed where a checkpoint is there."""
    tail, head, data = problem(64, num_held_out=16)
    tail.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    checkpoint = Checkpoint(path, options.to_dict(), {})
    training = Training(options, tail, head, data, GOAL, checkpoint, Events(**events))
    _, rates, state = training.run(checkpoint.load(), keep_start=True)
    return rates, state


class Killed(Exception):
    """Stands for the end of the process."""


@contextmanager
def killed_after(steps: int, error: BaseException) -> Iterator[None]:
    update, rest = _Trainer._update, steps

    def dying(self: _Trainer, *args: Any) -> bool:
        nonlocal rest
        rest -= 1
        if rest < 0:
            raise error
        return update(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Trainer, "_update", dying)
        yield


@pytest.mark.parametrize(("optimizer", "kills"), [("adamw", 20), ("sgd", 3)])
def test_a_run_killed_at_any_step_and_resumed_comes_to_the_same_bits(
    tmp_path: Path, optimizer: Any, kills: int
):
    options = FinetuneOptions(**(OPTIONS.to_dict() | {"optimizer": optimizer}))
    rates, whole = train(tmp_path / "whole", options)
    random = np.random.default_rng(0)
    for number in range(kills):
        killed_at = random.integers(1, 30, 2).tolist()
        for steps in killed_at:  # in the trials or in an epoch
            with killed_after(steps, Killed()), suppress(Killed):
                train(tmp_path / f"{number}", options)
        found, resumed = train(tmp_path / f"{number}", options)
        assert found == rates
        assert_same(resumed, whole)


def assert_same(ours: State, theirs: State) -> None:
    assert ours.epochs == theirs.epochs
    assert (ours.step, ours.best_epoch, ours.best_loss) == (
        *(theirs.step, theirs.best_epoch, theirs.best_loss),
    )
    for name in ("model", "average", "best"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(value, b[key]) for key, value in a.items()), name


def test_epochs_are_told_with_their_speed_from_where_a_run_was_resumed(tmp_path: Path):
    told: list[tuple[int, float]] = []

    def on_epoch(epoch: Any, seconds: float, speed: float) -> None:
        told.append((epoch.number, seconds * speed))

    options = FinetuneOptions(**(OPTIONS.to_dict() | {"lr": 0.05}))
    with killed_after(7, Killed()), pytest.raises(Killed):
        train(tmp_path / "state", options)
    train(tmp_path / "state", options, on_epoch=on_epoch)
    assert told == [(3, pytest.approx(48)), (4, pytest.approx(48))]


def test_trials_have_the_same_steps_from_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    starts: list[tuple[float, bytes]] = []
    counts: dict[float, int] = {}
    update = _Trainer._update

    def watched(self: _Trainer, *args: Any) -> bool:
        if self.recipe.max_epochs == 1:
            rate = self.recipe.lr
            if rate not in counts:
                starts.append((rate, self.tail[0][0].weight.detach().numpy().tobytes()))  # type: ignore[index, union-attr]
            counts[rate] = counts.get(rate, 0) + 1
        return update(self, *args)

    monkeypatch.setattr(_Trainer, "_update", watched)
    rates, _ = train(tmp_path / "state")
    assert counts.keys() == rates.keys()
    assert set(counts.values()) == {6}
    assert len({content for _, content in starts}) == 1


def test_with_nothing_held_out_the_usual_rate_is_taken_and_all_epochs_are_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    tail, head, data = problem(48, num_held_out=0)
    checkpoint = Checkpoint(tmp_path / "state", {}, {})
    training = Training(OPTIONS, tail, head, data, GOAL, checkpoint, Events())
    recipe, rates, state = training.run(checkpoint.load(), keep_start=True)
    assert (recipe.lr, rates, state.best_epoch) == (1e-3, {}, 4)
    assert state.epochs[0].held_out is None
    assert "No training images can be held out" in caplog.text


def test_the_moving_average_has_forgotten_the_start_after_few_steps(tmp_path: Path):
    plain = FinetuneOptions(**(OPTIONS.to_dict() | {"lr": 0.05, "average": "none"}))
    averaged = FinetuneOptions(**(OPTIONS.to_dict() | {"lr": 0.05}))
    _, ours = train(tmp_path / "plain", plain)
    _, theirs = train(tmp_path / "averaged", averaged)
    last, smooth = ours.epochs[-1].held_out, theirs.epochs[-1].held_out
    assert last is not None
    assert smooth is not None
    assert smooth < 1.1 * last
    # what is kept, and was judged, is the average: with the statistics that belong to it
    assert theirs.best_epoch == len(theirs.epochs) or theirs.best_epoch > 0
    for name, value in theirs.model.items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(theirs.average[name], value)
        else:
            assert not torch.equal(theirs.average[name], value), name


def test_torch_is_left_as_it_was():
    before = torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state().tolist()
    with repeatable(torch.device("cpu"), 3):
        assert torch.are_deterministic_algorithms_enabled()
        first = torch.rand(2).tolist()
    with repeatable(torch.device("cpu"), 3):
        assert torch.rand(2).tolist() == first
    after = torch.are_deterministic_algorithms_enabled(), torch.random.get_rng_state().tolist()
    assert after == before
