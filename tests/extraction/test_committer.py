"""Results of many workers, some of which fail, leave once each and in order."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from featx.errors import BackboneError, SourceError
from featx.extraction.committer import Call, Done, Joined, Left, Schedule, in_order


@dataclass
class Outcome:
    rows: np.ndarray
    failures: dict[int, Any] = field(default_factory=dict)


@dataclass
class Simulation:
    """Workers in a time of their own: each call takes a while, and some end their worker."""

    num_workers: int
    seed: int = 0
    failing: float = 0.0
    twice: float = 0.0
    poison: int | None = None
    wrong: bool = False
    hanging: set[int] = field(default_factory=set)
    hang: float = 10_000.0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.events: list[tuple[float, int, Any]] = []
        self.alive: dict[str, float] = {}  # until when its thread is busy
        self.count, self.computed, self.most_waiting = 0, Counter[int](), 0
        self.schedule: Schedule | None = None
        for _ in range(self.num_workers):
            self.start()

    def start(self) -> None:
        name = f"w{self.count}"
        self.later(self.random.uniform(0, 5), Joined(name, f"node {self.count % 7}"))
        self.alive[name] = 0.0

    def later(self, seconds: float, event: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, event))

    def submit(self, call: Call) -> None:
        item, step = call.item, call.step
        if step == "read":
            self.later(self.random.expovariate(5), Done(call, item.work))
            return
        self.computed[item.number] += 1
        begin = max(self.now, self.alive.get(call.worker, 0.0))
        takes = self.random.expovariate(1)
        if item.number in self.hanging and self.computed[item.number] == 1:
            takes = self.hang
        self.alive[call.worker] = begin + takes
        value = item.work + (0.5 if self.wrong and self.computed[item.number] > 1 else 0)
        done = Done(call, Outcome(np.full((2, 3), value, np.float32)))
        self.later(begin + takes - self.now, done)
        if self.random.random() < self.failing or item.number == self.poison:
            self.later(begin + takes * 0.9 - self.now, Left(call.worker, "killed"))
        if self.random.random() < self.twice:
            self.later(begin + 2 * takes - self.now, done)

    def wait(self, seconds: float) -> list[Any]:
        assert self.events, "nothing will ever happen again"
        until = self.now + seconds
        if self.events[0][0] > until:
            self.now = until
            return []
        self.now, _, event = heapq.heappop(self.events)
        name = event.call.worker if isinstance(event, Done) else event.worker
        if name not in self.alive:
            return []  # what a dead worker would have said
        if isinstance(event, Left):
            del self.alive[name]
            self.start()
        if self.schedule:
            self.most_waiting = max(self.most_waiting, self.schedule.num_waiting)
        return [event]


def run(pool: Simulation, num_items: int, *, window: int, skip: Any = None) -> list[Any]:
    """Return what left, ``(work, result)``, after checking that all were read in order."""
    read: list[int] = []

    def take_read(work: int, result: int) -> bool:
        assert result == work
        read.append(work)
        return not (skip and skip(work))

    schedule = Schedule(range(num_items), take_read, window=window, clock=lambda: pool.now)
    pool.schedule = schedule
    found = list(in_order(schedule, pool))
    assert read == list(range(num_items))
    return found


def rows_of(found: list[Any]) -> bytes:
    return b"".join(outcome.rows.tobytes() for _, outcome in found if outcome is not None)


def expected(num_items: int) -> bytes:
    values = np.repeat(np.arange(num_items, dtype=np.float32), 6)
    return values.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_each_item_leaves_once_and_in_order_whatever_ends(seed):
    pool = Simulation(1000, seed, failing=0.01, twice=0.01)
    found = run(pool, 6000, window=5000)
    assert [work for work, _ in found] == list(range(6000))
    assert rows_of(found) == expected(6000)
    assert pool.schedule.num_repeated > 20
    assert pool.schedule.num_dropped > 20


def test_a_row_lost_doubled_or_exchanged_is_found_by_comparing_bytes():
    found = run(Simulation(5, failing=0.05), 200, window=40)
    assert rows_of(found) == expected(200)
    lost, doubled, exchanged = found[:50] + found[51:], found[:50] + found[49:], list(found)
    exchanged[7], exchanged[90] = found[90], found[7]
    for wrong in (lost, doubled, exchanged):
        assert rows_of(wrong) != expected(200)
    assert set(rows_of(exchanged)) == set(rows_of(found))  # what a comparison of sets would miss


@pytest.mark.parametrize("mutation", ["drop", "double", "swap"])
def test_a_schedule_that_does_so_fails_this_test(mutation, monkeypatch):
    plain = Schedule.leaving

    def leaving(self: Schedule) -> Any:
        out = list(plain(self))
        if len(out) > 1 and mutation == "swap":
            out[0], out[1] = out[1], out[0]
        for number, each in enumerate(out):
            if each[0] == 17 and mutation == "drop":
                continue
            yield each
            if number == 0 and mutation == "double":
                yield each

    monkeypatch.setattr(Schedule, "leaving", leaving)
    assert rows_of(run(Simulation(20), 300, window=100)) != expected(300)


def test_one_slow_item_bounds_what_waits_and_a_worker_that_dies_with_it_does_no_harm():
    pool = Simulation(64, hanging={3})
    found = run(pool, 3000, window=300)
    assert rows_of(found) == expected(3000)
    assert pool.most_waiting < 300
    assert pool.computed[3] == 2  # it was given to a second worker
    assert pool.now < 1000


def test_a_second_result_of_an_item_is_dropped():
    pool = Simulation(8, hanging={3}, hang=100)
    assert rows_of(run(pool, 2000, window=20)) == expected(2000)
    assert pool.computed[3] == 2
    assert pool.schedule.num_dropped > 0
    assert not pool.schedule._kept


def test_two_results_that_differ_are_an_error_that_names_both_nodes():
    schedule = Schedule(["the images 'a' to 'b'"], lambda *_: True, window=4)
    schedule.take(Joined("w1", "node 1"))
    (read,) = schedule.calls()
    schedule.take(Done(read, "…"))
    (first,) = schedule.calls()
    schedule.take(Joined("w2", "node 2"))
    schedule._repeat(first.item, "compute")
    (second,) = schedule.calls()
    assert (first.worker, second.worker) == ("w1", "w2")
    schedule.take(Done(second, Outcome(np.zeros((2, 3)))))
    assert len(list(schedule.leaving())) == 1
    with pytest.raises(BackboneError, match=r"'a' to 'b'.*node 2.*node 1"):
        schedule.take(Done(first, Outcome(np.ones((2, 3)))))


def test_an_item_that_ends_every_worker_is_named():
    with pytest.raises(SourceError, match=r"5 workers ended while they had 30; the last: killed"):
        run(Simulation(20, poison=30), 100, window=50)


def test_items_with_nothing_to_compute_leave_in_their_place():
    found = run(Simulation(10, failing=0.02), 500, window=60, skip=lambda work: work % 3 == 0)
    assert [work for work, _ in found] == list(range(500))
    assert all((outcome is None) == (work % 3 == 0) for work, outcome in found)


def test_workers_that_come_late_and_all_leave_once():
    pool = Simulation(3, failing=0.1, seed=5)
    assert rows_of(run(pool, 200, window=9)) == expected(200)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_any_window_comes_to_an_end(window):
    assert rows_of(run(Simulation(30, failing=0.05), 200, window=window)) == expected(200)
