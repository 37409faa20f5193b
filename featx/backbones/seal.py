"""The seal of an ONNX file: one more metadata entry, the sha256 of everything before it.

Protocol Buffers read concatenated messages as one, so every ONNX reader takes the sealed file for
the same model with one entry more.
"""

from __future__ import annotations

import hashlib

KEY = "sha256"
SEAL_BYTES = 4 + len(KEY) + 2 + 64


def seal(content: bytes, *, key: str = KEY) -> bytes:
    """Return a serialised model with its seal; ``SEAL_BYTES`` longer with the default key."""
    return content + metadata_entry(key, hashlib.sha256(content).hexdigest())


def is_sealed(content: bytes, *, key: str = KEY) -> bool:
    """Return whether a file is exactly as it was when it was sealed."""
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
