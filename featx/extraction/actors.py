"""Workers as Ray's actors: started, sent the graph, given calls, replaced where they end."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from featx.errors import ClusterError, FeatxError, counted, first_line
from featx.extraction.batches import Work
from featx.extraction.committer import Call, Done, Joined, Left
from featx.extraction.nodes import Node, alive_nodes, kind_with
from featx.extraction.workers import GRAPH_PART, Task, Worker

log = logging.getLogger(__name__)

_START_SECONDS = 60.0


@dataclass(eq=False)
class _Actor:
    """A worker's actor on its way to being used."""

    name: str
    handle: Any
    node: str = "?"
    is_ready: bool = False


_Step = tuple[_Actor, str]
"""An actor and its next step to being used."""


class ActorPool:
    """A ``committer.Pool`` of Ray's actors, which it starts and replaces."""

    def __init__(self, ray: Any, task: Task, graph: bytes, *, least: int, most: int) -> None:
        self._ray, self._task, self._graph = ray, task, graph
        self._least, self.most, self.slots = least, most, task.slots
        self._cpus, self._gpus = task.slots, 0 if task.device == "cpu" else 1
        self.kinds = list(task.alike.kinds)
        self._class = ray.remote(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=0,
            max_task_retries=0,
            concurrency_groups={"reading": 1 + task.slots, "computing": task.slots},
        )(Worker)
        self._actors: dict[str, _Actor] = {}
        self._open: set[Call | _Step] = set()
        self._done: SimpleQueue[tuple[Call | _Step, Any]] = SimpleQueue()
        self._events: list[Joined | Left | Done] = []
        self._sending: dict[str, list[_Actor]] = {}  # actors that wait for a node's graph
        self._nodes: dict[str, Node] = {}
        self._num_begun = self._num_failed = 0
        self._num_nodes = len(alive_nodes(ray))
        self._since = time.monotonic()
        self._has_started = False
        self._serial: int = 0
        self._work = task.work

    def begin(self, serial: int, work: Work) -> None:
        """Take the calls of another list of items from now on."""
        self._serial, self._work = serial, work
        self._open = {what for what in self._open if not isinstance(what, Call)}
        self._events.clear()

    def joined(self) -> list[Joined]:
        """Return the workers that are ready."""
        ready = [actor for actor in self._actors.values() if actor.is_ready]
        return [Joined(actor.name, actor.node, self.slots) for actor in ready]

    def submit(self, call: Call) -> None:
        handle, item = self._actors[call.worker].handle, call.item
        part, key = item.work.part, (self._serial, item.number)
        if call.step == "read":
            ref = handle.read.remote(key, part)
        else:
            wanted = [
                (number, image.digest)
                for number, image in enumerate(item.work.batch.images)
                if image.is_new and not image.reason
            ]
            views = self._work.views is not None
            ref = handle.compute.remote(key, part, wanted, step=self._work.step, with_views=views)
        self._await(ref, call)

    def _await(self, ref: Any, what: Call | _Step) -> None:
        """Have the outcome of a call put into a queue: to ask for thousands takes milliseconds."""
        self._open.add(what)
        ref.future().add_done_callback(lambda future: self._done.put((what, future)))

    def wait(self, seconds: float) -> list[Joined | Left | Done]:
        self._staff()
        with suppress(Empty):
            self._take(*self._done.get(timeout=seconds))
            while True:
                self._take(*self._done.get_nowait())
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for actor in self._actors.values():
            self._kill(actor)
        self._actors.clear()
        self._open.clear()

    def _kill(self, actor: _Actor) -> None:
        try:
            self._ray.kill(actor.handle, no_restart=True)
        except Exception as err:  # it is gone, or the cluster is
            log.debug("Worker %s: %s", actor.name, err)

    def _staff(self) -> None:
        """Start actors in the place of those that are missing."""
        while len(self._actors) < self.most:
            self._num_begun += 1
            actor = _Actor(f"worker {self._num_begun}", self._class.remote(self._task))
            self._actors[actor.name] = actor
            self._await(actor.handle.where.remote(), (actor, "placed"))
        if self._has_started:
            return
        if sum(actor.is_ready for actor in self._actors.values()) >= self._least:
            self._has_started = True
        elif time.monotonic() - self._since > _START_SECONDS:
            self._require_hope()

    def _require_hope(self) -> None:
        """Go on waiting for workers where nodes are being added; else raise."""
        nodes = alive_nodes(self._ray)
        if len(nodes) > self._num_nodes:
            self._num_nodes, self._since = len(nodes), time.monotonic()
            log.info("Waiting for workers; the cluster has %d nodes by now.", len(nodes))
            return
        if any(actor.node != "?" for actor in self._actors.values()):
            self._since = time.monotonic()  # placed, and busy with starting
            return
        gpu = " and a GPU" if self._gpus else ""
        largest = max(nodes, key=lambda node: (node.gpus > 0, node.cpus), default=None)
        has = f"{largest.cpus:g} CPUs and {largest.gpus:g} GPUs" if largest else "nothing"
        raise ClusterError(
            f"No worker could start within {_START_SECONDS:.0f} s: each takes "
            f"{counted(self._cpus, 'CPU')}{gpu}, {counted(self._least, 'worker')} at least had to, "
            f"and the largest of {counted(len(nodes), 'node')} has {has}, perhaps in use. Wait "
            "until they are free, add nodes, or ask for less with workers=… and ray_workers=…."
        )

    def _take(self, what: Call | _Step, future: Future[Any]) -> None:
        """Note a result, or that its actor is gone."""
        name = what.worker if isinstance(what, Call) else what[0].name
        actor, errors = self._actors.get(name), self._ray.exceptions
        is_open = what in self._open
        self._open.discard(what)
        if actor is None or not is_open:
            return
        try:
            result = future.result()
        except errors.RayTaskError as err:
            if isinstance(err.cause, FeatxError):
                raise err.cause from None
            if not isinstance(err.cause, MemoryError):
                raise
            self._lose(actor, "out of memory")
        except errors.RayError as err:
            self._lose(actor, first_line(err))
        except ConnectionError as err:
            raise ClusterError(
                "The connection to the cluster was lost. Run the command again to resume."
            ) from err
        else:
            self._num_failed = 0 if isinstance(what, Call) else self._num_failed
            if isinstance(what, Call):
                self._events.append(Done(what, result))
            else:
                self._advance(actor, what[1], result)

    def _advance(self, actor: _Actor, step: str, result: Any) -> None:
        """Take an actor's next step to being used: placed, its graph sent, begun."""
        handle = actor.handle
        if step == "placed":
            node, lacks_graph, kind = result
            there = self._node_of(node)
            actor.node = there.name
            kind = kind_with(there.gpu if self._gpus else "", kind)
            self._task.alike.with_kind(self.kinds, actor.node, kind)
            if lacks_graph and actor.node in self._sending:
                self._sending[actor.node].append(actor)
            elif lacks_graph:
                self._sending[actor.node] = []
                self._send(actor, 0)
            else:
                self._await(handle.begin.remote(), (actor, "begun"))
        elif step == "begun":
            if result:
                raise ClusterError(f"A worker on {actor.node} cannot be used: {result}")
            actor.is_ready = True
            self._events.append(Joined(actor.name, actor.node, self.slots))
        else:
            self._send(actor, int(step))

    def _send(self, actor: _Actor, offset: int) -> None:
        """Send the graph from an offset on, a part at a time; then to those it waits for."""
        if offset < len(self._graph):
            part, end = self._graph[offset : offset + GRAPH_PART], offset + GRAPH_PART
            ref = actor.handle.add_graph.remote(offset, part, len(self._graph))
            self._await(ref, (actor, str(end)))
            return
        self._await(actor.handle.begin.remote(), (actor, "begun"))
        self._release(actor)

    def _release(self, actor: _Actor) -> None:
        for other in self._sending.pop(actor.node, []):
            self._await(other.handle.where.remote(), (other, "placed"))

    def _node_of(self, key: str) -> Node:
        if key not in self._nodes:
            self._nodes = {node.key: node for node in alive_nodes(self._ray)}
        return self._nodes.get(key, Node(key, key, 0, 0))

    def _lose(self, actor: _Actor, cause: str) -> None:
        self._kill(actor)
        del self._actors[actor.name]
        for node, waiting in list(self._sending.items()):
            if actor in waiting:
                waiting.remove(actor)
            elif node == actor.node and not actor.is_ready:
                self._release(actor)
        if actor.is_ready:
            log.info("A worker on %s ended (%s); another takes its place.", actor.node, cause)
            self._events.append(Left(actor.name, cause))
            return
        self._num_failed += 1
        if self._num_failed > 5 + 2 * self.most:
            raise ClusterError(f"Workers do not start; the last on {actor.node}: {cause}")
        time.sleep(min(0.1 * self._num_failed, 2.0))  # a GPU is free a moment after its process
