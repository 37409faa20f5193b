"""Reading ahead: order, bounds, errors in their places, and no thread left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featx.errors import ImageError
from featx.images.decode import NO_DIGEST, content_digest
from featx.images.reading import map_ahead, read_digests, read_images, spread
from featx.images.sources import ImageSource, open_source


@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 12))
@settings(max_examples=40)
def test_results_come_in_order_whatever_the_settings(count, workers, window):
    results = map_ahead(lambda index: index * index, range(count), workers=workers, window=window)
    assert list(results) == [index**2 for index in range(count)]


def test_slow_calls_do_not_change_the_order():
    def work(index: int) -> int:
        time.sleep(0.02 if index % 3 == 0 else 0)
        return index

    assert list(map_ahead(work, range(20), workers=4)) == list(range(20))


@pytest.mark.parametrize("bad", [0, 3, 9])
def test_an_error_is_raised_in_its_place(bad):
    def work(index: int) -> int:
        if index >= bad:
            raise ImageError(str(index), "broken.")
        time.sleep(0.005)
        return index

    before, results = threading.active_count(), []
    with pytest.raises(ImageError, match=f"Image '{bad}': broken."):
        results.extend(map_ahead(work, range(10), workers=3, window=2))
    assert results == list(range(bad))
    assert threading.active_count() == before


@pytest.mark.parametrize(("workers", "window"), [(1, 1), (2, 4), (3, 8)])
def test_it_stays_a_bounded_number_ahead(workers, window):
    started, lock = [0], threading.Lock()

    def work(index: int) -> int:
        with lock:
            started[0] += 1
        return index

    furthest = 0
    for used, _ in enumerate(map_ahead(work, range(60), workers=workers, window=window)):
        time.sleep(0.002)
        furthest = max(furthest, started[0] - used)
    assert 1 <= furthest <= workers + window
    assert started[0] == 60


def test_calls_run_side_by_side():
    meeting = threading.Barrier(3, timeout=20)  # nobody passes alone
    assert len(list(map_ahead(lambda _: meeting.wait(), range(6), workers=3))) == 6


def test_nothing_starts_before_the_first_is_asked_for():
    called = threading.Event()
    results = map_ahead(lambda _: called.set(), range(3))
    assert not called.wait(0.05)
    list(results)
    assert called.is_set()


def test_leaving_early_cancels_what_has_not_begun_and_ends_the_threads():
    before, done = threading.active_count(), []

    def work(index: int) -> None:
        time.sleep(0.005)
        done.append(index)

    results = map_ahead(work, range(1000), workers=2, window=8)
    next(results)
    results.close()  # what a loop left by an exception does
    count = len(done)
    assert count <= 12
    assert threading.active_count() == before
    time.sleep(0.03)
    assert len(done) == count


def test_an_error_in_the_loop_ends_the_threads_too():
    before = threading.active_count()

    def use() -> None:
        for _ in map_ahead(lambda index: index, range(100), workers=4):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    assert threading.active_count() == before


@pytest.mark.parametrize("place", ["in the loop", "while it waits"])
def test_an_interrupt_does_not_wait_for_the_threads(place):
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


def test_items_are_taken_in_the_callers_thread_as_the_work_goes_on():
    taken: list[tuple[int, int]] = []

    def items() -> Iterator[int]:
        for item in range(30):
            taken.append((item, threading.get_ident()))
            yield item

    with closing(map_ahead(lambda item: -item, items(), workers=2, window=3)) as ahead:
        assert next(ahead) == 0
        assert len(taken) == 2 + 3
        assert list(ahead) == [-item for item in range(1, 30)]
    assert taken == [(item, threading.get_ident()) for item in range(30)]


def test_items_that_fail_leave_no_thread():
    def items() -> Iterator[int]:
        yield 1
        raise ImageError("a.jpg", "gone")

    before = threading.active_count()
    with closing(map_ahead(abs, items(), workers=2)) as ahead, pytest.raises(ImageError):
        next(ahead)
    assert threading.active_count() == before


@pytest.fixture
def source(tmp_path: Path) -> ImageSource:
    """Return a folder of 20 images, of which the fourth is damaged and the eighth is missing."""
    for number in range(20):
        shade = np.full((8, 8 + number, 3), number, np.uint8)
        Image.fromarray(shade).save(tmp_path / f"{number:02}.png")
    (tmp_path / "03.png").write_bytes(b"no image")
    images = open_source(str(tmp_path))
    (tmp_path / "07.png").unlink()
    return images


def test_images_of_a_source_come_in_the_order_asked_for(source):
    indices = [*range(19, -1, -1), 5, 5]
    found = list(read_images(source, iter(indices), np.asarray))
    assert [index for index, _, _ in found] == indices
    for index, digest, image in found:
        if index in (3, 7):
            assert isinstance(image, ImageError)
            assert image.sample_id == f"{index:02}.png"
        else:
            assert isinstance(image, np.ndarray)
            assert image.shape == (8, 8 + index, 3)
            assert (image == index).all()
        expected = NO_DIGEST if index == 7 else content_digest(source.read(index))
        assert digest == expected


def test_images_are_decoded_and_made_use_of_in_the_threads(source):
    def make(image: Image.Image | np.ndarray) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return np.asarray(image).shape[1]

    widths = [image for _, _, image in read_images(source, range(8, 12), make)]
    assert widths == [16, 17, 18, 19]


def test_a_limit_of_pixels_holds_for_each_image(source):
    found = read_images(source, range(8, 12), np.asarray, max_pixels=8 * 17)
    assert [isinstance(image, ImageError) for _, _, image in found] == [False, False, True, True]


def test_digests_are_read_without_decoding(source):
    found = dict(read_digests(source, range(20)))
    assert isinstance(found.pop(7), ImageError)
    assert found == {index: content_digest(source.read(index)) for index in found}
    assert found[3] == content_digest(b"no image")


def test_an_interrupt_does_not_wait_for_images_on_their_way(source):
    finish, ended = threading.Event(), []

    def make(image: Image.Image) -> None:
        if image.width > 16:  # all but the first
            finish.wait(20)
            ended.append(image)

    def use() -> None:
        with closing(read_images(source, range(8, 20), make)) as found:
            next(found)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert not ended
    finish.set()


@pytest.mark.parametrize(
    ("num_rows", "count", "expected"),
    [(0, 3, []), (1, 3, [0]), (3, 3, [0, 1, 2]), (3, 9, [0, 1, 2]), (9, 3, [0, 4, 8])],
)
def test_rows_are_spread_evenly(num_rows, count, expected):
    assert spread(np.arange(num_rows), count).tolist() == expected
