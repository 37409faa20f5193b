"""Messages of the Open Inference Protocol 2, with the binary and classification extensions.

Source: https://github.com/kserve/open-inference-protocol, and Triton's documents of the extensions
(https://github.com/triton-inference-server/server/tree/main/docs/protocol). Everything here is from
bytes to arrays and back; what does not fit is refused with a sentence.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.classifier.contract import Value
from featx.errors import counted
from featx.serving.model import Image, Row
from featx.serving.requests import Answer, Refused, as_json

EXTENSIONS = ("binary_tensor_data", "classification")
INPUT = "image"
LENGTH_HEADER = "inference-header-content-length"
MAX_JSON = 4_000_000
"""Bytes of JSON: a number takes far longer to read there than a byte of binary data."""
_TYPES = {"float32": "FP32", "int64": "INT64"}
_SCORES = ("probabilities", "logits", "values")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Wanted:
    """An output that a request asks for.

    Attributes:
        name: Of the model's output.
        is_binary: After the JSON instead of in it.
        num_best: Answer with the best classes as text instead of with numbers; 0 for numbers.
    """

    name: str
    is_binary: bool
    num_best: int = 0


@dataclass(frozen=True)
class Inference:
    """A request: its id, its images, and the outputs that it asks for."""

    request_id: str | None
    images: tuple[Image, ...]
    outputs: tuple[Wanted, ...]


def metadata(
    name: str, outputs: Sequence[Value], image_shape: tuple[int, int] | None
) -> dict[str, Any]:
    """Return what a client may ask about a model; it takes images of any shape unless of one."""
    shape = [-1, *(image_shape or (-1, -1)), 3]
    return {
        "name": name,
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": shape}],
        "outputs": [
            {"name": each.name, "datatype": _TYPES[each.dtype], "shape": [-1, *each.shape[1:]]}
            for each in outputs
        ],
    }


def read_inference(body: bytes, header_length: str | None, outputs: Sequence[Value]) -> Inference:
    """Return what a request's body asks for.

    Args:
        body: JSON, followed by binary data where ``header_length`` says how long the JSON is.
        header_length: The header ``Inference-Header-Content-Length``, if there is one.
        outputs: Of the model.

    Raises:
        Refused: With status 400, or 413 where there is too much JSON.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
            raise _bad(f"{LENGTH_HEADER} must be a number of bytes; got {header_length[:40]!r}.")
        length = int(header_length)
        if not 0 < length <= len(body):
            raise _bad(f"{LENGTH_HEADER} is {length}, but the body has {len(body)} bytes.")
    if length > MAX_JSON:
        raise Refused(
            413,
            f"{length} bytes of JSON are more than the {MAX_JSON} allowed; send the image as "
            "binary data.",
        )
    message = _object(_parsed(body[:length]), "The request")
    request_id = message.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise _bad("id must be text.")
    inputs = message.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise _bad(f"inputs must be a list of one input, '{INPUT}'.")
    images = _images(_object(inputs[0], "The input"), body[length:])
    settings = _parameters(message)
    is_binary = _flag(settings, "binary_data_output", False)
    wanted = message.get("outputs")
    if not wanted and wanted in (None, []):
        own = tuple(Wanted(each.name, is_binary) for each in outputs)
    elif isinstance(wanted, list):
        own = tuple(_wanted(_object(each, "An output"), is_binary, outputs) for each in wanted)
    else:
        raise _bad("outputs must be a list.")
    if len({each.name for each in own}) < len(own):
        raise _bad("An output is asked for twice.")
    return Inference(request_id, images, own)


def _bad(text: str) -> Refused:
    return Refused(400, text)


