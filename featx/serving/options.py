"""What a server is started with, and its limits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from featx.errors import ConfigError
from featx.images.decode import check_max_pixels

log = logging.getLogger(__name__)

MAX_PIXELS = 50_000_000
"""Fewer than predict allows: several strangers' images are decoded at the same time."""
RECEIVE_SECONDS = 10.0
"""For headers, and for a body that comes slower than ``RECEIVE_RATE``."""
RECEIVE_RATE = 50_000
"""Bytes a second: a body may take 10 s, and one second more for each so many bytes."""
READ_SECONDS = 30.0
"""In which a client has to read some of a long answer."""
KEEP_ALIVE_SECONDS = 60
MAX_CONNECTIONS = 1000
_MIN_TOKEN = 16
ABOUT, LOAD, STOP = b"a", b"l", b"s"
"""The first byte of what the supervisor sends to a worker; a model's content follows ``LOAD``."""


@dataclass(frozen=True)
class ServeOptions:
    """How a model is served.

    Attributes:
        host: Address to listen at.
        port: TCP port; 0 takes a free one.
        name: Of the model, in the addresses of the Open Inference Protocol.
        workers: Processes that answer.
        threads: Threads of each that decode images and run the model.
        max_bytes: Of a request's body.
        max_pixels: Height times width of an image.
        queue: Images that may wait in a worker, beside those under way.
        timeout: Seconds that a request may wait for its answer.
        grace: Seconds for requests that are under way when the server is stopped.
        token: What requests must bring; None lets everyone in.

    Raises:
        ConfigError: A value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    name: str = "model"
    workers: int = 1
    threads: int = 1
    max_bytes: int = 20_000_000
    max_pixels: int = MAX_PIXELS
    queue: int = 64
    timeout: float = 30
    grace: float = 10
    token: str | None = None

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)
        least = {"workers": 1, "threads": 1, "max_bytes": 1, "queue": 1, "timeout": 0.1, "grace": 0}
        for option, minimum in least.items():
            if not getattr(self, option) >= minimum:
                raise ConfigError(
                    f"{option} must be at least {minimum}; got {getattr(self, option)}."
                )
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be 0 to 65535; got {self.port}.")
        if not self.name or "/" in self.name or not self.name.isprintable():
            raise ConfigError(f"name must be printable text without '/'; got {self.name!r}.")
        if self.token is not None and (len(self.token) < _MIN_TOKEN or not self.token.isascii()):
            raise ConfigError(f"a token needs at least {_MIN_TOKEN} ASCII characters.")


def read_token(path: str | Path) -> str:
    """Return the token in a file, without white space around it.

    Raises:
        ConfigError: It cannot be read.
    """
    path = Path(path)
    try:
        token = path.read_text("utf-8").strip()
        if path.stat().st_mode & 0o044:
            log.warning("'%s' can be read by other users; chmod 600 keeps them out.", path)
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "it is not UTF-8"
        raise ConfigError(f"The token file '{path}' cannot be read: {reason}.") from err
    return token
