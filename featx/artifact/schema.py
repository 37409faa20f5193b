"""Rules for values that were read from JSON.

A rule is called with a value and its name, such as ``details.metrics.train.top1``, and raises
``Unfit`` where the value does not follow it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any, str], None]

_SHOWN = 240
_INT64 = 2**63 - 1
_ROUNDING = 1e-9


class Unfit(ValueError):
    """A value does not follow its rule."""

    def __init__(self, name: str, expected: str, found: object) -> None:
        super().__init__(f"{name} is {brief(found)}, expected {expected}")


class Absent:
    """Stands in a message for a value that is not there."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __repr__(self) -> str:
        return self.word


_MISSING = Absent("missing")


def brief(value: object) -> str:
    """Return a value as text, shortened: digests by their start, paths by their end."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # deeply nested; an integer of thousands of digits
        return f"a {type(value).__name__} too large to show"
    if re.fullmatch("'[0-9a-f]{64}'", text):
        return f"{text[:13]}…'"
    return text if len(text) <= _SHOWN else f"{text[:60]}…{text[-160:]}"


def text(*choices: str) -> Rule:
    """Return the rule of text that UTF-8 can encode, or of file names with other bytes."""
    expected = f"one of {', '.join(choices)}" if choices else "text"

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, str) or (choices and value not in choices):
            raise Unfit(name, expected, value)
        try:
            value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise Unfit(name, "text of valid characters", value) from None

    return rule


def path_text(value: Any, name: str) -> None:
    """Check that a value is text that can be part of a path: without NUL."""
    text()(value, name)
    if "\0" in value:
        raise Unfit(name, "text without NUL", value)


def digest(num_digits: int = 64) -> Rule:
    """Return the rule of a number of lower-case hexadecimal digits."""

    def rule(value: Any, name: str) -> None:
        if not (isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{num_digits}}}", value)):
            raise Unfit(name, f"{num_digits} hexadecimal digits", value)

    return rule


def whole(low: int = 0, high: int = _INT64) -> Rule:
    """Return the rule of a whole number in ``[low, high]``; true and false are none."""

    def rule(value: Any, name: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise Unfit(name, f"a whole number from {low} to {high}", value)

    return rule


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Rule:
    """Return the rule of a finite number in ``[low, high]``, or in ``(low, high]``.

    A limit may be passed by a rounding error, except one that a number must be above.
    """
    words = ["a number"]
    if low > -math.inf:
        words.append(f"{'above' if above else 'from'} {low:g}")
    if high < math.inf:
        words.append(f"to {high:g}")

    def rule(value: Any, name: str) -> None:
        fits = type(value) in (int, float) and _is_finite(value)
        if not fits or not low - _ROUNDING <= value <= high + _ROUNDING or (above and value <= low):
            raise Unfit(name, " ".join(words), value)

    return rule


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise Unfit(name, "true or false", value)


def nullable(rule: Rule) -> Rule:
    def either(value: Any, name: str) -> None:
        if value is not None:
            rule(value, name)

    return either


def list_of(rule: Rule, length: int | None = None, *, at_least: int = 0) -> Rule:
    """Return the rule of a list whose items follow another, of a length where one is given."""
    expected = f"a list of {f'at least {at_least}' if length is None else length}"

    def each(value: Any, name: str) -> None:
        fits = isinstance(value, list | tuple) and len(value) >= at_least
        if not fits or (length is not None and len(value) != length):
            raise Unfit(name, expected, value)
        for position, item in enumerate(value):
            rule(item, f"{name}[{position}]")

    return each


def items(*rules: Rule) -> Rule:
    def each(value: Any, name: str) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(rules):
            raise Unfit(name, f"a list of {len(rules)}", value)
        for position, (item, rule) in enumerate(zip(value, rules, strict=True)):
            rule(item, f"{name}[{position}]")

    return each


def mapping_of(rule: Rule) -> Rule:
    """Return the rule of a mapping from any names to values that follow another rule."""

    def each(value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            raise Unfit(name, "a mapping", value)
        for key, item in value.items():
            rule(item, f"{name}.{key}")

    return each


def record(
    required: Mapping[str, Rule],
    optional: Mapping[str, Rule] | None = None,
    *,
    closed: bool = False,
) -> Rule:
    """Return the rule of a mapping with named fields."""
    known = {**required, **(optional or {})}

    def rule(value: Any, name: str) -> None:
        if not isinstance(value, Mapping):
            raise Unfit(name, "a mapping", value)
        for key, own in known.items():
            if key in value:
                own(value[key], f"{name}.{key}")
            elif key in required:
                raise Unfit(f"{name}.{key}", "a value", _MISSING)
        extra = sorted(value.keys() - known.keys()) if closed else []
        if extra:
            raise Unfit(f"{name}.{brief(extra[0])[1:-1]}", "no such field", value[extra[0]])

    return rule
