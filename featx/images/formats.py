"""Image files by name: which extensions are images, and which are pictures that cannot be read."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    }
)
"""Of files that are always read; ``image_extensions`` adds what optional decoders read."""
_AVIF = frozenset({".avif", ".avifs"})
_HEIF = frozenset({".heic", ".heif", ".hif", ".heics", ".heifs"})
_OTHER_PICTURES = frozenset(
    {
        *(".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".jxr", ".wdp", ".jls"),
        *(".psd", ".xcf", ".svg", ".svgz", ".eps", ".ai", ".tga", ".pcx", ".ico", ".icns", ".cur"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".exr", ".hdr", ".dds", ".sgi", ".ras", ".wbmp"),
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
        *(".raf", ".raw", ".pef", ".3fr", ".iiq", ".x3f", ".dcm", ".dicom", ".fits", ".fit"),
        *(".svs", ".ndpi", ".scn", ".mrxs", ".vsi", ".nii"),
    }
)


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of files that can be read here, in lower case, with their dot."""
    avif = _AVIF if find_spec("PIL._avif") else frozenset()
    heif = _HEIF if find_spec("pillow_heif") else frozenset()
    return EXTENSIONS | avif | heif


def is_picture(extension: str) -> bool:
    """Return whether files with an extension are pictures, whether they can be read or not."""
    return extension in EXTENSIONS | _AVIF | _HEIF | _OTHER_PICTURES


def is_heif(extension: str) -> bool:
    """Return whether files with an extension are what ``pillow-heif`` reads."""
    return extension in _HEIF


def extension_of(name: str) -> str:
    """Return a file name's extension in lower case, with its dot; empty where it has none."""
    return os.path.splitext(name)[1].lower()
