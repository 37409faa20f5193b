"""Extraction by a Ray cluster: workers in actors, and what happens to them.

Ray places and starts actors; which item a worker does, and what is committed, is ``committer``'s.
Ray retries nothing: an actor that is gone is replaced, and its items go to others.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featx.backbones.spec import BackboneSpec
from featx.errors import ConfigError, counted, printable
from featx.extraction.actors import ActorPool
from featx.extraction.backbone import RemoteEngine
from featx.extraction.batches import ImageBatch, Work
from featx.extraction.committer import Schedule, in_order
from featx.extraction.crops import Image
from featx.extraction.nodes import (
    Node,
    alive_nodes,
    ask_each,
    connected,
    find_address,
    require_alike,
)
from featx.extraction.workers import Found, Task, some_of, unlike
from featx.images.sources import ImageSource
from featx.images.sources.selection import select

log = logging.getLogger(__name__)

_ITEM_IMAGES, _ITEM_BYTES = 64, 2**20
_WINDOW_BYTES = 2**29
"""Of rows that may wait for those of a slow worker, and more where there are many workers: """
_WINDOW = 6
"""items for each. With fewer, all of 1,000 often wait for the item of one that ended."""
_NOTE_SECONDS = 0.5
_MOST_BATCH_BYTES = 2**30
"""Of a result, which Ray keeps in memory several times; beyond 2 GB its client hangs."""


@dataclass(eq=False)
class _ItemWork:
    """Some chunks of positions; their batch once they are read."""

    positions: list[int]
    source: ImageSource
    batch: ImageBatch | None = None

    @cached_property
    def part(self) -> ImageSource:
        """Where the images are, to be sent."""
        return select(self.source, self.positions)

    def __str__(self) -> str:
        first, last = (self.source.samples[self.positions[end]].sample_id for end in (0, -1))
        return f"the images '{printable(first)}' to '{printable(last)}'"


@dataclass(eq=False)
class RayCluster:
    """A ``Cluster`` of actors, open until ``opened`` is left."""

    pool: ActorPool
    note: Callable[[str], None] | None = None
    _serial: int = 0

    @property
    def num_threads(self) -> int:
        return self.pool.most * self.pool.slots

    @property
    def kinds(self) -> Sequence[str]:
        return self.pool.kinds

    def batches(
        self,
        source: ImageSource,
        positions: np.ndarray,
        work: Work,
        mark: Callable[[ImageBatch], None],
    ) -> Generator[ImageBatch, None, None]:
        """Yield batches of some times ``work.step`` images each, as ``batches.Cluster`` says."""
        self._serial += 1
        pool, row_bytes = self.pool, _row_bytes(work)
        size = max(1, min(_ITEM_IMAGES, _ITEM_BYTES // row_bytes) // work.step)
        size = max(1, min(size, -(-len(positions) // work.step) // (4 * pool.most))) * work.step
        starts = range(0, len(positions), size)
        works = (_ItemWork(positions[i : i + size].tolist(), source) for i in starts)

        def take_read(item: _ItemWork, found: list[Found]) -> bool:
            item.batch = ImageBatch(
                [
                    Image(
                        position,
                        source.samples[position].sample_id,
                        each.stamp,
                        each.digest,
                        is_animated=each.is_animated,
                        reason=each.reason,
                        is_permanent=each.is_permanent,
                    )
                    for position, each in zip(item.positions, found, strict=True)
                ]
            )
            mark(item.batch)
            return any(image.is_new and not image.reason for image in item.batch.images)

        capacity = pool.most * (2 * pool.slots + 2)
        fitting = _WINDOW_BYTES // (size * row_bytes)
        window = min(2 * capacity, max(_WINDOW * pool.most, fitting))
        schedule = Schedule(works, take_read, window=window)
        pool.begin(self._serial, work)
        for joined in pool.joined():
            schedule.take(joined)
        progress = _Progress(self.note, schedule, pool.slots)
        for item, rows in in_order(schedule, pool, told=progress.tell):
            batch = item.batch
            if rows is None:
                batch.rows = np.empty((0, _num_versions(work), work.length), work.dtype)
            else:
                for number, (reason, is_permanent) in rows.failures.items():
                    batch.images[number].reason = reason
                    batch.images[number].is_permanent = is_permanent
                batch.rows = rows.rows
                batch.spent.add(rows.spent)
            progress.num_images += len(batch.images)
            yield batch


class _Progress:
    """Says now and then how many workers there are, how fast a core is, what is waited for."""

    def __init__(self, note: Callable[[str], None] | None, schedule: Schedule, cores: int) -> None:
        self._note, self._schedule, self._cores = note, schedule, cores
        self._begun = self._noted = time.monotonic()
        self.num_images = 0
        self._slow: object = None

    def tell(self) -> None:
        now = time.monotonic()
        if now - self._noted < _NOTE_SECONDS:
            return
        self._noted = now
        workers, call = self._schedule.num_workers, self._schedule.front()
        speed = self.num_images / (now - self._begun) / max(workers, 1) / self._cores
        text = counted(workers, "worker") if workers else "waiting for workers"
        if speed:
            text += f", {speed:,.1f}/s a core"
        if call is not None and now - call.since > 10:
            text = f"{counted(workers, 'worker')}, waiting {now - call.since:.0f} s"
            if self._slow is not call and now - call.since > 30:
                self._slow = call
                node = self._schedule.node_of(call)
                log.info("Waiting for %s of %s on %s.", call.step, call.item.work, node)
        if self._note:
            self._note(text)


@contextmanager
def opened(
    source: ImageSource,
    todo: np.ndarray,
    spec: BackboneSpec,
    work: Work,
    engine: RemoteEngine,
    *,
    note: Callable[[str], None] | None,
) -> Iterator[RayCluster]:
    """Yield a cluster whose nodes are alike and see the images; its workers end when it is left.

    Args:
        source: The images.
        todo: Positions of those to be done.
        spec: Of the features.
        work: How rows are made of them; its options say which cluster.
        engine: Runs the backbone there.
        note: Called with a few words on the workers.

    Raises:
        ClusterError: There is no cluster, or it cannot do this.
        ConfigError: A batch has more features than workers can send.
    """
    options, gpus = work.options, 0 if engine.device == "cpu" else 1
    _require_small(work)
    address = find_address(str(options.ray))
    seen, digests = some_of(source, todo.tolist())
    graph = hashlib.sha256(engine.graph).hexdigest() if engine.graph else ""
    with connected(address) as ray:
        nodes = alive_nodes(ray)
        cpus = options.workers or (_cpus_beside_gpu(nodes) if gpus else 1)
        device = "cuda" if gpus else "cpu"
        fitting = [node for node in nodes if _num_fitting(node, cpus, gpus)]
        room = sum(_num_fitting(node, cpus, gpus) for node in nodes)
        total = sum(node.cpus for node in nodes)
        log.info(
            "Ray at %s: %s, %s.",
            *(address, counted(len(nodes), "node"), counted(int(total), "CPU")),
        )
        alike = require_alike(
            *(ray, fitting),
            engine=engine.name,
            with_gpus=gpus > 0,
            allow_mixed=options.allow_mixed,
        )
        ask_each(ray, fitting, unlike, seen, digests)
        least, wanted = options.worker_range
        most = wanted or max(room, 1)
        if room < most:
            log.info("%d of %d workers fit now; others start where there is room.", room, most)
        task = Task(spec, work, engine.name, device, graph, cpus, seen, digests, alike)
        pool = ActorPool(ray, task, engine.graph, least=least, most=most)
        try:
            yield RayCluster(pool, note)
        finally:
            pool.close()


def _num_versions(work: Work) -> int:
    return 1 + (work.views.num_views if work.views else 0)


def _row_bytes(work: Work) -> int:
    return _num_versions(work) * work.length * np.dtype(work.dtype).itemsize


def _require_small(work: Work) -> None:
    """Check that the features of a batch can be sent at once."""
    if work.step * _row_bytes(work) > _MOST_BATCH_BYTES:
        fitting = max(1, _MOST_BATCH_BYTES // (_row_bytes(work) // _num_versions(work)))
        raise ConfigError(
            f"The features of a batch of {work.size} images take "
            f"{work.step * _row_bytes(work) / 1e9:.1f} GB, more than a worker of a cluster sends "
            f"at once. Give batch_size={fitting} or less."
        )


def _cpus_beside_gpu(nodes: Sequence[Node]) -> int:
    """Return the CPUs of a worker with a GPU: all that decode for it."""
    return max(1, int(min((node.cpus // node.gpus for node in nodes if node.gpus), default=1)))


def _num_fitting(node: Node, cpus: int, gpus: int) -> int:
    """Return how many workers a node has room for."""
    return int(min(node.cpus // cpus, node.gpus // gpus if gpus else math.inf))
