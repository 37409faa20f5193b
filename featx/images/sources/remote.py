"""Objects of the web, and what they share with those of stores: looking up, reading, retries."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import random
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from featx.errors import SourceError
from featx.images.decode import MAX_FILE_BYTES
from featx.images.sources.sample import NO_FILE, UNKNOWN_TIME, Stamp

T = TypeVar("T")

_ATTEMPTS, _FIRST_WAIT, _LONGEST_WAIT = 6, 0.1, 5.0
TIMEOUT_S = 20.0
_SETTLED_NS = 2 * 10**9
"""Times have seconds, or two: one that is as young may be that of two contents."""
_NOT_THERE = {404, 410}
_NO_HEAD = {400, 401, 403, 405, 501}
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_SECRET = re.compile(r"(?i)sig|token|key|credential|secret|expires|passw|x-(amz|goog|ms)-|policy")
_SIGNED = ": it may need a signature, or another one. Give SOURCE signed; files do not keep that"
_SAFE = "!#$%&'()*+,/:;=?@[]~"


Part = tuple[int, int]
"""Where a part begins, and how many bytes it has."""


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

    def get(self, address: str, entry: Entry | None, part: Part | None = None) -> bytes:
        """Return an object's bytes, those of the entry, or a part of them.

        Raises:
            Gone: It cannot be read, or is another by now.
            SourceError: Nothing can be read there.
        """


def path_of(address: str) -> str:
    """Return an address without the query that those of the web may have."""
    is_web = address.startswith(("http://", "https://"))
    return re.split(r"[?#]", address, maxsplit=1)[0] if is_web else address


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

    def get(self, address: str, entry: Entry | None, part: Part | None = None) -> bytes:
        shown = without_secrets(address)
        try:
            content, found = retried(lambda: _fetched(address, part), _may_pass)
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
        if (
            entry and not part and entry.size not in (0, len(content))
        ):  # of an answer without a length
            raise Gone(f"{len(content)} of {entry.size} bytes came.")
        return content


def _opened(address: str, method: str, **more: str) -> Any:
    quoted = quote(address.partition("#")[0], safe=_SAFE)
    headers = {"User-Agent": "featx", "Accept-Encoding": "identity", **more}
    request = urllib.request.Request(quoted, headers=headers, method=method)
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as err:
        err.close()  # its connection
        raise


def _fetched(address: str, part: Part | None) -> tuple[bytes, Entry | None]:
    if part:
        with _opened(address, "GET", Range=f"bytes={part[0]}-{sum(part) - 1}") as answer:
            return _part_of(answer, *part)
    with _opened(address, "GET") as answer:
        content: bytes = answer.read(MAX_FILE_BYTES + 1)
        length = answer.headers.get("Content-Length")
        if length and len(content) < min(int(length), MAX_FILE_BYTES):
            raise http.client.IncompleteRead(b"", int(length) - len(content))
        if answer.headers.get("Content-Encoding", "").lower() in ("gzip", "x-gzip"):
            content = gzip.decompress(content)
        return content, _entry(answer.headers)


def _part_of(answer: Any, start: int, size: int) -> tuple[bytes, Entry | None]:
    """Return the part that was asked for, which not every server sends."""
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    if answer.status != http.client.PARTIAL_CONTENT or said is None:
        raise Gone("its server sends no parts of files, only whole ones. Download it first.")
    first, last, whole = map(int, said.groups())
    if (first, last) != (start, start + size - 1):
        raise Gone("its server sends another part than the one that was asked for.")
    content: bytes = answer.read(size + 1)
    if len(content) != size:
        raise http.client.IncompleteRead(b"", size)
    found = _entry(answer.headers)
    return content, found and found._replace(size=whole)


def _entry(headers: Any) -> Entry | None:
    tag, written = headers.get("ETag", ""), headers.get("Last-Modified", "")
    if not tag and not written:
        return None
    is_packed = headers.get("Content-Encoding", "identity").lower() != "identity"
    size = 0 if is_packed else int(headers.get("Content-Length") or 0)
    mtime, now = map(_nanoseconds, (written, headers.get("Date", "")))
    mtime = mtime if tag else settled(mtime, now or time.time_ns())
    return Entry(size, mtime, tag) if tag or mtime else None


def _is_other(entry: Entry, found: Entry) -> bool:
    sizes = {entry.size, found.size} - {0}  # of an answer without a length
    return entry[1:] != found[1:] or len(sizes) > 1


def _nanoseconds(date: str) -> int:
    try:
        return int(parsedate_to_datetime(date).timestamp() * 10**9)
    except (ValueError, OverflowError):
        return 0


def settled(mtime_ns: int, now_ns: int) -> int:
    """Return a time that tells contents apart; 0 for one that another content may have, too."""
    return mtime_ns if mtime_ns <= now_ns - _SETTLED_NS else 0


def _may_pass(err: Exception) -> bool:
    if isinstance(err, urllib.error.HTTPError):
        return err.code in _PASSING
    reason = getattr(err, "reason", err)
    if isinstance(reason, socket.gaierror | ConnectionRefusedError):
        return False
    return isinstance(err, OSError | http.client.HTTPException | EOFError)
