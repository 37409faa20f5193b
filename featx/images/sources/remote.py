"""Objects of stores and of the web: listing, looking up and reading them, with retries.

``Web`` needs the standard library alone; ``ObjectStore`` is anything that fsspec opens.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from featx.errors import SourceError, first_line
from featx.images.decode import MAX_FILE_BYTES
from featx.images.sources.sample import NO_FILE, UNKNOWN_TIME, Stamp
from featx.packages import install_command, needed

T = TypeVar("T")

_ATTEMPTS, _FIRST_WAIT, _LONGEST_WAIT = 6, 0.1, 5.0
_TIMEOUT = 20.0
_PAGE_KEYS = 1000
_SETTLED_NS = 2 * 10**9
"""Times have seconds, or two: one that is as young may be that of two contents."""
_NOT_THERE = {404, 410}
_NO_HEAD = {400, 401, 403, 405, 501}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_SECRET = re.compile(r"(?i)sig|token|key|credential|secret|expires|passw|x-(amz|goog|ms)-|policy")
_SIGNED = ": it may need a signature, or another one. Give SOURCE signed; files do not keep that"
_SAFE = "!#$%&'()*+,/:;=?@[]~"


class Gone(Exception):
    """An object cannot be read, and another attempt now would not help."""


class Refused(Gone):
    """And the reason may be that of others: no right, a login, silence."""


class Entry(NamedTuple):
    """An object as it was listed: what tells it from another that takes its place.

    Without a tag and a time (0), nothing does.
    """

    size: int
    mtime_ns: int
    tag: str

    def stamp(self) -> Stamp:
        if not self.tag and not self.mtime_ns:
            return NO_FILE  # to be read and compared by content
        mixed = hashlib.blake2b(self.tag.encode(), digest_size=8).digest()
        changed = int.from_bytes(mixed, "little") >> 1 if self.tag else UNKNOWN_TIME
        return Stamp(self.size, self.mtime_ns, changed)


class Remote(Protocol):
    """Where objects lie; used from several threads."""

    address: str

    def look_up(self, address: str) -> Entry | None:
        """Return what is known of an object; None where that needs reading it."""

    def get(self, address: str, entry: Entry | None) -> bytes:
        """Return an object's bytes, those of the entry.

        Raises:
            Gone: It cannot be read, or is another by now.
            SourceError: Nothing can be read there.
        """


def without_secrets(address: str) -> str:
    """Return an address without what signs it.

    >>> without_secrets("https://me:word@host/a.jpg?size=2&X-Amz-Signature=1")
    'https://host/a.jpg'
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        return address
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    query = "" if any(map(_SECRET.search, names)) else parts.query
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))


def is_page(content: bytes) -> bool:
    """Return whether bytes are a web page."""
    return content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith((b"<!doctype", b"<html"))


def retried(work: Callable[[], T], passes: Callable[[Exception], bool]) -> T:
    """Return what ``work`` returns, tried again after growing waits where its error may pass."""
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except Exception as err:
            if attempt + 1 == _ATTEMPTS or not passes(err):
                raise
            wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
            time.sleep(wait * random.uniform(0.7, 1.3))
    raise AssertionError


