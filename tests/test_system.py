"""Systems without what only Linux has: a second way for each call, and the whole way with them.

Each Python started here runs a ``sitecustomize`` that takes modules and functions away.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from PIL import Image

from featx import system
from featx.errors import ArtifactBusy
from featx.features.lock import locked

STANDARD = "shutil, subprocess, tempfile, multiprocessing.connection, mmap, socket, random"
"""Imported first: what they take from the system is Python's own affair."""
NOT_ON_MACOS = "sched_getaffinity sched_setaffinity memfd_create posix_fallocate fdatasync O_ASYNC"
NOT_ON_WINDOWS = f"""{NOT_ON_MACOS} pread pwrite preadv pwritev fstatvfs geteuid getuid
    chown lchown fchown O_NOFOLLOW O_NONBLOCK O_CLOEXEC O_DIRECTORY register_at_fork sysconf fchmod
    getegid getgid umask"""
LESS = """
import sys, {standard}
import os, pathlib, signal
for name in {names!r}.split():
    if hasattr(os, name):
        delattr(os, name)
for name in {signals!r}.split():
    delattr(signal, name)
for name in {modules!r}.split():
    sys.modules[name] = None
was = pathlib.Path.exists
pathlib.Path.exists = lambda self: not str(self).startswith(("/proc", "/sys")) and was(self)
opened = open
def without_proc(file, *options, **settings):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file", str(file))
    return opened(file, *options, **settings)
import builtins, io
builtins.open = io.open = without_proc
"""
SYSTEMS = {
    "macos": {"names": NOT_ON_MACOS, "signals": "", "modules": ""},
    "windows": {
        "names": NOT_ON_WINDOWS,
        "signals": "SIGHUP SIGXCPU SIGIO",
        "modules": "fcntl resource pwd grp",
    },
}


@pytest.fixture(scope="module", params=SYSTEMS)
def python(request, tmp_path_factory):
    """Return what runs Python with arguments on such a system."""
    folder = tmp_path_factory.mktemp(request.param)
    text = LESS.format(standard=STANDARD, **SYSTEMS[request.param])
    (folder / "sitecustomize.py").write_text(text)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "COLUMNS": "100",
    }

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-W", "error", *map(str, arguments)],
            cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

    run.folder, run.name = folder, request.param
    return run


def featx(python, *arguments):
    result = python("-m", "featx", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_they_lack_what_they_are_to_lack(python):
    result = python("-c", "import os; os.memfd_create")
    assert "AttributeError" in result.stderr
    assert ("fcntl" in python("-c", "import fcntl").stderr) == (python.name == "windows")


def test_the_whole_way(python):
    photos = python.folder / "photos"
    for number in range(12):
        path = photos / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 40), (90, 20 * number, 30)).save(path)
    assert "written" in featx(python, "extract", "photos", "-b", "tiny", "-o", "f.h5")
    assert "up to date" in featx(python, "extract", "photos", "-b", "tiny", "-o", "f.h5")
    assert "written" in featx(python, "train-head", "f.h5", "-o", "h.safetensors")
    assert "written" in featx(python, "export", "h.safetensors", "--onnx", "m.onnx")
    assert "11.png" in featx(python, "predict", "m.onnx", "photos")
    assert "intact" in featx(python, "check", "f.h5")
    assert "intact" in featx(python, "check", "m.onnx")
    assert sorted(path.name for path in python.folder.glob("f.h5*")) == ["f.h5"]


def test_a_second_writer_is_refused(python):
    code = """
from pathlib import Path
from featx.errors import ArtifactBusy
from featx.features.lock import locked
with locked(Path("x.h5")):
    try:
        with locked(Path("x.h5")):
            raise SystemExit("both have it")
    except ArtifactBusy as err:
        print(err)
with locked(Path("x.h5")):
    print("free again")
"""
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
    assert "process" in result.stdout
    assert result.stdout.endswith("free again\n")


def test_processes_share_memory(python):
    code = """
import numpy as np
from featx.extraction.crops import _memory, _shared
with _memory(12) as descriptor:
    one, other = _shared(descriptor, (3, 4)), _shared(descriptor, (3, 4))
one[1, 2] = 7
print(other[1, 2], other.sum())
"""
    assert python("-c", code).stdout == "7 7\n"


def test_a_process_ends_with_the_writer_of_its_pipe(python):
    code = """
import os, sys, time
from featx import system
from featx.errors import ArtifactBusy
from featx.features.lock import locked
reading, writing = os.pipe()
assert system.end_with_writer(reading)
os.close(writing)
time.sleep(60)
sys.exit(3)
"""
    started = time.monotonic()
    assert python("-c", code).returncode not in (0, 1, 3)
    assert time.monotonic() - started < 50  # ended, and did not sleep to its end


# The second ways, called here


@pytest.fixture
def less(monkeypatch):
    for name in NOT_ON_WINDOWS.split():
        monkeypatch.delattr(os, name, raising=False)
    monkeypatch.setattr(system, "fcntl", None)


def test_reading_and_writing_at_a_place(less, tmp_path):
    with (tmp_path / "f").open("w+b", buffering=0) as file:
        assert system.write_at(file.fileno(), b"0123456789", 0) == 10
        assert system.write_at(file.fileno(), b"ab", 4) == 2
        assert system.read_at(file.fileno(), 4, 3) == b"3ab6"
        assert system.read_at(file.fileno(), 9, 8) == b"89"
        buffer = bytearray(4)
        assert system.read_into(file.fileno(), memoryview(buffer), 8) == 2
        assert bytes(buffer) == b"89\0\0"
        system.sync_content(file.fileno())
        assert system.free_bytes(file.fileno(), tmp_path / "f") > 0


def test_what_has_no_second_way_says_so_as_the_system_would(less, tmp_path):
    with (tmp_path / "f").open("wb") as file:
        for call in (lambda: system.reserve(file.fileno(), 9), lambda: system.lock(file.fileno())):
            with pytest.raises(OSError, match="not implemented") as caught:
                call()
            assert caught.value.errno == errno.ENOSYS


def test_windows_locks_a_byte_that_no_file_has(less, tmp_path, monkeypatch):
    taken = set()

    def locking(descriptor, mode, count):
        place = (mode, count, os.lseek(descriptor, 0, os.SEEK_CUR))
        if place in taken:
            raise PermissionError(errno.EACCES, "denied")
        taken.add(place)

    fake = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
    monkeypatch.setattr(system, "msvcrt", fake)
    with locked(tmp_path / "f.h5"), pytest.raises(ArtifactBusy, match="is being written"):  # noqa: SIM117
        with locked(tmp_path / "f.h5"):
            pass
    assert taken == {(2, 1, 2**30)}


def test_what_is_not_known_is_taken_for_the_plain_case(less):
    assert system.usable_cores() == os.cpu_count()
    assert system.user_id() is None
    assert system.installed_memory() is None


def test_nothing_else_asks_for_what_only_some_systems_have():
    root = Path(system.__file__).parent
    banned = [f"os.{name}" for name in NOT_ON_WINDOWS.split()] + ["import fcntl", "import resource"]
    wrong = []
    for path in root.rglob("*.py"):
        if path.name != "system.py":
            text = path.read_text(encoding="utf-8")
            wrong += [f"{path.name}: {name}" for name in banned if f"{name}(" in text]
            wrong += [f"{path.name}: {name}" for name in banned if f"{name}\n" in text]
    allowed = {"session.py: os.register_at_fork"}
    assert set(wrong) <= allowed
