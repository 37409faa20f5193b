"""Processes that answer: errors come over, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featx.errors import BackboneError, SourceError
from featx.isolation import processes as module
from featx.isolation.processes import Answer, Processes

HERE = Path(__file__).parent


def begin(receive: Callable[[], bytes]) -> Answer:
    """In a process: join what it was told first and each message."""
    first, second = receive(), receive()
    if first == b"bad":
        raise BackboneError("It cannot begin: naïve.")

    def answer(message: bytes) -> bytes:
        if message == b"fail":
            raise BackboneError("No answer.")
        if message == b"crash":
            os.abort()
        if message == b"who":
            return str(os.getpid()).encode()
        time.sleep(0.01)
        return b"-".join([first, second, message])

    return answer


@pytest.fixture(autouse=True)
def _found_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE))


def start(*firsts: bytes) -> Processes:
    return Processes(
        "test_processes:begin",
        [(first, b"2") for first in firsts],
        names=[f"number {number}" for number in range(len(firsts))],
        error=SourceError,
        advice="Run it again to resume; with care",
    )


def test_each_thread_gets_the_answer_to_its_message():
    processes = start(b"1", b"1")
    processes.wait()
    processes.wait()  # they have begun
    messages = [str(number).encode() for number in range(40)]
    with ThreadPoolExecutor(6) as pool:
        found = [bytes(answer) for answer in pool.map(processes.ask, messages)]
    assert found == [b"1-2-" + message for message in messages]
    assert len({bytes(processes.ask(b"who")) for _ in range(4)}) == 2


def test_a_large_message_goes_there_and_back():
    message = os.urandom(3 << 20)
    assert bytes(start(b"1").ask(memoryview(message))) == b"1-2-" + message


def test_errors_are_raised_here_and_the_process_lives_on():
    processes = start(b"1")
    with pytest.raises(SourceError, match=r"^No answer\.$"):
        processes.ask(b"fail")
    assert bytes(processes.ask(b"x")) == b"1-2-x"


def test_one_that_cannot_begin_says_why():
    processes = start(b"1", b"bad")
    with pytest.raises(SourceError, match=r"It cannot begin: naïve\."):
        processes.wait()


def test_a_crash_is_an_error_with_advice():
    processes = start(b"1")
    with pytest.raises(
        SourceError, match=r"number 0 ended \(SIGABRT\)\. Run .* again to resume; with care\."
    ):
        processes.ask(b"crash")
    with pytest.raises(SourceError, match="ended"):
        processes.ask(b"x")


def test_none_starts_where_the_system_refuses(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(module.subprocess, "Popen", refuse)
    with pytest.raises(SourceError, match=r"Cannot start a process number 0: Resource temp"):
        start(b"1")


def test_they_are_gone_with_the_object():
    processes = start(b"1", b"1")
    pids = [process.pid for process in processes.processes]
    assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    del processes
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_they_are_gone_with_the_process_however_it_ends():
    code = """
import os, signal, test_processes
processes = test_processes.start(b"1", b"1")
processes.wait()
print(*(process.pid for process in processes.processes), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pids = run.stdout.split()
    assert len(pids) == 2, run.stderr
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
