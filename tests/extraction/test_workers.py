"""What a worker of a cluster does, without a cluster."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featx.errors import BackboneError, ClusterError
from featx.extraction import nodes, workers
from featx.extraction.backbone import LazyBackbone
from featx.extraction.batches import Computer, ImageBatch, Work, read_batch
from featx.extraction.nodes import Alike
from featx.extraction.options import ExtractOptions
from featx.extraction.workers import Task, Worker, some_of, unlike
from featx.images.sources import open_source
from featx.images.sources.selection import select


@pytest.fixture
def source(photos):
    return open_source(str(photos({"ants": 7, "bees": 6})))


@pytest.fixture
def task(source, monkeypatch, tmp_path):
    """Return a task of the bundled backbone, and its graph; nothing is cached yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = ExtractOptions(backbone="tiny", image_size=32, batch_size=4, ray="auto").resolved()
    backbone = LazyBackbone(options)
    spec = backbone.spec()
    engine: Any = backbone.engine(spec)
    work = Work(spec.preprocess, None, 4, spec.row_shape[0], "float32", None, options)
    seen, digests = some_of(source, range(len(source.samples)))
    values = nodes.describe_here()
    alike = Alike(values["versions"], (values["kind"],), False)
    digest = hashlib.sha256(engine.graph).hexdigest()
    return (
        Task(spec, work, "onnxruntime", "cpu", digest, 1, seen, digests, alike),
        engine.graph,
    )


def started(task: Task, graph: bytes, step: int = 10_000) -> Worker:
    worker = Worker(pickle.loads(pickle.dumps(task)))
    for offset in range(0, len(graph), step):
        worker.add_graph(offset, graph[offset : offset + step], len(graph))
    assert worker.begin() == ""
    return worker


def test_rows_are_those_of_this_machine(task, source):
    worker = started(*task)
    part = select(source, range(13))
    found = worker.read("key", part)
    here = read_batch(source, range(13))
    assert [each.digest for each in found] == [image.digest for image in here.images]
    wanted = [(number, found[number].digest) for number in (0, 1, 2, 5, 8, 9, 12)]
    rows = worker.compute("key", part, wanted, step=4, with_views=False)
    computer = Computer(worker._engine, task[0].work.maker(source), task[0].work)
    expected = []
    for start in range(0, 13, 4):
        images = [here.images[i] for i, _ in wanted if start <= i < start + 4]
        expected.append(computer.compute(ImageBatch(images)).rows)
    assert rows.rows.tobytes() == np.concatenate(expected).tobytes()
    assert not rows.failures
    other = started(task[0], b"")  # the graph is cached by now; nothing was read here
    again = other.compute("key", part, wanted, step=4, with_views=False)
    assert again.rows.tobytes() == rows.rows.tobytes()


def test_a_file_that_changes_in_between_is_no_row(task, source):
    worker = started(*task)
    part = select(source, range(2))
    found = worker.read("key", part)
    path = Path(source.uri) / source.samples[1].sample_id
    path.write_bytes(path.read_bytes() + b"more")
    wanted = [(number, each.digest) for number, each in enumerate(found)]
    rows = worker.compute("other", part, wanted, step=4, with_views=False)
    assert len(rows.rows) == 1
    assert rows.failures == {1: ("the file changes while it is read.", False)}


def test_what_is_sent_to_workers_is_small(task):
    assert len(pickle.dumps(task[0])) < 20_000
    assert workers.GRAPH_PART < 10e6


def test_a_graph_that_is_another_is_refused(task):
    worker = Worker(task[0])
    with pytest.raises(BackboneError, match="did not arrive whole"):
        worker.add_graph(0, b"x" * 100, 100)
    cached = workers._graph_path(task[0].graph)
    started(*task)
    assert cached.read_bytes() == task[1]
    cached.write_bytes(b"x" + task[1][1:])
    assert workers._graph(task[0].graph) is None


def test_images_that_are_not_seen_or_are_others_are_named(source):
    part, digests = some_of(source, range(13))
    assert len(digests) == 4
    assert unlike(part, digests) == ""
    name = part.samples[2].sample_id
    path = Path(source.uri) / name
    content = path.read_bytes()
    path.write_bytes(content + b"more")
    assert f"another content in '{name}'" in unlike(part, digests)
    path.unlink()
    assert f"cannot read '{name}' of '{source.uri}'" in unlike(part, digests)


def test_a_worker_with_other_versions_says_so(task):
    other = replace(task[0].alike, versions={"featx": "0.0.1", "python": "3"})
    assert "it has featx" in Worker(replace(task[0], alike=other)).begin()
    other = replace(task[0].alike, versions={"torch": "0.0.1"})
    assert "it has torch" in Worker(replace(task[0], alike=other)).begin()


def test_a_node_of_another_kind_that_joins_late_is_refused_unless_allowed():
    kinds: list[str] = []
    alike = Alike({}, (), False)
    for _ in range(2):
        alike.with_kind(kinds, "10.0.0.1", "x86_64 avx2")  # the first decides
    with pytest.raises(ClusterError, match=r"10\.0\.0\.2 joined with .* \(arm\)"):
        alike.with_kind(kinds, "10.0.0.2", "arm")
    replace(alike, allow_mixed=True).with_kind(kinds, "10.0.0.2", "arm")
    assert kinds == ["x86_64 avx2", "arm"]
