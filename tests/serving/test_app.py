"""What is answered over HTTP: as predict answers, and errors as sentences in JSON."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import struct
import sys
import threading
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, in_chromium
from PIL import Image
from serving import Client, Reply, in_this_process

from featx.reporting import classify
from featx.serving.model import ServedModel
from featx.stages.predict import Predictor

needs_runtime = pytest.mark.skipif(
    not (Path(classify.__file__).parent / "web" / "ort.wasm").exists(),
    reason="onnxruntime-web is not here; make web fetches it",
)


def form(*parts: tuple[str, bytes], kind: str = "filename") -> tuple[bytes, dict[str, str]]:
    lines = [
        b'--xyz\r\nContent-Disposition: form-data; name="f"; %s="%s"\r\n\r\n%s\r\n'
        % (kind.encode(), name.encode(), content)
        for name, content in parts
    ]
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    return b"".join([*lines, b"--xyz--\r\n"]), headers


def png_header(width: int, height: int, *chunks: bytes) -> bytes:
    """Return a small PNG that claims to be large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    whole = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def require_refusal(reply: Reply, *statuses: int) -> str:
    """Check that an answer is an error as one sentence in JSON, and return that."""
    assert reply.status in (statuses or range(400, 500)), reply
    assert reply.headers["content-type"] == "application/json"
    assert list(reply.json) == ["error"]
    assert "Traceback" not in reply.json["error"]
    assert "\n" not in reply.json["error"]
    return str(reply.json["error"])


def test_it_answers_as_predict_does(client, predictor, pictures, model):
    for number, expected in enumerate(predictor.predict(pictures)):
        body, headers = pictures[number], {"Content-Type": "image/jpeg"}
        if number % 2:
            body, headers = form((f"ä{number}.jpg", body))
        found = client.ask("POST", "/predict", body, headers)
        assert found.status == 200
        assert found.json["image"] == (f"ä{number}.jpg" if number % 2 else "image")
        assert found.json.keys() == expected.to_dict().keys()
        for own, wanted in zip(found.json["top"], expected.top, strict=True):
            assert own["label"] == wanted[0]
            assert own["probability"] == pytest.approx(wanted[1], abs=1e-5)
    assert found.headers["featx-model"] == hashlib.sha256(model.read_bytes()).hexdigest()


def test_it_reports_as_many_classes_as_are_asked_for(client, pictures):
    assert len(client.predict(pictures[0], "?top_k=1").json["top"]) == 1
    assert len(client.predict(pictures[0], "?top_k=99").json["top"]) == 10
    for wrong in ("0", "-1", "x", "1e3", "9" * 30):
        require_refusal(client.predict(pictures[0], f"?top_k={wrong}"), 400)


