"""Numbered items of work on many workers: results come in any order and leave in that of numbers.

Work is done at least once, and each number leaves once. An item is read first, then marked in the
order of numbers (which contents are new depends on all images before), then computed. At most
``window`` items are begun and not yet out, so that one slow item bounds what waits behind it.

Nothing here knows what runs the workers: ``Pool`` stands for that.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

import numpy as np

from featx.errors import BackboneError, SourceError

_MOST_DEATHS = 5
"""Workers that may end on one item before the item is taken to be why."""
_SLOW_SECONDS, _SLOW_FACTOR = 60.0, 10.0
_TICK = 1.0


@dataclass(eq=False, slots=True)
class Item:
    """Some work and where it is."""

    number: int
    work: Any
    holder: str | None = None  # the worker that has read it
    result: Any = None
    is_done: bool = False
    deaths: int = 0
    open: list[Call] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Call:
    """One attempt at a step, ``"read"`` or ``"compute"``, of an item by a worker."""

    worker: str
    item: Item
    step: str
    since: float


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker that takes calls; it computes ``slots`` items at a time. ``node`` names its node."""

    worker: str
    node: str
    slots: int = 1


@dataclass(frozen=True, slots=True)
class Left:
    """A worker that is gone, and why."""

    worker: str
    cause: str


@dataclass(frozen=True, slots=True)
class Done:
    """The result of a call; of ``"compute"`` it has ``rows``."""

    call: Call
    result: Any


class Pool(Protocol):
    """What runs workers."""

    def submit(self, call: Call) -> None:
        """Start a call."""

    def wait(self, seconds: float) -> list[Joined | Left | Done]:
        """Return what happened, after at most so many seconds where nothing does."""


@dataclass(eq=False)
class _Worker:
    node: str
    slots: int
    calls: set[Call] = field(default_factory=set)
    is_stuck: bool = False  # with a call that takes very long
    held: int = 0  # items read here that are not computed
    marked: deque[Item] = field(default_factory=deque)

    @property
    def most(self) -> int:
        """Items that it may hold: those it computes, one waiting, and as many being read."""
        return 2 * self.slots + 2


