"""Commands of featx in a pseudo-terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

_DRIVER = """
import json, os, sys
from featx.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, prog_name="featx")
    except SystemExit as end:
        code = end.code
    sys.stdout.flush(), sys.stderr.flush()
    os.write(1, b"\\x00%d\\x00" % (code or 0))
"""
_DRAWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CODE = re.compile(r"\x1b\[[0-9;]*m")


def in_terminal(
    commands: Sequence[Sequence[object]],
    columns: int,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> list[tuple[str, int]]:
    """Run commands one after the other, in one process; return what each wrote, and its exit code.

    Both standard streams are a terminal of so many columns and 40 lines.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    arguments = json.dumps([[str(word) for word in command] for command in commands])
    own = {
        "PYTHONWARNINGS": "ignore",
        "TERM": "xterm-256color",
        **os.environ,
        **(environment or {}),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=folder,
        env=own,
    )
    os.close(theirs)
    written = bytearray()
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    assert process.wait(60) == 0, bytes(written).decode(errors="replace")
    *parts, rest = bytes(written).decode().split("\0")
    assert not rest, rest
    return [(parts[i], int(parts[i + 1])) for i in range(0, len(parts), 2)]


def lines_of(text: str) -> list[str]:
    """Return the lines of a terminal's output as they were drawn, without colours."""
    return [line for line in re.split(r"\r?\n|\r", _DRAWN.sub("", text)) if line]
