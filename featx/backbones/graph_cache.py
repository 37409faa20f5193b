"""Graphs of backbones, and what requests resolved to, in the user's cache folder.

Each file ends in a code that only this user can make: it is whole, of this very spec, and this
user's, or not used. The bundled backbone comes with both. All of it can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featx import system
from featx.artifact import canonical_json, fingerprint_of, publishing
from featx.backbones.seal import NotOnnx, is_sealed, metadata_entry, seal, unwanted_parts
from featx.backbones.spec import BackboneRequest, BackboneSpec, spec_from
from featx.errors import ArtifactError, ArtifactExists, BackboneError, ConfigError
from featx.packages import installed

log = logging.getLogger(__name__)

OPSET = 20
BUNDLED = Path(__file__).with_name("bundled")
BUILD = 4
"""How a graph is built from a network; another number where the same network gives another."""
_SEAL_KEY = "featx.sha256"
"""Metadata key of graphs that come with featx."""
_CODE_KEY = "featx.hmac"
"""Metadata key of graphs in the user's cache folder."""
_CODE_CHARS = 64
_KEY_BYTES = 32
_OTHERS_WRITE = 0o022
_OTHERS_READ = 0o077


def _graph_fingerprint(spec: BackboneSpec) -> str:
    """Return the fingerprint of a graph, which is the same for both ways to decode."""
    return replace(spec, preprocess=replace(spec.preprocess, decode="full")).fingerprint


def graph_path(spec: BackboneSpec, *, opset: int = OPSET) -> Path:
    """Return where a graph is cached; where torch is not here to make it, one of any torch."""
    here = [installed(name) for name in (*spec_from(spec.backbone), "onnxscript")]

    def name(other: str) -> str:
        versions = "-".join(version or other for version in here)
        return f"{_graph_fingerprint(spec)}-{opset}-{versions}-{BUILD}.onnx"

    folder = cache_folder() / "graphs"
    found = sorted(folder.glob(name("*"))) if None in here else []
    return found[-1] if found else folder / name("none")


def bundled_graph_path(spec: BackboneSpec, *, opset: int = OPSET) -> Path:
    return BUNDLED / f"{spec.backbone}-{_graph_fingerprint(spec)[:16]}-{opset}.onnx"


def bundled_request_path(request: BackboneRequest) -> Path:
    return BUNDLED / f"{request.backbone}-{_request_name(request)}"


def read_graph(spec: BackboneSpec, *, opset: int = OPSET) -> bytes | None:
    """Return the graph of a backbone, None where there is none that can be trusted.

    A graph is trusted that came with featx, or that this user's featx cached for this very spec,
    and so for the weights whose sha256 is in it.
    """
    path = bundled_graph_path(spec, opset=opset)
    if path.is_file():
        content = path.read_bytes()
        if is_sealed(content, key=_SEAL_KEY):
            return content
        log.warning("The graph '%s' is damaged; it is made again.", path)
    path = graph_path(spec, opset=opset)
    cached = read_cached(path)
    if cached is not None and (problem := _graph_problem(path, cached)):
        log.warning("The cached graph '%s' is not used and made again: it %s.", path, problem)
        return None
    return cached


def _graph_problem(path: Path, content: bytes) -> str | None:
    """Return why a cached graph is not used, None where this user's featx wrote it so."""
    length = len(metadata_entry(_CODE_KEY, "0" * _CODE_CHARS))
    code = code_of(path, memoryview(content)[:-length])
    if code is None or content[-length:] != metadata_entry(_CODE_KEY, code):
        return "is damaged, or was not made by this user's featx"
    try:
        unwanted = unwanted_parts(content)
    except NotOnnx as err:
        return f"is not an ONNX model ({err})"
    return f"has {', '.join(unwanted)}" if unwanted else None


def cache_graph(spec: BackboneSpec, graph: bytes, *, opset: int = OPSET) -> None:
    """Write the graph of a backbone to the cache, if the folder can be written."""
    path = graph_path(spec, opset=opset)
    if code := code_of(path, graph):
        write_cached(path, graph + metadata_entry(_CODE_KEY, code))


def sealed(graph: bytes) -> bytes:
    """Seal a serialised graph that comes with featx."""
    return seal(graph, key=_SEAL_KEY)


@dataclass(frozen=True)
class ResolvedRequest:
    """A spec, and where its weights are from."""

    spec: BackboneSpec
    origin: str


def recall(request: BackboneRequest) -> ResolvedRequest | None:
    """Return the spec that a request resolved to before; None where unknown or perhaps outdated."""
    for is_bundled, content in (
        (True, _bundled_request(request)),
        (False, _cached_request(request)),
    ):
        with contextlib.suppress(
            *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
            *(BackboneError, ConfigError),
        ):
            values = json.loads(content)
            found = ResolvedRequest(BackboneSpec.from_dict(values["spec"]), values["origin"])
            if values["checksum"] == _checksum(values) and request.resolves_to(
                found.spec.weights_sha256,
                request=values["request"],
                origin=found.origin,
                environment=_versions(request.backbone) if is_bundled else values["environment"],
            ):
                return found
    return None


def remember(request: BackboneRequest, found: ResolvedRequest) -> None:
    """Write what a request resolved to, if the folder can be written."""
    path, content = _request_path(request), remembered(request, found)
    if code := code_of(path, content):
        write_cached(path, content + code.encode())


