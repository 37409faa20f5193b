"""What a worker of a cluster does: reads and computes numbered items, and says what it is.

An item is some batches of images, by their places; pixels stay where they are decoded. The graph
of a backbone comes by its sha256, in parts, once for each node's cache folder.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from featx.backbones.engines import Engine, EngineName, OnnxEngine, PixelEngine
from featx.backbones.graph_cache import cache_folder, read_cached, write_cached
from featx.backbones.spec import BackboneSpec
from featx.errors import BackboneError, ImageError, printable
from featx.extraction.backbone import LazyBackbone
from featx.extraction.batches import Computer, ImageBatch, Work, read_batch
from featx.extraction.crops import Image, Spent
from featx.extraction.nodes import Alike, describe_here
from featx.images.decode import NO_DIGEST, content_digest
from featx.images.sources import NEVER_CHANGES, ImageSource
from featx.images.sources.selection import select

GRAPH_PART = 4 * 2**20
_KEPT_BYTES = 64 * 2**20
"""Of an item's files; what is beyond is read again when it is decoded."""
_NUM_COMPARED = 4


@dataclass(frozen=True)
class Task:
    """What workers are to do, a few kB.

    Attributes:
        spec: Of the features.
        work: With views where some images are to have them.
        engine: What runs the backbone.
        device: ``"cpu"`` or ``"cuda"``.
        graph: sha256 of the graph that ONNX Runtime runs; empty where it runs none.
        slots: Items that are computed at the same time, each by a thread.
        seen: Some images that every worker must see as the driver does.
        digests: Of their contents.
        alike: What the worker's own versions and processor must be.
    """

    spec: BackboneSpec
    work: Work
    engine: EngineName
    device: str
    graph: str
    slots: int
    seen: ImageSource
    digests: tuple[bytes, ...]
    alike: Alike


@dataclass(frozen=True)
class Found:
    """An image that was read; its fields are those of ``Image``."""

    stamp: Any
    digest: bytes
    is_animated: bool
    reason: str
    is_permanent: bool


@dataclass(frozen=True)
class Rows:
    """Rows of an item's new images that could be used, and why others could not, by number."""

    rows: np.ndarray
    failures: dict[int, tuple[str, bool]]
    spent: Spent


class Worker:
    """Runs in a process of its own; ``begin`` comes before the rest."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts: dict[int, bytes] = {}
        self._engine: Engine | None = None
        self._read: OrderedDict[Any, ImageBatch] = OrderedDict()
        self._lock = threading.Lock()

    def where(self) -> tuple[str, bool, str]:
        """Return the id of this node, whether the graph has to be sent, and the processor."""
        import ray

        lacks_graph = bool(self._task.graph) and _graph(self._task.graph) is None
        node = str(ray.get_runtime_context().get_node_id())
        return node, lacks_graph, str(describe_here()["kind"])

    def add_graph(self, offset: int, part: bytes, length: int) -> None:
        """Take a part of the graph; with the last one it is cached for others on this node."""
        self._parts[offset] = part
        if sum(map(len, self._parts.values())) == length:
            graph = b"".join(self._parts[start] for start in sorted(self._parts))
            self._engine = OnnxEngine(_required(graph, self._task.graph))
            self._parts.clear()
            write_cached(_graph_path(self._task.graph), graph)

    def begin(self) -> str:
        """Build the engine; return why this worker cannot be used, empty where it can.

        Raises:
            BackboneError: The backbone cannot be used here.
        """
        task = self._task
        if problem := task.alike.problem_here() or unlike(task.seen, task.digests):
            return problem
        if task.engine == "none":
            self._engine = PixelEngine()
        elif task.engine == "torch":
            options = replace(
                task.work.options,
                engine="torch",
                device=task.device,
                ray=None,
                ray_workers=None,
                allow_mixed=False,
            )
            self._engine = LazyBackbone(options).engine(task.spec)
        elif self._engine is None:
            self._engine = OnnxEngine(_required(_graph(task.graph), task.graph))
        return ""

    def read(self, key: Any, source: ImageSource) -> list[Found]:
        """Return the hashes of an item's images; their bytes are kept for ``compute``."""
        batch = read_batch(source, range(len(source.samples)), kept=_KEPT_BYTES)
        with self._lock:
            self._read[key] = batch
            while len(self._read) > 2 * self._task.slots + 3:  # some go to another worker
                self._read.popitem(last=False)
        return [
            Found(each.stamp, each.digest, each.is_animated, each.reason, each.is_permanent)
            for each in batch.images
        ]

    def compute(
        self,
        key: Any,
        source: ImageSource,
        wanted: Sequence[tuple[int, bytes]],
        *,
        step: int,
        with_views: bool,
    ) -> Rows:
        """Return the rows of an item's images, ``step`` to a batch.

        Args:
            key: As it was read by; files of an item that was read elsewhere are read here.
            source: The item's images.
            wanted: Number and digest of those whose content is new.
            step: Images of a batch, wanted or not.
            with_views: Whether they have views.
        """
        if self._engine is None:
            raise BackboneError("A worker was asked for rows before it had begun.")
        work = self._task.work if with_views else replace(self._task.work, views=None)
        computer = Computer(self._engine, work.maker(source), work)
        with self._lock:
            read = self._read.pop(key, None)
        parts, failures, spent = list[np.ndarray](), dict[int, tuple[str, bool]](), Spent()
        for start in range(0, len(source.samples), step):
            images = [
                _image(source, number, digest, read)
                for number, digest in wanted
                if start <= number < start + step
            ]
            if not images:
                continue
            batch = computer.compute(ImageBatch(images))
            parts.append(batch.rows)
            spent.add(batch.spent)
            failed = [image for image in images if image.reason]
            failures |= {image.position: (image.reason, image.is_permanent) for image in failed}
        return Rows(np.concatenate(parts), failures, spent)


