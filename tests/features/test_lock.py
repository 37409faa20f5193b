"""One writer per output, whatever becomes of it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from feature_files import file_size_limit

from featx.errors import ArtifactBusy, ArtifactError
from featx.features import lock
from featx.features.lock import locked

HOLD = """
import sys
from pathlib import Path
from featx.features.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that holds the lock until it is told to let go, or killed."""

    def __init__(self, output: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


def test_nothing_is_left(tmp_path):
    with locked(tmp_path / "f.h5"):
        assert os.listdir(tmp_path) == ["f.h5.lock"]
    assert os.listdir(tmp_path) == []


def test_an_error_gives_it_back(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path / "f.h5"):
            raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_the_second_hears_who_is_first(tmp_path):
    output = tmp_path / "f.h5"
    with Holder(output) as holder, pytest.raises(ArtifactBusy) as caught, locked(output):
        pytest.fail("two at once")
    message = str(caught.value)
    assert f"'{output}' is being written by process {holder.process.pid} on" in message
    assert socket.gethostname() in message
    assert "since 20" in message
    assert "another output" in message
    assert caught.value.path == output


def test_in_one_process_too(tmp_path):
    output = tmp_path / "f.h5"
    with locked(output):
        with pytest.raises(ArtifactBusy), locked(output):
            pytest.fail("two at once")
        assert os.listdir(tmp_path) == ["f.h5.lock"]  # and the second takes nothing away
        with pytest.raises(ArtifactBusy), locked(output):
            pytest.fail("two at once")
    with locked(output), locked(tmp_path / "g.h5"):
        pass


def test_a_killed_process_locks_nobody_out(tmp_path):
    output = tmp_path / "f.h5"
    with Holder(output) as holder:
        holder.process.send_signal(signal.SIGKILL)
        holder.process.wait(60)
        assert os.listdir(tmp_path) == ["f.h5.lock"]
        with locked(output):
            signed = (tmp_path / "f.h5.lock").read_text()
    assert signed.startswith(f"process {os.getpid()} on ")
    assert signed.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_of_many_that_wait_for_it_one_has_it_at_a_time(tmp_path):
    output, inside, most, done = tmp_path / "f.h5", [0], [0], []
    guard = threading.Lock()

    def work() -> None:
        while True:
            try:
                with locked(output):
                    with guard:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                    with guard:
                        inside[0] -= 1
            except ArtifactBusy:
                continue
            done.append(1)
            return

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most[0], len(done)) == (1, 40)
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_is_removed_meanwhile_is_made_again(tmp_path, monkeypatch):
    """The one who held it removes it between our opening and our locking."""
    output, flock = tmp_path / "f.h5", fcntl.flock
    calls: list[int] = []

    def remove_first(descriptor: int, operation: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / "f.h5.lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locked(output):
        assert len(calls) == 2
        assert (tmp_path / "f.h5.lock").read_text().startswith("process ")


def test_the_folder_is_made_and_goes_again_if_nothing_came_of_it(tmp_path):
    output = tmp_path / "a" / "b" / "f.h5"
    with locked(output):
        assert output.parent.is_dir()
    assert os.listdir(tmp_path) == []
    with locked(output):
        output.write_text("x")
    assert os.listdir(output.parent) == ["f.h5"]


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a" / "f.h5"):
        pass
    assert (tmp_path / "a").is_dir()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "a").write_text("mine")
    with pytest.raises(ArtifactError, match=r"Cannot make the folder"), locked(tmp_path / "a/b/f"):
        pytest.fail("locked")


def test_a_folder_name_that_cannot_be(tmp_path):
    with pytest.raises(ArtifactError), locked(tmp_path / ("x" * 300) / "f.h5"):
        pytest.fail("locked")


def test_a_name_that_cannot_be(tmp_path):
    with pytest.raises(ArtifactError, match="name too long"), locked(tmp_path / ("x" * 300)):
        pytest.fail("locked")


def test_a_link_or_folder_in_its_place(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "f.h5.lock").symlink_to(tmp_path / "precious")
    (tmp_path / "g.h5.lock").mkdir()
    for name in ("f.h5", "g.h5"):
        with pytest.raises(ArtifactError, match=r"the lock of"), locked(tmp_path / name):
            pytest.fail("locked")
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_full_disk_locks_all_the_same(tmp_path):
    output = tmp_path / "f.h5"
    with (
        file_size_limit(0),
        locked(output),
        pytest.raises(ArtifactBusy, match="by another process"),
        locked(output),
    ):
        pytest.fail("two at once")
    assert os.listdir(tmp_path) == []


class TestWithoutLocks:
    """On a file system that knows none, a file that is signed counts as held."""

    @pytest.fixture(autouse=True, params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524])
    def _no_locks(self, request, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(request.param, "no locks here")

        monkeypatch.setattr(lock.system.fcntl, "flock", refuse)

    def test_it_works(self, tmp_path):
        for _ in range(2):
            with locked(tmp_path / "f.h5"):
                pass
        assert os.listdir(tmp_path) == []

    def test_the_second_hears_what_to_delete(self, tmp_path):
        output = tmp_path / "f.h5"
        with locked(output), pytest.raises(ArtifactBusy) as caught, locked(output):
            pytest.fail("two at once")
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(caught.value)
        assert f"delete '{output}.lock'" in str(caught.value)


def test_a_lock_that_fails_otherwise_is_an_artifact_error(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ArtifactError), locked(tmp_path / "f.h5"):
        pytest.fail("locked")


NO_LOCKS = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("FAIL_FLOCK")); return -1; }
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", [errno.ENOLCK, 524])
def test_where_all_locks_fail_files_are_written_and_read(photos, tmp_path, error):
    """Also those that HDF5 takes by itself."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    library = tmp_path / "nolocks.so"
    build = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", library]
    subprocess.run(build, input=NO_LOCKS.encode(), check=True)
    environment = os.environ | {"LD_PRELOAD": str(library), "FAIL_FLOCK": str(error)}

    def featx(*arguments: object) -> str:
        command = [sys.executable, "-m", "featx", *map(str, arguments)]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        return done.stdout.decode() + done.stderr.decode()

    source, parts, one = photos(), tmp_path / "f.parts", tmp_path / "f.h5"
    for output, more in ((one, ()), (parts, ("--parts", "2"))):
        featx("extract", source, "-b", "tiny", "-o", output, *more)
        assert "fresh" in featx("check", output)
    featx("merge", parts, "-o", tmp_path / "merged.h5")
    assert (tmp_path / "merged.h5").read_bytes() == one.read_bytes()
    assert "locks fail" in featx("doctor", tmp_path)
    assert not list(tmp_path.rglob("*.lock"))
