"""Connections that end in time: uvicorn's protocol, with limits on how slowly a request may come.

Uvicorn has none for headers and bodies (https://github.com/encode/uvicorn/issues/157). Here each
request has to be there 10 seconds after its first byte, a long one a second later for every 50 kB,
whatever its path and method, and whether or not it has been answered before it was complete.

Of uvicorn's protocol, which is no public interface, only ``_USED`` is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from featx.errors import ConfigError
from featx.packages import installed
from featx.serving.options import (
    MAX_CONNECTIONS,
    READ_SECONDS,
    RECEIVE_RATE,
    RECEIVE_SECONDS,
)

if TYPE_CHECKING:
    from featx.serving.app import App

_STOP_SECONDS = 3.0
"""For requests that are coming in when the server stops."""
_MAX_DISCARDED = 2**22
"""Bytes of a body that are read after its answer, so that the client can read that one."""
_USED = ("conn", "shutdown", "send_400_response")
_KNOWN = "0.54.0"
"""A version of uvicorn whose protocol has these."""
_WORDS = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class Connection(H11Protocol):
    """A connection whose requests come in time, or end it; made by uvicorn."""

    _transport: asyncio.Transport
    _loop: asyncio.AbstractEventLoop
    _timer: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _started = 0.0
    _received = 0
    _discarded = 0

    def __init__(self, config: Config, *arguments: Any, **named: Any) -> None:
        super().__init__(config, *arguments, **named)
        self._app: App = config.app  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._count(1)
        if self._app.num_connections > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait(RECEIVE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)
        self._count(-1)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        if not self._is_receiving():
            self._cancel()
        elif self._timer is None:
            self._wait(RECEIVE_SECONDS)
        if (self.conn.our_state, self.conn.their_state) == (h11.DONE, h11.SEND_BODY):
            self._discarded += len(data)
            if self._discarded > _MAX_DISCARDED:
                self._transport.abort()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, but not for ever; called by asyncio."""
        super().pause_writing()
        self._reading = self._loop.call_later(READ_SECONDS, self._transport.abort)

    def resume_writing(self) -> None:
        """Go on, as the client has read; called by asyncio."""
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def shutdown(self) -> None:
        """Let a request that has come be answered; one that is coming has a few seconds left."""
        super().shutdown()
        if self._is_receiving() and not self._transport.is_closing():
            self._loop.call_later(_STOP_SECONDS, self._refuse_late, 503, "The server is stopping.")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; called by uvicorn."""
        self._refuse(400, msg)

    def _count(self, change: int) -> None:
        self._app.num_connections += change
        self._app.meter.set("featx_connections", self._app.num_connections)

    def _is_receiving(self) -> bool:
        """Return whether the client is in the middle of a request."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.SEND_BODY

    def _wait(self, seconds: float) -> None:
        self._started, self._received, self._discarded = self._loop.time(), 0, 0
        self._timer = self._loop.call_later(seconds, self._look)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """End the connection unless so much has come that there is time left."""
        allowed = RECEIVE_SECONDS + self._received / RECEIVE_RATE
        left = self._started + allowed - self._loop.time()
        if left > 0.01:
            self._timer = self._loop.call_later(left, self._look)
        elif not self._received and not self._is_receiving():
            self._transport.close()  # nothing was ever sent
        else:
            self._refuse_late(408, "The request took too long to arrive.")

    def _refuse_late(self, status: int, text: str) -> None:
        if not self._transport.is_closing() and self._is_receiving():
            self._refuse(status, text)

    def _refuse(self, status: int, text: str) -> None:
        """Answer with an error if no answer has begun, and end the connection."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.abort()
            return
        body = json.dumps({"error": text}).encode()
        head = (
            f"HTTP/1.1 {status} {_WORDS[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._app.meter.request("other", status, 0)
        self._transport.write(head.encode() + body)
        self._transport.close()


def require_known(config: Config) -> None:
    """Refuse a uvicorn whose protocol lacks what is used of it.

    Raises:
        ConfigError: It is another than those that this was written for.
    """
    loop, own = asyncio.new_event_loop(), dict[str, Any]()
    with contextlib.closing(loop), contextlib.suppress(TypeError, AttributeError):
        made = Connection(config=config, server_state=ServerState(), app_state={}, _loop=loop)
        own = vars(made)
    if lacks := [name for name in _USED if not (name in own or hasattr(H11Protocol, name))]:
        raise ConfigError(
            f"featx serve does not work with uvicorn {installed('uvicorn')}, whose connections "
            f"have no {', '.join(lacks)}: pip install 'uvicorn=={_KNOWN}'."
        )
