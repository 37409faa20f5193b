"""The user's cache folder: what is read from it was written there by this user, under that name.

What lies there decides features, so it is not taken from anybody else: folders and files belong to
the user and nobody else can write them, and each file carries a code that takes the user's key to
make. The key lies in the folder, for the user alone to read.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from featx.artifact import publishing
from featx.errors import ArtifactError, ArtifactExists

log = logging.getLogger(__name__)

CODE_CHARS = 64
_KEY_BYTES = 32
_OTHERS_WRITE = 0o022
_OTHERS_READ = 0o077


def cache_folder() -> Path:
    """Return the folder for what can be made again; it need not exist."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:  # a user without a home
            base = Path(tempfile.gettempdir()) / f"featx-{os.geteuid()}"
    return base / "featx"


def read_kept(path: Path) -> bytes | None:
    """Return what is kept in a file; None where nothing is, or others may have written it.

    Args:
        path: In a folder of the cache folder.
    """
    content, problem = _read(path, _OTHERS_WRITE)
    if problem:
        log.warning("'%s' is not used and made again: %s.", path, problem)
    return content


def keep(path: Path, content: bytes) -> None:
    """Keep something for the next run, if the folder can be written."""
    try:
        for folder in (cache_folder(), path.parent):
            _make_private(folder)
        _publish(path, content)
    except (OSError, ArtifactError) as err:
        log.info("Nothing is kept for the next run. %s", err)


def code_of(path: Path, content: bytes | memoryview) -> str | None:
    """Return the code of a file that keeps ``content``, 64 hexadecimal digits; None without a key.

    It takes the user's key to make, which is made where there is none.
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
        log.info("Nothing is kept for the next run. %s", err)
    content, _ = _read(path, _OTHERS_READ)
    return content if content is not None and len(content) == _KEY_BYTES else None


def _read(path: Path, forbidden: int) -> tuple[bytes | None, str]:
    """Return a file's content, or why it cannot be trusted; neither where there is none.

    Args:
        path: In the cache folder, or in a folder in it.
        forbidden: Mode bits that the file may not have.
    """
    try:
        for folder in {cache_folder(), path.parent}:
            status = folder.lstat()
            if problem := _problem(status, _OTHERS_WRITE, is_folder=True):
                return None, f"its folder '{folder}' {problem}"
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by other users" if status.st_mode & forbidden else ""


def _make_private(folder: Path) -> None:
    """Make a folder that only the user can write; take that right from others where it is there.

    Raises:
        OSError: It cannot be made, or is another user's.
    """
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
    if old is None:  # none, or one whose mode and links are not to be kept
        path.unlink(missing_ok=True)
    with publishing(path, overwrite=old is not None) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