def _parsed(text: bytes) -> object:
    def pairs(found: list[tuple[str, object]]) -> dict[str, object]:
        values = dict(found)
        if len(values) < len(found):
            raise ValueError("a key occurs twice")
        return values

    def constant(name: str) -> object:
        raise ValueError(f"{name} is no number in JSON")

    try:
        return json.loads(text.decode(), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as err:
        reason = "nested too deeply" if isinstance(err, RecursionError) else str(err)[:200]
        raise _bad(f"The request is no JSON: {reason}.") from err


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _bad(f"{what} must be a JSON object.")
    return value


def _parameters(message: Mapping[str, Any]) -> Mapping[str, Any]:
    return _object(message.get("parameters") or {}, "parameters")


def _flag(settings: Mapping[str, Any], name: str, default: bool) -> bool:
    value = settings.get(name, default)
    if not isinstance(value, bool):
        raise _bad(f"{name} must be true or false.")
    return value


def _whole(value: object, what: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**40:
        raise _bad(f"{what} must be a whole number from {least} on.")
    return value


def _images(given: Mapping[str, Any], binary: bytes) -> tuple[Image, ...]:
    """Return the images of the one input."""
    if given.get("name") != INPUT:
        raise _bad(f"The input must be named '{INPUT}'; got {str(given.get('name'))[:80]!r}.")
    shape, datatype = given.get("shape"), given.get("datatype")
    if datatype not in ("UINT8", "BYTES"):
        raise _bad(
            f"The input '{INPUT}' is UINT8 of shape [-1, -1, -1, 3], or BYTES of shape [-1] with "
            f"encoded images; got {str(datatype)[:40]}."
        )
    if not isinstance(shape, list) or len(shape) > 8:
        raise _bad("The input's shape must be a list of numbers.")
    sides = [_whole(side, "A side of the input's shape", 1) for side in shape]
    settings = _parameters(given)
    if "shared_memory_region" in settings:
        raise _bad("Shared memory is not supported; send the data with the request.")
    if "binary_data_size" not in settings:
        if binary:
            raise _bad(f"{len(binary)} bytes of binary data follow that no input has.")
        if datatype == "BYTES":
            raise _bad("Encoded images must be sent as binary data; JSON cannot hold them.")
        return _pixels(_from_json(given.get("data")), sides)
    size = _whole(settings["binary_data_size"], "binary_data_size")
    if "data" in given:
        raise _bad("The input has both data and binary_data_size.")
    if size != len(binary):
        raise _bad(f"binary_data_size is {size}, but {len(binary)} bytes follow the JSON.")
    if datatype == "UINT8":
        return _pixels(np.frombuffer(binary, np.uint8), sides)
    return _encoded(binary, sides)


def _from_json(data: object) -> np.ndarray:
    """Return ``(n,)`` uint8 of numbers in one list or in nested ones."""
    if not isinstance(data, list):
        raise _bad("The input has neither data nor binary_data_size.")
    flat = data
    for _ in range(3):
        if flat and isinstance(flat[0], list):
            if not all(isinstance(each, list) for each in flat):
                raise _bad("The lists of data are not of one depth.")
            flat = [value for each in flat for value in each]
    if not all(type(value) is int and 0 <= value <= 255 for value in flat):
        raise _bad("data must be whole numbers from 0 to 255, as the input is UINT8.")
    return np.array(flat, np.uint8)


def _pixels(values: np.ndarray, sides: Sequence[int]) -> tuple[Image, ...]:
    if len(sides) != 4 or sides[3] != 3:
        raise _bad(f"The input's shape must be [images, height, width, 3]; got {list(sides)}.")
    if math.prod(sides) != values.size:
        raise _bad(f"The shape {list(sides)} has {math.prod(sides)} values, data {values.size}.")
    return tuple(values.reshape(sides))


def _encoded(binary: bytes, sides: Sequence[int]) -> tuple[Image, ...]:
    """Return encoded images, each behind its length as four bytes, little-endian."""
    images, at = list[Image](), 0
    while at < len(binary):
        end = at + 4
        if end <= len(binary):
            end += _LENGTH.unpack_from(binary, at)[0]
        if end > len(binary) or at + 4 > len(binary):
            raise _bad("The lengths of the BYTES elements do not add up to binary_data_size.")
        images.append(binary[at + 4 : end])
        at = end
    if len(sides) not in (1, 2) or math.prod(sides) != len(images):
        raise _bad(f"The shape {list(sides)} does not fit {counted(len(images), 'element')}.")
    return tuple(images)


def _wanted(given: Mapping[str, Any], is_binary: bool, outputs: Sequence[Value]) -> Wanted:
    name, settings = given.get("name"), _parameters(given)
    value = next((each for each in outputs if each.name == name), None)
    if value is None:
        known = ", ".join(each.name for each in outputs)
        raise _bad(f"The model has no output {str(name)[:80]!r}; it has {known}.")
    if "shared_memory_region" in settings:
        raise _bad("Shared memory is not supported; outputs come with the answer.")
    num_best = _whole(settings.get("classification", 0), "classification")
    if num_best and value.name not in _SCORES:
        raise _bad(f"classification is for {', '.join(_SCORES)}, not for {value.name}.")
    return Wanted(value.name, _flag(settings, "binary_data", is_binary), num_best)


def render_inference(
    name: str, inference: Inference, rows: Sequence[Row], classes: Sequence[str]
) -> Answer:
    """Return the answer to a request.

    Args:
        name: Of the model.
        inference: The request.
        rows: What the model gave for each image.
        classes: Their names, in index order.
    """
    shown, binary = list[dict[str, Any]](), list[bytes]()
    for wanted in inference.outputs:
        values = np.stack([row[wanted.name] for row in rows])
        texts = _best(values, wanted.num_best, classes) if wanted.num_best else None
        shape = values.shape if texts is None else (len(rows), len(texts) // len(rows))
        output: dict[str, Any] = {
            "name": wanted.name,
            "datatype": "BYTES" if texts else _TYPES[str(values.dtype)],
            "shape": list(shape),
        }
        if wanted.is_binary:
            data = _as_elements(texts) if texts else np.ascontiguousarray(values).tobytes()
            output["parameters"] = {"binary_data_size": len(data)}
            binary.append(data)
        else:
            output["data"] = texts or values.ravel().tolist()
        shown.append(output)
    message: dict[str, Any] = {"model_name": name, "model_version": "1", "outputs": shown}
    if inference.request_id is not None:
        message["id"] = inference.request_id
    answer = as_json(message)
    if not binary:
        return answer
    return Answer(
        b"".join([answer.body, *binary]),
        "application/octet-stream",
        headers={LENGTH_HEADER: str(len(answer.body))},
    )


def _best(values: np.ndarray, count: int, classes: Sequence[str]) -> list[str]:
    """Return ``"value:index:class"`` of the best of each row, best first; of a tie the first."""
    order = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [
        f"{row[place]:.6f}:{place}:{classes[place]}"
        for row, places in zip(values, order, strict=True)
        for place in places
    ]


def _as_elements(texts: Sequence[str]) -> bytes:
    contents = [text.encode("utf-8", "backslashreplace") for text in texts]
    return b"".join(_LENGTH.pack(len(content)) + content for content in contents)