def _cached_request(request: BackboneRequest) -> bytes:
    """Return a cached request without its code; empty where none can be trusted."""
    path = _request_path(request)
    cached = read_cached(path) or b""
    content, code = cached[:-_CODE_CHARS], cached[-_CODE_CHARS:]
    return content if cached and code == (code_of(path, content) or "").encode() else b""


def _bundled_request(request: BackboneRequest) -> bytes:
    try:
        return bundled_request_path(request).read_bytes()
    except OSError:
        return b""


def _request_path(request: BackboneRequest) -> Path:
    return cache_folder() / "requests" / _request_name(request)


def remembered(request: BackboneRequest, found: ResolvedRequest) -> bytes:
    """Return the content of a file that ``recall`` reads."""
    values = {
        "request": request.to_dict(),
        "spec": found.spec.to_dict(),
        "origin": found.origin,
        "environment": _versions(request.backbone),
    }
    return canonical_json(values | {"checksum": _checksum(values)}).encode()


def _request_name(request: BackboneRequest) -> str:
    return f"{fingerprint_of(request.to_dict())}.json"


def _versions(backbone: str) -> dict[str, str]:
    found = {name: installed(name) for name in spec_from(backbone)}
    return {name: version for name, version in found.items() if version}


def _checksum(values: Mapping[str, Any]) -> str:
    return fingerprint_of({name: value for name, value in values.items() if name != "checksum"})


# Files in the user's cache folder, which nobody else can have written


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            base = Path(tempfile.gettempdir()) / f"featx-{system.user_id()}"
    return base / "featx"


def own_folder(name: str) -> Path | None:
    """Return a folder in the cache, made where it is missing; None where it is not the user's."""
    try:
        for folder in (cache_folder(), cache_folder() / name):
            _make_private(folder)
    except OSError as err:
        log.info("Nothing is cached for the next run. %s", err)
        return None
    return cache_folder() / name


def read_cached(path: Path) -> bytes | None:
    """Return the content of a cached file; None where others may have written it."""
    content, problem = _read(path, _OTHERS_WRITE)
    if problem:
        log.warning("'%s' is not used and made again: %s.", path, problem)
    return content


def write_cached(path: Path, content: bytes) -> None:
    """Write a file for the next run, if the folder can be written."""
    try:
        for folder in (cache_folder(), path.parent):
            _make_private(folder)
        _publish(path, content)
    except (OSError, ArtifactError) as err:
        log.info("Nothing is cached for the next run. %s", err)


def code_of(path: Path, content: bytes | memoryview) -> str | None:
    """Return the code of a file that keeps ``content``, 64 hexadecimal digits; None without a key.

    It takes the user's key, which is created where it is missing.
    """
    key = _key()
    if key is None:
        return None
    code = hmac.new(key, path.name.encode() + b"\0", hashlib.sha256)
    code.update(content)
    return code.hexdigest()


def _key() -> bytes | None:
    path = cache_folder() / "key"
    content, _ = _read(path, _OTHERS_READ)
    if content is not None and len(content) == _KEY_BYTES:
        return content
    try:
        _make_private(cache_folder())
        with contextlib.suppress(ArtifactExists):  # another process was first
            _publish(path, secrets.token_bytes(_KEY_BYTES))
    except (OSError, ArtifactError) as err:
        log.info("Nothing is cached for the next run. %s", err)
    content, _ = _read(path, _OTHERS_READ)
    return content if content is not None and len(content) == _KEY_BYTES else None


def _read(path: Path, forbidden: int) -> tuple[bytes | None, str]:
    """Return a file's content, or why it cannot be trusted; neither where it is missing."""
    try:
        for folder in {cache_folder(), path.parent}:
            status = folder.lstat()
            if problem := _problem(status, _OTHERS_WRITE, is_folder=True):
                return None, f"its folder '{folder}' {problem}"
        descriptor = os.open(path, os.O_RDONLY | system.NO_LINK | system.NO_WAIT)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except OSError as err:
        return None, f"it cannot be opened ({err.strerror})"
    try:
        if problem := _problem(os.fstat(descriptor), forbidden, is_folder=False):
            return None, f"it {problem}"
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(), ""
    except OSError as err:
        return None, f"it cannot be read ({err.strerror})"
    finally:
        os.close(descriptor)


def _problem(status: os.stat_result, forbidden: int, *, is_folder: bool) -> str:
    """Return why something in the cache may be another's; empty where it is the user's own."""
    if stat.S_ISLNK(status.st_mode):
        return "is a link"
    is_kind = stat.S_ISDIR if is_folder else stat.S_ISREG
    if not is_kind(status.st_mode):
        return f"is no {'folder' if is_folder else 'file'}"
    if system.user_id() is None:  # Windows: the user's folder is the user's
        return ""
    if status.st_uid != system.user_id():
        return "belongs to another user"
    return "can be written by other users" if status.st_mode & forbidden else ""


def _make_private(folder: Path) -> None:
    """Make a folder that only the user can write; take that right from others where it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if problem := _problem(status, 0, is_folder=True):
        raise OSError(f"'{folder}' {problem}.")
    if status.st_mode & _OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~_OTHERS_WRITE)


def _publish(path: Path, content: bytes) -> None:
    """Write a file for the user alone, in the place of whatever has its name."""
    old, _ = _read(path, _OTHERS_READ)
    if old is None:  # none, or one whose mode and links are not kept
        path.unlink(missing_ok=True)
    with publishing(path, overwrite=old is not None) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