class Schedule:
    """Which worker does what next, and which items may leave.

    Args:
        works: Of each item, taken as the work proceeds.
        take_read: Called once with each work and the result of reading it, in order; returns
            whether there is anything to compute.
        window: Items begun that have not left.
        digest: Of a result of computing; two of one item must have the same.
        clock: Seconds.
    """

    def __init__(
        self,
        works: Iterable[Any],
        take_read: Callable[[Any, Any], bool],
        *,
        window: int,
        digest: Callable[[Any], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._works, self._take_read, self._window = iter(works), take_read, window
        self._upcoming = next(self._works, None)
        self._digest, self._clock = digest or _digest_of_rows, clock
        self._items: dict[int, Item] = {}
        self._reads: dict[int, Any] = {}  # results that wait to be marked
        self._again: list[tuple[int, str]] = []  # steps to be done by whoever is free
        self._kept: dict[Item, tuple[bytes, str]] = {}  # results that may come once more
        self._workers: dict[str, _Worker] = {}
        self._nodes: dict[str, str] = {}
        self._free: set[str] = set()  # with room, perhaps
        self._stalled: set[str] = set()  # with room, but the window is full
        self._begun = self._marked = self._left = 0
        self._pace = _SLOW_SECONDS / _SLOW_FACTOR  # seconds of a call, averaged
        self.num_repeated = self.num_dropped = 0

    @property
    def num_workers(self) -> int:
        return len(self._workers)

    @property
    def num_waiting(self) -> int:
        """Items computed that wait for one before them."""
        return sum(item.is_done for item in self._items.values())

    def node_of(self, call: Call) -> str:
        return self._nodes.get(call.worker, call.worker)

    @property
    def is_finished(self) -> bool:
        return self._upcoming is None and not self._items

    @property
    def _is_full(self) -> bool:
        return self._begun >= self._left + self._window

    def front(self) -> Call | None:
        """Return the oldest call of the item that all others wait for."""
        item = self._items.get(self._left)
        return item.open[0] if item and item.open else None

    def calls(self) -> Generator[Call, None, None]:
        """Yield what workers with room should do now; each is then under way."""
        self._hedge_front()
        while self._free or (self._stalled and not self._is_full):
            name = (self._free or self._stalled).pop()
            worker = self._workers[name]
            while (found := self._next(name, worker)) is not None:
                item, step = found
                call = Call(name, item, step, self._clock())
                item.open.append(call)
                worker.calls.add(call)
                yield call
            if self._is_full and self._upcoming is not None and worker.held < worker.most:
                self._stalled.add(name)

    def take(self, event: Joined | Left | Done) -> None:
        """Note what happened.

        Raises:
            BackboneError: Two results of one item differ.
            SourceError: An item ended several workers.
        """
        if isinstance(event, Joined):
            self._workers[event.worker] = _Worker(event.node, event.slots)
            self._nodes[event.worker] = event.node
            self._free.add(event.worker)
        elif isinstance(event, Left):
            self._take_left(event)
        else:
            self._take_done(event.call, event.result)

    def leaving(self) -> Generator[tuple[Any, Any], None, None]:
        """Yield work and result of each item whose turn it is."""
        while (item := self._items.get(self._left)) is not None and item.is_done:
            del self._items[self._left]
            self._left += 1
            result, item.result = item.result, None
            yield item.work, result

    def _next(self, name: str, worker: _Worker) -> tuple[Item, str] | None:
        if worker.is_stuck:
            return None
        computing = sum(call.step == "compute" for call in worker.calls)
        while self._again:
            number, step = self._again[0]
            again = self._items.get(number)
            is_marked = number < self._marked or number in self._reads
            if again is None or again.is_done or (step == "read" and is_marked):
                heappop(self._again)
                continue
            is_own = any(call.worker == name for call in again.open)
            if is_own or (step == "compute" and computing > worker.slots):
                break
            heappop(self._again)
            self._release(again)
            again.holder, worker.held = name, worker.held + 1
            return again, step
        if computing <= worker.slots:
            while worker.marked:
                item = worker.marked.popleft()
                if item.holder == name and not item.is_done:
                    return item, "compute"
        if worker.held >= worker.most or self._is_full or self._upcoming is None:
            return None
        item = Item(self._begun, self._upcoming, name)
        self._items[self._begun] = item
        self._upcoming = next(self._works, None)
        self._begun, worker.held = self._begun + 1, worker.held + 1
        return item, "read"

    def _take_done(self, call: Call, result: Any) -> None:
        item, worker = call.item, self._workers.get(call.worker)
        if call in item.open:
            item.open.remove(call)
        if worker is not None and call in worker.calls:
            worker.calls.remove(call)
            worker.is_stuck &= call.step == "read"
            self._free.add(call.worker)
            self._pace += 0.05 * (self._clock() - call.since - self._pace)
        if call.step == "read":
            self._take_read_of(item, result)
            return
        node = self.node_of(call)
        if item.is_done or item.number < self._left:
            self._require_same(item, result, node)
            self.num_dropped += 1
            return
        item.result, item.is_done = result, True
        self._release(item)
        if _is_computed_elsewhere(item):
            self._kept[item] = self._digest(result), node

    def _take_read_of(self, item: Item, result: Any) -> None:
        if item.number < self._marked or item.number in self._reads:
            self.num_dropped += 1  # what was marked is what counts
            return
        self._reads[item.number] = result
        while self._marked in self._reads:
            item = self._items[self._marked]
            needs_computing = self._take_read(item.work, self._reads.pop(self._marked))
            self._marked += 1
            holder = self._workers.get(item.holder or "")
            if not needs_computing:
                item.is_done = True
                self._release(item)
            elif holder is not None and not holder.is_stuck:
                holder.marked.append(item)
                self._free.add(item.holder or "")
            else:
                self._repeat(item, "compute")

    def _require_same(self, item: Item, result: Any, node: str) -> None:
        before = self._kept.get(item)
        if before is not None and (own := self._digest(result)) and own != (before[0] or own):
            raise BackboneError(
                f"Two workers gave different features of the same images ({item.work}): one on "
                f"{before[1]}, one on {node}. One of these machines computes wrongly, or they are "
                "of different kinds. What was committed is kept; run again without one of them."
            )
        if not _is_computed_elsewhere(item):
            self._kept.pop(item, None)

    def _take_left(self, event: Left) -> None:
        worker = self._workers.pop(event.worker, None)
        self._free.discard(event.worker)
        if worker is None:
            return
        self._stalled.discard(event.worker)
        orphans = {call.item: call.step for call in worker.calls}
        for call in worker.calls:
            call.item.open.remove(call)
            if not _is_computed_elsewhere(call.item):
                self._kept.pop(call.item, None)
        for item in worker.marked:
            orphans.setdefault(item, "compute")
        if worker.calls:
            first = min(worker.calls, key=lambda call: (call.step != "compute", call.item.number))
            self._note_death(first.item, event.cause)
        for item, step in orphans.items():
            if not item.is_done and not any(call.step == step for call in item.open):
                self._repeat(item, step)

    def _note_death(self, item: Item, cause: str) -> None:
        item.deaths += 1
        if item.deaths >= _MOST_DEATHS:
            raise SourceError(
                f"{item.deaths} workers ended while they had {item.work}; the last: {cause}. One "
                "of these images may crash what reads it, or memory is short. What was committed "
                "is kept."
            )

    def _repeat(self, item: Item, step: str) -> None:
        """Have a step done again, at once where a worker has nothing to do."""
        if item.is_done:
            return
        self._release(item)
        self.num_repeated += 1
        heappush(self._again, (item.number, step))
        idle = next((name for name in self._stalled if not self._workers[name].calls), None)
        self._free.update([idle] if idle else self._workers)

    def _release(self, item: Item) -> None:
        holder = self._workers.get(item.holder or "")
        if holder is not None:
            holder.held -= 1
            self._free.add(item.holder or "")
        item.holder = None

    def _hedge_front(self) -> None:
        """Give the item that all wait for to a second worker where the first takes very long."""
        call = self.front()
        if call is None or len(call.item.open) > 1:
            return
        if self._clock() - call.since <= max(_SLOW_SECONDS, _SLOW_FACTOR * self._pace):
            return
        is_idle = any(own != call.worker and not w.calls for own, w in self._workers.items())
        if is_idle and (call.item.number, call.step) not in self._again:
            self._repeat(call.item, call.step)
            worker = self._workers[call.worker]
            worker.is_stuck = True
            while worker.marked:
                self._repeat(worker.marked.popleft(), "compute")


def _is_computed_elsewhere(item: Item) -> bool:
    return any(call.step == "compute" for call in item.open)


def in_order(
    schedule: Schedule, pool: Pool, *, told: Callable[[], None] = lambda: None
) -> Generator[tuple[Any, Any], None, None]:
    """Yield work and result of each item in order; ``told`` is called each time round."""
    while not schedule.is_finished:
        for call in schedule.calls():
            pool.submit(call)
        for event in pool.wait(_TICK):
            schedule.take(event)
        yield from schedule.leaving()
        told()


def _digest_of_rows(result: Any) -> bytes:
    """Return the hash of rows; empty where files may have changed, so that they may differ."""
    if result.failures:
        return b""
    return hashlib.blake2b(np.ascontiguousarray(result.rows).tobytes(), digest_size=16).digest()
