"""A call in a process of its own: its outcome is told, its end is certain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import featx.errors
from featx.errors import ArtifactError, ArtifactInvalid, FeatxError
from featx.isolation.call import IsolatedCall, Limits, call_isolated

TARGETS = """
import os, resource, signal, sys, time
from pathlib import Path
import featx.errors

def note(path):
    Path(path.read_text()).write_text(repr((
        str(path), os.getpid(), sys.flags.safe_path, os.environ["OMP_NUM_THREADS"],
        [resource.getrlimit(which) for which in
         (resource.RLIMIT_AS, resource.RLIMIT_CORE, resource.RLIMIT_CPU)],
        sys.stdin.read(), __import__("featx").__file__, sys.path,
    )))

def fail(path):
    name, text = path.read_text().split(":", 1)
    raise getattr(featx.errors, name)(path, text)

def fail_elsewhere(path):
    raise featx.errors.ArtifactIncomplete(path / "b\\udcff", f"'{path}' is half")

def misuse(path): raise featx.errors.ConfigError("no such option")
def parity(path): raise featx.errors.ParityError("differs", difference=1.0, bound=0.5)
def bug(path): {}["nothing"]
def leave(path): sys.exit(3)
def end(path): os.kill(os.getpid(), int(path.read_text()))
def fill(path): bytearray(int(path.read_text()))
def sleep(path): time.sleep(600)

def spin(path):
    while True: pass

def hold_the_interpreter(path):
    import ctypes  # PyDLL keeps the interpreter's lock: no thread and no handler of Python's runs
    ctypes.PyDLL(None).sleep(600)

def chatter(path):
    print("noise without an end", end="")
    print('{"error": "ArtifactMissing", "text": "a lie", "path": "00"}')
    os.write(1, b'{"error": "ArtifactMissing", "text": "a lie", "path": "00"}\\n' * 9999)
    os.write(2, b"and more" * 9999)

def stubborn(path):
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    time.sleep(600)

def crash_after(path):
    import atexit
    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
