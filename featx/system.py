"""System calls of Linux that featx makes, with a fallback for other systems.

Nothing that only Linux, or only POSIX, has is imported or called elsewhere without asking here.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shutil
import signal
import threading
from pathlib import Path
from types import ModuleType


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl = _module("fcntl")
"""None on Windows."""
resource = _module("resource")
"""None on Windows."""
msvcrt = _module("msvcrt")
"""None elsewhere."""
_LOCKED_BYTE = 2**30
"""Windows lets nobody read what is locked: a byte that no such file has."""
_BYTES = getattr(os, "O_BINARY", 0)  # Windows would translate the ends of lines
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | _BYTES
"""To open a file, and no link to one."""
NO_WAIT = getattr(os, "O_NONBLOCK", 0) | _BYTES
"""To open a file at once, also where it is a pipe that nobody writes to."""
KILLED = getattr(signal, "SIGKILL", None)
_seeking = threading.Lock()


def read_at(descriptor: int, length: int, offset: int) -> bytes:
    """Return up to ``length`` bytes from ``offset`` on, for threads that share the descriptor."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, length, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, length)


def read_into(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Read up to the buffer's length from ``offset`` on, and return how many bytes there were."""
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, [buffer], offset)
    content = read_at(descriptor, len(buffer), offset)
    buffer[: len(content)] = content
    return len(content)


def write_at(descriptor: int, data: memoryview | bytes, offset: int) -> int:
    """Write at ``offset``, and return how many of the bytes were written."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _seeking:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)


def sync_content(descriptor: int) -> None:
    """Wait until the content of a file is on the disk."""
    getattr(os, "fdatasync", os.fsync)(descriptor)


def reserve(descriptor: int, length: int) -> None:
    """Reserve space for a file; ``OSError`` with ``ENOSYS`` where the system cannot."""
    if not hasattr(os, "posix_fallocate"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    os.posix_fallocate(descriptor, 0, length)


def free_bytes(descriptor: int, path: Path) -> int:
    """Return how many bytes are free on the disk of an open file; ``OSError`` if unknown."""
    if hasattr(os, "fstatvfs"):
        status = os.fstatvfs(descriptor)
        return int(status.f_bavail * status.f_frsize)
    return shutil.disk_usage(path.parent).free


def user_id() -> int | None:
    """Return the number of the user, None where files have no owner's number."""
    return os.geteuid() if hasattr(os, "geteuid") else None


def give(path: Path, user: int, group: int) -> None:
    """Give a file another owner or group, where files have them; -1 leaves one as it is."""
    if hasattr(os, "chown"):
        os.chown(path, user, group)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_memory() -> int | None:
    """Return the bytes of memory that the machine has, None where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def lock(descriptor: int) -> None:
    """Lock a file for this process, or raise ``BlockingIOError`` where another one has the lock.

    Raises:
        OSError: ``ENOSYS`` where there are no such locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        try:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as err:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from err
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def end_with_writer(descriptor: int) -> bool:
    """End this process when the writer of a pipe closes it; return False if it has already.

    Linux does so by SIGIO, even where a library hangs and no line of Python runs any more.
    Elsewhere a thread waits for it.
    """
    try:
        if fcntl is None or not hasattr(os, "O_ASYNC"):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
    except OSError:
        threading.Thread(target=_end_after, args=(os.dup(descriptor),), daemon=True).start()
        return True
    try:
        return os.read(descriptor, 1) != b""
    except BlockingIOError:  # nothing to read, so it is still open
        return True


def _end_after(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(descriptor, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


def can_pass_files() -> bool:
    """Return whether processes can be given an open file."""
    return os.name != "nt"


def file_in_memory(name: str) -> int:
    """Return the descriptor of a file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
