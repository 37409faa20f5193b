"""Cores are counted as the scheduler and the container's quota allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featx.images.reading import num_cores


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def count(tmp_path: Path, own: str, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    (tmp_path / "own").write_text(own)
    return num_cores(tmp_path / "cgroup", tmp_path / "own")


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        *(("200000 100000", 2), ("150000 100000", 2), ("50000 100000", 1), ("1000 100000", 1)),
        *(("1600000 100000", 8), ("max 100000", 8), ("", 8), ("0 100000", 8), ("100000 0", 8)),
        *(("nonsense", 8), ("1 2 3", 8)),
    ],
)
def test_quota_of_version_2(tmp_path, limit, cores):
    assert count(tmp_path, "0::/\n", {"cpu.max": limit}) == cores


def test_every_group_on_the_way_counts(tmp_path):
    files = {"cpu.max": "max 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "500000 100000"}
    assert count(tmp_path, "0::/a/b\n", files) == 3


def test_a_group_that_the_container_sees_at_its_root(tmp_path):
    assert count(tmp_path, "0::/docker/1234\n", {"cpu.max": "200000 100000"}) == 2
    assert count(tmp_path, "0::/../../other\n", {"cpu.max": "200000 100000"}) == 2


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize(("quota", "cores"), [("250000", 3), ("-1", 8)])
def test_quota_of_version_1(tmp_path, mount, quota, cores):
    files = {f"{mount}/job/cpu.cfs_quota_us": quota, f"{mount}/job/cpu.cfs_period_us": "100000"}
    own = "5:memory:/\n4:cpu,cpuacct:/job\n3:cpuset:/\n0::/\n"
    assert count(tmp_path, own, files) == cores


def test_without_control_groups_the_scheduler_decides(tmp_path):
    assert num_cores(tmp_path / "none", tmp_path / "nothing") == 8
