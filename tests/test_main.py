"""Signals end the command at any moment: one sentence, a shell's exit code, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

START = """
import os, signal, sys, threading, time
def send(name="INT"):
    os.kill(os.getpid(), getattr(signal, f"SIG{name}"))
sys.argv = ["featx", *sys.argv[1:]]
"""
RUN = """
from featx.__main__ import main
main()
"""
LONG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes, in C, where no signal is seen


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", START + textwrap.dedent(code) + RUN]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def command_that(body: str) -> str:
    """Return code that has ``body`` run in place of the command."""
    body = textwrap.indent(textwrap.dedent(body), "    ")
    return f"import hashlib, featx.cli\ndef command():\n{body}\nfeatx.cli.main = command\n"


@pytest.mark.parametrize(
    ("name", "word", "code"),
    [("INT", "Interrupted.", 130), ("TERM", "Terminated.", 143), ("HUP", "Terminated.", 129)],
)
@pytest.mark.parametrize("module", ["featx.cli", "click", "numpy"])
def test_while_it_is_importing(module, name, word, code):
    at_import = f"""
    class Finder:
        def find_spec(self, name, *_):
            if name == {module!r}:
                send({name!r})
    sys.meta_path.insert(0, Finder())
    """
    result = run(at_import, "predict", "gone.onnx", "gone.jpg")
    assert (result.stdout, result.stderr, result.returncode) == ("", f"{word}\n", code)


def test_a_library_is_loaded_before_the_end():
    """Initialisers in C++ abort the process where Python code that they call raises."""
    body = """
        def create_dynamic(*_):
            try:
                send()
                time.sleep(0.1)
            except BaseException:
                sys.stderr.write("terminate called")
            return types.ModuleType("library")
        import _imp, types, importlib.machinery, importlib.util
        _imp.create_dynamic = create_dynamic
        _imp.exec_dynamic = lambda _: None
        loader = importlib.machinery.ExtensionFileLoader("library", "library.so")
        importlib.util.module_from_spec(importlib.util.spec_from_loader("library", loader))
        time.sleep(60)
    """
    result = run(command_that(body))
    assert (result.stderr, result.returncode) == ("Interrupted.\n", 130)


@pytest.mark.parametrize(
    "body",
    {
        "swallowed": """
            class Swallows:
                def __del__(self):
                    send()
            Swallows()
            time.sleep(60)
        """,
        "made another error": """
            try:
                send()
                time.sleep(60)
            except KeyboardInterrupt:
                raise SystemExit(1)
        """,
        "twice": """
            try:
                send()
                time.sleep(60)
            finally:
                send()
                send("TERM")
        """,
        "in a library": f"""
            threading.Timer(0.2, send).start()
            {LONG}
        """,
        "in threads": f"""
            for _ in range(2):
                threading.Thread(target=lambda: {LONG}).start()
            send()
        """,
    }.items(),
    ids=lambda item: item[0],
)
def test_whatever_the_process_is_doing(body):
    result = run(command_that(body[1]))
    assert (result.stderr, result.returncode) == ("Interrupted.\n", 130)


def test_it_stays_ignored_in_a_background_job():
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    result = run(ignored + command_that("send()\nprint('done')\nraise SystemExit(0)"))
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


def test_a_bug_shows_its_traceback():
    result = run(command_that("raise ZeroDivisionError"))
    assert result.stderr.endswith("ZeroDivisionError\n")
    assert result.returncode == 1


def test_a_long_read_in_threads_is_not_waited_for(tmp_path):
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(b"")
    slow = f"""
    import hashlib
    import featx.images.sources.folder as folder
    def read(*_):
        threading.Timer(0.1, send).start()
        {LONG}
    for thing in vars(folder).values():
        if isinstance(thing, type) and hasattr(thing, "read"):
            thing.read = read
    """
    output = tmp_path / "f.h5"
    result = run(slow, "extract", tmp_path / "photos", "-b", "tiny", "-o", output)
    assert (result.stdout, result.stderr, result.returncode) == ("", "Interrupted.\n", 130)
    assert not output.exists()


def test_no_process_of_its_own_is_left():
    """One that decodes is busy in C, and neither reads its line nor sees that it has ended."""
    body = """
        from featx.isolation.processes import Processes
        from featx.errors import SourceError
        sys.path.insert(0, TESTS)
        os.environ["PYTHONPATH"] = TESTS
        busy = Processes("test_main:busy", [[]], names=[""], error=SourceError, advice="")
        busy.wait()
        threading.Thread(target=lambda: busy.ask(b""), daemon=True).start()
        print(busy.processes[0].pid, flush=True)
        send("KILL")
    """
    code = f"TESTS = {str(Path(__file__).parent)!r}\n" + command_that(body)
    pid = run(code).stdout.strip()
    process = Path(f"/proc/{pid}")
    end = time.monotonic() + 20
    while process.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert pid
    assert not process.exists()


def busy(_receive: object) -> object:
    import hashlib

    return lambda _: hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)


def test_closed_descriptors_are_not_given_to_files():
    body = "print(os.readlink('/proc/self/fd/1'), file=sys.stderr)\nraise SystemExit(0)"
    code = START + command_that(body) + RUN
    for closed in ("<&- >&-", ">&-"):
        result = subprocess.run(
            ["bash", "-c", f'"{sys.executable}" -c "$CODE" {closed}'],
            env=os.environ | {"CODE": code},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stderr == "/dev/null\n"


def test_the_command_is_installed_with_this_entry_point():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["scripts"] == {"featx": "featx.__main__:main"}
