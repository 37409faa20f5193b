"""Counters that all workers share, and their text for Prometheus.

Each worker writes a row of its own in memory that all have mapped; whoever is asked adds up all
rows. A worker that was killed leaves its row to the one that takes its place, so counters never go
back. Format: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping

import numpy as np

ENDPOINTS = ("predict", "infer", "page", "metadata", "health", "metrics", "other")
STATUSES = (200, 400, 401, 404, 405, 408, 413, 415, 500, 503)
_TIMED = ENDPOINTS[:2]
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_GAUGES = {
    "featx_workers": "Worker processes that are ready to answer.",
    "featx_connections": "Open connections.",
    "featx_waiting_images": "Images that wait for a thread.",
}
_COUNTERS = {
    "featx_images_total": "Images that the model answered.",
    "featx_batches_total": "Batches that the model was run on.",
    "featx_bad_images_total": "Images that could not be used.",
    "featx_worker_restarts_total": "Workers started in the place of one that ended.",
    "featx_reloads_total": "Times that a new model was taken.",
    "featx_failed_reloads_total": "Times that a new model was refused.",
}
_REQUESTS, _LATENCY = "featx_requests_total", "featx_request_seconds"


def _series() -> Iterator[str]:
    yield from _GAUGES
    yield from _COUNTERS
    for endpoint in ENDPOINTS:
        for status in STATUSES:
            yield f'{_REQUESTS}{{endpoint="{endpoint}",status="{status}"}}'
    for endpoint in _TIMED:
        for limit in (*_SECONDS, "+Inf"):
            yield f'{_LATENCY}_bucket{{endpoint="{endpoint}",le="{limit}"}}'
        for part in ("sum", "count"):
            yield f'{_LATENCY}_{part}{{endpoint="{endpoint}"}}'


_PLACES = {name: place for place, name in enumerate(_series())}


def num_bytes(workers: int) -> int:
    """Return the size of the shared memory: a row for the supervisor, and one for each worker."""
    return 8 * len(_PLACES) * (workers + 1)


class Meter:
    """The counters of one process, and the sums over all.

    Args:
        descriptor: Of a file of ``num_bytes(workers)``.
        workers: Worker processes.
        row: That this process writes; 0 is the supervisor's.
    """

    def __init__(self, descriptor: int, *, workers: int, row: int) -> None:
        self._memory = mmap.mmap(descriptor, num_bytes(workers))
        self._rows = np.frombuffer(self._memory, np.float64).reshape(workers + 1, -1)
        self._own = self._rows[row]

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a counter; called from one thread for each name."""
        self._own[_PLACES[name]] += amount

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._own[_PLACES[name]] = value

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        known = status if status in STATUSES else 400 if status < 500 else 500
        self.add(f'{_REQUESTS}{{endpoint="{endpoint}",status="{known}"}}')
        if endpoint in _TIMED:
            for limit in (*(limit for limit in _SECONDS if seconds <= limit), "+Inf"):
                self.add(f'{_LATENCY}_bucket{{endpoint="{endpoint}",le="{limit}"}}')
            self.add(f'{_LATENCY}_sum{{endpoint="{endpoint}"}}', seconds)
            self.add(f'{_LATENCY}_count{{endpoint="{endpoint}"}}')

    def clear_gauges(self, row: int) -> None:
        """Set a process's gauges to zero, as it has ended."""
        self._rows[row, : len(_GAUGES)] = 0

    def total(self, name: str) -> float:
        """Return the sum over all processes."""
        return float(self._rows[:, _PLACES[name]].sum())

    def render(self, model: Mapping[str, str]) -> str:
        """Return all sums as text; ``model`` has the labels of what is served."""
        labels = ",".join(f'{name}="{_quoted(value)}"' for name, value in model.items())
        lines = [
            "# HELP featx_model_info The model that is served.",
            "# TYPE featx_model_info gauge",
            f"featx_model_info{{{labels}}} 1",
        ]
        for kind, families in (("gauge", _GAUGES), ("counter", _COUNTERS)):
            for name, text in families.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", self._line(name)]
        lines += [f"# HELP {_REQUESTS} Requests that were answered.", f"# TYPE {_REQUESTS} counter"]
        lines += [self._line(name) for name in _PLACES if name.startswith(_REQUESTS)]
        lines += [
            f"# HELP {_LATENCY} From the request's headers to the answer.",
            f"# TYPE {_LATENCY} histogram",
        ]
        lines += [self._line(name) for name in _PLACES if name.startswith(_LATENCY)]
        return "\n".join(lines) + "\n"

    def _line(self, name: str) -> str:
        return f"{name} {self.total(name):.15g}"


def _quoted(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def shared_memory(workers: int) -> int:
    """Return the descriptor of a file for ``Meter``, which has no name and goes with it."""
    from featx.system import file_in_memory

    descriptor = file_in_memory("featx-metrics")
    os.ftruncate(descriptor, num_bytes(workers))
    return descriptor
