"""Graphs of backbones, kept in the user's cache folder: built once, run without torch.

``$XDG_CACHE_HOME/featx`` (``~/.cache/featx``) holds two folders:

- ``graphs``: ONNX files named by the spec's fingerprint, the opset, and the versions that shape a
  graph. The sha256 of each is its last metadata entry, so a file is whole or not used.
- ``requests``: which spec a request came to, so that the same one need not be worked out again.

The bundled backbone comes with both. Everything here can be deleted at any time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from featx.artifact import canonical_json, fingerprint_of, publishing
from featx.backbones.seal import is_sealed, seal
from featx.backbones.spec import BackboneRequest, BackboneSpec
from featx.errors import ArtifactError, BackboneError, ConfigError

log = logging.getLogger(__name__)

OPSET = 20
BUNDLED = Path(__file__).with_name("bundled")
BUILD = 3
"""How a graph is built from a network; another number where the same network gives another."""
_SHAPED_BY = ("featx", "torch", "torchvision", "onnxscript")
_SPEC_FROM = ("featx", "torch", "torchvision")
_SEAL_KEY = "featx.sha256"


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    home = Path(base) if base.startswith("/") else Path("~/.cache").expanduser()
    return home / "featx"


def _graph_fingerprint(spec: BackboneSpec) -> str:
    """Return the fingerprint that a graph is kept by: of both ways to decode, that of one."""
    return replace(spec, preprocess=replace(spec.preprocess, decode="full")).fingerprint


def graph_path(spec: BackboneSpec, *, opset: int = OPSET) -> Path:
    """Return where the graph of a backbone is kept."""
    versions = "-".join(metadata.version(name) for name in _SHAPED_BY)
    return cache_folder() / "graphs" / f"{_graph_fingerprint(spec)}-{opset}-{versions}-{BUILD}.onnx"


def bundled_graph_path(spec: BackboneSpec, *, opset: int = OPSET) -> Path:
    """Return where the graph of a backbone lies that comes with one."""
    return BUNDLED / f"{spec.backbone}-{_graph_fingerprint(spec)[:16]}-{opset}.onnx"


def bundled_request_path(request: BackboneRequest) -> Path:
    """Return where the spec lies that a request for such a backbone came to."""
    return BUNDLED / f"{request.backbone}-{_request_name(request)}"


def read_graph(spec: BackboneSpec, *, opset: int = OPSET) -> bytes | None:
    """Return the graph of a backbone, None where none is kept or the one there is damaged."""
    for path in (bundled_graph_path(spec, opset=opset), graph_path(spec, opset=opset)):
        try:
            content = path.read_bytes()
        except OSError:
            continue
        if is_sealed(content, key=_SEAL_KEY):
            return content
        log.warning("The kept graph '%s' is damaged; it is made again.", path)
    return None


def keep_graph(spec: BackboneSpec, graph: bytes, *, opset: int = OPSET) -> None:
    """Keep the graph of a backbone, if the folder can be written."""
    _write(graph_path(spec, opset=opset), sealed(graph))


def sealed(graph: bytes) -> bytes:
    """Return a serialised graph as it is kept."""
    return seal(graph, key=_SEAL_KEY)


@dataclass(frozen=True)
class Found:
    """What a request came to.

    Attributes:
        spec: The spec.
        origin: Where its weights are from.
    """

    spec: BackboneSpec
    origin: str


def recall(request: BackboneRequest) -> Found | None:
    """Return what a request came to before, None where that is not known or may have changed."""
    kept = cache_folder() / "requests" / _request_name(request)
    for path in (bundled_request_path(request), kept):
        try:
            values = json.loads(path.read_bytes())
            environment = values["environment"] if path is kept else _versions()
            found = Found(BackboneSpec.from_dict(values["spec"]), values["origin"])
            fresh = values["checksum"] == _checksum(values) and request.comes_to(
                found.spec.weights_sha256,
                request=values["request"],
                origin=found.origin,
                environment=environment,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        except (BackboneError, ConfigError):
            continue
        if fresh:
            return found
    return None


def remember(request: BackboneRequest, found: Found) -> None:
    """Keep what a request came to, if the folder can be written."""
    content = remembered(request, found)
    _write(cache_folder() / "requests" / _request_name(request), content)


def remembered(request: BackboneRequest, found: Found) -> bytes:
    """Return the file that ``recall`` reads."""
    values = {
        "request": request.to_dict(),
        "spec": found.spec.to_dict(),
        "origin": found.origin,
        "environment": _versions(),
    }
    return canonical_json(values | {"checksum": _checksum(values)}).encode()


def _request_name(request: BackboneRequest) -> str:
    return f"{fingerprint_of(request.to_dict())}.json"


def _versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in _SPEC_FROM}


def _checksum(values: Mapping[str, Any]) -> str:
    return fingerprint_of({name: value for name, value in values.items() if name != "checksum"})


def _write(path: Path, content: bytes) -> None:
    try:
        with publishing(path, overwrite=True) as temporary:
            temporary.write_bytes(content)
    except ArtifactError as err:
        log.info("Nothing is kept for the next run. %s", err)
