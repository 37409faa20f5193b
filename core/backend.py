"""Build featx-core: the files of featx, and its metadata but for what needs torch.

pip and build call the functions, which lay out a tree of sources in a temporary folder and have
setuptools build that. An sdist is such a tree, and needs nothing of this.
"""

import contextlib
import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from setuptools import build_meta

ROOT = Path(__file__).resolve().parent.parent
NAME = "featx-core"
WITH_TORCH = ("torch", "torchvision", "onnxscript")
NOT_OURS = ("dev", "docs")
"""Extras for work on featx itself."""


def build_sdist(folder: str, settings: Any = None) -> str:
    target = str(Path(folder).absolute())
    with _laid_out():
        return build_meta.build_sdist(target, settings)


def build_wheel(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    target = str(Path(folder).absolute())
    with _laid_out():
        return build_meta.build_wheel(target, settings)


@contextlib.contextmanager
def _laid_out() -> Iterator[None]:
    """Work in a folder that holds the sources of featx-core."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(
            ROOT / "featx", folder / "featx", ignore=shutil.ignore_patterns("__pycache__")
        )
        for each in ("README.md", "LICENSE"):
            shutil.copy(ROOT / each, folder)
        (folder / "pyproject.toml").write_text(as_toml(configuration()), encoding="utf-8")
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def configuration() -> dict[str, Any]:
    """Return the content of featx-core's pyproject.toml, made from that of featx."""
    complete = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = dict(complete["project"])
    needs_torch = [each for each in project["dependencies"] if _name(each) in WITH_TORCH]
    extras = {
        extra: [each.replace("featx[", f"{NAME}[") for each in needs]
        for extra, needs in project["optional-dependencies"].items()
        if extra not in NOT_OURS
    }
    extras["timm"].append(f"{NAME}[torch]")
    project |= {
        "name": NAME,
        "description": f"{project['description']} Without torch.",
        "dependencies": [each for each in project["dependencies"] if each not in needs_torch],
        "optional-dependencies": extras | {"torch": needs_torch},
    }
    return {
        "build-system": complete["build-system"],
        "project": project,
        "tool": {"setuptools": complete["tool"]["setuptools"]},
    }


def _name(requirement: str) -> str:
    return requirement.partition(">")[0].partition("=")[0].strip()


def as_toml(content: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Return tables of strings and lists as TOML, which writes both as JSON does."""
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    plain = [f"{key} = {_value(value)}\n" for key, value in content.items() if key not in tables]
    head = f"[{'.'.join(path)}]\n" if path and plain else ""
    return head + "".join(plain) + "".join(as_toml(tables[key], (*path, key)) for key in tables)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_value(each) for each in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_value(each)}' for key, each in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)
