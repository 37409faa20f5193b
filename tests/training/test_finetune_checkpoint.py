"""The state of an unfinished training, kept to the bit and for the same training alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch

from featx.errors import ArtifactError, ArtifactExists, ArtifactMismatch
from featx.training.finetune.checkpoint import Checkpoint, Progress
from featx.training.finetune.loop import State
from featx.training.finetune.outcome import Epoch

EPOCH = Epoch(1, 0.1, 1 / 3, 0.5, 1e-3, 0)


def state_of(best_epoch: int = 1) -> State:
    torch.manual_seed(best_epoch)
    model = {"tail.a.weight": torch.randn(3, 2), "head.0.bias": torch.tensor([math.pi, -0.0])}
    model["tail.count"] = torch.tensor(7)
    best = model if best_epoch == 1 else {name: value * 2 for name, value in model.items()}
    moments = {"tail.a.weight": {"exp_avg": torch.randn(3, 2), "step": torch.tensor(5.0)}}
    return State((EPOCH,), 5, model, {}, moments, best, best_epoch, 1 / 3)


def checkpoint(path: Path, **settings: object) -> Checkpoint:
    return Checkpoint(path, {"lr": 1e-3, "start": None} | settings, {"torch": "2.15"})


@pytest.mark.parametrize("best_epoch", [0, 1])
def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path, best_epoch: int):
    state, kept = state_of(best_epoch), checkpoint(tmp_path / "state")
    kept.save(Progress({1e-3: 1 / 3, 3e-3: math.inf}, state))
    found = kept.load()
    assert dict(found.rates) == {1e-3: 1 / 3, 3e-3: math.inf}
    assert found.state is not None
    assert found.state.epochs == state.epochs
    assert (found.state.step, found.state.best_epoch, found.state.best_loss) == (
        5,
        best_epoch,
        1 / 3,
    )
    for name in ("model", "best"):
        ours, theirs = getattr(state, name), getattr(found.state, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
        assert str(theirs["head.0.bias"][1]) == str(ours["head.0.bias"][1])
    moments = found.state.optimizer["tail.a.weight"]
    assert all(
        torch.equal(value, moments[key]) for key, value in state.optimizer["tail.a.weight"].items()
    )


def test_rates_are_kept_before_the_first_epoch(tmp_path: Path):
    kept = checkpoint(tmp_path / "state")
    assert kept.load().rates == {}
    kept.save(Progress({1e-3: 0.5}))
    assert kept.load().rates == {1e-3: 0.5}
    assert kept.load().state is None


def test_another_training_is_refused_and_what_differs_is_named(tmp_path: Path):
    checkpoint(tmp_path / "state").save(Progress({}, state_of()))
    with pytest.raises(ArtifactMismatch, match=r"lr: expected 0\.001, found 0\.01"):
        checkpoint(tmp_path / "state", lr=1e-2).load()


def test_options_that_differ_are_named_as_they_are_given(tmp_path: Path):
    checkpoint(tmp_path / "state", options={"max_epochs": 3}).save(Progress({}, state_of()))
    with pytest.raises(ArtifactMismatch, match=r"settings: max_epochs: expected 3, found 1\."):
        checkpoint(tmp_path / "state", options={"max_epochs": 1}).load()


@pytest.mark.parametrize("where", [0.5, 0.999])
def test_a_state_with_a_changed_bit_is_not_trained_on(tmp_path: Path, where: float):
    kept = checkpoint(tmp_path / "state")
    kept.save(Progress({}, state_of()))
    content = bytearray(kept.path.read_bytes())
    content[int(len(content) * where)] ^= 1
    kept.path.write_bytes(content)
    with pytest.raises(ArtifactExists, match="or is damaged"):
        kept.load()
    assert kept.path.read_bytes() == content


def test_a_full_disk_is_said_and_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = checkpoint(tmp_path / "state")
    kept.save(Progress({1e-3: 0.5}))

    def refuse(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with pytest.raises(ArtifactError, match=r"Cannot write .*No space left"):
        kept.save(Progress({}, state_of()))
    assert kept.load().rates == {1e-3: 0.5}
    assert list(tmp_path.iterdir()) == [kept.path]


def test_another_environment_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    kept = checkpoint(tmp_path / "state")
    kept.save(Progress({}, state_of()))
    assert kept.load().state is not None
    assert caplog.text == ""
    assert replace(kept, environment={"torch": "3"}).load().state is not None
    assert "torch: expected" in caplog.text
    assert "the last digits may differ" in caplog.text


@pytest.mark.parametrize("content", [b"", b"notes", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_something_else_is_left_alone(tmp_path: Path, content: bytes):
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(ArtifactExists, match="not the state of an unfinished training"):
        checkpoint(tmp_path / "state").load()
    assert (tmp_path / "state").read_bytes() == content
