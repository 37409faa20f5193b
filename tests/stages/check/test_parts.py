"""How far parts are, and the commands that come next."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from commands import featx_cli

from featx.artifact import partial_path
from featx.artifact.parts import part_path
from featx.extraction.options import ExtractOptions
from featx.stages.check import StatusReport, status
from featx.stages.extract import extract
from featx.stages.train import train_head

TINY = ExtractOptions(backbone="tiny")


@pytest.fixture
def source(photos) -> Path:
    return photos({"ants": 130, "bees": 126})


@pytest.fixture
def folder(source, tmp_path) -> Path:
    """Parts 1 and 4 of 4, in a folder whose name has a space."""
    folder = tmp_path / "my big.parts"
    for number in (1, 4):
        extract(source, folder, replace(TINY, part=f"{number}/4"))
    return folder


def follow(report: StatusReport) -> None:
    for file in report.files:
        if file.command:
            result = featx_cli(*shlex.split(file.command)[1:])
            assert result.exit_code == 0, (file.command, result.output)


def test_parts_are_completed_by_following_the_commands(folder, source, monkeypatch):
    found = status(folder).files[0]
    assert (found.state, found.reason) == ("unfinished", "2 of 4 parts; missing: parts 2-3")
    assert found.command.endswith("--part 2/4")
    follow(status(folder))
    follow(status(folder))
    assert status(folder).is_current
    (folder / "index.json").unlink()
    found = status(folder).files[0]
    assert found.state == "unfinished"
    assert "no index" in found.reason
    follow(status(folder))
    assert status(folder).is_current
    shutil.copy(source / "ants/001.jpg", source / "ants/000.jpg")
    found = status(folder).files[0]
    assert (found.state, found.reason) == ("stale", "1 changed")
    follow(status(folder))
    assert status(folder).is_current


def test_images_that_parts_cannot_take_need_another_folder(folder, source):
    follow(status(folder))
    follow(status(folder))
    shutil.copy(source / "ants/001.jpg", source / "ants/new.jpg")
    found = status(folder).files[0]
    assert found.state == "stale"
    assert "in another folder" in found.reason
    follow(status(folder))
    assert status(folder.with_name("my big-2.parts")).is_current


def test_a_part_that_was_begun_is_told_with_who_writes_it(folder, source):
    path = part_path(folder, 3)

    def interrupt(done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(source, folder, replace(TINY, part="3/4", batch_size=4), progress=interrupt)
    assert partial_path(path).exists()
    whole, begun = status(folder).files
    assert whole.command.endswith("--part 2/4")
    assert begun.path == path
    assert begun.reason.endswith("of 64 images done; interrupted")
    (folder / f"{path.name}.lock").write_text("process 7 on node4 since 2026-01-01 00:00:00\n")
    assert "written by process 7 on node4 since" in status(folder).files[1].reason
    (folder / f"{path.name}.lock").unlink()
    follow(StatusReport(folder, (begun,)))
    assert len(status(folder).files) == 1


def test_a_head_of_parts_is_told_beside_them(folder, tmp_path):
    follow(status(folder))
    follow(status(folder))
    train_head(folder, tmp_path / "head.safetensors", progress=False)
    found = status(tmp_path)
    assert [file.path.name for file in found.files] == [
        folder.name,
        "head.safetensors",
        "model.onnx",
    ]
    assert [file.state for file in found.files] == ["current", "current", "missing"]
    part_path(folder, 2).unlink()
    assert [file.state for file in status(tmp_path).files][:2] == ["unfinished", "unchecked"]


def test_the_command_prints_what_comes_next(folder, tmp_path):
    result = featx_cli("status", folder)
    assert result.exit_code == 1
    assert "missing: parts 2-3" in result.output
    assert json.loads(featx_cli("status", folder, "--json").stdout)["is_current"] is False
    follow(status(folder))
    follow(status(folder))
    result = featx_cli("status", folder)
    assert result.exit_code == 0
    assert f"featx train-head {shlex.quote(str(folder))}" in " ".join(result.output.split())
    nothing = status(tmp_path / "no.parts").files[0]
    assert nothing.state == "missing"
    (tmp_path / "bad.parts").mkdir()
    (tmp_path / "bad.parts/plan.json").write_text("{}")
    assert status(tmp_path / "bad.parts").files[0].state == "damaged"
