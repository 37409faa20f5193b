"""Requests and answers: bodies within limits, files in forms, errors as JSON."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MAX_PARTS = 16
_JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """A response."""

    body: bytes
    media_type: str = _JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class Refused(Exception):
    """A request that is answered with an error: a status and a sentence."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers or {}

    @property
    def answer(self) -> Answer:
        """The error as JSON, in the form of the Open Inference Protocol."""
        return as_json({"error": self.text}, status=self.status, headers=self.headers)


class Disconnected(Exception):
    """The client has gone."""


def overloaded(text: str) -> Refused:
    """Return the refusal of a request that may be sent again soon."""
    return Refused(503, text, {"Retry-After": "1"})


def as_json(
    value: object, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Answer:
    """Return a value as a response."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return Answer(text.encode("utf-8", "backslashreplace"), status=status, headers=headers or {})


class Budget:
    """Bytes that all bodies of a process may take together."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def take(self, count: int) -> None:
        if count > self._left:
            raise overloaded("Too many large requests are under way; try again.")
        self._left -= count

    def give(self, count: int) -> None:
        self._left += count


class Request:
    """A request as it comes in.

    Args:
        scope: Of ASGI.
        receive: Of ASGI.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive) -> None:
        self.method = "GET" if scope["method"] == "HEAD" else str(scope["method"])
        self.path = str(scope["path"])
        self._query = scope["query_string"]
        self._headers = scope["headers"]
        self._receive = receive
        self.taken = 0

    def header(self, name: str) -> str | None:
        """Return a header; of several of one name all, with commas."""
        wanted = name.lower().encode()
        found = [value.decode("latin-1") for key, value in self._headers if key == wanted]
        return ", ".join(found) if found else None

    def number(self, name: str, default: int) -> int:
        """Return a whole number of at least 1 that the query has."""
        text = dict(parse_qsl(self._query.decode("latin-1"))).get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text)):
            raise Refused(400, f"{name} must be a whole number from 1 on; got {text[:40]!r}.")
        return int(text)

    async def body(self, most: int, budget: Budget) -> bytes:
        """Return the whole body; ``budget`` gets back ``taken`` once the request is answered."""
        length = self.header("content-length")
        if length is not None and int(length) > most:  # uvicorn has checked that it is a number
            raise _too_long(most)
        if self.header("content-encoding") not in (None, "identity"):
            raise Refused(415, "Compressed bodies are not taken; send it without Content-Encoding.")
        parts, size = list[bytes](), 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise Disconnected
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_long(most)
            budget.take(len(part))
            self.taken += len(part)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def brings(self, token: str) -> bool:
        """Return whether the request has the token: as a bearer's, or as a password."""
        scheme, _, value = (self.header("authorization") or "").partition(" ")
        given = value.strip().encode("latin-1")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, token.encode())


def _too_long(most: int) -> Refused:
    return Refused(413, f"The body is longer than the {most / 1e6:g} MB allowed.")


def file_of_form(body: bytes, content_type: str) -> tuple[str, bytes]:
    """Return name and content of the one file in a ``multipart/form-data`` body.

    Raises:
        Refused: It is none, is cut short, or has another number of files.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise Refused(400, "The Content-Type of the form has no boundary.")
    form, damaged = _Form(), "The form is damaged or cut short."
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as err:
        raise Refused(400, damaged) from err
    if not form.is_complete:
        raise Refused(400, damaged)
    files = [(name, content) for name, content in form.parts if name is not None]
    if len(files) != 1:
        raise Refused(400, f"The form must have one file; it has {len(files)}.")
    return files[0]


class _Form:
    """Collects the parts of a form: the file's name, None where a part is no file, and content."""

    def __init__(self) -> None:
        self.parts = list[tuple[str | None, bytes]]()
        self.is_complete = False
        self._field, self._value, self._data = b"", b"", bytearray()
        self._name: str | None = None

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_part_data": self._on_data,
            "on_part_end": lambda: self.parts.append((self._name, bytes(self._data))),
            "on_end": lambda: setattr(self, "is_complete", True),
        }

    def _begin(self) -> None:
        if len(self.parts) >= _MAX_PARTS:
            raise Refused(413, f"The form has more than {_MAX_PARTS} parts.")
        self._name, self._data = None, bytearray()

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            name = parse_options_header(self._value)[1].get(b"filename")
            self._name = None if name is None else name.decode("utf-8", "replace")
        self._field = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
