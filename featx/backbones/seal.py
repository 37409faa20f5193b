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
    return content + _entry(content, key)


def is_sealed(content: bytes, *, key: str = KEY) -> bool:
    """Return whether a file is exactly as it was when it was sealed."""
    length = len(_entry(b"", key))
    return content[-length:] == _entry(memoryview(content)[:-length], key)


def _entry(content: bytes | memoryview, key: str) -> bytes:
    """Return ``metadata_props`` (field 14 of ModelProto) with one pair of key (1) and value (2)."""
    digest = hashlib.sha256(content).hexdigest().encode()
    pair = b"\x0a" + bytes([len(key)]) + key.encode() + b"\x12" + bytes([len(digest)]) + digest
    return b"\x72" + bytes([len(pair)]) + pair
