"""Images that wait together go to the model together.

Requests put their images into one queue. Each thread takes its share of what waits, decodes it and
runs the model on it, as ``Predictor`` does with groups of files. Nobody waits for a batch to fill;
an image that is alone takes all threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence

from featx.errors import FeatxError, ImageError
from featx.serving.metrics import Meter
from featx.serving.model import Image, Row, ServedModel

log = logging.getLogger(__name__)

_MAX_BATCH_BYTES = 2**25
"""That encoded images of a batch may have, so that one thread does not take all large ones."""


class QueueFull(Exception):
    """So many images wait that these would wait too long."""


class _Request:
    """The images of a request: they are answered by one model, in one batch or in several."""

    def __init__(self, model: ServedModel, count: int) -> None:
        self.model = model
        self.rows = dict[int, Row | ImageError]()
        self.count = count
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()


_Job = tuple[_Request, int, Image]


class Batches:
    """Threads that answer images.

    Args:
        threads: Each runs one batch at a time.
        max_waiting: Images that may wait.
        meter: Where images and batches are counted.
    """

    def __init__(self, *, threads: int, max_waiting: int, meter: Meter) -> None:
        self._threads, self._max_waiting, self._meter = threads, max_waiting, meter
        self._waiting = deque[_Job]()
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed, self._num_busy = False, 0
        for number in range(threads):
            threading.Thread(target=self._work, name=f"batches-{number}", daemon=True).start()

    @property
    def is_full(self) -> bool:
        """Whether no image more may wait."""
        return len(self._waiting) >= self._max_waiting

    async def answer(self, model: ServedModel, images: Sequence[Image]) -> list[Row | ImageError]:
        """Return the outputs for each image, or why it cannot be used.

        Raises:
            QueueFull: So many images cannot wait.
            FeatxError: The model cannot be run.
        """
        self._loop = asyncio.get_running_loop()
        request = _Request(model, len(images))
        with self._changed:
            if len(self._waiting) + len(images) > self._max_waiting:
                raise QueueFull
            self._waiting.extend((request, place, each) for place, each in enumerate(images))
            self._meter.set("featx_waiting_images", len(self._waiting))
            self._changed.notify(len(images))
        await request.answered
        return [request.rows[place] for place in range(len(images))]

    def close(self) -> None:
        """End the threads; what waits is not answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while not self._is_closed:
            jobs, is_alone = self._take()
            if not jobs:  # all of them were given up meanwhile
                continue
            model = jobs[0][0].model
            rows: Sequence[Row | ImageError] | Exception
            try:
                rows = model.answer([image for _, _, image in jobs], is_alone=is_alone)
            except Exception as err:  # the thread lives on; the requests say so
                if not isinstance(err, FeatxError):
                    log.exception("A batch of %d failed.", len(jobs))
                rows = err
            with self._changed:
                self._num_busy -= 1
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._deliver, jobs, rows)

    def _take(self) -> tuple[list[_Job], bool]:
        """Wait for images, and return this thread's share, of one model; nothing once closed.

        With them comes whether it is one image and nothing else is under way.
        """
        with self._changed:
            while True:
                while self._waiting and self._waiting[0][0].answered.done():
                    self._waiting.popleft()
                if self._is_closed:
                    return [], False
                if self._waiting:
                    break
                self._changed.wait()
            model = self._waiting[0][0].model
            most = min(model.batch_size, -(-len(self._waiting) // self._threads))
            jobs, num_bytes = list[_Job](), 0
            while (
                self._waiting
                and len(jobs) < most
                and num_bytes < _MAX_BATCH_BYTES
                and self._waiting[0][0].model is model
            ):
                job = self._waiting.popleft()
                if not job[0].answered.done():
                    jobs.append(job)
                    num_bytes += len(job[2]) if isinstance(job[2], bytes) else job[2].nbytes
            self._num_busy += bool(jobs)
            return jobs, self._num_busy == 1 and len(jobs) == 1 and not self._waiting

    def _deliver(self, jobs: Sequence[_Job], rows: Sequence[Row | ImageError] | Exception) -> None:
        """Hand rows to their requests; runs in the loop, where all counting is done."""
        if isinstance(rows, Exception):
            num_bad = len(jobs)
        else:
            num_bad = sum(isinstance(row, ImageError) for row in rows)
        self._meter.add("featx_batches_total")
        self._meter.add("featx_bad_images_total", num_bad)
        self._meter.add("featx_images_total", len(jobs) - num_bad)
        self._meter.set("featx_waiting_images", len(self._waiting))
        for number, (request, place, _) in enumerate(jobs):
            if request.answered.done():  # given up, or failed with another batch
                continue
            if isinstance(rows, Exception):
                request.answered.set_exception(rows)
                continue
            request.rows[place] = rows[number]
            if len(request.rows) == request.count:
                request.answered.set_result(None)
