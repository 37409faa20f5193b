"""Record what the commands in README and tutorials print, and write it below them.

``python tools/transcripts.py --data ../shared/data [PAGE.md …]`` runs the commands of each block
that follows ``<!-- recorded -->``, in a folder of its own for each page, and replaces their output
there and in the translation of the page. The folder has the images and weights that the pages name.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(?<=<!-- recorded -->\n```text\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
LINKS = {
    "photos": "hymenoptera_data",
    "holiday.jpg": "hymenoptera_data/val/bees/1032546534_06907fe3b3.jpg",
    "hymenoptera_data": "hymenoptera_data",
    "cifar-10-batches-py": "cifar10_subset/cifar-10-batches-py",
    "lite0.safetensors": "weights/tf_efficientnet_lite0-imagenet.safetensors",
}


def translation_of(page: Path) -> Path:
    return page.with_suffix(".zh.md")


def commands_of(block: str) -> list[str]:
    return re.findall(r"^\$ (.+)$", block, re.MULTILINE)


def link_data(data: Path, folder: Path) -> None:
    """Put images and weights into a folder, by the names that the pages use."""
    for link, target in LINKS.items():
        (folder / link).symlink_to((data / target).resolve())


def record(commands: list[str], folder: Path, *, colour: bool = False) -> str:
    """Run commands in a folder, 80 columns wide; return them with what they print.

    Raises:
        SystemExit: A command failed.
    """
    environment = {**os.environ, "COLUMNS": "80", "FORCE_COLOR" if colour else "NO_COLOR": "1"}
    programs = Path(sys.executable).parent
    environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
    shown = []
    for command in commands:
        ran = subprocess.run(
            shlex.split(command),
            check=False,
            cwd=folder,
            env=environment,
            text=True,
            capture_output=True,
        )
        if ran.returncode:
            raise SystemExit(f"{command}\n{ran.stdout}{ran.stderr}")
        shown.append(f"$ {command}\n{ran.stdout}")
    return "\n".join(shown)


def recorded(text: str, folder: Path) -> Iterator[str]:
    for block in BLOCK.findall(text):
        yield record(commands_of(block), folder)


def fill(page: Path, blocks: list[str]) -> None:
    """Put recorded blocks into a page, in their order."""
    rest = iter(blocks)
    page.write_text(BLOCK.sub(lambda _: next(rest), page.read_text("utf-8")), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="English ones; all without")
    parser.add_argument("--data", type=Path, required=True, help="images and weights")
    given = parser.parse_args()
    lessons = sorted((ROOT / "docs" / "tutorials").glob("[0-9]*.md"))
    pages = given.pages or [ROOT / "README.md", *(p for p in lessons if p.suffixes == [".md"])]
    for page in pages:
        with tempfile.TemporaryDirectory() as name:
            link_data(given.data, Path(name))
            blocks = list(recorded(page.read_text("utf-8"), Path(name)))
        fill(page, blocks)
        fill(translation_of(page), blocks)
        print(f"recorded {len(blocks)} blocks of {page.name}")


if __name__ == "__main__":
    main()
