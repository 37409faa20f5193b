"""Encoded images before a decoder sees them: their format, and limits on what decoding may cost.

Formats are recognised by their first bytes. Metadata that has nothing to do with the pixels can be
left out. Files built to keep a decoder busy are refused: JPEGs of too many scans, and tables of
segments or strips far longer than any image has.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

_CHUNK = struct.Struct(">I4s")
_PIXEL_CHUNKS = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
_MAX_SCANS = 100
"""libtiff and GDAL read as many; encoders write about ten."""
_MAX_SCANNED_PIXELS = 12 * 178_956_970
"""All scans of the largest progressive image that is read: seconds of a core."""
_MAX_SEGMENTS = 4096
"""Segments before a JPEG's pixels at most: 256 MB of metadata. Pillow joins EXIF in quadratic time,
and skips what lies between segments byte by byte."""
_BARE = frozenset((0x00, 0x01, *range(0xD0, 0xD9)))
"""Markers of a JPEG without a segment: decoders pass over them."""
_MAX_VALUES = 2**20
"""Values in a tag of a TIFF at most: strips of one row of each band, in the tallest image."""
_BYTE_TYPES = (1, 2, 6, 7)


class TooCostly(ValueError):
    """A file is built to keep a decoder busy."""


def format_of(content: bytes) -> str | None:
    """Return the format that the first bytes of a file show, ``"HEIF"`` included; else None."""
    for start, name in _STARTS.items():
        if content.startswith(start):
            return name
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        size = min(int.from_bytes(content[:4], "big"), 256)
        brands = [content[at : at + 4] for at in (8, *range(16, size, 4))]
        for name, known in (("AVIF", _AVIF_BRANDS), ("HEIF", _HEIF_BRANDS)):
            if any(brand in known for brand in brands):
                return name
    return None


def check_cost(content: bytes, kind: str) -> None:
    """Refuse tables that are far longer than any image has; before anything is opened."""
    if kind == "TIFF":
        _check_tags(content)
    elif kind == "JPEG":
        _first_scan(content)


def check_scans(content: bytes, num_pixels: int) -> None:
    """Refuse a JPEG whose scans would take long to decode.

    Each scan of a progressive JPEG goes over all pixels, and one that changes nothing takes a few
    bytes.
    """
    start, is_single = _first_scan(content)
    if is_single:  # the decoder stops behind it
        return
    allowed = min(_MAX_SCANS, max(1, _MAX_SCANNED_PIXELS // num_pixels))
    data = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if 1 + np.count_nonzero((data[:-1] == 0xFF) & (data[1:] == 0xDA)) <= allowed:
        return
    num_scans = _count_scans(content, start)
    if num_scans > allowed:
        raise TooCostly(
            f"{num_scans} scans of {num_pixels} pixels are more than the {allowed} allowed"
        )


def without_metadata(content: bytes, kind: str | None) -> bytes | None:
    """Return a PNG or JPEG with nothing but what decides its pixels, None where that is all.

    The orientation stays, in EXIF that is whole. An animation keeps its first frame.
    """
    if kind == "PNG":
        plain = _plain_png(content)
    elif kind == "JPEG":
        plain = content[:2] + b"".join(
            content[start:end]
            for marker, start, end in _segments(content)
            if not (0xE2 <= marker <= 0xED or marker in (0xEF, 0xFE))
        )
    else:
        return None
    return plain if len(plain) < len(content) else None


def check_png(content: bytes) -> None:
    """Check what Pillow does not: sums over compressed pixels, and chunks that change them."""
    for name, start, end in _chunks(content):
        if name == b"IDAT" and not _is_whole(content, start, end):
            raise ValueError("wrong checksum in IDAT")
        if name[:1].isupper() and name not in _PIXEL_CHUNKS:
            raise ValueError(f"unknown chunk {name.decode('ascii', 'backslashreplace')}")


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each whole chunk of a PNG."""
    at = 8
    while at + 12 <= len(content):
        length, name = _CHUNK.unpack_from(content, at)
        end = at + 12 + length
        if end > len(content):
            return
        yield name, at, end
        if name == b"IEND":
            return
        at = end


def _is_whole(content: bytes, start: int, end: int) -> bool:
    stored = content[end - 4 : end]
    return zlib.crc32(memoryview(content)[start + 4 : end - 4]).to_bytes(4, "big") == stored


def _plain_png(content: bytes) -> bytes:
    parts, last = [content[:8]], 8
    for name, start, end in _chunks(content):
        last = end
        is_kept = name[:1].isupper() or name == b"tRNS"
        if is_kept or (name == b"eXIf" and _is_whole(content, start, end)):
            parts.append(content[start:end])
    if content[last:][4:8] == b"IDAT":  # cut short: it may still hold all pixels
        parts.append(content[last:])
    return b"".join(parts)


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment of a JPEG; the first scan has all the rest."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        marker = content[at + 1] if at + 4 <= len(content) and content[at] == 0xFF else 0xDA
        if marker in (0xD9, 0xDA):
            break
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        yield marker, at, end
        at = end
    else:
        raise TooCostly(f"more than {_MAX_SEGMENTS} segments or fill bytes before the pixels")
    yield 0xDA, at, len(content)


def _first_scan(content: bytes) -> tuple[int, bool]:
    """Return where the first scan of a JPEG starts, and whether it is the only one that counts."""
    num_components, is_progressive, start = 0, True, 2
    for marker, at, _ in _segments(content):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            is_progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE)
            num_components = content[at + 9] if at + 9 < len(content) else 0
        start = at
    scanned = content[start + 4] if start + 4 < len(content) else 0
    return start + 2, not is_progressive and num_components == scanned > 0


def _count_scans(content: bytes, start: int) -> int:
    """Return the number of scans up to the end of the image; other data may come behind it."""
    count, at = 1, start
    while (at := content.find(b"\xff", at)) >= 0 and at + 4 <= len(content):
        marker = content[at + 1]
        if marker == 0xD9:
            break
        if marker == 0xFF or marker in _BARE:
            at += 1 if marker == 0xFF else 2
            continue
        count += marker == 0xDA
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return count


def _check_tags(content: bytes) -> None:
    order = "<" if content[:1] == b"I" else ">"
    is_big = content[2:4] in (b"+\0", b"\0+")
    entry = struct.Struct(order + ("HHQ8x" if is_big else "HHI4x"))
    counter = struct.Struct(order + ("Q" if is_big else "H"))
    try:
        (at,) = struct.unpack_from(order + ("Q" if is_big else "I"), content, 8 if is_big else 4)
        (num_tags,) = counter.unpack_from(content, at)
        for number in range(min(num_tags, 2**16)):
            tag, kind, count = entry.unpack_from(content, at + counter.size + number * entry.size)
            if count > _MAX_VALUES and kind not in _BYTE_TYPES:
                raise TooCostly(f"{count} values in tag {tag} are more than any image has")
    except (struct.error, OverflowError):  # cut short, which the decoder says
        return
