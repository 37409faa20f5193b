"""The process that is started: it opens the port, starts workers, and handles signals.

It loads no model. Workers are started, never forked, as a session's threads do not follow into a
fork; they share the listening socket. One that ends is replaced. All end with this process, however
it does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featx import system
from featx.classifier.session import read_classifier
from featx.errors import ConfigError, FeatxError, counted
from featx.isolation.processes import Processes
from featx.packages import install_command, needed
from featx.serving.metrics import Meter, shared_memory
from featx.serving.options import ABOUT, LOAD, STOP, ServeOptions

log = logging.getLogger(__name__)

Ready = Callable[[str, Mapping[str, Any]], None]
"""Called with the address, and what the model says of itself."""

_STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM") if hasattr(signal, name)
)
_RELOAD = getattr(signal, "SIGHUP", None)
_TARGET = "featx.serving.worker:begin"
_BACKLOG = 1024
_LOOK_SECONDS = 0.25
_LAST_SECONDS = 2.0
"""After the time for requests under way, until workers are killed."""
_MAX_PAUSE = 30.0


class WorkerEnded(FeatxError):
    """A worker could not be started, or has ended."""


def serve(model: str | Path, options: ServeOptions | None = None, *, ready: Ready) -> None:
    """Serve a model over HTTP until SIGTERM or SIGINT; for the main thread of a process.

    SIGHUP reads the file again and takes the new model if it may take the old one's place.

    Args:
        model: The exported file.
        options: Address, limits, workers.
        ready: Called once all workers are ready.

    Raises:
        ArtifactError: The file cannot be used, as ``Predictor`` would not use it.
        ConfigError: The address cannot be had, the file gives features only, a package is missing,
            or the system is Windows.
    """
    _require_packages()
    if not system.can_pass_files() or _RELOAD is None:
        raise ConfigError("featx serve needs Linux or macOS: workers share one open port.")
    options, path = options or ServeOptions(), Path(model)
    content = read_classifier(path)
    workers_text = counted(options.workers, "worker")
    log.info("Loading '%s' (%.1f MB) in %s …", path, len(content) / 1e6, workers_text)
    with (
        _listening(options) as listener,
        contextlib.closing(_Workers(path, content, options, listener)) as workers,
    ):
        about = workers.start()
        with _signals() as signals:
            ready(_address(listener), about)
            _attend(workers, signals)
            listener.close()
            workers.stop()


def _require_packages() -> None:
    for module, package in (("uvicorn", "uvicorn"), ("python_multipart", "python-multipart")):
        try:
            __import__(module)
        except ImportError as err:
            why = needed(err, package, install_command("serve"))
            raise ConfigError(f"featx serve needs {why}") from err


def _listening(options: ServeOptions) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as err:
        raise ConfigError(
            f"Cannot listen at port {options.port} of '{options.host}': {err.strerror or err}. "
            "Another program may use it; give another with port=…."
        ) from err


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Stopping(KeyboardInterrupt):
    """A second signal that asks for an end."""


@contextlib.contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """Yield a queue of the signals that come; a second one that asks for an end is raised."""
    received: queue.SimpleQueue[int] = queue.SimpleQueue()
    stopping = False

    def note(signum: int, _frame: object) -> None:
        nonlocal stopping
        if signum in _STOP_SIGNALS and stopping:
            raise _Stopping(signum)
        stopping = stopping or signum in _STOP_SIGNALS
        received.put(signum)

    wakeup = signal.set_wakeup_fd(-1)  # what ends a command soon after a signal reads there
    earlier = {signum: signal.signal(signum, note) for signum in (*_STOP_SIGNALS, _RELOAD)}
    try:
        yield received
    except _Stopping:
        log.warning("Stopped at once; requests under way were not answered.")
    finally:
        signal.set_wakeup_fd(wakeup)
        for signum, handler in earlier.items():
            signal.signal(signum, handler)


def _attend(workers: _Workers, signals: queue.SimpleQueue[int]) -> None:
    """Replace workers that end and reload on SIGHUP, until a signal asks for an end."""
    while True:
        try:
            signum = signals.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            workers.replace_ended()
            continue
        if signum in _STOP_SIGNALS:
            return
        threading.Thread(target=workers.reload, daemon=True).start()


class _Workers:
    """The worker processes.

    Args:
        path: The model's file.
        content: Its content now; a worker that is replaced gets the same, whatever lies there then.
        options: Of the server.
        listener: The open port.
    """

    def __init__(
        self, path: Path, content: bytes, options: ServeOptions, listener: socket.socket
    ) -> None:
        self._path, self._content, self._options = path, content, options
        self._listener = listener.fileno()
        self._shared = shared_memory(options.workers)
        self._meter = Meter(self._shared, workers=options.workers, row=0)
        self._rows = range(1, options.workers + 1)
        self._workers: dict[int, Processes] = {}
        self._changing = threading.Lock()
        self._failures, self._next_start = 0, 0.0

    def start(self) -> Mapping[str, Any]:
        """Start all, wait until they are ready, and return what the model says of itself."""
        with ThreadPoolExecutor(len(self._rows)) as pool:
            for row, started in zip(self._rows, pool.map(self._start, self._rows), strict=True):
                self._workers[row] = started
            about = list(pool.map(lambda each: each.ask(ABOUT), self._workers.values()))
        return dict(json.loads(bytes(about[0])))

    def _start(self, row: int) -> Processes:
        settings = {
            "options": asdict(self._options),
            "path": str(self._path),
            "listener": self._listener,
            "metrics": self._shared,
            "row": row,
        }
        return Processes(
            _TARGET,
            [[json.dumps(settings).encode(), self._content]],
            names=[f"worker {row}"],
            error=WorkerEnded,
            advice="If the machine ran out of memory, start fewer workers (workers=…)",
            descriptors=(self._listener, self._shared),
        )

    def replace_ended(self) -> None:
        """Start another worker for each that has ended, with pauses where that does not help."""
        if time.monotonic() < self._next_start or not self._changing.acquire(blocking=False):
            return
        try:
            for row, worker in self._workers.items():
                if cause := worker.ended():
                    log.warning("Worker %d ended (%s) and is started again.", row, cause)
                    self._replace(row, worker)
        finally:
            self._changing.release()

    def _replace(self, row: int, ended: Processes) -> None:
        if time.monotonic() > self._next_start + _MAX_PAUSE:
            self._failures = 0
        ended.close()
        self._meter.clear_gauges(row)
        self._meter.add("featx_worker_restarts_total")
        self._failures += 1
        self._next_start = time.monotonic() + min(_MAX_PAUSE, 2.0 ** min(self._failures, 5) / 4)
        with contextlib.suppress(WorkerEnded):
            self._workers[row] = self._start(row)

    def reload(self) -> None:
        """Give the file's content to all workers, if the first of them takes it."""
        with self._changing:
            try:
                content = read_classifier(self._path)
                taken = False
                for worker in self._workers.values():
                    try:
                        taken = self._give(worker, content) or taken
                    except FeatxError:
                        if not taken:
                            raise
                        worker.close()  # what takes its place has the new model, as the others
                if taken:
                    self._content = content
                    self._meter.add("featx_reloads_total")
                    log.info("'%s' was read again and is served now.", self._path)
            except (FeatxError, OSError) as err:
                self._meter.add("featx_failed_reloads_total")
                log.warning("%s The model from before goes on answering.", err)

    def _give(self, worker: Processes, content: bytes) -> bool:
        """Return whether a worker took a model; one that has ended is replaced soon."""
        try:
            worker.ask(LOAD + content)
        except WorkerEnded:
            if worker.ended():
                return False
            raise
        return True

    def stop(self) -> None:
        """Let requests under way be answered, for as long as the options allow."""
        threads = [
            threading.Thread(target=_end, args=(worker,), daemon=True)
            for worker in self._workers.values()
        ]
        end = time.monotonic() + self._options.grace + _LAST_SECONDS
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0, end - time.monotonic()))

    def close(self) -> None:
        """End all workers, whatever they do."""
        for worker in self._workers.values():
            worker.close()
        os.close(self._shared)


def _end(worker: Processes) -> None:
    with contextlib.suppress(WorkerEnded):
        worker.ask(STOP)
