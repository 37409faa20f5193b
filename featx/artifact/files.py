"""Artifacts as files: looked at before they are read, and published whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from featx.artifact.header import Kind
from featx.artifact.paths import beside, target_of
from featx.errors import (
    ArtifactError,
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMissing,
)

LOG_MAGIC = b"fxj1"
"""What the log of an extraction starts with."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, *, made_by: str) -> None:
    """Check that an input is a regular file.

    Raises:
        ArtifactMissing: Nothing is there; the message names the command that makes it.
        ArtifactInvalid: It is a folder or a special file.
        ArtifactError: Its path cannot be looked up.
    """
    try:
        there = path.exists()
    except OSError as err:
        raise ArtifactError(path, f"Cannot open '{path}': {err.strerror}.") from err
    if not there:
        raise ArtifactMissing(path, f"'{path}' does not exist. Make it with '{made_by}'.")
    if not path.is_file():
        raise ArtifactInvalid(path, f"'{path}' is not a file.")


def partial_path(output: Path) -> Path:
    """Return where the log of an extraction lies while its output is being made.

    Raises:
        ArtifactError: The output is a link that leads nowhere.
    """
    return beside(output, ".partial")


def is_unfinished(output: Path) -> bool:
    """Return whether only the log of an extraction is there, and not its output."""
    # os.path answers where pathlib raises: for names that cannot be.
    return not os.path.exists(output) and os.path.isfile(partial_path(output))  # noqa: PTH110, PTH113


def kind_of_file(path: Path) -> Kind:
    """Return which of the three a file seems to be, by its first bytes, or is going to be.

    Raises:
        ArtifactMissing: Nothing is there.
        ArtifactInvalid: It is a folder or special file.
        ArtifactIncomplete: It is the log of an extraction that has not finished.
        ArtifactError: It cannot be read.
    """
    if is_unfinished(path):
        return "features"
    require_file(path, made_by="featx extract, train-head or export")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as err:
        raise ArtifactError(path, f"Cannot read '{path}': {err.strerror}.") from err
    if start.startswith(LOG_MAGIC):
        raise ArtifactIncomplete(
            path, f"'{path}' is the log of an extraction; run featx extract again to finish it."
        )
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "features"
    return "head" if start[8:9] == b"{" else "classifier"


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that an output may be written; make its folder.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactError: The path is a folder or special file, a link that leads nowhere, or its
            folder cannot be made or written.
    """
    target = target_of(path)
    try:
        mode = path.stat().st_mode
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise ArtifactError(path, f"Cannot write '{path}': {err.strerror}.") from err
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise ArtifactError(path, f"'{path}' is a folder; give the path of a file.")
    if not stat.S_ISREG(mode):
        raise ArtifactError(path, f"'{path}' is not a regular file; it would be replaced by one.")
    if os.path.lexists(target) and not overwrite:
        raise ArtifactExists(
            path, f"'{path}' exists. Use --overwrite to replace it, or -o for another path."
        )
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ArtifactError(path, f"Cannot make the folder '{folder}': {err.strerror}.") from err
    if not os.access(folder, os.W_OK):
        raise ArtifactError(path, f"Cannot write to the folder '{folder}'.")


@contextlib.contextmanager
def publishing(path: Path, *, overwrite: bool, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success move it there durably, else remove it.

    A reader sees the old file or the whole new one, never a part. Where ``path`` is a link, the
    file that it leads to is replaced. The new file keeps the mode and owner of the old one.

    Args:
        path: Where to.
        overwrite: Replace what is there.
        temporary: Its name, for a caller that holds a lock on ``path``; None takes one that
            nobody else has.

    Raises:
        ArtifactExists: ``path`` exists and ``overwrite`` is false.
        ArtifactError: The disk refused; nothing is left behind.
    """
    require_writable(path, overwrite=overwrite)
    target = target_of(path)
    if temporary is None:
        unique = f"{os.getpid()}.{secrets.token_hex(4)}"
        temporary = target.with_name(f".{target.name[:40]}.{unique}.tmp")
    try:
        yield temporary
        if overwrite:
            _keep_mode(target, temporary)
        sync(temporary)
        if overwrite:
            temporary.replace(target)
        else:
            _move_unless_there(temporary, target)
        sync(target.parent)
    except OSError as err:
        if isinstance(err, ArtifactError):
            raise
        raise ArtifactError(path, f"Cannot write '{path}': {err.strerror or err}.") from err
    finally:
        with contextlib.suppress(OSError):  # gone already, or a folder: not ours
            temporary.unlink()


def _keep_mode(old: Path, new: Path) -> None:
    """Give a file the mode of the one it replaces, and the owner and group where that may be."""
    try:
        status, own = old.stat(), new.stat()
    except FileNotFoundError:  # nothing is replaced, and the umask decides
        return
    for user, group in ((status.st_uid, -1), (-1, status.st_gid)):
        if (user, group) not in ((own.st_uid, -1), (-1, own.st_gid)):
            with contextlib.suppress(OSError):
                os.chown(new, user, group)
    with contextlib.suppress(OSError):
        new.chmod(stat.S_IMODE(status.st_mode))


def _move_unless_there(temporary: Path, path: Path) -> None:
    """Move a file to a name that must be free, atomically where the file system can link."""
    try:
        os.link(temporary, path)
    except FileExistsError as err:
        raise ArtifactExists(
            path, f"'{path}' was written by another process meanwhile; it was left as it is."
        ) from err
    except OSError:  # no hard links here: a check just before has to do
        require_writable(path, overwrite=False)
        temporary.replace(path)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)
