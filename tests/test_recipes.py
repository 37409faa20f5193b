"""The recipes of docs/scale.md: what Slurm and Kubernetes are told, and how featx is called."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from commands import featx_cli

TEXT = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()


def block(language: str, words: str) -> str:
    return next(b for b in re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.S) if words in b)


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """Return a file that has each command, with its arguments, once a script has run."""
    called = tmp_path / "called"
    for name, does in {
        "srun": 'while :; do case $1 in -w|-x) shift 2;; -*) shift;; *) exec "$@";; esac; done',
        "featx": f'echo "featx $*" >> {called}',
        "ray": f'echo "ray $*" >> {called}',
        "sleep": "true",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return called


@pytest.mark.parametrize("number", [1, 3, 16])
def test_a_task_of_an_array_makes_the_part_of_its_number(commands, monkeypatch, number):
    script = block("sh", "--array")
    (first, last) = re.search(r"--array=(\d+)-(\d+)", script).groups()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
    monkeypatch.setenv("SLURM_JOB_ID", "4711")  # not the array's
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4700")
    subprocess.run(["bash", "-c", script], check=True)
    assert f"--part {number}/16\n" in commands.read_text()
    assert (first, last) == ("1", "16")
    assert "--signal=TERM@30" in script  # to srun's step, which is featx
    assert "--open-mode=append" in script  # a job that is requeued keeps its log


@pytest.mark.parametrize("number", [0, 17])
def test_a_number_that_is_no_part_is_refused_with_both_numberings(photos, tmp_path, number):
    refused = featx_cli("extract", photos(), "-o", tmp_path / "a.parts", "--part", f"{number}/16")
    assert refused.exit_code == 1
    said = " ".join(refused.output.split())
    assert "16 parts have the numbers 1 to 16, not 0 to 15" in said
    assert "numbered 0-15 its number plus 1" in said


def test_the_script_of_a_cluster_starts_one_and_joins_it(commands, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    subprocess.run(["bash", "-c", block("sh", "ray start --head --node-ip") + "wait\n"], check=True)
    called = commands.read_text()
    (head,) = re.findall(r"ray start --head --node-ip-address=(\S+)", called)
    assert f"ray start --address={head}:6379" in called
    assert f"--ray {head}:6379" in called
    assert "--temp-dir=/tmp/r4711" in called


def test_the_cluster_of_kubernetes_has_the_fields_that_kuberay_knows():
    yaml = pytest.importorskip("yaml")
    cluster = yaml.safe_load(block("yaml", "RayCluster"))
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    assert set(spec) == {"enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    (workers,) = spec["workerGroupSpecs"]
    assert set(workers) == {
        *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    }
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["cpu"]  # which the autoscaler reads
    assert f"-c {container['name']} " in TEXT
