"""Processes that answer: bytes there and bytes back, again and again.

For work that threads of one process cannot share, because it needs Python's lock or a device of its
own. What may crash on a file is called in ``featx.isolation.call``, once and under limits.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import featx.errors
from featx import system
from featx.errors import FeatxError

Answer = Callable[[bytes], bytes]
"""Called in a process with each message; its ``FeatxError`` is raised where the message is from."""
Begin = Callable[[Callable[[], bytes]], Answer]
"""Called once in a process, with a function that returns its first messages in turn."""

_HOME = Path(featx.errors.__file__).parents[1]
_FRUGAL = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_ARENA_MAX"), "1"
)
"""Each thread of a pool, and each thread's own heap, would take address space from the content."""
_DONE, _FAILED = b"+", b"-"


def child_environment() -> dict[str, str]:
    """Return an environment for a child: this featx is found first, and one thread is enough."""
    folders = [str(_HOME), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.environ | _FRUGAL | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def start_child(
    code: str, *, stdout: int, stderr: int | None = None, descriptors: Sequence[int] = ()
) -> tuple[subprocess.Popen[bytes], int]:
    """Start Python code in a process, and return it with the descriptor of its input.

    Its input ends when this process does, however it does.
    """
    own_end, requests = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=own_end,
            stdout=stdout,
            stderr=stderr,
            pass_fds=descriptors,
            env=child_environment(),
            process_group=0,  # Ctrl-C is for the caller, who may have more to tidy up
        )
    except OSError:
        os.close(requests)
        raise
    finally:
        os.close(own_end)
    return process, requests


class Processes:
    """Processes that do the same; each message goes to one that is free.

    They start at the same time and are gone once it is closed, or with this object or the process
    that has it.

    Args:
        target: ``"package.module:function"``, a ``Begin``.
        beginnings: For each process its first messages.
        names: Of the processes, for errors: "for cuda:0".
        error: What is raised where one does not start, fails or has ended.
        advice: What to do should one have ended, a sentence without its full stop.
        descriptors: Of open files that the processes have, too, under the same numbers.
    """

    def __init__(
        self,
        target: str,
        beginnings: Sequence[Sequence[bytes]],
        *,
        names: Sequence[str],
        error: type[FeatxError],
        advice: str,
        descriptors: Sequence[int] = (),
    ) -> None:
        self._error, self._advice = error, advice
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self.processes = list[_Process]()
        self._stop = weakref.finalize(self, _stop, self.processes)
        for name in names:
            try:
                self.processes.append(_Process(target, name, descriptors))
            except OSError as err:
                raise error(f"Cannot start a process {name}: {err.strerror}.") from err
        for process, messages in zip(self.processes, beginnings, strict=True):
            for message in messages:
                process.send(message)
            self._idle.put(process)

    def wait(self) -> None:
        """Wait until all of them have begun, which ``ask`` does for the one it takes."""
        for process in self.processes:
            self._receive(process, begun=False)

    def close(self) -> None:
        """End them, whatever they do; no thread may wait for an answer."""
        self._stop()

    def ended(self) -> str | None:
        """Return why the first that is gone has ended; None while all are there."""
        return next((process.cause() for process in self.processes if process.is_gone()), None)

    def ask(self, message: bytes | memoryview) -> memoryview:
        """Return the answer of the next process that is free."""
        process = self._idle.get()
        try:
            self._receive(process, begun=False)
            process.send(message)
            return self._receive(process)
        finally:
            self._idle.put(process)

    def _receive(self, process: _Process, *, begun: bool = True) -> memoryview:
        try:
            answer = process.receive() if begun else process.begin()
        except (EOFError, OSError) as err:
            raise self._error(
                f"The process {process.name} ended ({process.cause()}). {self._advice}."
            ) from err
        if answer[:1] != _DONE:
            raise self._error(str(answer[1:], "utf-8", "replace"))
        return answer[1:]


class _Process:
    """A process, and this end of the line to it."""

    def __init__(self, target: str, name: str, descriptors: Sequence[int]) -> None:
        self.name = name
        self._begun: memoryview | None = None
        self._line, other = Pipe()
        code = f"from featx.isolation.processes import serve; serve({other.fileno()}, {target!r})"
        with contextlib.closing(other):
            self._process, self._lifeline = start_child(
                code, stdout=subprocess.DEVNULL, descriptors=(other.fileno(), *descriptors)
            )
        self.pid = self._process.pid

    def send(self, message: bytes | memoryview) -> None:
        """Send a message; that the process is gone shows where the answer is read."""
        with contextlib.suppress(OSError):
            self._line.send_bytes(message)

    def begin(self) -> memoryview:
        if self._begun is None:
            self._begun = self.receive()
        return self._begun

    def receive(self) -> memoryview:
        return memoryview(self._line.recv_bytes())

    def is_gone(self) -> bool:
        return self._process.poll() is not None

    def cause(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        status = self._process.returncode
        if status is not None and status < 0:
            return signal.Signals(-status).name
        return f"exit code {status}"

    def stop(self) -> None:
        """End the process and wait until it is gone."""
        self._line.close()
        self._process.kill()
        self._process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def _stop(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.stop()


# --- in the process -----------------------------------------------------------------------------


def serve(descriptor: int, target: str) -> None:
    """Run in the process: begin, then answer messages until the connection or the caller ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its caller
    if not system.end_with_writer(0):
        return
    module, _, name = target.partition(":")
    begin: Begin = getattr(importlib.import_module(module), name)
    with Connection(descriptor) as line, contextlib.suppress(EOFError, OSError):
        try:
            answer, reply = begin(line.recv_bytes), _DONE
        except FeatxError as err:
            line.send_bytes(_FAILED + str(err).encode())
            return
        while True:
            line.send_bytes(reply)
            message = line.recv_bytes()
            try:
                reply = _DONE + answer(message)
            except FeatxError as err:
                reply = _FAILED + str(err).encode()
