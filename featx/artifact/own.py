"""Files that featx wrote, recognised by their bytes, whole or damaged; no other is replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from featx.artifact.files import partial_path, require_writable
from featx.artifact.paths import target_of
from featx.errors import ArtifactExists

Written = Literal["features", "head", "classifier", "page", "card"]
"""What a stage writes."""

PAGE_SIGN = '<meta name="generator" content="featx'
CARD_SIGN = "<!-- Written by featx"
_START_BYTES = 2**16
_NAMES: dict[Written, str] = {
    "features": "a feature file",
    "head": "a head",
    "classifier": "a model",
    "page": "a report",
    "card": "a model card",
}
_SIGNS: dict[Written, Callable[[bytes], bool]] = {
    "features": lambda start: (
        start.startswith(b"\x89HDF\r\n\x1a\n")
        and all(name in start for name in (b"sample_ids", b"digests", b"stamps", b"splits"))
    ),
    "head": lambda start: start[8:].startswith(b'{"__metadata__":{"featx":'),
    "classifier": lambda start: b"\x12\x05featx" in start[:64],  # the producer of the model
    "page": lambda start: PAGE_SIGN.encode() in start[:1024],
    "card": lambda start: start.startswith(CARD_SIGN.encode()),
}


def is_own(path: Path, kind: Written) -> bool:
    """Return whether featx wrote a file as an output of this kind; damage further on is ignored."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _SIGNS[kind](file.read(_START_BYTES))
    except OSError:
        return False


def require_replaceable(path: Path, kind: Written) -> bool:
    """Check, before any work is done, that an output may be written; make its folder.

    Returns:
        Whether a file of this kind lies there, to be replaced.

    Raises:
        ArtifactExists: Something else lies there.
        ArtifactError: The path is a folder or special file, or its folder cannot be made or
            written.
    """
    require_writable(path, overwrite=True)
    if not os.path.lexists(target_of(path)):
        return False
    if not is_own(path, kind):
        raise ArtifactExists(
            path,
            f"'{path}' exists and is not {_NAMES[kind]} that featx wrote; it is left as it is. "
            f"Move it, or give another path, such as '{free_path(path)}'.",
        )
    return True


def free_path(path: Path, *parts: str) -> Path:
    """Return a name that nothing has yet, beside an output.

    Args:
        path: The output; ``features.h5`` with the part ``resnet50`` becomes
            ``features-resnet50.h5``.
        parts: What tells the new file from it; a number follows where that is not enough.
    """
    words = [re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts]
    stem = "-".join([path.stem, *filter(None, words)])[:100]
    names = [stem] if stem != path.stem else []
    names += [f"{stem}-{number}" for number in range(2, 1000)]
    candidates = (path.with_name(f"{name}{path.suffix}") for name in names)
    return next(free for free in candidates if not _is_taken(free))


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path) or os.path.lexists(partial_path(path))
