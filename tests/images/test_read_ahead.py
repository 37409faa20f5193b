"""Reading ahead: order, bounds, errors in their places, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.errors import ImageError
from featx.images.read_ahead import map_ahead, num_cores, read_ahead


def test_num_cores_is_what_this_process_may_use() -> None:
    assert num_cores() >= 1


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 12))
@settings(max_examples=40)
def test_results_come_in_order_whatever_the_settings(count: int, workers: int, window: int) -> None:
    futures = read_ahead(lambda index: index * index, count, workers=workers, window=window)
    assert [future.result() for future in futures] == [index**2 for index in range(count)]


def test_slow_calls_do_not_change_the_order() -> None:
    def work(index: int) -> int:
        time.sleep(0.02 if index % 3 == 0 else 0)
        return index

    assert [f.result() for f in read_ahead(work, 20, workers=4)] == list(range(20))


def test_what_is_yielded_is_finished() -> None:
    futures = read_ahead(lambda index: time.sleep(0.005), 10, workers=2, window=2)
    assert all(future.done() for future in futures)


def test_an_error_stays_in_its_place() -> None:
    def work(index: int) -> int:
        if index in (0, 3, 9):
            raise ImageError(str(index), "broken.")
        return index

    results = []
    for future in read_ahead(work, 10, workers=3, window=2):
        error = future.exception()
        results.append(str(error) if error else future.result())
    bad = {index: f"Image '{index}': broken." for index in (0, 3, 9)}
    assert results == [bad.get(index, index) for index in range(10)]


@pytest.mark.parametrize(("workers", "window"), [(1, 1), (2, 4), (3, 8)])
def test_it_stays_a_bounded_number_ahead(workers: int, window: int) -> None:
    started, lock = [0], threading.Lock()

    def work(index: int) -> int:
        with lock:
            started[0] += 1
        return index

    furthest = 0
    for used, _ in enumerate(read_ahead(work, 60, workers=workers, window=window)):
        time.sleep(0.002)
        furthest = max(furthest, started[0] - used)
    assert 1 <= furthest <= workers + window
    assert started[0] == 60


def test_calls_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=20)  # nobody passes alone
    assert len(list(read_ahead(lambda _: meeting.wait(), 6, workers=3))) == 6


def test_nothing_starts_before_the_first_is_asked_for() -> None:
    called = threading.Event()
    futures = read_ahead(lambda _: called.set(), 3)
    assert not called.wait(0.05)
    list(futures)
    assert called.is_set()


def test_leaving_early_cancels_what_has_not_begun_and_ends_the_threads() -> None:
    before, done = threading.active_count(), []

    def work(index: int) -> None:
        time.sleep(0.005)
        done.append(index)

    futures = read_ahead(work, 1000, workers=2, window=8)
    next(futures)
    futures.close()  # what a loop left by an exception does
    count = len(done)
    assert count <= 12
    assert threading.active_count() == before
    time.sleep(0.03)
    assert len(done) == count


def test_an_error_in_the_loop_ends_the_threads_too() -> None:
    before = threading.active_count()

    def use() -> None:
        for _ in read_ahead(lambda index: index, 100, workers=4):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert threading.active_count() == before


@pytest.mark.parametrize("place", ["in the loop", "while it waits"])
def test_an_interrupt_does_not_wait_for_the_threads(place: str) -> None:
    finish, ended = threading.Event(), []

    def work(index: int) -> None:
        if index:
            finish.wait(20)
            ended.append(index)

    def items() -> Iterator[int]:
        yield from (0, 1)
        if place == "while it waits":
            raise KeyboardInterrupt
        yield 2

    def use() -> None:
        with closing(map_ahead(work, items(), workers=2, window=0)) as ahead:
            next(ahead)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert not ended
    finish.set()


def test_items_are_taken_in_the_callers_thread_as_the_work_goes_on() -> None:
    taken: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        for item in range(30):
            taken.append((item, threading.get_ident()))
            yield item

    with closing(map_ahead(lambda item: -item, items(), workers=2, window=3)) as ahead:
        assert next(ahead).result() == 0
        assert len(taken) == 2 + 3
        assert [future.result() for future in ahead] == [-item for item in range(1, 30)]
    assert taken == [(item, threading.get_ident()) for item in range(30)]


def test_items_that_fail_leave_no_thread() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ImageError("a.jpg", "gone")

    before = threading.active_count()
    with closing(map_ahead(abs, items(), workers=2)) as ahead, pytest.raises(ImageError):
        next(ahead)
    assert threading.active_count() == before