class Web:
    """The web, by GET and HEAD; addresses are sent as they stand."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._host = urlsplit(address).netloc

    def look_up(self, address: str) -> Entry | None:
        for method in ("HEAD", "GET"):  # a signed address allows GET alone; no body is read
            try:
                with retried(lambda: _opened(address, method), _may_pass) as answer:  # noqa: B023
                    return _entry(answer.headers)
            except (OSError, http.client.HTTPException, ValueError) as err:
                if getattr(err, "code", 0) not in _NO_HEAD:
                    break
        return None  # reading says what is wrong

    def get(self, address: str, entry: Entry | None) -> bytes:
        shown = without_secrets(address)
        try:
            content, found = retried(lambda: _fetched(address), _may_pass)
        except urllib.error.HTTPError as err:
            told = str(err.reason).partition("\n")[0]
            reason = _SIGNED if err.code in (400, 401, 403) else ""
            kind = Gone if err.code in _NOT_THERE else Refused
            raise kind(f"'{shown}' answers {err.code} {told}{reason}.") from None
        except (OSError, http.client.HTTPException, ValueError) as err:
            reason = getattr(err, "reason", None) or type(err).__name__
            is_down = isinstance(reason, ConnectionRefusedError | socket.gaierror)
            if is_down and urlsplit(address).netloc == self._host:
                raise SourceError(f"No connection to '{self._host}' ({reason}).") from None
            raise Refused(f"'{shown}' cannot be read ({reason}).") from None
        if entry and found and _is_other(entry, found):
            raise Gone("it was replaced since it was looked up.")
        if entry and entry.size not in (0, len(content)):  # of an answer without a length
            raise Gone(f"{len(content)} of {entry.size} bytes came.")
        return content


def _opened(address: str, method: str) -> Any:
    quoted = quote(address.partition("#")[0], safe=_SAFE)
    headers = {"User-Agent": "featx", "Accept-Encoding": "identity"}
    request = urllib.request.Request(quoted, headers=headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as err:
        err.close()  # its connection
        raise


def _fetched(address: str) -> tuple[bytes, Entry | None]:
    with _opened(address, "GET") as answer:
        content: bytes = answer.read(MAX_FILE_BYTES + 1)
        length = answer.headers.get("Content-Length")
        if length and len(content) < min(int(length), MAX_FILE_BYTES):
            raise http.client.IncompleteRead(b"", int(length) - len(content))
        if answer.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip"):
            content = gzip.decompress(content)
        return content, _entry(answer.headers)


def _entry(headers: Any) -> Entry | None:
    tag, written = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if not tag and not written:
        return None
    is_packed = headers.get("Content-Encoding", "identity").lower() != "identity"
    size = 0 if is_packed else int(headers.get("Content-Length") or 0)
    mtime, now = map(_nanoseconds, (written, headers.get("Date", "")))
    mtime = mtime if tag else _settled(mtime, now or time.time_ns())
    return Entry(size, mtime, tag) if tag or mtime else None


def _is_other(entry: Entry, found: Entry) -> bool:
    sizes = {entry.size, found.size} - {0}  # of an answer without a length
    return entry[1:] != found[1:] or len(sizes) > 1


def _nanoseconds(date: str) -> int:
    try:
        return int(parsedate_to_datetime(date).timestamp() * 10**9)
    except (ValueError, OverflowError):
        return 0


def _settled(mtime_ns: int, now_ns: int) -> int:
    """Return a time that tells contents apart; 0 for one that another content may have, too."""
    return mtime_ns if mtime_ns <= now_ns - _SETTLED_NS else 0


def _may_pass(err: Exception) -> bool:
    if isinstance(err, urllib.error.HTTPError):
        return err.code in _PASSING
    reason = getattr(err, "reason", err)
    if isinstance(reason, socket.gaierror | ConnectionRefusedError):
        return False
    return isinstance(err, OSError | http.client.HTTPException | EOFError)


class ObjectStore:
    """A store that fsspec opens; paths have no scheme, and mean what they are, no patterns."""

    def __init__(self, address: str) -> None:
        self.address, (self.scheme, _, path) = address, address.partition("://")
        self.bucket = path.partition("/")[0]
        self._fs = _opened_store(self.scheme, anonymous=_is_anonymous(self.scheme))
        self._alone = contextlib.nullcontext() if self._fs.async_impl else threading.Lock()

    def listed(self, prefix: str) -> Iterator[tuple[str, Entry]]:
        """Yield the objects below a prefix, which ends in ``/``."""
        try:
            for path, info in self._found(prefix):
                if path.startswith(prefix) and not path.endswith("/"):
                    yield path, _entry_of(info)
        except SourceError:
            raise
        except Exception as err:
            raise SourceError(self._why(err, prefix)) from None

    def _found(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        pages = self._s3_pages if self.scheme in ("s3", "s3a") else self._one_page
        try:
            yield from pages(prefix)
        except PermissionError:
            if not _is_anonymous(self.scheme):
                raise
            self._fs = _opened_store(self.scheme, anonymous=False)  # a machine with a role
            yield from pages(prefix)

    def _one_page(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        found = retried(lambda: self._fs.find(prefix, detail=True), _store_may_pass)
        for name, info in found.items():
            if info["type"] == "file":
                yield name.lstrip("/"), info

    def _s3_pages(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield objects page by page, of which each is tried again by itself."""
        from fsspec.asyn import sync

        bucket, _, start = prefix.partition("/")
        asked = {"Bucket": bucket, "Prefix": start, "MaxKeys": _PAGE_KEYS, **self._fs.req_kw}

        def page() -> dict[str, Any]:
            found: dict[str, Any] = sync(
                self._fs.loop, self._fs._call_s3, "list_objects_v2", **asked
            )
            return found

        while True:
            found = retried(page, _store_may_pass)
            for info in found.get("Contents", ()):
                yield f"{bucket}/{info['Key']}", {**info, "size": info["Size"]}
            if not found.get("IsTruncated"):
                return
            asked["ContinuationToken"] = found["NextContinuationToken"]

    def look_up(self, address: str) -> Entry | None:
        path = address.partition("://")[2]
        try:
            return _entry_of(retried(lambda: self._fs.info(path), _store_may_pass))
        except Exception:
            return None  # reading says what is wrong

    def get(self, address: str, entry: Entry | None) -> bytes:
        path = address.partition("://")[2]
        try:
            return retried(lambda: self._content(path, entry), _store_may_pass)
        except Gone:
            raise
        except Exception as err:
            if _is_down(err):
                raise SourceError(self._why(err, path)) from None
            if isinstance(err, FileNotFoundError):
                raise Gone("it is not there (any more).") from None
            raise Refused(f"it cannot be read ({first_line(err)}).") from None

    def _content(self, path: str, entry: Entry | None) -> bytes:
        if self.scheme in ("s3", "s3a"):
            from fsspec.asyn import sync

            content, tag = sync(self._fs.loop, _s3_content, self._fs, path)
        else:
            with self._alone:  # FTP, for one, has a connection for all threads
                content, tag = self._fs.cat_file(path), ""
        if entry and tag and tag != entry.tag:
            raise Gone("it was replaced since it was listed.")
        if entry and len(content) != entry.size:
            raise ConnectionError(f"{len(content)} of {entry.size} bytes came")
        return bytes(content)

    def _why(self, err: Exception, prefix: str) -> str:
        name = f"{self.scheme}://{self.bucket}"
        if _is_down(err):
            return f"No connection to the store of '{name}' ({first_line(err)})."
        if isinstance(err, PermissionError) or "credentials" in str(err).lower():
            return (
                f"No right to list '{self.scheme}://{prefix}'. Give credentials as for other "
                "programs; where the requester pays, set FSSPEC_S3_REQUESTER_PAYS=true."
            )
        if isinstance(err, FileNotFoundError):
            return f"There is no bucket '{name}' (or nothing at all in it)."
        return f"Cannot list '{self.scheme}://{prefix}': {first_line(err)}."


