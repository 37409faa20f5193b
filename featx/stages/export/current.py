"""Whether the model at an output is the one that an export would write again."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from featx.artifact import Header, describe_environment, fingerprint_of
from featx.classifier.contract import output_names
from featx.classifier.seal import read_sealed_header
from featx.classifier.staleness import find_features
from featx.errors import ArtifactError
from featx.features.file import open_features
from featx.heads.head import Head, describe_head
from featx.stages.export.options import ExportOptions

_NOT_OF_THE_FILE = ("card", "overwrite")


def made_from(head: Head, options: ExportOptions) -> dict[str, Any]:
    """Return what decides an exported file, by sha256: its head, and the options."""
    chosen = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(options).items()
        if name not in _NOT_OF_THE_FILE
    } | {"outputs": output_names(options.outputs)}
    return {
        "head": head.sha256,
        "options": fingerprint_of(chosen | {"date": os.environ.get("SOURCE_DATE_EPOCH")}),
        "featx": describe_environment()["featx"],
    }


def open_earlier(output: Path) -> Header | None:
    """Return the header of the model at an output; None where it is damaged."""
    try:
        return read_sealed_header(output)
    except ArtifactError:
        return None


def describe_earlier(header: Header | None) -> str:
    """Return a model that is replaced in a few words."""
    if header is None:
        return "a model that cannot be read"
    return describe_head(header.details.get("head", {}), header.details.get("metrics", {}))


def is_current(header: Header, head: Head, head_path: Path, options: ExportOptions) -> bool:
    """Return whether a model was exported from this head with these options.

    Where the features have changed since the head was trained, it is looked at anew.
    """
    if header.details.get("made_from") != made_from(head, options):
        return False
    path = find_features(head, head_path, options.features)
    try:
        features = open_features(path, verify=False)
    except ArtifactError:
        return not path.exists()  # moved away since the proof
    trained_on = head.header.details.get("made_from", {}).get("features")
    return bool(features.inputs_sha256 == trained_on)