@pytest.mark.parametrize(
    "kind", ["image top-3", "crop probabilities", "tensor logits,features", "image logits,top-2"]
)
def test_models_of_other_inputs_and_outputs_are_served(kind, exported_of, pictures, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(exported_of(kind))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    body = {"name": "image", "shape": [1, 40, 50, 3], "datatype": "UINT8", "data": pixels.ravel()}
    body["data"] = body["data"].tolist()
    (expected,) = Predictor(path).predict([pixels])
    with in_this_process(path) as (client, _):
        for image, wanted in zip(pictures[:4], Predictor(path).predict(pictures[:4]), strict=True):
            found = client.predict(image).json["top"]
            assert [each["label"] for each in found] == [name for name, _ in wanted.top]
        reply = client.ask(
            "POST", "/v2/models/model/infer", json.dumps({"inputs": [body]}).encode()
        )
        told = {each["name"]: each for each in reply.json["outputs"]}
        assert {name: each["datatype"] for name, each in told.items()} == {
            each["name"]: each["datatype"]
            for each in client.get("/v2/models/model").json["outputs"]
        }
        if "top_classes" in told:
            assert told["top_classes"]["datatype"] == "INT64"
            assert str(told["top_classes"]["data"][0]) == expected.label
        if not kind.startswith("image"):
            why = require_refusal(client.get("/"), 404)
            assert "'model.onnx' takes" in why
            assert str(tmp_path) not in why


@needs_runtime
def test_the_page_is_there_with_all_that_it_fetches(client, model):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert b"ort.wasm" in page.body
    assert b"model.onnx" in page.body
    assert client.get("/model.onnx").body == model.read_bytes()
    assert client.get("/ort.wasm").headers["content-type"] == "application/wasm"
    assert client.ask("HEAD", "/").body == b""


@needs_runtime
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; make system installs it")
def test_the_page_runs_in_a_browser_and_sends_no_image(client, predictor, pictures):
    address = f"http://127.0.0.1:{client.port}/"
    image = base64.b64encode(pictures[1]).decode()

    async def use(tab):
        await tab.wait_for("globalThis.featx !== undefined")
        code = f"Uint8Array.from(atob('{image}'), (c) => c.charCodeAt(0))"
        found = await tab.run(f"featx.predict(new File([{code}], 'a.png'))")
        return found, tab.requests, tab.errors

    found, asked, errors = in_chromium(address, use)
    (expected,) = predictor.predict([pictures[1]])
    assert predictor.classes[int(np.argmax(found))] == expected.label
    assert max(found) == pytest.approx(expected.probability, abs=1e-3)
    asked = [each for each in asked if not each.startswith(("data:", "blob:"))]
    assert asked == [address, f"{address}ort.wasm", f"{address}model.onnx"]
    assert not errors


def test_a_server_without_a_page_says_why(client, monkeypatch, tmp_path, model):
    monkeypatch.setattr(classify.resources, "files", lambda _: tmp_path)
    with in_this_process(model) as (own, _):
        assert "onnxruntime-web" in require_refusal(own.get("/"), 404)


def test_paths_and_methods_that_are_not_there_are_refused(client):
    for path in ("/x", "/predict/x", "/v2/models", "/v2/models/model/config", "/../etc/passwd"):
        require_refusal(client.get(path), 404)
    require_refusal(client.get("/v2/models/model/versions/2"), 404)
    require_refusal(client.get("/v2/models/other"), 404)
    refused = client.get("/predict")
    require_refusal(refused, 405)
    assert refused.headers["allow"] == "POST"
    require_refusal(client.ask("DELETE", "/"), 405)
    assert client.get("/v2/models/model/versions/1").json == client.get("/v2/models/model").json


def bad_images(good: bytes) -> list[bytes]:
    animation = io.BytesIO()
    frames = [Image.new("RGB", (2000, 2000), (n, 0, 0)) for n in range(2)]
    frames[0].save(animation, "GIF", save_all=True, append_images=frames[1:])
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(100_000_000)))
    return [
        b"",
        b"no image",
        b"\xff\xd8\xff",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        *(good[: len(good) * part // 90] for part in range(1, 89)),
        *(good[:at] + b"\xff" * 40 + good[at + 40 :] for at in range(0, 200, 40)),
        png_header(15_000, 10_000),
        png_header(15_000, 10_000, bomb),
        png_header(15_000, 10_000, profile),
        png_header(2**31 - 1, 2**31 - 1),
        png_header(0, 5),
        animation.getvalue(),
    ]


def test_bad_images_are_refused_and_the_server_lives(client, pictures):
    count = 0
    for image in bad_images(pictures[1]):  # a PNG: each of its bytes counts
        body, headers = form(("a.png", image))
        for reply in (client.predict(image), client.ask("POST", "/predict", body, headers)):
            require_refusal(reply, 400, 413)
            count += 1
    assert count > 200
    assert client.predict(pictures[0]).status == 200


def test_pixels_are_counted_in_the_header_whatever_filters_say(client):
    for filters in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(filters)
            start = time.monotonic()
            text = require_refusal(client.predict(png_header(15_000, 10_000)), 413)
        assert "15000×10000 pixels" in text or "150000000 pixels" in text
        assert time.monotonic() - start < 2


def test_an_image_with_a_text_that_inflates_is_answered_or_refused_quickly(client):
    buffer = io.BytesIO()
    Image.new("RGB", (30, 30), (200, 0, 0)).save(buffer, "PNG")
    png = buffer.getvalue()
    for name in (b"zTXt", b"iCCP"):
        bomb = chunk(name, b"a\0\0" + zlib.compress(bytes(100_000_000)))
        start = time.monotonic()
        assert client.predict(png[:33] + bomb + png[33:]).status in (200, 400, 413)
        assert time.monotonic() - start < 3


def test_forms_that_are_no_form_of_one_file_are_refused(client, pictures):
    image = pictures[0]
    one, headers = form(("a.jpg", image))
    for body, status in (
        (form()[0], 400),
        (form(("a.jpg", image), ("b.jpg", image))[0], 400),
        (form(("a", image), kind="other")[0], 400),
        (one[:-9], 400),
        (one[: len(one) // 2], 400),
        (b"--xy", 400),
        (form(*[("a", b"")] * 1000)[0], 413),
        (b"--xyz\r\n" + b"A: b\r\n" * 5000 + b"\r\n--xyz--\r\n", 400),
    ):
        require_refusal(client.ask("POST", "/predict", body, headers), status)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=" + "x" * 5000):
        require_refusal(client.ask("POST", "/predict", one, {"Content-Type": kind}), 400)


def test_bodies_above_the_limit_are_refused_before_they_are_read(client):
    start = time.monotonic()
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000000\r\n\r\n"
    found = client.raw(head + bytes(100), seconds=1)
    assert b" 413 " in found.partition(b"\r\n")[0]
    assert time.monotonic() - start < 5
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    found = client.raw(head + b"186a0\r\n" + bytes(100_000) + b"\r\n", seconds=0.5)
    assert not found  # it may be the beginning of a small one
    found = client.raw(head + (b"186a0\r\n" + bytes(100_000) + b"\r\n") * 25, seconds=1)
    assert b" 413 " in found.partition(b"\r\n")[0]


def test_what_is_no_http_is_refused_in_json(client):
    for data in (b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\r\n\r\n"):
        found = client.raw(data)
        assert b" 400 " in found.partition(b"\r\n")[0]
        assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]
    large = b"GET / HTTP/1.1\r\nA: " + b"x" * 200_000
    assert b" 400 " in client.raw(large).partition(b"\r\n")[0]


def test_requests_in_every_form_of_http_are_answered_in_turn(client, pictures):
    image = pictures[1]
    half = len(image) // 2

    def request(line: bytes, *headers: bytes, body: bytes = b"") -> bytes:
        return b"\r\n".join([line + b" HTTP/1.1", b"Host: x", *headers, b"", body])

    def post(path: bytes = b"/predict", *headers: bytes) -> bytes:
        length = b"Content-Length: %d" % len(image)
        return request(b"POST " + path, length, *headers, body=image)

    def chunked(*chunks: bytes, extension: bytes = b"", trailer: bytes = b"") -> bytes:
        parts = [b"%x%s\r\n%s\r\n" % (len(each), extension, each) for each in chunks]
        body = b"".join([*parts, b"0\r\n", trailer, b"\r\n"])
        return request(b"POST /predict", b"Transfer-Encoding: chunked", body=body)

    last = request(b"GET /v2", b"Connection: close")
    for sent, statuses in (
        (post() * 5, [200] * 5),
        (request(b"GET /v2") + request(b"GET /none") + post(), [200, 404, 200]),
        (post(b"/none") + request(b"GET /v2"), [404, 200]),
        (request(b"GET /v2", b"Content-Length: 3", body=b"abc"), [200]),
        (post(b"/predict", b"Expect: 100-continue"), [100, 200]),
        (chunked(image[:half], image[half:]), [200]),
        (chunked(image, extension=b';a="b"', trailer=b"X-Sum: 1\r\n"), [200]),
        (chunked(*(image[at : at + 1] for at in range(len(image)))), [200]),
        (request(b"HEAD /v2") + request(b"HEAD /none"), [200, 404]),
        (request(b"OPTIONS *") + request(b"TRACE /"), [404, 405]),
        (request(b"GET http://x/v2"), [404]),
        (request(b"GET /..%2f..%2fmodel.onnx") + request(b"GET //etc/passwd"), [404, 404]),
        (request(b"GET /v2", b"Connection: Upgrade", b"Upgrade: websocket"), [200]),
    ):
        found = client.raw(sent + last)
        assert [int(each) for each in re.findall(rb"HTTP/1\.1 (\d+)", found)] == [*statuses, 200]
    for sent in (
        request(b"GET /v2") + b"NONSENSE\r\n\r\n",
        request(b"GET /v2", b"A: b\0c"),
        request(b"GET /v2", b"A : b"),
        request(b"POST /predict", b"Transfer-Encoding: gzip, chunked"),
        request(b"POST /predict", b"Transfer-Encoding: chunked", body=b"-5\r\nabc"),
        request(b"POST /predict", b"Content-Length: -1"),
        request(b"POST /predict", b"Content-Length: 3", b"Content-Length: 5", body=b"abc"),
        request(b"GET /v2", *(b"X-%d: %s" % (n, bytes(100)) for n in range(1000))),
        b"GET /v2 HTTP/1.1\r\n\r\n",
    ):
        found = client.raw(sent).rpartition(b"HTTP/1.1 ")[2]
        assert found.startswith((b"400 ", b"501 ")), found
        assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]
    assert client.raw(post().replace(b"HTTP/1.1", b"HTTP/1.0")).startswith(b"HTTP/1.1 200 ")


def test_metrics_are_in_prometheus_s_format(client, pictures):
    client.predict(pictures[0])
    reply = client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    kinds, buckets = dict[str, str](), list[float]()
    for line in reply.body.decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds
            kinds[name] = kind
        elif not line.startswith("# HELP "):
            match = re.fullmatch(r'([a-z_]+)(?:\{(?:[a-z0-9_]+="[^"]*",?)+\})? (\S+)', line)
            assert match, line
            family = re.sub(r"_(bucket|sum|count)$", "", match[1])
            assert kinds[match[1] if match[1] in kinds else family]
            value = float(match[2])
            assert value >= 0
            if 'predict",le=' in line:
                buckets.append(value)
    assert buckets == sorted(buckets)
    assert buckets[-1] == client.metrics()['featx_request_seconds_count{endpoint="predict"}'] > 0


def test_compressed_bodies_are_refused(client, pictures):
    reply = client.ask("POST", "/predict", pictures[0], {"Content-Encoding": "gzip"})
    require_refusal(reply, 415)


def test_only_who_has_the_token_is_let_in(model, pictures):
    token = "0123456789abcdef"
    with in_this_process(model, token=token) as (client, _):
        basic = base64.b64encode(f"anyone:{token}".encode()).decode()
        for right in (f"Bearer {token}", f"Basic {basic}", f"bearer {token}"):
            assert client.predict(pictures[0], Authorization=right).status == 200
        for wrong in ("", f"Bearer {token}x", "Bearer", "Basic !!", token, "Bearer ä"):
            reply = client.predict(pictures[0], Authorization=wrong)
            require_refusal(reply, 401)
            assert token not in str(reply)
        for path in ("/", "/model.onnx", "/metrics", "/v2", "/v2/models/model"):
            require_refusal(client.get(path), 401)
        assert client.get("/").headers["www-authenticate"].startswith("Basic")
        assert client.get("/v2/health/live").status == 200


def test_a_format_whose_reader_is_not_installed_is_refused_for_good(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
    assert "pillow-heif" in require_refusal(client.predict(heic), 415)


def slow_answers(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    answer = ServedModel.answer

    def slowly(self: ServedModel, images: object, **how: bool) -> object:
        time.sleep(seconds)
        return answer(self, images, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(ServedModel, "answer", slowly)
    monkeypatch.setattr(ServedModel, "batch_size", 4)


def together(client: Client, image: bytes, clients: int, requests: int) -> list[Reply]:
    """Return the answers to some clients that ask again and again at the same time."""
    replies = list[Reply]()

    def ask() -> None:
        connection = client.connect()
        for _ in range(requests):
            replies.append(client.ask("POST", "/predict", image, connection=connection))
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return replies


def test_overload_is_refused_while_health_answers_and_ends_at_once(model, pictures, monkeypatch):
    slow_answers(monkeypatch, 0.05)
    with in_this_process(model, queue=8) as (client, _):
        load = threading.Thread(target=lambda: replies.extend(together(client, image, 32, 4)))
        replies, image = list[Reply](), pictures[0]
        load.start()
        took = []
        while load.is_alive():
            start = time.monotonic()
            assert client.get("/v2/health/live").status == 200
            took.append(time.monotonic() - start)
        load.join()
        statuses = [reply.status for reply in replies]
        assert len(statuses) == 128
        assert set(statuses) == {200, 503}
        assert all(r.headers["retry-after"] == "1" for r in replies if r.status == 503)
        assert sorted(took)[len(took) // 2] < 0.1
        assert client.predict(image).status == 200
        assert client.count("predict", 503) == statuses.count(503)


def test_what_takes_too_long_is_refused(model, pictures, monkeypatch):
    slow_answers(monkeypatch, 0.5)
    with in_this_process(model, timeout=0.1) as (client, _):
        assert "0.1 s" in require_refusal(client.predict(pictures[0]), 503)
        monkeypatch.undo()
        time.sleep(0.6)
        assert client.predict(pictures[0]).status == 200


def test_a_failure_of_the_server_is_no_traceback(model, pictures, monkeypatch, caplog):
    with in_this_process(model) as (client, _):
        monkeypatch.setattr(ServedModel, "answer", lambda *_, **__: 1 / 0)
        require_refusal(client.predict(pictures[0]), 500)
        monkeypatch.undo()
        assert client.predict(pictures[0]).status == 200
    assert "ZeroDivisionError" in caplog.text


def test_it_is_not_ready_before_the_model_is_there(model, pictures, monkeypatch):
    with in_this_process(model) as (client, worker):
        assert client.get("/v2/health/ready").status == 200
        assert client.get("/v2/models/model/ready").status == 200
        loaded, worker._app.model = worker._app.model, None
        assert client.get("/v2/health/ready").status == 503
        assert client.get("/v2/health/live").status == 200
        require_refusal(client.predict(pictures[0]), 503)
        worker._app.model = loaded
        worker._app.is_stopping = True
        assert client.get("/v2/health/ready").status == 503


def test_clients_that_leave_cost_only_their_connection(client, pictures):
    image = pictures[0]
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image)
    for end in (5, len(head), len(head) + 40, len(head) + len(image)):
        client.raw((head + image)[:end], seconds=0.05)
    assert client.predict(image).status == 200


@pytest.mark.slow
def test_two_thousand_answers_of_many_clients_are_those_of_predict(model):
    rng = np.random.default_rng(1)
    images = []
    for _ in range(250):
        low = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        low.resize(tuple(rng.integers(30, 300, 2)), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    expected = [dict(each.top) for each in Predictor(model).predict(images, top_k=10)]
    wrong = list[object]()
    with in_this_process(model, threads=2) as (client, _):

        def ask(first: int) -> None:
            connection = client.connect()
            for step in range(250):
                number = (first * 31 + step) % 250
                found = client.ask(
                    "POST", "/predict?top_k=10", images[number], connection=connection
                ).json["top"]
                for each in found:
                    if abs(each["probability"] - expected[number][each["label"]]) > 1e-4:
                        wrong.append((number, each))
            connection.close()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.count("predict", 200) == 2000
    assert not wrong
