"""Every benchmark starts: what it takes from featx is still there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


def test_there_are_benchmarks():
    assert len(SCRIPTS) > 5


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_it_starts(script, tmp_path):
    """Everything a script imports at its top is there; nothing is measured."""
    code = f"import runpy; runpy.run_path({str(script)!r}, run_name='not_main')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert not any(tmp_path.iterdir())
