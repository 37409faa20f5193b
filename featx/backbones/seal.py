"""The bytes of an ONNX file, before ONNX Runtime sees them: its seal and its parts.

The seal is one more metadata entry, the sha256 of everything before it: Protocol Buffers read
concatenated messages as one. The parts are walked in plain Python, and no weight is copied; ONNX
Runtime refuses some of what is refused here, but late, and not in every version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

KEY = "sha256"
SEAL_BYTES = 4 + len(KEY) + 2 + 64
_MAX_PARTS = 1_000_000
"""Fields of all messages on the way; an exported backbone has some ten thousand."""
_DOMAINS = (b"", b"ai.onnx")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Where tensors, nodes and graphs can be: message → field number → message.
_INSIDE: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 8: "OperatorSetIdProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        **{5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto"},
        **{22: "SparseTensorProto", 23: "SparseTensorProto"},
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}
_REFUSED = {
    ("ModelProto", 20): "training steps",  # training_info
    ("ModelProto", 25): "functions of its own",  # functions
    ("TensorProto", 13): "weights in another file",  # external_data
    ("TensorProto", 14): "weights in another file",  # data_location, unless 0
}
_DOMAIN_FIELDS = {("OperatorSetIdProto", 1), ("NodeProto", 7)}
_OPERATOR = ("NodeProto", 4)
_CONTROL_FLOW = (b"If", b"Loop", b"Scan", b"SequenceMap")
"""Operators with graphs of their own: a few bytes of them could run for ever."""


def seal(content: bytes, *, key: str = KEY) -> bytes:
    """Return a serialised model with its seal; ``SEAL_BYTES`` longer with the default key."""
    return content + metadata_entry(key, hashlib.sha256(content).hexdigest())


def is_sealed(content: bytes, *, key: str = KEY) -> bool:
    """Return whether a file is unchanged since it was sealed."""
    length = len(metadata_entry(key, "0" * 64))
    digest = hashlib.sha256(memoryview(content)[:-length]).hexdigest()
    return content[-length:] == metadata_entry(key, digest)


def metadata_entry(key: str, value: str) -> bytes:
    """Return an entry of a model's metadata, to be put behind it; both of few ASCII characters.

    It is ``metadata_props`` (field 14 of ModelProto) with one pair of key (1) and value (2).
    """
    name, content = key.encode(), value.encode()
    pair = b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(content)]) + content
    return b"\x72" + bytes([len(pair)]) + pair


class NotOnnx(ValueError):
    """The bytes are not a serialised ONNX model."""


class _Field(NamedTuple):
    """A field of a message, with the offsets of its content; ``value`` is that of a varint."""

    number: int
    wire: int
    value: int
    start: int
    end: int


def read_entry(content: bytes, key: str) -> bytes | None:
    """Return the value of a metadata entry, None where a model has none of this name.

    Raises:
        NotOnnx: It is not a model.
    """
    for field in _messages(content, 14):
        parts = {
            part.number: content[part.start : part.end]
            for part in _fields(content, field.start, field.end)
        }
        if parts.get(1) == key.encode():
            return parts.get(2, b"")
    return None


def graph_sha256(content: bytes) -> str:
    """Return the sha256 of a model's graph, which no entry of its metadata changes.

    Raises:
        NotOnnx: It is not a model.
    """
    digest, view = hashlib.sha256(), memoryview(content)
    for graph in _messages(content, 7):
        digest.update(view[graph.start : graph.end])
    return digest.hexdigest()


def count_nodes(content: bytes) -> int:
    """Return how many nodes a model's graph has.

    Raises:
        NotOnnx: It is not a model.
    """
    return sum(
        (part.number, part.wire) == (1, _BYTES)
        for graph in _messages(content, 7)
        for part in _fields(content, graph.start, graph.end)
    )


def _messages(content: bytes, number: int) -> Iterator[_Field]:
    """Yield the messages in a field of the model itself."""
    for field in _fields(content, 0, len(content)):
        if (field.number, field.wire) == (number, _BYTES):
            yield field


def unwanted_parts(content: bytes) -> list[str]:
    """Return the parts of a model that featx never writes: foreign files, operators, loops.

    Raises:
        NotOnnx: It is not a model, or one of absurdly many parts.
    """
    found: set[str] = set()
    has_graph, num_parts = False, 0
    pending = [("ModelProto", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        inside = _INSIDE.get(message, {})
        for field in _fields(content, start, end):
            num_parts += 1
            if num_parts > _MAX_PARTS:
                raise NotOnnx(f"it has more than {_MAX_PARTS} parts")
            place = (message, field.number)
            if field.wire == _BYTES and field.number in inside:
                pending.append((inside[field.number], field.start, field.end))
                has_graph |= place == ("ModelProto", 7)
            elif place in _REFUSED and (field.wire != _VARINT or field.value):
                found.add(_REFUSED[place])
            elif place in _DOMAIN_FIELDS and content[field.start : field.end] not in _DOMAINS:
                name = content[field.start : min(field.end, field.start + 60)]
                found.add(f"operators of the domain '{name.decode('utf-8', 'replace')}'")
            elif place == _OPERATOR and content[field.start : field.end] in _CONTROL_FLOW:
                found.add(f"control flow ({content[field.start : field.end].decode()})")
    if not has_graph:
        raise NotOnnx("it has no graph")
    return sorted(found)


def _fields(content: bytes, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of the message between two offsets."""
    while start < end:
        tag, start = _varint(content, start, end)
        number, wire = tag >> 3, tag & 7
        value = 0
        if not 0 < number < 2**29:
            raise NotOnnx(f"byte {start} starts no field")
        if wire == _VARINT:
            value, stop = _varint(content, start, end)
        elif wire == _BYTES:
            length, start = _varint(content, start, end)
            stop = start + length
        elif wire in (_FIXED64, _FIXED32):
            stop = start + (8 if wire == _FIXED64 else 4)
        else:
            raise NotOnnx(f"byte {start} starts no field")
        if stop > end:
            raise NotOnnx("it ends too early")
        yield _Field(number, wire, value, start, stop)
        start = stop


def _varint(content: bytes, start: int, end: int) -> tuple[int, int]:
    """Return the number that starts at an offset, and the offset after it."""
    value = 0
    for position in range(start, min(end, start + 10)):
        byte = content[position]
        value |= (byte & 0x7F) << (7 * (position - start))
        if byte < 0x80:
            return value, position + 1
    raise NotOnnx("it ends too early")