# As ``ray.method`` would set it: what reads never waits for what computes.
Worker.read.__ray_concurrency_group__ = "reading"  # type: ignore[attr-defined]
Worker.compute.__ray_concurrency_group__ = "computing"  # type: ignore[attr-defined]


def _image(source: ImageSource, number: int, digest: bytes, read: ImageBatch | None) -> Image:
    image = Image(number, source.samples[number].sample_id, NEVER_CHANGES, digest)
    if read is not None and read.images[number].digest == digest:
        image.content, read.images[number].content = read.images[number].content, None
    return image


def some_of(source: ImageSource, positions: Sequence[int]) -> tuple[ImageSource, tuple[bytes, ...]]:
    """Return some readable images of a source, to be sent, and the hashes of their contents."""
    found: dict[int, bytes] = {}
    for place in np.linspace(0, len(positions) - 1, 4 * _NUM_COMPARED).round().astype(int).tolist():
        if len(found) < _NUM_COMPARED and positions[place] not in found:
            try:
                found[positions[place]] = content_digest(source.read(positions[place]))
            except ImageError:
                continue
    return select(source, list(found)), tuple(found.values())


def unlike(source: ImageSource, digests: Sequence[bytes]) -> str:
    """Return how images are seen otherwise here than where their hashes were taken, or nothing."""
    for number, expected in enumerate(digests):
        name = printable(source.samples[number].sample_id)
        try:
            digest = content_digest(source.read(number))
        except ImageError as err:
            return f"it cannot read '{name}' of '{source.uri}': {err.reason}"
        if digest != expected and NO_DIGEST not in (digest, expected):
            return f"it finds another content in '{name}' of '{source.uri}'."
    return ""


def _graph_path(digest: str) -> Any:
    return cache_folder() / "graphs" / f"sent-{digest}.onnx"


def _graph(digest: str) -> bytes | None:
    """Return the graph with a hash that was cached on this node; None where there is none."""
    graph = read_cached(_graph_path(digest))
    return graph if graph is not None and hashlib.sha256(graph).hexdigest() == digest else None


def _required(graph: bytes | None, digest: str) -> bytes:
    if graph is None or hashlib.sha256(graph).hexdigest() != digest:
        raise BackboneError("The backbone's graph did not arrive whole. Run the command again.")
    return graph
