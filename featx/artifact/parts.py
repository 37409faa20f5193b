"""Names in a folder of parts, ``NAME.parts``: a feature file in several files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featx.errors import ConfigError

SUFFIX, PLAN, INDEX = ".parts", "plan.json", "index.json"
MAX_PARTS = 512
"""Parts of a folder at most: a reader has all of them open at once."""
_PART = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")


def is_parts(path: Path) -> bool:
    """Return whether a path is that of parts, not of one file."""
    return path.suffix == SUFFIX and not os.path.isfile(path)  # noqa: PTH113 as pathlib raises


def has_parts(path: Path) -> bool:
    """Return whether a path is a folder in which a part was begun."""
    return is_parts(path) and os.path.isfile(path / PLAN)  # noqa: PTH113


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a part, numbered from 1."""
    return folder / f"part-{number:05}.h5"


def parse_part(text: str) -> tuple[int, int]:
    """Return number and count of ``"3/16"``.

    Raises:
        ConfigError: It is something else, or there is no such part.
    """
    match = _PART.fullmatch(str(text))
    if match is None:
        raise ConfigError(f"part is NUMBER/COUNT, such as part='3/16'; got {text!r}.")
    number, count = int(match[1]), int(match[2])
    if not 1 <= count <= MAX_PARTS:
        raise ConfigError(f"part='{text}': there are 1 to {MAX_PARTS} parts, not {count}.")
    if not 1 <= number <= count:
        raise ConfigError(
            f"part='{text}': {count} parts have the numbers 1 to {count}, not 0 to {count - 1}. An "
            f"array of jobs numbered 1-{count} gives its own number, one numbered 0-{count - 1} "
            "its number plus 1."
        )
    return number, count


def ranges(numbers: list[int]) -> str:
    """Return ascending numbers as text.

    >>> ranges([1, 2, 5, 6, 7])
    '1-2, 5-7'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
