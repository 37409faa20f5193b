"""Render the templates of this package: what a value holds is text there, never markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from featx.errors import counted, printable
from featx.heads.tasks.task import Column

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_PUNCTUATION = frozenset("\\|*_`~<>[]()!#&@:.$")  # of Markdown, and of addresses that become links


def render(name: str, values: Mapping[str, object]) -> str:
    """Render a template with values, which are escaped for HTML or Markdown unless marked as safe.

    Control characters, and what is not UTF-8, become escapes as in Python.
    """
    return _environment(name.rpartition(".")[2]).get_template(name).render(values)


@cache
def _environment(kind: str) -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    escape = {"html": _visible, "md": markdown}.get(kind, str)
    environment = Environment(
        loader=PackageLoader("featx.reporting"),
        undefined=StrictUndefined,
        autoescape=kind == "html",
        finalize=lambda value: value if _is_safe(value) else escape(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": number, "code": code, "filled": filled}
    environment.globals |= {"counted": counted, "zip": zip}
    return environment


def safe(text: str) -> Markup:
    """Mark text as one that needs no escaping."""
    from markupsafe import Markup

    return Markup(text)


def markdown(value: object) -> str:
    """Escape text for one line of Markdown."""
    return "".join(f"\\{c}" if c in _PUNCTUATION else c for c in _visible(value))


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table whose cells are escaped unless marked as safe."""
    lines = (columns, ["---"] * len(columns), *rows)
    cells = ([str(c) if _is_safe(c) else markdown(c) for c in line] for line in lines)
    return safe("\n".join(f"| {' | '.join(line)} |" for line in cells))


def number(value: float | None, form: str = ".4f") -> Markup:
    """Format a number, which needs no escaping; a dash where there is none."""
    return safe("–" if value is None else format(value, form))


def filled(columns: Iterable[Column], rows: Iterable[object]) -> list[Column]:
    """Return the columns in which any of these scores has a value."""
    scores = list(rows)
    return [column for column in columns if any(column.text(each) != "–" for each in scores)]


def code(text: object) -> Markup:
    """Return text as code in a line of Markdown."""
    return safe(f"`{_visible(text).replace('`', ' ')}`")


def _visible(value: object) -> str:
    return printable(str(value))


def _is_safe(value: object) -> bool:
    return hasattr(value, "__html__")
