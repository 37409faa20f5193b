"""Connections end in time, however slowly a request comes, and others do not notice."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Client, in_this_process

from featx.errors import ConfigError
from featx.serving import connections
from featx.serving.model import ServedModel

HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture
def hasty(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client of a server that waits only half a second for a request."""
    monkeypatch.setattr(connections, "RECEIVE_SECONDS", 0.5)
    with in_this_process(model) as (client, _):
        yield client


def dribble(client: Client, start: bytes, *, most: float = 5) -> tuple[bytes, float]:
    """Send a byte every 50 ms after a start, and return what came and after how long it ended."""
    begun, found = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", client.port), timeout=0.05) as line:
        line.sendall(start)
        while time.monotonic() < begun + most:
            try:
                line.send(b"a")
            except OSError:
                break
            with contextlib.suppress(TimeoutError):
                try:
                    part = line.recv(65536)
                except ConnectionError:
                    break
                if not part:
                    break
                found += part
    return found, time.monotonic() - begun


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"POST /predict HTTP/1.1\r\nHo",
        *(HEAD % path for path in (b"/predict", b"/v2/models/model/infer", b"/", b"/none")),
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n",
        b"PUT /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/he",
    ],
)
def test_requests_that_come_byte_by_byte_end_their_connection(hasty, start):
    found, seconds = dribble(hasty, start)
    assert seconds < 2
    if b" 408 " in found:
        assert json.loads(found.rpartition(b"\r\n\r\n")[2])["error"]


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"GET / HT", HEAD % b"/predict", HEAD % b"/none"])
def test_a_byte_a_second_ends_within_fifteen_seconds(client, start):
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", client.port), timeout=1) as line:
        line.sendall(start)
        while time.monotonic() < begun + 15:
            with contextlib.suppress(TimeoutError):
                line.sendall(b"a")
                if not line.recv(65536):
                    break
    assert time.monotonic() < begun + 14


def test_a_connection_that_sends_nothing_is_closed(hasty):
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=3) as line:
        assert line.recv(10) == b""


def test_a_long_body_that_comes_steadily_has_more_time(hasty, pictures, monkeypatch):
    monkeypatch.setattr(connections, "RECEIVE_RATE", 20_000)
    image = pictures[0] + bytes(40_000)
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image)
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=5) as line:
        line.sendall(head)
        for at in range(0, len(image), 4000):
            time.sleep(0.12)
            line.sendall(image[at : at + 4000])
        assert line.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_two_hundred_slow_connections_do_not_stop_others(hasty, pictures):
    start, lines = time.monotonic(), []
    for number in range(200):
        line = socket.create_connection(("127.0.0.1", hasty.port), timeout=5)
        line.sendall((HEAD % b"/predict") if number % 2 else b"POST /pre")
        lines.append(line)
    connection = hasty.connect()
    for picture in pictures[:10]:
        assert hasty.ask("POST", "/predict", picture, connection=connection).status == 200
    connection.close()
    for line in lines:
        with line, contextlib.suppress(ConnectionError):
            while line.recv(65536):
                pass
    assert time.monotonic() - start < 10
    assert hasty.count("other", 408) > 150


def test_a_request_refused_early_leaves_its_connection_usable(hasty, pictures):
    connection = hasty.connect()
    body = pictures[0] + bytes(300_000)
    for _ in range(3):
        assert hasty.ask("POST", "/none", body, connection=connection).status == 404
        assert hasty.ask("POST", "/predict", pictures[0], connection=connection).status == 200
    connection.close()


def test_stopping_answers_what_is_under_way_and_refuses_what_is_still_coming(
    model, pictures, monkeypatch
):
    monkeypatch.setattr(connections, "_STOP_SECONDS", 0.3)
    answered = []
    with in_this_process(model) as (client, _):
        idle = [client.connect() for _ in range(16)]
        for each in idle:
            assert client.ask("GET", "/v2/health/live", connection=each).status == 200
        slow = socket.create_connection(("127.0.0.1", client.port), timeout=5)
        slow.sendall(HEAD % b"/predict")
        thread = threading.Thread(target=lambda: answered.append(client.predict(pictures[0])))
        thread.start()
        time.sleep(0.1)
        start = time.monotonic()
    assert time.monotonic() - start < 3
    thread.join()
    assert answered[0].status == 200
    assert slow.recv(65536).startswith(b"HTTP/1.1 503 ")
    for each in (slow, *idle):
        each.close()


def test_clients_that_do_not_read_their_answer_cost_little_and_end(model, monkeypatch):
    monkeypatch.setattr(connections, "READ_SECONDS", 0.5)
    page = {"/model.onnx": ("application/octet-stream", bytes(30_000_000))}
    monkeypatch.setattr(ServedModel, "page_files", page)
    with in_this_process(model) as (client, _):
        line = socket.create_connection(("127.0.0.1", client.port), timeout=5)
        line.sendall(b"GET /model.onnx HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(1.2)
        read = 0
        assert client.metrics()["featx_connections"] == 1  # the one that asks
        with line, contextlib.suppress(ConnectionError):
            while part := line.recv(2**20):
                read += len(part)
        assert read < 20_000_000
        assert len(client.get("/model.onnx").body) == 30_000_000


@pytest.mark.parametrize("lacks", ["conn", "send_400_response"])
def test_a_uvicorn_with_other_connections_is_refused_by_a_sentence(model, monkeypatch, lacks):
    if lacks == "conn":
        monkeypatch.setattr(connections.H11Protocol, "__init__", lambda *_, **__: None)
    else:
        monkeypatch.delattr(connections.H11Protocol, lacks)
    text = f"uvicorn .* have no {lacks}: pip install"
    with pytest.raises(ConfigError, match=text), in_this_process(model):
        pass
