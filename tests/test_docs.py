"""Commands, options, attributes and files that README and docs name exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click
import pytest

from featx.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").iterdir()),
]
# Of programs that are not featx's, or of featx's scripts in benchmarks/ and tools/.
OTHERS = re.compile(
    r"^\s*(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*python3?|pip|make|git|npm|gunicorn|uvicorn)\b"
)


def code_of(page: str) -> list[str]:
    """Return what a page shows as code: lines of blocks, and spans in backquotes."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return [line for block in blocks for line in block.splitlines()] + spans


def options_of(command: click.Command) -> set[str]:
    """Return all names of a command's options."""
    with click.Context(command) as context:
        parameters = command.get_params(context)
    names = (name for own in parameters for name in (*own.opts, *own.secondary_opts))
    return {name for name in names if name.startswith("-")}


OPTIONS = {name: options_of(command) for name, command in main.commands.items()}
ANY = set().union(*OPTIONS.values()) | options_of(main)


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page):
    for line in code_of(page):
        for name, rest in re.findall(r"(?:^|[\s(])featx ([a-z][a-z0-9-]*)([^|;)]*)", line):
            if line.startswith(("import", "from")):
                continue
            assert name in OPTIONS, f"{page}: featx {name}"
            for option in re.findall(r"(?<=\s)--?[a-z][a-z0-9-]*", rest.partition(" #")[0]):
                assert option in OPTIONS[name], f"{page}: featx {name} {option}"


@pytest.mark.parametrize("page", PAGES)
def test_options_named_alone_exist(page):
    for span in code_of(page):
        if span.startswith("--") and not OTHERS.match(span):
            option = re.match(r"--[a-z0-9-]+", span)
            assert option, f"{page}: {span}"
            assert option.group() in ANY | _options_of_scripts(), f"{page}: {span}"


def _options_of_scripts() -> set[str]:
    """Return the options of benchmarks, tools and make's BENCH."""
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    texts = (script.read_text(encoding="utf-8") for script in scripts)
    return {name for text in texts for name in re.findall(r"[\"'](--[a-z0-9-]+)[\"']", text)}


@pytest.mark.parametrize("page", PAGES)
def test_attributes_and_modules_exist(page):
    for line in code_of(page):
        for dotted in re.findall(r"(?<![\w./-])featx((?:\.[A-Za-z_]\w*)+)", line):
            names = dotted[1:].split(".")
            if names[-1] in ("sha256", "onnx", "pth", "h5"):  # a metadata key, a file
                continue
            found = importlib.import_module("featx")
            for position, name in enumerate(names):
                if not hasattr(found, name):
                    module = ".".join(("featx", *names[: position + 1]))
                    found = importlib.import_module(module)
                else:
                    found = getattr(found, name)


@pytest.mark.parametrize("page", PAGES)
def test_files_and_folders_exist(page):
    for span in code_of(page):
        for name in re.findall(r"\b(?:featx|tests|benchmarks|tools|docs)/[\w/.-]*\w", span):
            if "photos" in name or name.startswith("featx/graphs"):
                continue
            assert (ROOT / name).exists(), f"{page}: {name}"
    for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"
