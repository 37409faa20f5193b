"""A worker: the process that has the model, and answers requests in threads of its own.

Its main thread listens to the supervisor. It begins to answer before the model is loaded, so that
"is it alive" has an answer from the first moments on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn

from featx import system
from featx.isolation.processes import Answer
from featx.serving.app import App
from featx.serving.connections import Connection, require_known
from featx.serving.metrics import Meter
from featx.serving.model import ServedModel, require_successor
from featx.serving.options import KEEP_ALIVE_SECONDS, LOAD, MAX_CONNECTIONS, STOP, ServeOptions

_TAKEN_AT_ONCE = 2
"""Connections, so that other workers get some."""


class _Listener(socket.socket):
    """The open port, as the supervisor opened it."""

    def listen(self, _backlog: int = 0, /) -> None:
        """Leave the number that may wait as it is: asyncio would set the one it takes at once."""


def begin(receive: Callable[[], bytes]) -> Answer:
    """Start answering, load the model, and return what answers the supervisor."""
    for each in ("SIGTERM", "SIGHUP"):  # sent to all processes of a service; the supervisor decides
        signal.signal(getattr(signal, each), signal.SIG_IGN)
    _log_to_stderr()
    _allow_connections()
    # Pillow warns about images that featx reads by its own rules (docs/images.md).
    warnings.filterwarnings("ignore", module=r"PIL\.")
    settings: dict[str, Any] = json.loads(receive())
    content = receive()
    worker = Worker(
        ServeOptions(**settings["options"]),
        path=Path(settings["path"]),
        listener=settings["listener"],
        meter=Meter(
            settings["metrics"], workers=settings["options"]["workers"], row=settings["row"]
        ),
    )
    worker.load(content)
    return worker.answer


def _allow_connections() -> None:
    """Allow as many open files as there may be connections, where the system lets us."""
    if (limits := system.resource) is not None:
        soft, hard = limits.getrlimit(limits.RLIMIT_NOFILE)
        wanted = 2 * MAX_CONNECTIONS
        if soft != limits.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == limits.RLIM_INFINITY else min(wanted, hard)
            limits.setrlimit(limits.RLIMIT_NOFILE, (most, hard))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("featx").addHandler(handler)
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # the client is told


class Worker:
    """The server in this process, and the model that it answers with."""

    def __init__(self, options: ServeOptions, *, path: Path, listener: int, meter: Meter) -> None:
        self._options, self._path, self._meter = options, path, meter
        self._app = App(options, meter)
        config = uvicorn.Config(
            self._app,
            http=Connection,
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="critical",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_TAKEN_AT_ONCE,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(options.grace)),
        )
        require_known(config)
        self._server = uvicorn.Server(config)
        listening = _Listener(fileno=listener)
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()

    def _run(self, listening: socket.socket) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[listening]))
        finally:
            self._app.close()
            if not self._server.should_exit:  # the process is of no use, and is replaced
                os.kill(os.getpid(), signal.SIGKILL)

    def load(self, content: bytes) -> None:
        """Take a model; where there is one already, only its like."""
        own = self._options
        new = ServedModel(content, path=self._path, max_pixels=own.max_pixels, threads=own.threads)
        if (served := self._app.model) is not None:
            require_successor(new, served)
        new.warm_up()
        self._app.model = new
        self._meter.set("featx_workers", 1)

    def answer(self, message: bytes) -> bytes:
        """Answer the supervisor."""
        order, content = message[:1], message[1:]
        if order == LOAD:
            self.load(content)
        elif order == STOP:
            self._app.is_stopping = True
            self._meter.set("featx_workers", 0)
            self._server.should_exit = True
            self._thread.join()
        elif self._app.model is not None:
            return json.dumps(self._app.model.describe()).encode()
        return b""
