"""Servers for tests: in this process, or as the command that is started; and clients."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.serving.metrics import Meter, shared_memory
from featx.serving.options import STOP, ServeOptions
from featx.serving.worker import Worker

ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to a server, each on a connection of its own unless one is given."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Reply:
        own = connection or self.connect()
        try:
            own.request(method, path, body, dict(headers or {}))
            found = own.getresponse()
            return Reply(found.status, {k.lower(): v for k, v in found.getheaders()}, found.read())
        finally:
            if connection is None:
                own.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def predict(self, image: bytes, query: str = "", **headers: str) -> Reply:
        return self.ask("POST", f"/predict{query}", image, headers)

    def raw(self, data: bytes, *, seconds: float = 10) -> bytes:
        """Send bytes, and return all that comes until the server closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as line:
            found = b""
            with contextlib.suppress(OSError):
                line.sendall(data)
                while part := line.recv(65536):
                    found += part
            return found

    def metrics(self) -> dict[str, float]:
        lines = self.get("/metrics").body.decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def count(self, endpoint: str, status: int) -> float:
        name = f'featx_requests_total{{endpoint="{endpoint}",status="{status}"}}'
        return self.metrics()[name]


@contextlib.contextmanager
def in_this_process(model: Path, **settings: Any) -> Iterator[tuple[Client, Worker]]:
    """Yield a client of a worker in a thread of this process, and the worker."""
    options = ServeOptions(grace=3, **settings)
    shared, listener = shared_memory(1), socket.create_server(("127.0.0.1", 0), backlog=1024)
    port = listener.getsockname()[1]
    worker = Worker(
        options, path=model, listener=listener.detach(), meter=Meter(shared, workers=1, row=1)
    )
    try:
        worker.load(model.read_bytes())
        yield Client(port), worker
    finally:
        worker.answer(STOP)
        os.close(shared)


class Command(Client):
    """``featx serve`` as a process of its own."""

    def __init__(self, model: str | Path, *flags: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "featx", "serve", str(model), "--port", str(port), *flags]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.shown = list[str]()
        for line in self.process.stdout or ():
            self.shown.append(line)
            if line.startswith("stop"):
                break
        found = ADDRESS.search("".join(self.shown))
        if found is None:
            self.kill()
            raise AssertionError(f"it did not start: {self.errors}")
        super().__init__(int(found[1]))

    def end(self, signum: int = signal.SIGTERM) -> float:
        """Send a signal, wait, and return the seconds that it took to end."""
        start = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(timeout=30)
        self._close()
        return time.monotonic() - start

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        if self.process.stderr and not self.process.stderr.closed:
            self.errors = self.process.stderr.read()
            self.process.stderr.close()
        if self.process.stdout:
            self.process.stdout.close()

    def workers(self) -> list[int]:
        """Return the ids of its child processes."""
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    """Return the ids of a process's child processes."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")  # of each thread
    return [int(each) for found in lists for each in found.read_text().split()]


@contextlib.contextmanager
def command(model: str | Path, *flags: str, port: int = 0) -> Iterator[Command]:
    """Yield the command, and end it."""
    server = Command(model, *flags, port=port)
    try:
        yield server
    finally:
        server.kill()
