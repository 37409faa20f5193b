"""One writer per output: a lock on ``OUT.lock``, taken before anything else is touched.

The kernel gives the lock back whatever ends the process, so a file left behind by a killed one
blocks no other. HDF5's own lock comes too late: opening a file to write it cuts it to nothing
before it finds the lock taken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from featx import system
from featx.artifact import beside
from featx.errors import ArtifactBusy, ArtifactError, ArtifactExists

_SIGNATURE = re.compile(rb"process \d+ on .* since ")
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, 524)
"""Errors of file systems without locks; 524 is ENOTSUPP, which Lustre and NFS return."""


@contextlib.contextmanager
def locked(output: Path) -> Iterator[None]:
    """Hold the lock on an output, and make its folder; ``ArtifactBusy`` where another has it."""
    path = beside(output, ".lock")
    made = _make_folder(path.parent)
    try:
        descriptor = _acquire(path, output)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: a waiting process looks again
            os.close(descriptor)
            if os.name == "nt":  # Windows deletes no open file
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it is in use now
                folder.rmdir()


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and return those that were missing, the innermost first."""
    missing = []
    try:
        for candidate in (folder, *folder.parents):
            if candidate.exists():
                break
            missing.append(candidate)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ArtifactError(folder, f"Cannot make the folder '{folder}': {err.strerror}.") from err
    return missing


def _acquire(path: Path, output: Path) -> int:
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | system.NO_LINK, 0o666)
        except OSError as err:
            raise ArtifactError(
                output, f"Cannot write '{path}', the lock of '{output}': {err.strerror}."
            ) from err
        try:
            _require_ours(descriptor, path)
            _lock(descriptor, path, output)
            if _is_still_there(descriptor, path):
                _sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our two calls: once more


def _require_ours(descriptor: int, path: Path) -> None:
    """Check that a file of the lock's name is a lock: ``-o poetry`` must not cost poetry.lock."""
    content = system.read_at(descriptor, 500, 0)
    if content and not _SIGNATURE.match(content):
        raise ArtifactExists(path, f"'{path}' is in the way, and is not featx's lock; move it.")


def _lock(descriptor: int, path: Path, output: Path) -> None:
    try:
        system.lock(descriptor)
    except BlockingIOError as err:
        raise ArtifactBusy(
            output,
            f"'{output}' is being written by {_holder(descriptor) or 'another process'}. Wait for "
            "it, or give another output.",
        ) from err
    except OSError as err:
        if err.errno not in _UNSUPPORTED:
            raise ArtifactError(output, f"Cannot lock '{path}': {err.strerror}.") from err
        if holder := _holder(descriptor):
            raise ArtifactBusy(
                output,
                f"'{output}' may be in use by {holder}, and its file system cannot tell. If that "
                f"process has ended, delete '{path}'.",
            ) from err


def _holder(descriptor: int) -> str:
    return system.read_at(descriptor, 500, 0).decode("utf-8", "replace").strip()


def holder(output: Path) -> str:
    """Return the process that took the lock on an output, and may have ended; empty for none."""
    try:
        content = beside(output, ".lock").read_bytes()[:500]
    except OSError:
        return ""
    return content.decode("utf-8", "replace").strip() if _SIGNATURE.match(content) else ""


def _is_still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sign(descriptor: int) -> None:
    """Write the holder into the lock file; on a full disk it stays empty, and locked."""
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    signature = f"process {os.getpid()} on {socket.gethostname()} since {started}\n"
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        system.write_at(descriptor, signature.encode(), 0)
