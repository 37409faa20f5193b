"""Extraction by workers that end at random, in one process: the same bytes, and what is sent."""

from __future__ import annotations

import errno
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_ray import FakeRay

from featx.errors import ArtifactError, BackboneError, ClusterError, ConfigError, SourceError
from featx.extraction import actors, cluster, nodes, pipeline, workers
from featx.extraction.options import ExtractOptions
from featx.features import storage
from featx.stages.extract import extract

TINY: dict[str, Any] = {"backbone": "tiny", "image_size": 32, "batch_size": 4, "on_error": "skip"}
PART = 200_000
ON_RAY = TINY | {"ray": "fake", "ray_workers": 4}


@pytest.fixture
def ray(monkeypatch, tmp_path):
    """Return a function that begins a cluster of Ray's stand-in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nodes, "_require_answer", lambda *_: None)

    def begin(seed: int = 0, num_nodes: int = 2) -> FakeRay:
        fake = FakeRay(seed, num_nodes)
        monkeypatch.setitem(sys.modules, "ray", fake)
        monkeypatch.setattr(
            nodes, "_on_each", lambda _, found, function: [(node, function()) for node in found]
        )
        return fake

    return begin


@pytest.fixture
def mixed(photos) -> Path:
    """Return images with copies across batches and images that cannot be used."""
    source: Path = photos({"ants": 41, "bees": 40})
    for name in ("bees/copy.jpg", "bees/001-copy.jpg", "ants/040-copy.jpg"):
        shutil.copy(source / "ants/001.jpg", source / name)
    shutil.copy(source / "bees/016.jpg", source / "ants/000-copy.jpg")
    for name in ("ants/004.jpg", "bees/no-image.jpg"):
        (source / name).write_bytes(b"no image")
    (source / "bees/002.jpg").write_bytes(b"another")
    return source


@pytest.mark.parametrize("seed", range(4))
def test_the_file_is_that_of_one_machine_whatever_ends(
    seed, ray, mixed, tmp_path, monkeypatch, caplog
):
    plain, own = tmp_path / "plain.h5", tmp_path / "own.h5"
    alone = extract(mixed, plain, ExtractOptions(**TINY))
    monkeypatch.setattr(pipeline, "_RECENT", 5)
    fake = ray(seed)
    fake.ending = {"read": 0.05, "compute": 0.1, "where": 0.05, "begin": 0.05}
    caplog.set_level("INFO", "featx")
    report = extract(mixed, own, ExtractOptions(**ON_RAY))
    assert "Ray at fake:6379: 2 nodes, 4 CPUs." in caplog.text
    assert own.read_bytes() == plain.read_bytes()
    assert report.skipped == alone.skipped
    assert (report.num_duplicates, report.num_extracted) == (4, alone.num_extracted)
    assert fake.num_ended > 0
    assert not any(handle.is_alive for handle in fake.handles)
    for options in fake.options:  # Ray repeats nothing, and places no worker where it has no room
        assert options["max_restarts"] == options["max_task_retries"] == 0
        assert options["num_cpus"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_was_interrupted_is_resumed_to_the_same_bytes(seed, ray, mixed, tmp_path):
    plain, own = tmp_path / "plain.h5", tmp_path / "own.h5"
    extract(mixed, plain, ExtractOptions(**TINY))

    def stop(done: int, _: int) -> None:
        if done > 20 * (seed + 1):
            raise KeyboardInterrupt

    ray(seed)
    with pytest.raises(KeyboardInterrupt):
        extract(mixed, own, ExtractOptions(**ON_RAY), progress=stop)
    told: list[int] = []
    options = ExtractOptions(**ON_RAY if seed else TINY)  # by either
    report = extract(mixed, own, options, progress=lambda done, _: told.append(done))
    assert own.read_bytes() == plain.read_bytes()
    assert report.num_resumed > 10
    assert min(told) > 20


def test_progress_says_how_many_workers_there_are_and_how_fast(ray, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_NOTE_SECONDS", 0.0)
    notes: list[str] = []

    def progress(done: int, _: int) -> None:
        """Draw nothing."""

    progress.note = notes.append  # type: ignore[attr-defined]
    ray()
    extract(mixed, tmp_path / "own.h5", ExtractOptions(**ON_RAY), progress=progress)
    assert notes[0] == "waiting for workers"
    assert re.fullmatch(r"[1-4] workers?, [\d,.]+/s a core", notes[-1])


def test_a_full_disk_ends_the_workers_and_the_rows_are_kept(ray, mixed, tmp_path, monkeypatch):
    plain, own = tmp_path / "plain.h5", tmp_path / "own.h5"
    extract(mixed, plain, ExtractOptions(**TINY))
    write, calls = storage.write, iter(range(100))

    def full(*args: Any) -> None:
        if next(calls) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(*args)

    fake = ray()
    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(ArtifactError, match=r"No space left on device.*kept.*run the same command"):
        extract(mixed, own, ExtractOptions(**ON_RAY))
    assert not any(handle.is_alive for handle in fake.handles)
    monkeypatch.setattr(storage, "write", write)
    assert extract(mixed, own, ExtractOptions(**ON_RAY)).num_resumed > 0
    assert own.read_bytes() == plain.read_bytes()


def test_a_graph_is_sent_in_parts_once_to_a_node_and_again_where_that_failed(
    ray, mixed, tmp_path, monkeypatch
):
    extract(mixed, tmp_path / "plain.h5", ExtractOptions(**TINY))
    monkeypatch.setattr(actors, "GRAPH_PART", PART)
    shared = workers.cache_folder
    monkeypatch.setattr(workers, "cache_folder", lambda: shared() / fake.node)
    fake = ray(1, num_nodes=3)
    fake.ending, fake.most_ended = {"add_graph": 0.2}, 3
    extract(mixed, tmp_path / "own.h5", ExtractOptions(**ON_RAY))
    assert (tmp_path / "own.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()
    parts = [(node, size) for name, node, size in fake.sent if name == "add_graph"]
    assert max(size for _, size in parts) < PART + 200
    (graph, *_) = shared().rglob("*.onnx")
    num_parts = -(-graph.stat().st_size // PART)
    assert num_parts > 4
    num_nodes = len({node for node, _ in parts})
    assert fake.num_ended == 3
    assert num_parts < len(parts) < (num_nodes + 3) * num_parts
    assert max(size for _, _, size in fake.sent) < PART + 200  # items are descriptions


def test_an_image_that_ends_each_worker_is_named_and_the_rows_before_it_are_kept(
    ray, mixed, tmp_path, monkeypatch
):
    own = tmp_path / "own.h5"
    fake = ray()
    monkeypatch.setattr(
        fake, "ends", lambda ref: ref.name == "compute" and b"bees/030.jpg" in ref.message
    )
    with pytest.raises(SourceError, match=r"5 workers ended while they had the images 'bees/0"):
        extract(mixed, own, ExtractOptions(**ON_RAY))
    assert own.with_name("own.h5.partial").exists()


def test_a_worker_without_memory_is_replaced_and_what_is_wrong_elsewhere_is_raised(
    ray, mixed, tmp_path, monkeypatch
):
    extract(mixed, tmp_path / "plain.h5", ExtractOptions(**TINY))
    compute, calls = workers.Worker.compute, iter(range(1000))

    def failing(self: workers.Worker, *args: Any, **how: Any) -> Any:
        number = next(calls)
        if number == 0:
            raise MemoryError
        if number >= 6 and not is_mended:
            raise BackboneError("it broke")
        return compute(self, *args, **how)

    is_mended = False
    monkeypatch.setattr(workers.Worker, "compute", failing)
    fake = ray()
    with pytest.raises(BackboneError, match="it broke"):
        extract(mixed, tmp_path / "own.h5", ExtractOptions(**ON_RAY))
    assert len(fake.handles) == 5
    assert not any(handle.is_alive for handle in fake.handles)
    is_mended = True
    extract(mixed, tmp_path / "own.h5", ExtractOptions(**ON_RAY))
    assert (tmp_path / "own.h5").read_bytes() == (tmp_path / "plain.h5").read_bytes()


def test_workers_that_never_start_are_given_up(ray, mixed, tmp_path, monkeypatch):
    monkeypatch.setattr(actors.time, "sleep", lambda _: None)
    fake = ray()
    fake.ending = {"begin": 1.0}
    with pytest.raises(ClusterError, match=r"Workers do not start; the last on 10\.0\.0\.\d"):
        extract(mixed, tmp_path / "own.h5", ExtractOptions(**ON_RAY))
    assert not any(handle.is_alive for handle in fake.handles)


def test_while_nodes_are_being_added_it_waits_and_says_so(
    ray, mixed, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(actors, "_START_SECONDS", 0.0)
    fake = ray(num_nodes=1)
    plain = fake.nodes

    def growing() -> list[dict[str, Any]]:
        fake.names.append(f"{len(fake.names):02x}" * 8)
        return plain()

    monkeypatch.setattr(fake, "nodes", growing)
    caplog.set_level("INFO", "featx")
    extract(mixed, tmp_path / "own.h5", ExtractOptions(**ON_RAY))
    assert "Waiting for workers; the cluster has 4 nodes by now." in caplog.text


def test_batches_too_large_to_be_sent_are_refused_before_anything_starts(
    ray, mixed, tmp_path, monkeypatch
):
    fake = ray()
    monkeypatch.setattr(cluster, "_MOST_BATCH_BYTES", 3 * 32 * 32 * 3)
    options = ON_RAY | {"cut": "input"}
    with pytest.raises(ConfigError, match=r"a batch of 4 images take .*Give batch_size=3 or less"):
        extract(mixed, tmp_path / "own.h5", ExtractOptions(**options))
    assert not fake.handles
    extract(mixed, tmp_path / "own.h5", ExtractOptions(**options | {"batch_size": 3}))
