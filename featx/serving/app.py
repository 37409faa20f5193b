"""The application: what is asked at which path, and how it is answered."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from featx.classifier.prediction import predictions_of
from featx.errors import ConfigError, ImageError, ImageTooLarge
from featx.packages import installed
from featx.serving import protocol_v2
from featx.serving.batches import Batches, QueueFull
from featx.serving.metrics import Meter
from featx.serving.model import Image, Row, ServedModel
from featx.serving.options import ServeOptions
from featx.serving.requests import (
    Answer,
    Budget,
    Disconnected,
    Receive,
    Refused,
    Request,
    Send,
    as_json,
    file_of_form,
    overloaded,
)

log = logging.getLogger(__name__)

_BODIES = 16
"""Of the largest size, that are held at the same time."""
_INLINE = 65_536
"""Bytes of JSON that are read in the loop, as a thread takes longer than reading them."""
_PIECE = 2**18
"""Bytes of an answer that are sent at once."""
_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
_MODEL_HEADER = "featx-model"


class App:
    """An ASGI application that answers with a model.

    Attributes:
        model: What is served; None until it is loaded.
        is_stopping: It goes on answering, and says that it is not ready.
        num_connections: Open ones, counted by ``Connection``.
        meter: What is counted.
    """

    def __init__(self, options: ServeOptions, meter: Meter) -> None:
        self.model: ServedModel | None = None
        self.is_stopping, self.num_connections = False, 0
        self.meter = meter
        self._options = options
        self._budget = Budget(_BODIES * options.max_bytes)
        self._batches = Batches(
            threads=options.threads, max_waiting=options.queue, meter=self.meter
        )
        version = r"(?:/versions/(?P<version>[^/]+))?"
        own = rf"/v2/models/(?P<model>[^/]+){version}"
        self._routes: Sequence[tuple[re.Pattern[str], str, str, _Handler]] = [
            (re.compile(f"(?:{path})/?"), method, endpoint, handler)
            for path, method, endpoint, handler in (
                ("/predict", "POST", "predict", self._predict),
                (f"{own}/infer", "POST", "infer", self._infer),
                (r"|/model\.onnx|/ort\.wasm", "GET", "page", self._page),
                ("/metrics", "GET", "metrics", self._metrics),
                (r"/health|/v2/health/live", "GET", "health", self._live),
                ("/v2/health/ready", "GET", "health", self._is_ready),
                (f"{own}/ready", "GET", "health", self._is_ready),
                ("/v2", "GET", "metadata", self._server),
                (own, "GET", "metadata", self._metadata),
            )
        ]

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request."""
        request, start = Request(scope, receive), time.monotonic()
        endpoint, digest = "other", ""
        try:
            endpoint, handler, found = self._route(request)
            if self._options.token is not None and endpoint != "health":
                self._require_token(request, self._options.token, asks=endpoint == "page")
            self._require_own(found)
            digest = self.model.sha256 if self.model else ""
            answer = await handler(request)
        except Refused as err:
            answer = err.answer
        except Disconnected:
            return
        except asyncio.CancelledError:  # of uvicorn, when the time for stopping is over
            answer = overloaded("The server is stopping.").answer
        except Exception:
            log.exception("A request to %s failed.", endpoint)
            answer = as_json({"error": "The server failed on this request."}, status=500)
        finally:
            self._budget.give(request.taken)
        if digest and _MODEL_HEADER not in answer.headers:
            answer = replace(answer, headers={**answer.headers, _MODEL_HEADER: digest})
        self.meter.request(endpoint, answer.status, time.monotonic() - start)
        await _send(answer, send)

    def close(self) -> None:
        """End the threads that answer."""
        self._batches.close()

    def _route(self, request: Request) -> tuple[str, _Handler, Mapping[str, str | None]]:
        allowed = []
        for pattern, method, endpoint, handler in self._routes:
            if match := pattern.fullmatch(request.path):
                if request.method == method:
                    return endpoint, handler, match.groupdict()
                allowed.append(method)
        if allowed:
            names = ", ".join(allowed)
            text = f"{request.path[:80]} takes {names}, not {request.method[:20]}."
            raise Refused(405, text, {"Allow": names})
        raise Refused(404, f"There is nothing at {request.path[:80]}.")

    @staticmethod
    def _require_token(request: Request, token: str, *, asks: bool) -> None:
        if not request.brings(token):
            scheme = 'Basic realm="featx", charset="UTF-8"' if asks else "Bearer"
            raise Refused(401, "A token is needed.", {"WWW-Authenticate": scheme})

    def _require_own(self, found: Mapping[str, str | None]) -> None:
        name, version = found.get("model"), found.get("version")
        if name is not None and name != self._options.name:
            raise Refused(404, f"There is no model '{name[:80]}'; this is '{self._options.name}'.")
        if version not in (None, "1"):
            raise Refused(404, f"There is no version '{version[:80]}' of the model, only 1.")

    @property
    def _loaded(self) -> ServedModel:
        if self.model is None:
            raise overloaded("The model is being loaded; try again.")
        return self.model

    # --- what is asked --------------------------------------------------------------------------

    async def _predict(self, request: Request) -> Answer:
        model, top_k = self._loaded, request.number("top_k", 3)
        body = await self._body(request)
        name, content = "image", body
        kind = request.header("content-type") or ""
        if kind.lower().startswith("multipart/"):
            name, content = file_of_form(body, kind)
        if not content:
            raise Refused(400, "The body is empty; send an image.")
        row = (await self._answers(model, [content]))[0]
        outputs = {name: values[None] for name, values in row.items()}
        prediction = predictions_of(model.classifier, outputs, top_k=top_k)[0]
        return _of(model, as_json(replace(prediction, image=name).to_dict()))

    async def _infer(self, request: Request) -> Answer:
        model = self._loaded
        body = await self._body(request)
        length = request.header(protocol_v2.LENGTH_HEADER)
        outputs = model.classifier.outputs
        read = protocol_v2.read_inference
        if len(body) > _INLINE and not (length and len(length) < 5):
            inference = await asyncio.to_thread(read, body, length, outputs)
        else:
            inference = read(body, length, outputs)
        if len(inference.images) > self._options.queue:
            raise Refused(413, f"A request may have {self._options.queue} images at most.")
        rows = await self._answers(model, inference.images)
        classes = model.classifier.classes
        rendered = protocol_v2.render_inference(self._options.name, inference, rows, classes)
        return _of(model, rendered)

    async def _body(self, request: Request) -> bytes:
        if self._batches.is_full:
            raise overloaded("Too many images wait; try again.")
        return await request.body(self._options.max_bytes, self._budget)

    async def _answers(self, model: ServedModel, images: Sequence[Image]) -> list[Row]:
        seconds = self._options.timeout
        try:
            async with asyncio.timeout(seconds):
                found = await self._batches.answer(model, images)
        except QueueFull as err:
            raise overloaded("Too many images wait; try again.") from err
        except TimeoutError as err:
            raise overloaded(f"There was no answer within {seconds:g} s; try again.") from err
        rows = list[Row]()
        for place, each in enumerate(found):
            if isinstance(each, ImageError):
                raise _of_image(each, place if len(images) > 1 else None)
            rows.append(each)
        return rows

    async def _page(self, request: Request) -> Answer:
        model = self._loaded
        try:
            files = await asyncio.to_thread(lambda: model.page_files)
        except ConfigError as err:
            path = model.classifier.path  # its folder is not for clients
            why = str(err).replace(str(path), path.name)
            raise Refused(404, f"This model has no page: {why}") from err
        media_type, content = files[request.path.rstrip("/") or "/"]
        return _of(model, Answer(content, media_type))

    async def _metrics(self, _request: Request) -> Answer:
        model = self.model
        sha256 = model.sha256 if model else ""
        text = self.meter.render({"name": self._options.name, "sha256": sha256})
        return Answer(text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    async def _live(self, _request: Request) -> Answer:
        return as_json({"live": True})

    async def _is_ready(self, _request: Request) -> Answer:
        is_ready = self.model is not None and not self.is_stopping
        return as_json({"ready": is_ready}, status=200 if is_ready else 503)

    async def _server(self, _request: Request) -> Answer:
        extensions = list(protocol_v2.EXTENSIONS)
        return as_json({"name": "featx", "version": installed("featx"), "extensions": extensions})

    async def _metadata(self, _request: Request) -> Answer:
        model = self._loaded
        own = model.classifier
        told = protocol_v2.metadata(self._options.name, own.outputs, own.contract.image_shape)
        return _of(model, as_json(told))


_Handler = Callable[[Request], Awaitable[Answer]]


def _of(model: ServedModel, answer: Answer) -> Answer:
    """Return an answer that says which model it is of."""
    return replace(answer, headers={**answer.headers, _MODEL_HEADER: model.sha256})


def _of_image(error: ImageError, place: int | None) -> Refused:
    which = "The image" if place is None else f"Image {place}"
    text = f"{which} cannot be used: {error.reason}"
    if isinstance(error.__cause__, ImportError):  # of a format's optional reader
        return Refused(415, text)
    if not error.is_permanent:
        return overloaded(text)
    return Refused(413 if isinstance(error, ImageTooLarge) else 400, text)


async def _send(answer: Answer, send: Send) -> None:
    headers = {
        **_HEADERS,
        "content-type": answer.media_type,
        "content-length": str(len(answer.body)),
        **answer.headers,
    }
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": pairs})
    for start in range(0, len(answer.body), _PIECE):  # each waits until the client has read enough
        piece = answer.body[start : start + _PIECE]
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