async def _s3_content(fs: Any, path: str) -> tuple[bytes, str]:
    bucket, _, key = path.partition("/")
    answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, **fs.req_kw)
    async with answer["Body"] as body:
        return await body.read(), answer["ETag"]


def _opened_store(scheme: str, *, anonymous: bool) -> Any:
    try:
        import fsspec
    except ImportError as err:
        why = needed(err, "fsspec", install_command("cloud"))
        raise SourceError(f"{scheme}:// needs {why}") from err
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme in ("s3", "s3a"):
        limits = {"connect_timeout": 5, "read_timeout": _TIMEOUT, "retries": {"max_attempts": 1}}
        options |= {"config_kwargs": limits} | ({"anon": True} if anonymous else {})
    elif scheme in ("gs", "gcs") and anonymous:
        options["token"] = "anon"
    try:
        return fsspec.filesystem(scheme, **options)
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
    return Entry(int(info["size"] or 0), mtime if tag else _settled(mtime, time.time_ns()), tag)


def _is_down(err: BaseException | None) -> bool:
    names = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror"}
    while err is not None:
        if type(err).__name__ in names or isinstance(err, ConnectionRefusedError):
            return True
        err = err.__cause__ or err.__context__
    return False


def _store_may_pass(err: Exception) -> bool:
    final = (Gone, FileNotFoundError, PermissionError, ImportError, TypeError)
    if isinstance(err, final) or _is_down(err):
        return False
    return "credentials" not in str(err).lower()
