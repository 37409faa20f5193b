"""Graphs of backbones, kept in the user's cache folder: built once, run without torch.

``$XDG_CACHE_HOME/featx`` (``~/.cache/featx``) holds two folders:

- ``graphs``: ONNX files named by the spec's fingerprint, the opset, and the versions that shape a
  graph. The last metadata entry of each is a code that only this user can make, so a file is whole,
  of this very spec, and this user's, or not used.
- ``requests``: which spec a request came to, so that the same one need not be worked out again.

The bundled backbone comes with both. Everything here can be deleted at any time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from featx.artifact import canonical_json, fingerprint_of
from featx.backbones.onnx_parts import NotOnnx, unwanted_parts
from featx.backbones.seal import is_sealed, metadata_entry, seal
from featx.backbones.spec import BackboneRequest, BackboneSpec
from featx.backbones.user_cache import CODE_CHARS, cache_folder, code_of, keep, read_kept
from featx.errors import BackboneError, ConfigError

log = logging.getLogger(__name__)

OPSET = 20
BUNDLED = Path(__file__).with_name("bundled")
BUILD = 4
"""How a graph is built from a network; another number where the same network gives another."""
_SHAPED_BY = ("featx", "torch", "torchvision", "onnxscript")
_SPEC_FROM = ("featx", "torch", "torchvision")
_SEAL_KEY = "featx.sha256"
"""Of graphs that come with featx."""
_CODE_KEY = "featx.hmac"
"""Of graphs in the user's cache folder."""


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
    """Return the graph of a backbone, None where none is kept that can be trusted.

    A graph is trusted that came with featx, or that this user's featx kept for this very spec, and
    so for the weights whose sha256 is in it.
    """
    path = bundled_graph_path(spec, opset=opset)
    if path.is_file():
        content = path.read_bytes()
        if is_sealed(content, key=_SEAL_KEY):
            return content
        log.warning("The graph '%s' is damaged; it is made again.", path)
    path = graph_path(spec, opset=opset)
    kept = read_kept(path)
    if kept is None:
        return None
    if problem := _graph_problem(path, kept):
        log.warning("The kept graph '%s' is not used and made again: it %s.", path, problem)
        return None
    return kept


def _graph_problem(path: Path, content: bytes) -> str | None:
    """Return why a kept graph is not used, None where it is as this user's featx kept it."""
    length = len(metadata_entry(_CODE_KEY, "0" * CODE_CHARS))
    code = code_of(path, memoryview(content)[:-length])
    if code is None or content[-length:] != metadata_entry(_CODE_KEY, code):
        return "is damaged, or was not made by this user's featx"
    try:
        unwanted = unwanted_parts(content)
    except NotOnnx as err:
        return f"is no ONNX model ({err})"
    return f"has {', '.join(unwanted)}" if unwanted else None


def keep_graph(spec: BackboneSpec, graph: bytes, *, opset: int = OPSET) -> None:
    """Keep the graph of a backbone, if the folder can be written."""
    path = graph_path(spec, opset=opset)
    if code := code_of(path, graph):
        keep(path, graph + metadata_entry(_CODE_KEY, code))


def sealed(graph: bytes) -> bytes:
    """Return a serialised graph as it comes with featx."""
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
    for content, is_bundled in (
        (_bundled_request(request), True),
        (_kept_request(request), False),
    ):
        try:
            values = json.loads(content)
            environment = _versions() if is_bundled else values["environment"]
            found = Found(BackboneSpec.from_dict(values["spec"]), values["origin"])
            fresh = values["checksum"] == _checksum(values) and request.comes_to(
                found.spec.weights_sha256,
                request=values["request"],
                origin=found.origin,
                environment=environment,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        except (BackboneError, ConfigError):
            continue
        if fresh:
            return found
    return None


def remember(request: BackboneRequest, found: Found) -> None:
    """Keep what a request came to, if the folder can be written."""
    path, content = _request_path(request), remembered(request, found)
    if code := code_of(path, content):
        keep(path, content + code.encode())


def _kept_request(request: BackboneRequest) -> bytes:
    """Return what is kept of a request, without its code; empty where nothing can be trusted."""
    path = _request_path(request)
    kept = read_kept(path) or b""
    content, code = kept[:-CODE_CHARS], kept[-CODE_CHARS:]
    return content if kept and code == (code_of(path, content) or "").encode() else b""


def _bundled_request(request: BackboneRequest) -> bytes:
    try:
        return bundled_request_path(request).read_bytes()
    except OSError:
        return b""


def _request_path(request: BackboneRequest) -> Path:
    return cache_folder() / "requests" / _request_name(request)


def remembered(request: BackboneRequest, found: Found) -> bytes:
    """Return the content of a file that ``recall`` reads."""
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
