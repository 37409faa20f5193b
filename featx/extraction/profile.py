"""Where the time of an extraction went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

STEPS = ("read", "decode", "preprocess", "inference", "journal")
WORKER_STEPS = ("decode", "preprocess", "inference")


@dataclass
class Spent:
    """Seconds by step, of one thread at a time; added up they are a profile's."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @contextmanager
    def on(self, step: str) -> Iterator[None]:
        """Count the time until the end of the block as spent on a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[step] += time.perf_counter() - start

    def add(self, other: Spent) -> None:
        """Add what another thread spent."""
        for step, seconds in other.seconds.items():
            self.seconds[step] += seconds


@dataclass(frozen=True)
class Profile:
    """Where the time of the backbone's run went; reading, workers and journal overlap.

    Attributes:
        seconds: Of all threads together, for each of ``STEPS``.
        num_images: Images that were gone through.
        workers: Threads that decoded and ran the backbone.
        wall: From the first image to the last row, seconds.
    """

    seconds: Mapping[str, float]
    num_images: int
    workers: int
    wall: float

    @property
    def idle(self) -> float:
        """Seconds that the workers waited, all together."""
        busy = sum(self.seconds[step] for step in WORKER_STEPS)
        return max(0.0, self.workers * self.wall - busy)
