"""Models of Hugging Face's hub: ``hf:USER/NAME[/FILE.onnx][@REVISION][#SEAL]`` in place of a path.

Only the ONNX file is fetched, to the cache of ``huggingface_hub``, and is opened as any other file
is. A revision is a branch, a tag or a commit; a commit that the cache has is not asked for again.
"""

from __future__ import annotations

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from featx.artifact.hub import (
    TIMEOUT_S,
    Unreachable,
    accept_terms,
    asking,
    bar_of,
    cache_folder,
    is_offline,
    load_hub,
)
from featx.backbones.seal import SEAL_BYTES, is_sealed
from featx.errors import ArtifactError, ArtifactInvalid, ArtifactMissing, FeatxError, listed

log = logging.getLogger(__name__)

MAX_BYTES = 2**31
"""Bytes that an ONNX file can have."""
SCHEME, MODEL_NAME = "hf:", "model.onnx"
_ADDRESS = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@#]+\.onnx))?(?:@(?P<revision>[^@#]+))?"
    r"(?:#(?P<seal>[0-9a-f]{8,64}))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class _Wanted(NamedTuple):
    address: str
    repo: str
    file: str
    revision: str
    seal: str


def is_on_hub(model: str | Path) -> bool:
    """Return whether a model is named by its place on the hub.

    >>> is_on_hub("hf:me/bees"), is_on_hub("artifacts/model.onnx")
    (True, False)
    """
    return Path(model).as_posix().startswith(SCHEME)


def model_name(model: str | Path) -> str:
    """Return what a model is called: its file without the suffix, or its name on the hub.

    >>> model_name("artifacts/model.onnx"), model_name("hf:me/bees@v1.0")
    ('model', 'bees')
    """
    found = _ADDRESS.fullmatch(Path(model).as_posix())
    return found["repo"].partition("/")[2] if found else Path(model).stem


def local_model(model: str | Path) -> Path:
    """Return the path of a model file; one of the hub is fetched first.

    Commit and seal of a fetched file are logged: ``hf:USER/NAME@COMMIT#SEAL`` is that very file.

    Args:
        model: A path, or ``hf:USER/NAME[/FILE.onnx][@REVISION][#SEAL]``; without FILE
            ``model.onnx``, without REVISION ``main``. SEAL is the start of the seal's digest.

    Raises:
        ArtifactMissing: The hub has no such repository, revision or file; or offline, the cache.
        ArtifactInvalid: The file is larger than an ONNX file can be, or has another seal.
        ArtifactError: Access is refused, or there is no network; huggingface_hub is not installed.
    """
    if not is_on_hub(model):
        return Path(model)
    address = Path(model).as_posix()
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise ArtifactError(
            model, f"'{address}' is not a model: expected hf:USER/NAME[@REVISION], like hf:me/bees."
        )
    parts = found.groupdict(default="")
    wanted = _Wanted(
        address,
        parts["repo"],
        parts["file"] or MODEL_NAME,
        parts["revision"] or "main",
        parts["seal"],
    )
    hub = load_hub(address, "hub", partial(ArtifactError, model))
    path = _fetch(hub, wanted)
    own_name = "" if wanted.file == MODEL_NAME else f"/{wanted.file}"
    exact = f"hf:{wanted.repo}{own_name}@{_commit_of(wanted, path)}"
    log.info("'%s' is %s#%s.", address, exact, _require_seal(wanted, path)[:16])
    return path


def _fetch(hub: Any, wanted: _Wanted) -> Path:
    """Return the file's place in the cache, after asking the hub where it has to be asked."""
    cached = _cached(wanted)
    if cached is not None and (_COMMIT.fullmatch(wanted.revision) or is_offline()):
        return cached
    try:
        if is_offline():
            raise Unreachable("HF_HUB_OFFLINE is set")
        return _download(hub, wanted)
    except Unreachable as err:
        if cached is None:
            raise _not_here(wanted, str(err)) from err
        log.info("'%s': %s; read from the cache.", wanted.address, err)
        return cached


def _folder(wanted: _Wanted) -> Path:
    return Path(cache_folder()) / f"models--{wanted.repo.replace('/', '--')}"