"""
BROKEN = "import a_module_that_is_not_there"


@pytest.fixture(autouse=True)
def targets(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    (folder / "call_targets.py").write_text(TARGETS)
    (folder / "broken_targets.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{folder}{os.pathsep}")
    return folder


def call(name: str, path: Path, content: str | None = None, **limits: Any) -> None:
    if content is not None:
        path.write_text(content)
    call_isolated(f"call_targets:{name}", path, limits=Limits(**limits))


def refused(name: str, path: Path, content: str = "", **limits: Any) -> str:
    """Return the text of the error, which must be ArtifactInvalid about this path."""
    with pytest.raises(ArtifactInvalid) as caught:
        call(name, path, content, **limits)
    assert type(caught.value) is ArtifactInvalid
    assert caught.value.path == path
    assert f"'{path}'" in str(caught.value)
    return str(caught.value)


def children() -> set[int]:
    """Return the processes whose parent is this one, zombies among them."""
    text = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return set(map(int, text.split()))


def is_alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the outcome --------------------------------------------------------------------------------


def test_a_call_that_returns(tmp_path):
    before = children()
    call("note", tmp_path / "f", str(tmp_path / "out"), memory_bytes=2**31, seconds=60)
    path, pid, safe_path, threads, limits, stdin, featx_file, folders = eval(
        (tmp_path / "out").read_text()
    )
    assert path == str(tmp_path / "f")
    assert pid != os.getpid()
    assert (safe_path, threads, stdin) == (True, "1", "")
    assert limits == [(2**31, 2**31), (0, 0), (65, 65)]
    assert featx_file == str(Path(featx.errors.__file__).parent / "__init__.py")
    assert folders[0] == str(Path(featx.errors.__file__).parents[1])
    assert str(Path.cwd()) not in folders[1:]
    assert "" not in folders
    assert children() == before


@pytest.mark.parametrize(
    "name",
    ["ArtifactError", "ArtifactMissing", "ArtifactExists", "ArtifactInvalid",
     "ArtifactIncomplete", "ArtifactBusy", "ArtifactMismatch"],
)  # fmt: skip
def test_each_error_about_a_file_comes_back(tmp_path, name):
    text = "'f' is no good:\n“é”, \x00 and \u2028 in it"
    with pytest.raises(ArtifactError) as caught:
        call("fail", tmp_path / "f", f"{name}:{text}")
    assert type(caught.value) is getattr(featx.errors, name)
    assert str(caught.value) == text
    assert caught.value.path == tmp_path / "f"


def test_the_list_above_is_whole():
    found = {kind.__name__ for kind in ArtifactError.__subclasses__()}
    assert found == {"ArtifactMissing", "ArtifactExists", "ArtifactInvalid",
                     "ArtifactIncomplete", "ArtifactBusy", "ArtifactMismatch"}  # fmt: skip


def test_an_error_about_another_path_keeps_it(tmp_path):
    with pytest.raises(ArtifactError) as caught:
        call("fail_elsewhere", tmp_path / "a\udc80")
    assert caught.value.path == tmp_path / "a\udc80" / "b\udcff"
    assert str(caught.value) == f"'{tmp_path}/a\udc80' is half"


@pytest.mark.parametrize(("name", "text"), [("misuse", "no such option"), ("parity", "differs")])
def test_errors_about_no_file(tmp_path, name, text):
    with pytest.raises(FeatxError, match=text):
        call(name, tmp_path)


def test_a_bug_shows_its_traceback(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)call_targets:bug failed.*KeyError: 'nothing'"):
        call("bug", tmp_path)


@pytest.mark.parametrize(
    ("target", "text"),
    [("call_targets:nobody", "AttributeError"), ("nowhere:f", "No module named 'nowhere'"),
     ("broken_targets:f", "a_module_that_is_not_there"), ("os", "AttributeError")],
)  # fmt: skip
def test_a_target_that_is_none(tmp_path, target, text):
    with pytest.raises(RuntimeError, match=text):
        call_isolated(target, tmp_path)


def test_noise_is_not_taken_for_an_answer(tmp_path, targets, capfd):
    (targets / "sitecustomize.py").write_text("print('hello', end='')")  # before all of ours
    call("chatter", tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    ["with space", "new\nline", "quote'\"\\", "-x", "ünï", "\u202eright to left", "a\udcff\udc80b",
     "x" * 255, "{}%s$HOME`id`"],
)  # fmt: skip
def test_odd_names(tmp_path, name):
    call("note", tmp_path / name, str(tmp_path / "out"))
    assert (tmp_path / "out").exists()


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("note", Path("f"), "out")
    assert (tmp_path / "out").exists()


# --- crashes and limits -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGKILL"])
def test_a_crash_names_the_signal(tmp_path, name):
    text = refused("end", tmp_path / "f", str(int(getattr(signal, name))))
    assert f"crashed the process that did it ({name}" in text


def test_a_crash_on_the_way_out_is_one_too(tmp_path):
    assert "crashed the process that did it (SIGSEGV)" in refused("crash_after", tmp_path / "f")


def test_an_exit_is_no_answer(tmp_path):
    assert "(exit code 3)" in refused("leave", tmp_path / "f")


def test_too_much_memory(tmp_path):
    text = refused("fill", tmp_path / "f", str(2**31), memory_bytes=2**30)
    assert "takes more memory than the 1 GiB allowed" in text
    call("fill", tmp_path / "f", str(2**24), memory_bytes=2**30)


@pytest.mark.parametrize("name", ["sleep", "spin", "hold_the_interpreter", "stubborn"])
def test_too_much_time(tmp_path, name):
    before = children()
    assert "was not done after 0.5 seconds" in refused(name, tmp_path / "f", seconds=0.5)
    assert children() == before


def test_too_much_processor_time(tmp_path):
    text = refused("end", tmp_path / "f", str(int(signal.SIGXCPU)))
    assert "was not done after 600 seconds" in text


# --- starting early -----------------------------------------------------------------------------


def test_the_module_is_imported_before_the_path_is_known(tmp_path, targets):
    slow = f"open({str(tmp_path / 'imported')!r}, 'w').close()\ndef f(path): path.write_text('x')"
    (targets / "slow_targets.py").write_text(slow)
    with IsolatedCall("slow_targets:f") as isolated:
        wait_until((tmp_path / "imported").exists)
        assert not (tmp_path / "f").exists()
        isolated.run(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "x"


def test_a_call_that_is_never_run_ends(tmp_path):
    before = children()
    with IsolatedCall("call_targets:note"):
        assert len(children() - before) == 1
    assert children() == before
    with pytest.raises(ZeroDivisionError), IsolatedCall("call_targets:note"):
        _ = 1 / 0
    assert children() == before


def test_nothing_stays_open(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    call("note", tmp_path / "f", str(tmp_path / "out"))
    refused("sleep", tmp_path / "f", seconds=0.2)
    refused("leave", tmp_path / "f")
    assert set(os.listdir("/proc/self/fd")) == before


def test_ctrl_c_reaches_the_caller_and_the_child_ends(tmp_path):
    # A shell that starts the tests in the background has the signal ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = children()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call("sleep", tmp_path)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert children() == before


def caller(targets: Path, name: str, run: bool) -> tuple[subprocess.Popen[str], int]:
    """Start a process that makes an isolated call; return it and the pid of its child."""
    script = f"""
        from pathlib import Path
        from featx.isolation.call import IsolatedCall
        with IsolatedCall("call_targets:{name}") as call:
            print(call._process.pid, flush=True)
            {"call.run(Path('f'))" if run else "input()"}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


@pytest.mark.parametrize(
    ("name", "run"),
    [("note", False), ("sleep", True), ("spin", True), ("hold_the_interpreter", True),
     ("stubborn", True)],
)  # fmt: skip
@pytest.mark.parametrize("after", [0, 1])
def test_a_child_ends_with_its_caller(targets, name, run, after):
    process, child = caller(targets, name, run)
    with process:
        time.sleep(after)  # at once: still starting; later: in the middle of it
        process.kill()
    wait_until(lambda: not is_alive(child))
