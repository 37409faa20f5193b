"""What a label can say besides the name of a class: several tags, or numbers.

A source keeps labels as they stand; whoever trains on them decides how they are read.
"""

from __future__ import annotations

import math
from collections.abc import Collection

SEPARATOR = "|"
"""Between the tags, or the numbers, of one label."""

_LARGEST = 1e30
"""Of a number that float32 can still calculate with."""
_FEW = 20
"""As many different numbers may well be the names of classes."""


def split_tags(label: str) -> tuple[str, ...]:
    """Return the tags of a label, sorted, each once; none for ``"|"`` alone.

    >>> split_tags("red | big|red")
    ('big', 'red')
    """
    return tuple(sorted({tag.strip() for tag in label.split(SEPARATOR)} - {""}))


def parse_numbers(label: str) -> tuple[float, ...] | None:
    """Return the numbers of a label; None where a part is none, not finite, or above 1e30.

    >>> parse_numbers("3.5|-1"), parse_numbers("3,5")
    ((3.5, -1.0), None)
    """
    if "_" in label:  # 1_000 is Python's, not a table's
        return None
    try:
        numbers = tuple(float(part) for part in label.split(SEPARATOR))
    except ValueError:
        return None
    usable = all(math.isfinite(number) and abs(number) <= _LARGEST for number in numbers)
    return numbers if usable else None


def has_tags(classes: Collection[str]) -> bool:
    """Return whether any label has several tags."""
    return any(SEPARATOR in name for name in classes)


def look_like_numbers(classes: Collection[str], num_samples: int) -> bool:
    """Return whether labels are rather measured than names: numbers, and many different ones.

    Args:
        classes: Different labels.
        num_samples: That have one.
    """
    if len(classes) <= _FEW:
        return False
    numbers = [parse_numbers(name) for name in classes]
    if any(each is None for each in numbers):
        return False
    whole = all(float(part).is_integer() for each in numbers if each for part in each)
    return not whole or num_samples < 5 * len(classes)
