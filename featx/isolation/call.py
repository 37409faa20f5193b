"""Calling a function on a file in a process of its own, under limits.

The library that reads a file may crash or hang on it, where no ``except`` helps. In here that is an
error like any other. Nothing but text passes between the two: the path on the child's standard
input, whose end means that the caller is gone, and one line of JSON on its standard output.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import featx.errors
from featx import system
from featx.errors import ArtifactError, ArtifactInvalid, FeatxError
from featx.isolation.processes import start_child
from featx.packages import import_problem

_SPARE_SECONDS = 5
"""Processor time for starting up; the wall clock in the caller is the limit that counts."""


@dataclass(frozen=True)
class Limits:
    """Limits of a call: address space, and wall time from the moment the path is sent.

    The libraries' own address space counts: about 0.2 GiB, and for a model 8 MiB for each core.
    """

    memory_bytes: int = 4 * 2**30
    seconds: float = 600


DEFAULT_LIMITS = Limits()


def call_isolated(target: str, path: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
    """Call ``target`` on ``path`` in a fresh process; return if it returned there.

    Args:
        target: ``"package.module:function"``; the function takes the path, its result is dropped.
        path: Relative ones start at the current folder.
        limits: What the call may take.

    Raises:
        ArtifactError: Of the kind, and with the text, that the function raised.
        ArtifactInvalid: The process crashed, ran out of memory, or took longer than allowed.
        FeatxError: The function raised one that is about no file.
        RuntimeError: The function raised anything else, or there is no such function: a bug.
    """
    with IsolatedCall(target, limits=limits) as call:
        call.run(path)


class IsolatedCall:
    """A call whose process starts on entering and gets its path later.

    So its start, some tenths of a second of imports, passes while other work is done. Leaving ends
    the process, whatever it is doing.
    """

    def __init__(self, target: str, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._target, self._limits = target, limits

    def __enter__(self) -> Self:
        """Start the process; it imports the target's module at once."""
        values = f"{self._target!r}, {self._limits.memory_bytes}, {self._limits.seconds}"
        code = f"from featx.isolation.call import serve; serve({values})"
        try:
            self._process, self._requests = start_child(
                code, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as err:
            raise FeatxError(
                f"Cannot start a process to read files in: {err.strerror}. Is the machine out of "
                "memory or processes?"
            ) from err
        return self

    def run(self, path: Path) -> None:
        """Hand over the path and wait; once per call. Raises as ``call_isolated``."""
        with contextlib.suppress(BrokenPipeError):  # ended already; its answer or status says why
            os.write(self._requests, os.fsencode(path).hex().encode() + b"\n")
        try:
            output, _ = self._process.communicate(timeout=self._limits.seconds)
        except subprocess.TimeoutExpired:
            raise self._too_slow(path) from None
        answer = _last_line(output)
        status = self._process.returncode
        if system.resource and status == -signal.SIGXCPU:
            raise self._too_slow(path)
        if answer is None or (status and answer["error"] is None):
            raise ArtifactInvalid(
                path,
                f"Reading '{path}' crashed the process that did it ({_cause(status)}); the file is "
                "damaged or hostile. Do not open it; make it again.",
            )
        if answer["error"] is not None:
            raise self._error(answer, path)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._requests)
        self._process.kill()  # does nothing where its end has been seen
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _error(self, answer: dict[str, Any], path: Path) -> Exception:
        name, text = answer["error"], answer["text"]
        kind = getattr(featx.errors, name, None)
        if name == "MemoryError":
            return ArtifactInvalid(
                path,
                f"Reading '{path}' takes more memory than the "
                f"{self._limits.memory_bytes / 2**30:.3g} GiB allowed; the file is damaged or "
                "hostile, or very large.",
            )
        if isinstance(kind, type) and issubclass(kind, ArtifactError):
            return kind(os.fsdecode(bytes.fromhex(answer["path"])), text)
        if isinstance(kind, type) and issubclass(kind, FeatxError):
            return FeatxError(text)
        return RuntimeError(f"{self._target} failed in its own process:\n{text}")

    def _too_slow(self, path: Path) -> ArtifactInvalid:
        return ArtifactInvalid(
            path,
            f"Reading '{path}' was not done after {self._limits.seconds:g} seconds and was "
            "stopped; the file is damaged or hostile, or very large.",
        )


def _last_line(output: bytes) -> dict[str, Any] | None:
    """Return the answer, which is the last line; what stands before it is noise of start-up."""
    try:
        answer = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        return None
    return answer if isinstance(answer, dict) and "error" in answer else None


def _cause(status: int) -> str:
    if status >= 0:
        return f"exit code {status}"
    if system.KILLED and status == -system.KILLED:
        return "SIGKILL, perhaps because the machine ran short of memory"
    try:
        return signal.Signals(-status).name
    except ValueError:  # a real-time signal has no name
        return f"signal {-status}"


# --- in the child -------------------------------------------------------------------------------


def serve(target: str, memory_bytes: int, seconds: float) -> None:
    """Run in the child: import the target, wait for a path, call it, write the result."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):  # what a library reads and prints is neither path nor answer
        os.dup2(null, descriptor)
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_CPU", int(seconds) + _SPARE_SECONDS)
    _limit("RLIMIT_AS", memory_bytes)
    answer = _answer(target, requests)
    if answer is not None:
        os.write(answers, b"\n" + json.dumps(answer).encode() + b"\n")


def _limit(name: str, value: int) -> None:
    """Set a limit where the system has it; macOS has RLIMIT_AS but refuses to set it."""
    resource = system.resource
    if resource is None or not hasattr(resource, name):
        return
    which = getattr(resource, name)
    _, hard = resource.getrlimit(which)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    try:
        resource.setrlimit(which, (value, value))
    except (OSError, ValueError):
        if sys.platform == "linux":
            raise


def _answer(target: str, requests: int) -> dict[str, str | None] | None:
    """Return the outcome of the call; None if the caller went away before there was one."""
    try:
        module, _, name = target.partition(":")
        function = getattr(importlib.import_module(module), name)
        with open(requests, "rb", buffering=0) as file:
            line = file.readline()
            if not line or not system.end_with_writer(requests):
                return None
            function(Path(os.fsdecode(bytes.fromhex(line.decode()))))
    except ArtifactError as err:
        path = os.fsencode(err.path).hex()
        return {"error": type(err).__name__, "text": str(err), "path": path}
    except FeatxError as err:
        return {"error": type(err).__name__, "text": str(err)}
    except MemoryError:
        return {"error": "MemoryError", "text": ""}
    except Exception as err:
        return _unexpected(err)
    return {"error": None}


def _unexpected(error: Exception) -> dict[str, str | None]:
    """Return which package is missing, or the whole of a bug for the caller to show."""
    missing = import_problem(error) if isinstance(error, ImportError) else None
    if missing:
        return {"error": "FeatxError", "text": str(missing)}
    return {"error": "Exception", "text": traceback.format_exc()}
