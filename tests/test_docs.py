"""Commands, options, attributes and files that README and docs name exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import click

from featx.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
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


CODE = [(page, piece) for page in PAGES for piece in code_of(page)]


def options_of(command: click.Command) -> set[str]:
    """Return all names of a command's options."""
    with click.Context(command, help_option_names=["-h", "--help"]) as context:
        parameters = command.get_params(context)
    names = (name for own in parameters for name in (*own.opts, *own.secondary_opts))
    return {name for name in names if name.startswith("-")}


OPTIONS = {name: options_of(command) for name, command in main.commands.items()}
ANY = set().union(*OPTIONS.values()) | options_of(main)


def test_commands_and_their_options_exist():
    wrong = []
    for page, line in CODE:
        for name, rest in re.findall(r"(?:^|[\s(])featx ([a-z][a-z0-9-]*)([^|;)]*)", line):
            if line.startswith(("import", "from")):
                continue
            options = re.findall(r"(?<=\s)--?[a-z][a-z0-9-]*", rest.partition(" #")[0])
            known = OPTIONS.get(name, set())
            wrong += [f"{page}: featx {name} {option}" for option in options if option not in known]
            wrong += [f"{page}: featx {name}"] if name not in OPTIONS else []
    assert not wrong


def test_options_named_alone_exist():
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    texts = [script.read_text(encoding="utf-8") for script in scripts]
    of_scripts = {name for text in texts for name in re.findall(r"[\"'](--[a-z0-9-]+)[\"']", text)}
    wrong = []
    for page, span in CODE:
        if span.startswith("--") and not OTHERS.match(span):
            option = re.match(r"--[a-z0-9-]+", span)
            if not option or option.group() not in ANY | of_scripts:
                wrong.append(f"{page}: {span}")
    assert not wrong


def exists(names: list[str]) -> bool:
    """Return whether a dotted name leads from featx to a module or an attribute."""
    found = importlib.import_module("featx")
    for position, name in enumerate(names):
        if not hasattr(found, name):
            try:
                found = importlib.import_module(".".join(("featx", *names[: position + 1])))
            except ModuleNotFoundError:
                return False
        else:
            found = getattr(found, name)
    return True


def test_attributes_and_modules_exist():
    wrong = []
    for page, line in CODE:
        for dotted in re.findall(r"(?<![\w./-])featx((?:\.[A-Za-z_]\w*)+)", line):
            names = dotted[1:].split(".")
            # a metadata key and files are not attributes
            if names[-1] not in ("sha256", "onnx", "pth", "h5") and not exists(names):
                wrong.append(f"{page}: featx{dotted}")
    assert not wrong


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_folders_and_links_exist():
    wrong = []
    for page in PAGES:
        for span in code_of(page):
            for name in re.findall(r"\b(?:featx|tests|benchmarks|tools|docs)/[\w/.-]*\w", span):
                if "photos" not in name and not name.startswith("featx/graphs"):
                    wrong += [f"{page}: {name}"] if not (ROOT / name).exists() else []
        text = (ROOT / page).read_text(encoding="utf-8")
        for target, _, anchor in re.findall(r"\]\(([^)#:]*)(#([^)]+))?\)", text):
            path = (ROOT / page).parent / target if target else ROOT / page
            if not path.exists() or (anchor and anchor not in anchors_of(path)):
                wrong.append(f"{page}: {target}#{anchor}")
    assert not wrong


def test_every_page_is_in_the_navigation_of_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/.-]+\.md$", site, re.MULTILINE)
    assert sorted(f"docs/{name}" for name in listed) == sorted(
        page for page in PAGES if page.startswith("docs/")
    )


def test_both_languages_show_the_same_code_and_lead_to_each_other():
    translated = list((ROOT / "docs").rglob("*.zh.md"))
    assert len(translated) >= 10
    for path in translated:
        page = path.with_name(path.name.replace(".zh.md", ".md"))
        own, other = (each.read_text(encoding="utf-8") for each in (path, page))
        blocks = [re.findall(r"^```\w*\n.*?^```$", text, re.M | re.S) for text in (own, other)]
        assert blocks[0] == blocks[1], path.name
        assert f"]({page.name})" in own
        assert f"]({path.name})" in other
