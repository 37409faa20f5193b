"""A line, early in a long run, about settings that would make it faster: measured on its images.

A thread beside the run decodes some images in both ways and runs the backbone in int8, once what is
left is long enough for that to be a hundredth of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from threading import Thread

import numpy as np

from featx.backbones.engines import Engine, OnnxEngine
from featx.backbones.graph_cache import read_graph
from featx.backbones.spec import BackboneSpec
from featx.extraction.crops import Spent
from featx.images.decode import decoded
from featx.images.preprocess import Decode, preprocess
from featx.images.reading import spread
from featx.images.sources import ImageSource

log = logging.getLogger(__name__)

_FEWEST, _MOST, _REPEATS = 3, 16, 3
_SETTLED = 2.0  # seconds of a run, whose first ones say little
_SHARE = 0.008
"""Of the work that is left, the most that measuring takes: of a step by the time that it takes."""
_WORTH = 1.5  # times as fast
_MOST_GRAPH_BYTES = 110e6
"""Of a graph in float32: quantising it takes about four times its size of memory."""
_GRAPH_SECONDS = 1e-8  # to quantise a byte of it, and to open a session
_MOST_LOSS = 0.0007
"""1 - cosine between features of int8 and fp32: int8 is refused from 0.001 on, on other images."""


@dataclass
class Advice:
    """Watches a run in the thread that writes its journal; ``close`` it with the run.

    Args:
        images: The source.
        todo: Positions of the images of the run, ``(n,)``, n at least 1.
        spec: Of the features.
        engine: Runs the backbone, in calls from several threads.
        size: Images of a batch.
        workers: Threads that decode and run the backbone.
        readers: Threads that read.
        max_pixels: Images with more are not used.
    """

    images: ImageSource
    todo: np.ndarray
    spec: BackboneSpec
    engine: Engine
    size: int
    workers: int
    readers: int
    max_pixels: int
    _gains: list[tuple[str, str, float]] = field(default_factory=list, init=False)
    """Option, step and how many times as fast that step is with it."""
    _thread: Thread | None = field(default=None, init=False)
    _is_over: bool = field(default=False, init=False)
    _start: float = field(default_factory=time.perf_counter, init=False)

    def after(self, num_images: int, spent: Spent) -> None:
        """Begin to measure, or say what was found, after so many images of the run."""
        wall = time.perf_counter() - self._start
        if self._is_over or wall < _SETTLED:
            return
        if self._thread is None:
            self._begin(spent, num_images)
        elif not self._thread.is_alive():
            self._is_over = True
            self._say(spent, wall)

    def close(self) -> None:
        """End what is being measured."""
        self._is_over = True
        if self._thread:
            self._thread.join()

    def _begin(self, spent: Spent, num_images: int) -> None:
        left = (len(self.todo) - num_images) / num_images * _SHARE
        decoding, running = (spent.seconds[step] for step in ("decode", "inference"))
        decoding += spent.seconds["preprocess"]
        plans = list[Callable[[], None]]()
        if self.spec.preprocess.decode == "full" and left * num_images > 1.5 * _FEWEST + 1:
            plans.append(lambda: self._decode(left * decoding))
        may_quantise = self.spec.precision == "fp32" and isinstance(self.engine, OnnxEngine)
        if may_quantise and left * num_images > 2 * _REPEATS * self.size + 8:
            plans.append(lambda: self._quantise(left * running))
        if plans:
            self._thread = Thread(target=self._measure, args=(plans,), daemon=True)
            self._thread.start()

    def _measure(self, plans: list[Callable[[], None]]) -> None:
        for plan in plans:
            try:
                plan()
            except Exception as err:  # the run goes on, whatever is wrong with an image
                log.debug("Nothing was found out about other settings: %s", err)

    def _contents(self, count: int) -> Iterator[bytes]:
        """Yield images spread over the run, not in its order: any number of them is a sample."""
        positions = spread(self.todo, count)
        for position in np.random.default_rng(0).permutation(positions).tolist():
            content = b"" if self._is_over else self.images.read(position)
            if isinstance(content, bytes) and content:
                yield content

    def _crop(self, content: bytes, decode: Decode) -> tuple[np.ndarray, tuple[int, int], float]:
        """Return the crop, the size at which the image was decoded, and the seconds it took."""
        spec, start = replace(self.spec.preprocess, decode=decode), time.perf_counter()
        pixels = decoded(content, sample_id="", max_pixels=self.max_pixels, preprocess=spec)
        assert not isinstance(pixels, np.ndarray)
        return preprocess(pixels, spec), pixels.size, time.perf_counter() - start

    def _decode(self, budget: float) -> None:
        """Measure what scaled decoding gains; images that it leaves as they are gain nothing."""
        times: list[tuple[float, float]] = []
        start = time.perf_counter()
        for content in self._contents(_MOST):
            if not times:
                self._crop(content, "scaled")  # whatever is loaded for the first one
            _, whole, full = self._crop(content, "full")
            _, reduced, scaled = self._crop(content, "scaled")
            times.append((full, full if whole == reduced else scaled))
            if time.perf_counter() - start > budget and len(times) >= _FEWEST:
                break
        if len(times) >= _FEWEST and not self._is_over:
            full, scaled = np.sum(times, axis=0)
            self._gains.append(("decode='scaled'", "decode", full / scaled))

    def _quantise(self, budget: float) -> None:
        graph = read_graph(self.spec)
        most = min(_MOST_GRAPH_BYTES, budget / _GRAPH_SECONDS)
        if graph is None or len(graph) > most:
            return
        from featx.backbones.int8 import calibrate, cosine, quantize_graph

        crops = [self._crop(content, "full")[0] for content in self._contents(_FEWEST)]
        if len(crops) < 2:
            return
        narrow = OnnxEngine(quantize_graph(graph, calibrate(graph, [np.stack(crops[:2])])))
        pixels = np.resize(np.stack(crops), (self.size, *crops[0].shape))
        features = [np.array([]), np.array([])]
        times = [float("inf"), float("inf")]
        for _ in range(_REPEATS):
            for number, engine in enumerate((self.engine, narrow)):
                if self._is_over:
                    return
                start = time.perf_counter()
                features[number] = engine.features(pixels).reshape(len(pixels), -1)
                times[number] = min(times[number], time.perf_counter() - start)
        if cosine(features[1], features[0]).min() > 1 - _MOST_LOSS:
            self._gains.append(("precision='int8'", "inference", times[0] / times[1]))

    def _say(self, spent: Spent, wall: float) -> None:
        """Say which settings are worth it, with what they leave of the time.

        Waiting stays as it is, and nothing is faster than images are read or rows written.
        """
        steps, total = spent.seconds, self.workers * wall
        steps = {**steps, "decode": steps["decode"] + steps["preprocess"]}
        most = min(
            self.readers * wall / max(steps["read"], 1e-9), wall / max(steps["journal"], 1e-9)
        )
        times = {
            option: min(most, total / (total - steps[step] * (1 - 1 / gain)))
            for option, step, gain in self._gains
        }
        parts = [
            f"{option} about {np.floor(10 * faster) / 10:.1f} times"
            for option, faster in times.items()
            if faster >= _WORTH
        ]
        if parts:
            log.info("Faster here: %s.", ", ".join(parts))
