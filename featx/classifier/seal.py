"""The sealed header of a classifier file, read from its bytes without ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from featx.artifact import Header, require_file
from featx.backbones.seal import NotOnnx, is_sealed, read_entry, seal
from featx.errors import ArtifactInvalid

__all__ = ["HEADER_KEY", "read_sealed_header", "seal"]

HEADER_KEY = "featx"
"""The metadata entry that holds the header."""


def read_sealed_header(path: Path) -> Header:
    """Return the header of an exported file whose bytes are as they were written.

    The graph is not looked at: ``open_classifier`` does that, and takes longer.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not an exported file, or was altered.
    """
    require_file(path, made_by="featx export")
    try:
        content = path.read_bytes()
        text = read_entry(content, HEADER_KEY) if is_sealed(content) else None
    except (OSError, NotOnnx) as err:
        raise ArtifactInvalid(path, f"'{path}' is not a readable ONNX model ({err}).") from err
    if text is None:
        raise ArtifactInvalid(path, f"'{path}' is not an exported model, or was altered later.")
    return Header.from_json(text, path=path, kind="classifier")
