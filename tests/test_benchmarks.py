"""Every benchmark starts: what it takes from featx is still there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
START = """
import runpy, sys, traceback
for script in sys.argv[1:]:
    try:
        runpy.run_path(script, run_name="not_main")
    except BaseException:
        traceback.print_exc()
"""


def test_they_start(tmp_path):
    """Everything a script imports at its top is there; nothing is measured."""
    assert len(SCRIPTS) > 5
    folders = os.pathsep.join([str(SCRIPTS[0].parent), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", START, *SCRIPTS],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert not any(tmp_path.iterdir())
