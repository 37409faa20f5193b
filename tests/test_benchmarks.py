"""Every benchmark starts: what it takes from featx is still there."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
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


def test_pages_have_the_places_where_they_write():
    wrong, found = [], 0
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "write_measured":
                continue
            given = [node.args[0], *(each.value for each in node.keywords)]
            texts = [str(each.value) for each in given if isinstance(each, ast.Constant)]
            if len(texts) < len(given):
                continue
            found += 1
            page, mark = texts[0], ": ".join(["measured", *texts[1:]])
            if f"<!-- {mark} -->" not in (ROOT / page).read_text(encoding="utf-8"):
                wrong.append(f"{script.name}: {page} has no <!-- {mark} -->")
    assert found > 10
    assert not wrong
