"""The Open Inference Protocol, as Triton's own client speaks it, and what is not of its form."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

import numpy as np
import pytest
from serving import Client

from featx.stages.predict import Predictor

triton = pytest.importorskip("tritonclient.http")
INFER = "/v2/models/model/infer"
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def tritons(client: Client) -> Any:
    own = triton.InferenceServerClient(f"127.0.0.1:{client.port}")
    yield own
    own.close()


def pixels_of(pictures: list[bytes], count: int = 3) -> np.ndarray:
    """Return images of one size, ``(count, 50, 60, 3)``."""
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (count, 50, 60, 3), dtype=np.uint8)


def infer(tritons: Any, values: np.ndarray, datatype: str, *, binary: bool, **output: Any) -> Any:
    given = triton.InferInput("image", list(values.shape), datatype)
    given.set_data_from_numpy(values, binary_data=binary)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary, **output)
    return tritons.infer("model", [given], outputs=[wanted])


def probabilities(predictor: Predictor, images: Any) -> np.ndarray:
    found = predictor.predict(list(images), top_k=10)
    return np.array([[dict(each.top)[name] for name in predictor.classes] for each in found])


def test_triton_s_client_finds_server_and_model(tritons):
    assert tritons.is_server_live()
    assert tritons.is_server_ready()
    assert tritons.is_model_ready("model")
    assert tritons.is_model_ready("model", "1")
    assert tritons.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    told = tritons.get_model_metadata("model")
    assert told["platform"] == "onnxruntime_onnx"
    assert told["versions"] == ["1"]
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]} in told["outputs"]


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_are_answered_as_predict_answers_them(tritons, predictor, pictures, binary):
    pixels = pixels_of(pictures)
    found = infer(tritons, pixels, "UINT8", binary=binary).as_numpy("probabilities")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities(predictor, pixels), atol=1e-5)


def test_encoded_images_are_answered_as_predict_answers_them(tritons, predictor, pictures):
    values = np.array(pictures[:5], dtype=np.object_)
    found = infer(tritons, values, "BYTES", binary=True).as_numpy("probabilities")
    np.testing.assert_allclose(found, probabilities(predictor, pictures[:5]), atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_as_text_where_they_are_asked_for(tritons, predictor, pictures, binary):
    pixels = pixels_of(pictures)
    found = infer(tritons, pixels, "UINT8", binary=binary, class_count=2)
    texts = found.as_numpy("probabilities")
    assert texts.shape == (3, 2)
    for row, expected in zip(texts, predictor.predict(list(pixels), top_k=2), strict=True):
        for text, (name, probability) in zip(row, expected.top, strict=True):
            value, index, label = (text.decode() if binary else text).split(":")
            assert label == name == predictor.classes[int(index)]
            assert float(value) == pytest.approx(probability, abs=1e-5)


def test_without_outputs_all_come_and_the_id_comes_back(tritons, pictures):
    given = triton.InferInput("image", [3, 50, 60, 3], "UINT8")
    given.set_data_from_numpy(pixels_of(pictures))
    found = tritons.infer("model", [given], request_id="seven")
    assert found.get_response()["id"] == "seven"
    assert {each["name"] for each in found.get_response()["outputs"]} == {
        "logits",
        "probabilities",
    }
    assert found.as_numpy("logits").shape == (3, 10)


def request(**changes: Any) -> dict[str, Any]:
    own = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": list(range(12))}
    return {"inputs": [{**own, **changes}]}


def ask(client: Client, message: Any, binary: bytes = b"", **headers: str) -> Any:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    if binary and not headers:
        headers = {LENGTH: str(len(body))}
    return client.ask("POST", INFER, body + binary, headers)


def test_nested_and_flat_data_are_both_read(client):
    nested = np.arange(12).reshape(1, 2, 2, 3).tolist()
    flat, deep = ask(client, request()), ask(client, request(data=nested))
    assert flat.status == deep.status == 200
    assert flat.json["outputs"] == deep.json["outputs"]
    versioned = client.ask(
        "POST", "/v2/models/model/versions/1/infer", json.dumps(request()).encode()
    )
    assert versioned.json == flat.json


def test_what_does_not_fit_is_refused_by_a_sentence(client):
    for message, told in (
        (request(datatype="FP32"), "UINT8"),
        (request(datatype="FP32"), "FP32"),
        (request(name="pixels"), "'image'"),
        (request(shape=[1, 2, 2, 4]), "[1, 2, 2, 4]"),
        (request(shape=[1, 2, 3, 3]), "18 values"),
        (request(shape=[-1, 2, 2, 3]), "shape"),
        (request(data=[256] * 12), "0 to 255"),
        (request(data=[0.5] * 12), "whole numbers"),
        (request(datatype="BYTES", shape=[1], data=["x"]), "binary"),
        ({"inputs": []}, "one input"),
        ({**request(), "outputs": [{"name": "scores"}]}, "logits, probabilities"),
        ({**request(), "outputs": [{"name": "logits"}] * 2}, "twice"),
        ({**request(), "id": 7}, "id"),
        (b'{"inputs": [], "inputs": []}', "twice"),
        (b'{"inputs": NaN}', "NaN"),
        (b"[" * 1_900_000, "deeply"),
        (b"\xff\xfe", "JSON"),
    ):
        reply = ask(client, message)
        assert reply.status == 400, message
        assert told in reply.json["error"]
    assert ask(client, b" " * 1_999_999).status == 400
    many = request(shape=[65, 1, 1, 3], data=[0] * 195)
    assert ask(client, many).status == 413


def test_header_lengths_that_do_not_fit_leave_the_connection_usable(client):
    given = {"name": "image", "shape": [1, 2, 2, 3], "datatype": "UINT8"}

    def message(size: Any) -> bytes:
        own = {**given, "parameters": {"binary_data_size": size}}
        return json.dumps({"inputs": [own]}).encode()

    connection, pixels, good = client.connect(), bytes(12), message(12)
    for body, length in (
        (good + pixels, None),
        (good + pixels, "-1"),
        (good + pixels, "0"),
        (good + pixels, "10"),
        (good + pixels, "1e3"),
        (good + pixels, str(10**11)),
        (good + pixels, str(10**30)),
        (good + pixels[:-1], str(len(good))),
        (good + pixels + b"x", str(len(good))),
        (message(-1) + pixels, str(len(message(-1)))),
        (message("12") + pixels, str(len(message("12")))),
    ):
        headers = {} if length is None else {LENGTH: length}
        reply = client.ask("POST", INFER, body, headers, connection=connection)
        assert reply.status == 400, length
        assert reply.json["error"]
        headers = {LENGTH: str(len(good))}
        assert (
            client.ask("POST", INFER, good + pixels, headers, connection=connection).status == 200
        )
    connection.close()


def test_lengths_of_encoded_images_must_add_up(client, pictures):
    image = pictures[0]
    whole = struct.pack("<I", len(image)) + image
    for binary, shape in (
        (whole[:-1], [1]),
        (whole + b"\0", [1]),
        (struct.pack("<I", 2**32 - 1) + image, [1]),
        (whole, [2]),
        (whole, []),
        (whole + struct.pack("<I", 0), [2]),  # an empty image
        (whole + struct.pack("<I", 2) + b"xy", [2]),
    ):
        own = {"binary_data_size": len(binary)}
        given = {"name": "image", "shape": shape, "datatype": "BYTES", "parameters": own}
        reply = ask(client, {"inputs": [given]}, binary)
        assert reply.status == 400
        assert reply.json["error"]


def mutated(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Return a JSON value in which one place is another."""
    others = [None, True, -1, 2**70, 1e308, 0.5, "", "x" * 300, [], {}, [[[]]], {"a": [1]}]
    if depth > 4 or not isinstance(value, (list, dict)) or not value or rng.random() < 0.2:
        return rng.choice(others)
    if isinstance(value, list):
        place = rng.randrange(len(value))
        return [mutated(rng, v, depth + 1) if i == place else v for i, v in enumerate(value)]
    chosen = rng.choice(sorted(value))
    if rng.random() < 0.15:
        return {key: own for key, own in value.items() if key != chosen}
    return {k: mutated(rng, v, depth + 1) if k == chosen else v for k, v in value.items()}


def test_five_hundred_changed_requests_are_refused_or_answered_as_json(client):
    rng, whole = random.Random(0), request(parameters={"binary_data_size": 12})
    whole |= {"id": "a", "parameters": {"binary_data_output": True}}
    whole["outputs"] = [
        {"name": "probabilities", "parameters": {"classification": 2, "binary_data": False}}
    ]
    connection, refused = client.connect(), 0
    for number in range(500):
        if number % 5:
            message: bytes = json.dumps(mutated(rng, whole)).encode()
        else:
            text = bytearray(json.dumps(request()).encode())
            for _ in range(3):
                text[rng.randrange(len(text))] = rng.randrange(256)
            message = bytes(text)
        pixels = bytes(12) if number % 5 else b""
        headers = {LENGTH: str(len(message))} if pixels else {}
        reply = client.ask("POST", INFER, message + pixels, headers, connection=connection)
        assert reply.status == 200 or 400 <= reply.status < 500, (message, reply)
        if reply.status != 200:
            refused += 1
            assert list(reply.json) == ["error"]
            assert "Traceback" not in reply.json["error"]
    connection.close()
    assert refused > 300
    assert ask(client, request()).status == 200
