"""Objects of stores: listing, looking up and reading them by fsspec, with retries."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from featx.errors import SourceError, first_line
from featx.images.sources.remote import (
    TIMEOUT_S,
    Entry,
    Gone,
    Part,
    Refused,
    Remote,
    Web,
    retried,
    settled,
)
from featx.packages import install_command, needed

T = TypeVar("T")

_S3 = ("s3", "s3a")
_PAGE_KEYS = 1000


class ObjectStore:
    """A store that fsspec opens; paths have no scheme, and mean what they are, no patterns.

    They begin with a bucket, or with a host, which paths of fsspec do not have.
    """

    def __init__(self, address: str) -> None:
        self.address, (self.scheme, _, path) = address, address.partition("://")
        self.bucket = path.partition("/")[0]
        self._may_have_role = _is_anonymous(self.scheme)
        self._fs = _opened(address, anonymous=self._may_have_role)
        top = str(self._fs._strip_protocol(f"{self.scheme}://{self.bucket}/"))
        self._top = "" if "host" in _parts(type(self._fs), address) else top.strip("/")
        self._switching = threading.Lock()
        self._alone = contextlib.nullcontext() if self._fs.async_impl else threading.Lock()

    def listed(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        """Yield the objects below a prefix, which ends in ``/``."""
        try:
            pages = self._s3_pages if self.scheme in _S3 else self._found
            for path, info in pages(prefix):
                if path.startswith(prefix) and not path.endswith("/"):
                    yield path, _entry_of(info)
        except SourceError:
            raise
        except Exception as err:
            raise SourceError(self._why(err, prefix)) from None

    def _asked(self, work: Callable[[Any], T]) -> T:
        """Return what ``work`` gets from the store; without credentials, anonymously.

        Where that is refused, the role that a machine may have is looked for, once.
        """

        def done(fs: Any) -> T:
            with self._alone:  # FTP, for one, has a connection for all threads
                return work(fs)

        fs = self._fs
        try:
            return retried(lambda: done(fs), _may_pass)
        except PermissionError:
            with self._switching:
                if self._may_have_role:
                    self._may_have_role, other = False, _opened(self.address, anonymous=False)
                    if _finds_credentials(lambda: work(other)):
                        self._fs = other
                if self._fs is fs:
                    raise
        return retried(lambda: done(self._fs), _may_pass)

    def _inside(self, path: str) -> str:
        """Return a path as fsspec has it."""
        return self._top + path.removeprefix(self.bucket)

    def _found(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, info in self._walked(self._inside(prefix).rstrip("/")):
            below = name.lstrip("/").removeprefix(self._top)
            yield f"{self.bucket}{below}" if self._top else f"{self.bucket}/{below}", info

    def _walked(self, top: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the files below a folder, by one request where the store has such.

        The ``find`` of most leaves out folders that cannot be listed, without a word.
        """
        if not _finds_by_walking(self._fs):
            found = self._asked(lambda fs: fs.find(top, detail=True))
            yield from ((name, info) for name, info in found.items() if info["type"] == "file")
            return
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                entries = self._asked(lambda fs: fs.ls(folder, detail=True))  # noqa: B023
            except (FileNotFoundError, NotADirectoryError):
                if folder == top:
                    return
                raise
            for info in entries:
                name = str(info["name"]).rstrip("/")
                if info["type"] == "directory" and name.lstrip("/") != folder.lstrip("/"):
                    waiting.append(name)
                elif info["type"] != "directory":  # also links, which may lead to images
                    yield name, info

    def _s3_pages(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield objects page by page, of which each is tried again by itself."""
        from fsspec.asyn import sync

        bucket, _, start = prefix.partition("/")
        asked = {"Bucket": bucket, "Prefix": start, "MaxKeys": _PAGE_KEYS}

        def page(fs: Any) -> dict[str, Any]:
            found: dict[str, Any] = sync(
                fs.loop, fs._call_s3, "list_objects_v2", **asked, **fs.req_kw
            )
            return found

        while True:
            found = self._asked(page)
            for info in found.get("Contents", ()):
                yield f"{bucket}/{info['Key']}", {**info, "size": info["Size"]}
            if not found.get("IsTruncated"):
                return
            asked["ContinuationToken"] = found["NextContinuationToken"]

    def look_up(self, address: str) -> Entry | None:
        path = self._inside(address.partition("://")[2])
        try:
            return _entry_of(self._asked(lambda fs: fs.info(path)))
        except Exception:
            return None  # reading says what is wrong

    def get(self, address: str, entry: Entry | None, part: Part | None = None) -> bytes:
        path = address.partition("://")[2]
        try:
            return self._asked(lambda fs: self._content(fs, path, entry, part))
        except Gone:
            raise
        except Exception as err:
            if _is_down(err):
                raise SourceError(self._why(err, path)) from None
            if isinstance(err, FileNotFoundError):
                raise Gone("it is not there (any more).") from None
            raise Refused(f"it cannot be read ({first_line(err)}).") from None

    def _content(self, fs: Any, path: str, entry: Entry | None, part: Part | None) -> bytes:
        if self.scheme in _S3:
            from fsspec.asyn import sync

            content, tag = sync(fs.loop, _s3_content, fs, path, part)
        else:
            ends = {"start": part[0], "end": sum(part)} if part else {}
            content, tag = fs.cat_file(self._inside(path), **ends), ""
        if entry and tag and tag != entry.tag:
            raise Gone("it was replaced since it was listed.")
        size = part[1] if part else entry.size if entry else len(content)
        if len(content) != size:
            raise ConnectionError(f"{len(content)} of {size} bytes came")
        return bytes(content)

    def _why(self, err: Exception, prefix: str) -> str:
        name = f"{self.scheme}://{self.bucket}"
        if _is_down(err):
            return f"No connection to the store of '{name}' ({first_line(err)})."
        if isinstance(err, PermissionError) or _lacks_credentials(err):
            return (
                f"No right to list '{self.scheme}://{prefix}'. Give credentials as for other "
                "programs; where the requester pays, set FSSPEC_S3_REQUESTER_PAYS=true."
            )
        if isinstance(err, FileNotFoundError):
            return f"There is no bucket '{name}' (or nothing at all in it)."
        return f"Cannot list '{self.scheme}://{prefix}': {first_line(err)}."


def remote_of(address: str) -> Remote:
    """Return the store that an address is of, or the web."""
    return Web(address) if address.startswith(("http://", "https://")) else ObjectStore(address)


@lru_cache(maxsize=8)
def shared_remote(address: str) -> Remote:
    """Return the store of an address, one for all that this process was sent."""
    return remote_of(address)


async def _s3_content(fs: Any, path: str, part: Part | None) -> tuple[bytes, str]:
    bucket, _, key = path.partition("/")
    asked = {"Bucket": bucket, "Key": key, **fs.req_kw}
    asked |= {"Range": f"bytes={part[0]}-{sum(part) - 1}"} if part else {}
    answer = await fs._call_s3("get_object", **asked)
    async with answer["Body"] as body:
        return await body.read(), answer["ETag"]


def _opened(address: str, *, anonymous: bool) -> Any:
    scheme = _scheme(address)
    try:
        import fsspec
    except ImportError as err:
        why = needed(err, "fsspec", install_command("cloud"))
        raise SourceError(f"{scheme}:// needs {why}") from err
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in _S3:
        limits = {"connect_timeout": 5, "read_timeout": TIMEOUT_S, "retries": {"max_attempts": 1}}
        options |= {"config_kwargs": limits} | ({"anon": True} if anonymous else {})
    elif scheme in ("gs", "gcs") and anonymous:
        options["token"] = "anon"
    try:
        kind = fsspec.get_filesystem_class(scheme)
        return kind(**options, **_parts(kind, address))
    except TypeError as err:
        raise SourceError(
            f"'{scheme}://' needs more than an address says ({first_line(err)}). Set it in "
            "fsspec's configuration."
        ) from err
    except ImportError as err:
        known = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
        # fsspec raises an error of its own, from the one of the import
        cause = err.__cause__ if isinstance(err.__cause__, ImportError) else err
        package = known.get(scheme) or (cause.name or scheme).partition(".")[0]
        is_extra = package in ("s3fs", "aiohttp")
        command = install_command("cloud") if is_extra else f"pip install {package}"
        raise SourceError(f"{scheme}:// needs {needed(cause, package, command)}") from err
    except ValueError as err:
        raise SourceError(f"'{scheme}://' is not a store that fsspec knows.") from err


def _finds_by_walking(store: Any) -> bool:
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    find = type(store)._find if store.async_impl else type(store).find
    return find in (AbstractFileSystem.find, AsyncFileSystem._find)


def _scheme(address: str) -> str:
    return address.partition("://")[0]


def _parts(kind: Any, address: str) -> dict[str, Any]:
    """Return the host, and the like, that an address has beside the path."""
    found = kind._get_kwargs_from_urls(address) if _scheme(address) not in _S3 else {}
    return {name: value for name, value in found.items() if name not in ("path", "fo")}


def _is_anonymous(scheme: str) -> bool:
    """Return whether no credentials are set up, so that none are looked for on the network."""
    names = {"s3": "AWS_", "s3a": "AWS_"}.get(scheme, "GOOGLE_APPLICATION_CREDENTIALS")
    ends: tuple[str, ...] = (
        "ACCESS_KEY_ID",
        "PROFILE",
        "WEB_IDENTITY_TOKEN_FILE",
        "CREDENTIALS_RELATIVE_URI",
    )
    ends += ("CONTAINER_CREDENTIALS_FULL_URI", "CREDENTIALS")
    if any(name.startswith(names) and name.endswith(ends) for name in os.environ):
        return False
    if any(name.startswith(f"FSSPEC_{scheme.upper()}") for name in os.environ):
        return False
    own: tuple[str, ...] = (
        (".aws/credentials", ".aws/config") if names == "AWS_" else (".config/gcloud",)
    )
    return not any((Path.home() / each).exists() for each in own)


def _entry_of(info: dict[str, Any]) -> Entry:
    tag = str(info.get("ETag") or info.get("etag") or "")
    names = ("LastModified", "last_modified", "mtime", "updated")
    written = next((info[name] for name in names if info.get(name)), None)
    written = written.timestamp() if isinstance(written, datetime) else written
    mtime = int(written * 10**9) if isinstance(written, int | float) else 0
    return Entry(int(info["size"] or 0), mtime if tag else settled(mtime, time.time_ns()), tag)


def _is_down(err: BaseException | None) -> bool:
    names = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror"}
    while err is not None:
        if type(err).__name__ in names or isinstance(err, ConnectionRefusedError):
            return True
        err = err.__cause__ or err.__context__
    return False


def _may_pass(err: Exception) -> bool:
    final = (Gone, FileNotFoundError, PermissionError, ImportError, TypeError)
    if isinstance(err, final) or _is_down(err):
        return False
    return not _lacks_credentials(err)


def _lacks_credentials(err: Exception) -> bool:
    return "credentials" in str(err).lower()


def _finds_credentials(work: Callable[[], object]) -> bool:
    try:
        work()
    except Exception as err:
        return not _lacks_credentials(err)
    return True