def _cached(wanted: _Wanted) -> Path | None:
    """Return the file of a revision as the cache knows it, None where it has none.

    It is looked up here: a copied cache may have line breaks in its names of commits.
    """
    folder, commit = _folder(wanted), wanted.revision
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / wanted.revision).read_text().strip()
        except (OSError, ValueError):
            return None
    path = folder / "snapshots" / commit / wanted.file
    if path.is_symlink() and not path.exists() and is_offline():
        raise ArtifactMissing(
            path,
            f"'{path}' is a link to '{path.readlink()}', which is missing in the cache. Copy all "
            f"of '{folder}', or go online.",
        )
    return path if path.is_file() else None


def _download(hub: Any, wanted: _Wanted) -> Path:
    remedy = accept_terms(f"https://huggingface.co/{wanted.repo}")
    missing = partial(ArtifactMissing, wanted.address)
    ask = partial(asking, hub, wanted.address, "model", remedy=remedy, revision=wanted.revision)
    with ask(error=_refused(wanted)):
        info = hub.HfApi().model_info(
            wanted.repo, revision=wanted.revision, files_metadata=True, timeout=TIMEOUT_S
        )
    sizes = {each.rfilename: each.size for each in info.siblings or ()}
    if wanted.file not in sizes:
        others = [name for name in sizes if name.lower().endswith(".onnx")]
        first = f"; for one of them, give hf:{wanted.repo}/{others[0]}" if others else ""
        raise missing(
            f"'{wanted.address}' has no '{wanted.file}'. Its ONNX files: "
            f"{listed(others, 5) or 'none'}{first}."
        )
    limit = min(sizes[wanted.file] or MAX_BYTES, MAX_BYTES)
    _require_size(wanted, sizes[wanted.file] or 0, limit)
    bar = bar_of(lambda done, _: _require_size(wanted, done, limit))
    with ask(error=_refused(wanted)):
        found = hub.hf_hub_download(
            wanted.repo, wanted.file, revision=wanted.revision, tqdm_class=bar
        )
    return Path(found)


def _refused(wanted: _Wanted) -> Any:
    """Return what makes an error of a text: nothing is there, or something else."""

    def error(text: str) -> FeatxError:
        is_missing = "does not exist" in text or "has no revision" in text
        return (ArtifactMissing if is_missing else ArtifactError)(wanted.address, text)

    return error


def _require_size(wanted: _Wanted, size: int, limit: int) -> None:
    if size > limit:
        raise ArtifactInvalid(
            wanted.address,
            f"'{wanted.address}': '{wanted.file}' is larger than "
            f"{'an ONNX file can be (2 GiB)' if limit == MAX_BYTES else 'the hub says'}.",
        )


def _not_here(wanted: _Wanted, why: str) -> ArtifactMissing:
    """Return the error where neither the hub nor the cache has the file; it names those there."""
    there = sorted((_folder(wanted) / "snapshots").glob(f"*/{wanted.file}"))
    commits = [path.relative_to(_folder(wanted) / "snapshots").parts[0] for path in there]
    other = f" of '{wanted.revision}'; it has hf:{wanted.repo}@{commits[0]}" if commits else ""
    return ArtifactMissing(
        wanted.address,
        f"'{wanted.address}' cannot be fetched: {why}, and '{wanted.file}' is not in the cache "
        f"'{cache_folder()}'{other}.",
    )


def _commit_of(wanted: _Wanted, path: Path) -> str:
    return path.relative_to(_folder(wanted) / "snapshots").parts[0]


def _require_seal(wanted: _Wanted, path: Path) -> str:
    """Return the digest of the file's seal, whole or broken; the one that is wanted."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_BYTES))
        digest = file.read(SEAL_BYTES)[-64:].decode("ascii", "replace")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        digest = "no seal"
    if wanted.seal and not (digest.startswith(wanted.seal) and is_sealed(path.read_bytes())):
        raise ArtifactInvalid(
            path,
            f"'{wanted.address}' is another file: its seal is {digest[:16]}, "
            f"not {wanted.seal[:16]}. What it was before has its own commit on the hub.",
        )
    return digest
