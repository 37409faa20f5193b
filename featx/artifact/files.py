"""Artifacts as inputs: which of the three a file is, before it is read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from featx.artifact.header import Kind
from featx.artifact.outputs import partial_path
from featx.errors import (
    ArtifactError,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMissing,
)

JOURNAL_MAGIC = b"fxj1"
"""What a journal starts with."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, *, made_by: str) -> None:
    """Check that an input is a regular file.

    Raises:
        ArtifactMissing: Nothing is there; the message names the command that makes it.
        ArtifactInvalid: It is a folder or a special file.
        ArtifactError: Its path cannot be looked up.
    """
    try:
        there = path.exists()
    except OSError as err:
        raise ArtifactError(path, f"Cannot open '{path}': {err.strerror}.") from err
    if not there:
        raise ArtifactMissing(path, f"'{path}' does not exist. Make it with '{made_by}'.")
    if not path.is_file():
        raise ArtifactInvalid(path, f"'{path}' is not a file.")


def is_unfinished(output: Path) -> bool:
    """Return whether only the journal of an extraction is there, and not its output."""
    # os.path answers where pathlib raises: for names that cannot be.
    return not os.path.exists(output) and os.path.isfile(partial_path(output))  # noqa: PTH110, PTH113


def kind_of_file(path: Path) -> Kind:
    """Return which of the three a file seems to be, by its first bytes, or is going to be.

    Raises:
        ArtifactMissing: Nothing is there.
        ArtifactInvalid: It is a folder or special file.
        ArtifactIncomplete: It is the journal of an extraction that has not finished.
        ArtifactError: It cannot be read.
    """
    if is_unfinished(path):
        return "features"
    require_file(path, made_by="featx extract, train-head or export")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as err:
        raise ArtifactError(path, f"Cannot read '{path}': {err.strerror}.") from err
    if start.startswith(JOURNAL_MAGIC):
        raise ArtifactIncomplete(
            path, f"'{path}' is the journal of an extraction; run featx extract again to finish it."
        )
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "features"
    return "head" if start[8:9] == b"{" else "classifier"
