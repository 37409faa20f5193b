"""Rows: which values they may hold, and how they lie in the records of a journal.

A record counts only when it is whole, so whatever ends a process costs at most the batch it was
writing. Record 0 holds the settings as JSON, every other one a batch: the outcome of some images.

Layout, little-endian: ``magic (4) | number u32 | payload length u64 | CRC32 u32 | payload``; the
CRC covers everything but itself. The payload of a batch is ``images u32 | rows u32 | text bytes
u32``, one ``ENTRY`` for each image, the text (ids, then reasons), the rows in the layout's type,
and where the batch has views, those of each row.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from featx import system
from featx.artifact import JOURNAL_MAGIC as MAGIC
from featx.errors import ArtifactInvalid, BackboneError, ConfigError, counted, listed
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import Stamp

ENTRY = np.dtype(
    [
        ("digest", "u1", (DIGEST_BYTES,)),
        ("stamp", "<i8", (len(Stamp._fields),)),
        ("id_bytes", "<u4"),
        ("reason_bytes", "<u4"),
    ]
)
DType = Literal["float32", "float16", "uint8"]
MAX_FLOAT16_LOSS = 1e-3
"""Largest ‖x − float16(x)‖ / ‖x‖ of a row. Rounding alone gives at most 2⁻¹¹ = 4.9e-4; what is
above has lost small values to underflow."""
_MANY = 8
_AT_ONCE = 2**21  # values that are compared in float64
_HEAD = struct.Struct("<4sIQI")
_COUNTS = struct.Struct("<III")
_MAX_SETTINGS_BYTES = 2**20


@dataclass(frozen=True)
class RowLayout:
    """What a row consists of.

    Attributes:
        shape: Of its features; of the activations at a cut.
        dtype: ``"float32"``, ``"float16"`` or ``"uint8"``. Vectors are float32 in a journal,
            whatever the file stores.
        num_views: Augmented versions that a row may have beside its features.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    num_views: int = 0

    @property
    def size(self) -> int:
        """Number of values of a row's features."""
        return math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row's features, and of each of its views."""
        return self.size * self.stored.itemsize

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of the values, little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as JSON values."""
        return {"shape": list(self.shape), "dtype": self.dtype, "num_views": self.num_views}

    @property
    def is_plain(self) -> bool:
        """Whether rows are float32 vectors without views, as of every journal without a layout."""
        return self == RowLayout((self.size,))

    def __str__(self) -> str:
        views = f" with {counted(self.num_views, 'view')}" if self.num_views else ""
        return f"{' × '.join(map(str, self.shape))} {self.dtype}{views}"


@dataclass(frozen=True)
class Batch:
    """The outcome of n images, in the order of the source.

    Attributes:
        stamps: Of each image's file before it was read; ``(n, 3)`` int64.
        digests: Content hash of each image, zeros where it could not be read; ``(n, 16)`` uint8.
        reasons: Why an image has no row; empty where it has one.
        features: Rows of the others, ``(num_rows, size)`` in the layout's type.
        views: Of each row, ``(num_rows, num_views, size)``; None where this batch has none.
    """

    sample_ids: tuple[str, ...]
    stamps: np.ndarray
    digests: np.ndarray
    reasons: tuple[str, ...]
    features: np.ndarray
    views: np.ndarray | None = None

    @property
    def has_row(self) -> np.ndarray:
        """Which images have a row; ``(n,)`` bool."""
        return np.array([not reason for reason in self.reasons], dtype=bool)


class RowBlock(NamedTuple):
    """Some rows, in the layout's type.

    Attributes:
        features: ``(n, size)``.
        digests: ``(n, 16)``.
        stamps: ``(n, 3)``.
        has_views: Which rows have views; ``(n,)`` bool.
        views: ``(n, num_views, size)``, zeros where a row has none; None where the layout has none.
    """

    features: np.ndarray
    digests: np.ndarray
    stamps: np.ndarray
    has_views: np.ndarray
    views: np.ndarray | None = None

    @classmethod
    def empty(cls, num_rows: int, layout: RowLayout) -> Self:
        """Return a block to be filled."""
        shape = (num_rows, layout.num_views, layout.size)
        return cls(
            features=np.empty((num_rows, layout.size), layout.stored),
            digests=np.empty((num_rows, DIGEST_BYTES), np.uint8),
            stamps=np.empty((num_rows, len(Stamp._fields)), np.int64),
            has_views=np.zeros(num_rows, bool),
            views=np.zeros(shape, layout.stored) if layout.num_views else None,
        )


def record(number: int, payload: bytes) -> bytes:
    start = _HEAD.pack(MAGIC, number, len(payload), 0)[:-4]
    return b"".join((start, struct.pack("<I", zlib.crc32(payload, zlib.crc32(start))), payload))


class Scan:
    """Reads the records of a journal; ``end`` is where the whole ones end."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path
        self.end = 0
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        start = system.read_at(descriptor, len(MAGIC), 0) if is_file else b"?"
        # Zeros are what a power failure leaves of a file that was just made.
        if not MAGIC.startswith(start) and start.strip(b"\0"):
            raise ArtifactInvalid(path, f"'{path}' is not a journal of featx's. Move it.")

    def settings(self) -> dict[str, Any] | None:
        """Return record 0, None where it is not whole."""
        payload = self._read(0, limit=_MAX_SETTINGS_BYTES)
        if payload is None:
            return None
        self.end += _HEAD.size + len(payload)
        try:
            settings = json.loads(payload)
        except (ValueError, RecursionError):
            settings = None
        if not isinstance(settings, dict):
            raise ArtifactInvalid(
                self._path, f"'{self._path}' is not a journal of featx's: no settings in it."
            )
        return settings

    def batches(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield of each batch: its offset, images, rows, and the bytes of the rows."""
        number = 1
        while self.end and (payload := self._read(number)) is not None and _is_batch(payload):
            num_images, num_rows, text_bytes = _COUNTS.unpack_from(payload)
            rest = len(payload) - _COUNTS.size - num_images * ENTRY.itemsize - text_bytes
            yield self.end, num_images, num_rows, rest
            number, self.end = number + 1, self.end + _HEAD.size + len(payload)

    def _read(self, number: int, *, limit: int | None = None) -> bytes | None:
        try:
            return read_record(self._descriptor, self.end, number, self._path, limit=limit)
        except ArtifactInvalid:
            return None


def read_record(
    descriptor: int, offset: int, number: int, path: Path, *, limit: int | None = None
) -> bytes:
    head = system.read_at(descriptor, _HEAD.size, offset)
    if len(head) == _HEAD.size:
        magic, found, length, crc = _HEAD.unpack(head)
        room = os.fstat(descriptor).st_size - offset - _HEAD.size
        if magic == MAGIC and found == number and length <= (room if limit is None else limit):
            payload = _read_at(descriptor, length, offset + _HEAD.size)
            if zlib.crc32(payload, zlib.crc32(head[:-4])) == crc and len(payload) == length:
                return payload
    raise ArtifactInvalid(path, f"'{path}' is damaged at byte {offset}.")


def _read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return bytes of a file, fewer at its end; the system gives 2 GiB at most at once."""
    parts: list[bytes] = []
    while length and (part := system.read_at(descriptor, length, offset)):
        parts.append(part)
        length, offset = length - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def pack(batch: Batch, layout: RowLayout) -> bytes:
    """Return the payload of a batch; vectors of another type become float32."""
    num_rows = len(batch.features)
    rows: list[tuple[np.ndarray, tuple[int, ...]]] = [(batch.features, (num_rows, layout.size))]
    if batch.views is not None:
        rows.append((batch.views, (num_rows, layout.num_views, layout.size)))
    for part, shape in () if layout.is_plain else rows:
        if (part.shape, part.dtype) != (shape, layout.stored):
            raise ValueError(f"rows {part.shape} {part.dtype} do not fit {layout}")
    ids = [name.encode("utf-8", "surrogateescape") for name in batch.sample_ids]
    reasons = [reason.encode("utf-8", "surrogateescape") for reason in batch.reasons]
    entries = np.zeros(len(ids), dtype=ENTRY)
    entries["digest"], entries["stamp"] = batch.digests, batch.stamps
    entries["id_bytes"] = [len(name) for name in ids]
    entries["reason_bytes"] = [len(reason) for reason in reasons]
    text = b"".join(ids) + b"".join(reasons)
    counts = _COUNTS.pack(len(ids), num_rows, len(text))
    stored = (np.ascontiguousarray(part, dtype=layout.stored) for part, _ in rows)
    values = [part.reshape(-1).view(np.uint8).data for part in stored]  # not copied
    return b"".join((counts, entries.tobytes(), text, *values))


def _is_batch(payload: bytes) -> bool:
    """Return whether a payload's parts add up, so that ``unpack`` cannot go astray."""
    if len(payload) < _COUNTS.size:
        return False
    num_images, num_rows, text_bytes = _COUNTS.unpack_from(payload)
    rest = len(payload) - _COUNTS.size - num_images * ENTRY.itemsize - text_bytes
    if rest < 0 or (rest % num_rows if num_rows else rest):
        return False
    entries = np.frombuffer(payload, ENTRY, num_images, _COUNTS.size)
    length = entries["id_bytes"].sum(dtype=np.uint64) + entries["reason_bytes"].sum(dtype=np.uint64)
    return bool(length == text_bytes and (entries["reason_bytes"] == 0).sum() == num_rows)


def unpack(payload: bytes, layout: RowLayout) -> Batch:
    """Return the batch that ``pack`` wrote; ``ValueError`` where it has another layout."""
    num_images, num_rows, text_bytes = _COUNTS.unpack_from(payload)
    entries = np.frombuffer(payload, ENTRY, num_images, _COUNTS.size)
    start = _COUNTS.size + entries.nbytes
    text = payload[start : start + text_bytes]
    lengths = np.concatenate([entries["id_bytes"], entries["reason_bytes"]])
    ends = np.cumsum(lengths, dtype=np.int64)
    strings = [
        text[end - length : end].decode("utf-8", "surrogateescape")
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
    ]
    values = np.frombuffer(payload, layout.stored, offset=start + text_bytes)
    views, num_values = None, num_rows * layout.size
    if len(values) > num_values and layout.num_views:
        views = values[num_values:].reshape(num_rows, layout.num_views, layout.size)
        values = values[:num_values]
    return Batch(
        sample_ids=tuple(strings[:num_images]),
        stamps=entries["stamp"],
        digests=entries["digest"],
        reasons=tuple(strings[num_images:]),
        features=values.reshape(num_rows, layout.size),
        views=views,
    )


def unpack_digests(descriptor: int, offset: int) -> np.ndarray:
    """Return the digests of the rows of a batch that was verified; only they are read."""
    offset += _HEAD.size
    num_images = _COUNTS.unpack(system.read_at(descriptor, _COUNTS.size, offset))[0]
    content = system.read_at(descriptor, num_images * ENTRY.itemsize, offset + _COUNTS.size)
    entries = np.frombuffer(content, ENTRY)
    digests: np.ndarray = entries["digest"][entries["reason_bytes"] == 0]
    return digests


def count_images(descriptor: int, offset: int) -> int:
    """Return how many images the records from ``offset`` on hold, by their lengths alone."""
    count, size = 0, os.fstat(descriptor).st_size
    while offset and (start := system.read_at(descriptor, _HEAD.size + 4, offset)):
        if len(start) < _HEAD.size + 4 or not start.startswith(MAGIC):
            break
        offset += _HEAD.size + int(_HEAD.unpack_from(start)[2])
        if offset > size:
            break
        count += struct.unpack_from("<I", start, _HEAD.size)[0]
    return count


def require_finite(features: np.ndarray, sample_ids: Sequence[str]) -> None:
    """Check that rows ``(n, size)`` hold numbers, none of them NaN or infinite."""
    bad = [
        name for name, row in zip(sample_ids, features, strict=True) if not np.isfinite(row).all()
    ]
    if bad:
        names = listed([f"'{name}'" for name in bad], 10)
        raise BackboneError(
            f"The backbone gives NaN or infinite features for {names}. Check its weights."
        )


def require_no_underflow(features: np.ndarray) -> None:
    """Check that rows ``(n, num_features)`` calculated in fp16 are not all zero; a few may be."""
    if len(features) >= _MANY and not features.any():
        raise ConfigError(
            f"In fp16 all features of {len(features)} images are zero: there is nothing between 0 "
            "and 6e-08 in float16, and this backbone's numbers seem to be there. Use "
            "precision='bf16'."
        )


def require_float16(
    features: np.ndarray, sample_ids: Sequence[str], *, cut: str | None = None
) -> None:
    """Check that no row ``(n, size)`` overflows in float16, or loses too much by it.

    ``cut`` names the module whose input the rows are, where they are not vectors.
    """
    if not features.size:
        return
    rows = features.reshape(len(features), -1)
    at_cut = f" at the cut '{cut}'" if cut else ""
    largest = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    if largest.max() > np.finfo(np.float16).max:
        worst = int(largest.argmax())
        raise ConfigError(
            f"float16 holds values up to 65,504, but {'an activation' if cut else 'a feature'} of "
            f"'{sample_ids[worst]}'{at_cut} is {largest[worst]:.6g}. Use dtype='float32'."
        )
    step = max(1, _AT_ONCE // rows.shape[1])
    parts = [_float16_loss(rows[start : start + step]) for start in range(0, len(rows), step)]
    loss = np.concatenate(parts)
    if loss.max() > MAX_FLOAT16_LOSS:
        worst = int(loss.argmax())
        raise ConfigError(
            f"float16 would change the {'activations' if cut else 'features'} of "
            f"'{sample_ids[worst]}'{at_cut} by {loss[worst]:.2%} (relative, L2), more than the "
            f"{MAX_FLOAT16_LOSS:.1%} allowed: its values are too small. Use dtype='float32'."
        )


def _float16_loss(rows: np.ndarray) -> np.ndarray:
    exact = rows.astype(np.float64)
    lost = np.linalg.norm(exact - rows.astype(np.float16), axis=1)
    loss: np.ndarray = lost / np.maximum(np.linalg.norm(exact, axis=1), np.finfo(np.float64).tiny)
    return loss
