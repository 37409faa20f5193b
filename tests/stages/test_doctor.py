"""What ``featx doctor`` finds, and what it says to do."""

from __future__ import annotations

import errno
import json
import os
import urllib.request
from pathlib import Path

import pytest
from commands import featx_cli

import featx
from featx.stages import doctor
from featx.stages.doctor import Finding, describe_problems, examine


def found(findings, name: str) -> Finding:
    (finding,) = [own for own in findings if own.name == name]
    return finding


@pytest.fixture(autouse=True)
def no_extras(monkeypatch):
    """Loading all of them takes seconds."""
    monkeypatch.setattr(doctor, "_EXTRAS", {})


def test_a_sound_machine_is_described(tmp_path):
    findings = examine([tmp_path / "not" / "yet"])
    assert found(findings, "featx").value.startswith(featx.__version__)
    assert "CPUExecutionProvider" in found(findings, "runs on").value
    assert found(findings, "cores").value.startswith(str(os.cpu_count()))
    assert "GB free" in found(findings, "memory").value
    assert found(findings, "folder").value.endswith("locks work")
    assert not [own for own in findings if own.is_wrong]
    assert list(tmp_path.iterdir()) == []


def test_locks_that_fail_are_told_before_they_cost_work(tmp_path, monkeypatch):
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(doctor.system, "lock", refuse)
    finding = found(examine([tmp_path]), "folder")
    assert finding.is_wrong
    assert os.strerror(errno.ENOLCK) in finding.value
    assert "local disk" in finding.advice


def test_a_folder_that_cannot_be_written_is_told(monkeypatch):
    finding = found(examine(["/proc/1/featx"]), "folder")
    assert finding.is_wrong
    assert "cannot be written" in finding.value


def test_two_builds_of_onnx_runtime_are_named_with_the_repair(monkeypatch):
    monkeypatch.setattr("featx.packages._recorded", lambda _package: "1.0")
    conflicts = [own for own in examine() if own.name == "conflict"]
    assert "onnxruntime-gpu" in conflicts[-1].value
    assert conflicts[-1].advice.startswith("Remove them: pip uninstall -y onnxruntime")
    assert "featx-core" in conflicts[0].value


def test_broken_extras_are_told_from_missing_ones(tmp_path, monkeypatch):
    (tmp_path / "halfdone.py").write_text("raise ImportError('libhalf.so.3: cannot open')\n")
    (tmp_path / "lacking.py").write_text("import what_it_needs\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    extras = {"half": ("halfdone",), "lack": ("lacking",), "none": ("not_there_at_all",)}
    monkeypatch.setattr(doctor, "_EXTRAS", extras)
    findings = examine()
    assert "libhalf.so.3" in found(findings, "featx[half]").advice
    assert "what_it_needs" in found(findings, "featx[lack]").advice
    assert found(findings, "not installed").value == "none (optional)"


def test_only_network_asks_hosts_and_says_which_do_not_answer(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.host)
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    examine()
    assert asked == []
    findings = examine(network=True)
    assert "download.pytorch.org" in asked
    assert "HTTPS_PROXY" in found(findings, "the hub").advice


def test_a_quota_is_shown_beside_the_cores(monkeypatch):
    monkeypatch.setattr(doctor.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(doctor.system, "usable_cores", lambda: 8)
    monkeypatch.setattr(doctor, "num_cores", lambda: 2)
    value = found(examine(), "cores").value
    assert value == "64, 8 allowed to this process, 2 by the container's quota"


def test_the_command_ends_with_1_where_something_is_wrong(tmp_path):
    good = featx_cli("doctor", tmp_path, "--json")
    assert good.exit_code == 0
    names = {own["name"] for own in json.loads(good.stdout)}
    assert {"featx", "python", "packages", "processor", "cores", "GPUs"} <= names
    bad = featx_cli("doctor", Path("/proc/1/featx"))
    assert bad.exit_code == 1
    assert "→ Use another folder" in bad.stdout


def test_problems_are_counted():
    advice = Finding("a", "b", "do it")
    assert describe_problems([advice]) == "1 thing to do"
    assert describe_problems([advice, advice]) == "2 things to do"
