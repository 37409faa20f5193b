"""Heads of parts that a Ray cluster reads: those of one machine, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import featx_cli
from part_files import ray_cluster, write_parts

from featx.artifact.parts import part_path
from featx.errors import ArtifactInvalid, ClusterError, ConfigError
from featx.extraction import nodes, part_rows
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.stages.merge import merge_parts
from featx.stages.train import train_head

pytestmark = pytest.mark.filterwarnings(  # files that Ray's helper leaves to the end
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 1000, 8, 3


@pytest.fixture(scope="module")
def cluster():
    """Return a cluster: a head without CPUs, and two nodes with one each."""
    with ray_cluster(0, 1, 1) as found:
        yield str(found.address)


@pytest.fixture
def parts(tmp_path) -> Path:
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, NUM_ROWS)
    features = random.normal(size=(NUM_CLASSES, NUM_FEATURES))[labels] * 2
    features += random.normal(3, 1, (NUM_ROWS, NUM_FEATURES))
    return write_parts(tmp_path / "big.parts", features.astype(np.float32), labels, 5)


def heads(parts: Path, tmp_path: Path, **options: Any) -> Any:
    train_head(parts, tmp_path / "head.safetensors", progress=False, **options)
    return open_head(tmp_path / "head.safetensors")


@pytest.mark.parametrize(
    "solver", ["lbfgs", *(pytest.param(s, marks=pytest.mark.slow) for s in ("ridge", "centroid"))]
)
def test_a_head_of_a_cluster_is_that_of_one_machine(cluster, parts, tmp_path, solver):
    alone = heads(parts, tmp_path, solver=solver, memory=60_000)
    (tmp_path / "head.safetensors").unlink()
    found = heads(parts, tmp_path, solver=solver, memory=60_000, ray=cluster)
    content = (tmp_path / "head.safetensors").read_bytes()
    (tmp_path / "head.safetensors").unlink()
    heads(parts, tmp_path, solver=solver, memory=60_000, ray=cluster)
    assert (tmp_path / "head.safetensors").read_bytes() == content
    for ours, theirs in zip(found.layers[0], alone.layers[0], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4 * np.abs(theirs).max())
    one, other = (head.header.details for head in (found, alone))
    assert one["choice"]["in_blocks"] == other["choice"]["in_blocks"]
    assert one["choice"].get("strength") == other["choice"].get("strength")
    assert one["metrics"]["test"]["num_samples"] == other["metrics"]["test"]["num_samples"] == 100
    assert one["metrics"]["test"]["top1"] == other["metrics"]["test"]["top1"]


@pytest.mark.slow
def test_a_process_that_ends_costs_its_part_a_second_try(cluster, parts, tmp_path, monkeypatch):
    once = tmp_path / "once"
    plain = part_rows._do

    def dying(*given: Any) -> Any:
        try:
            once.touch(exist_ok=False)
        except FileExistsError:
            return plain(*given)
        return os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(part_rows, "_do", dying)
    found = heads(parts, tmp_path, solver="centroid", ray=cluster)
    assert once.exists()
    (tmp_path / "head.safetensors").unlink()
    monkeypatch.undo()
    again = heads(parts, tmp_path, solver="centroid", ray=cluster)
    assert np.array_equal(found.layers[0][0], again.layers[0][0])


def test_parts_that_nodes_do_not_see_are_named_before_anything_is_read(cluster, parts, tmp_path):
    cache = open_features(parts)
    parts.rename(tmp_path / "moved.parts")
    with (
        pytest.raises(ClusterError, match=r"The node .* cannot be used: .*part-00001\.h5"),
        part_rows.reading_on_cluster(cache, cluster),
    ):
        pass


def test_nodes_with_other_versions_are_named_before_anything_is_read(
    cluster, parts, tmp_path, monkeypatch
):
    own = nodes.describe_here()
    other = own | {"versions": own["versions"] | {"numpy": "0.1"}}
    monkeypatch.setattr(nodes, "describe_here", lambda *_: other)
    with pytest.raises(ClusterError, match=r"it has numpy .*, expected 0\.1"):
        heads(parts, tmp_path, ray=cluster)


@pytest.mark.slow
def test_a_byte_that_changes_between_passes_is_an_error(cluster, parts, tmp_path, monkeypatch):
    plain = part_rows.PartRows.each_part

    def damaging(self: Any, work: Any, *columns: Any, **given: Any) -> Any:
        yield from plain(self, work, *columns, **given)
        path = part_path(parts, 4)
        values = open_features(path).features[3].tobytes()
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(content.index(values))
            file.write(values[::-1])

    monkeypatch.setattr(part_rows.PartRows, "each_part", damaging)
    with pytest.raises(ArtifactInvalid, match=r"part-00004\.h5' was changed or damaged"):
        heads(parts, tmp_path, solver="centroid", ray=cluster)
    assert not (tmp_path / "head.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "sgd"}, "sgd is not"),
        ({"solver": "sklearn"}, "sklearn is not"),
        ({"head": "mlp"}, "an MLP is not"),
    ],
)
def test_what_is_no_sum_over_parts_is_refused_before_there_is_a_cluster(
    parts, tmp_path, options, words
):
    with pytest.raises(ConfigError, match=f"lbfgs, ridge and centroid are made, and {words}"):
        heads(parts, tmp_path, ray="nowhere:1", **options)


def test_one_file_is_refused_and_options_need_a_cluster(parts, tmp_path):
    merge_parts(parts, tmp_path / "one.h5")
    with pytest.raises(ConfigError, match="is one file"):
        heads(tmp_path / "one.h5", tmp_path, ray="nowhere:1")
    with pytest.raises(ConfigError, match=r"needs ray=…"):
        heads(parts, tmp_path, allow_mixed=True)


def test_the_command_line_names_its_own_flags(cluster, parts, tmp_path):
    head = tmp_path / "head.safetensors"
    refused = featx_cli("train-head", parts, "-o", head, "--ray", cluster, "--solver", "sgd")
    assert refused.exit_code == 1
    assert "--ray adds up sums over parts" in " ".join(refused.output.split())
    done = featx_cli("train-head", parts, "-o", head, "--ray", cluster, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(head)


def test_without_ray_its_install_command_is_named(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"ray=… needs ray.*pip install 'featx"):
        heads(parts, tmp_path, ray="auto")
