"""Options by keyword, in place of a record of options or beside it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, replace
from typing import Any, TypeVar

from featx.errors import ConfigError, listed

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def record_of(record: type[T], given: T | None, keywords: Mapping[str, Any]) -> T:
    """Return a record of options; keywords count before what a given record says.

    Raises:
        ConfigError: There is no such option, or a value does not fit.
    """
    require_names(keywords, names_of(record))
    values = {name: tuple(own) if isinstance(own, list) else own for name, own in keywords.items()}
    if given is None:
        return record(**values)
    if not isinstance(given, record):
        raise ConfigError(
            f"options must be a {record.__name__}; got {type(given).__name__}. Single options are "
            "given by their names: seed=1."
        )
    return replace(given, **values)  # type: ignore[type-var]


def require_names(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of options that are not known, with the nearest that is.

    >>> require_names(["bakbone"], ["backbone", "layer"])
    Traceback (most recent call last):
        ...
    featx.errors.ConfigError: There is no option 'bakbone'. Did you mean 'backbone'?
    """
    known = sorted(set(known))
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f"Did you mean {' or '.join(map(repr, near))}?"
            hint = hint if near else f"There are {listed(known, len(known))}."
            raise ConfigError(f"There is no option '{name}'. {hint}")


def names_of(record: type) -> list[str]:
    """Return the names of a record's options."""
    return [each.name for each in fields(record)]


def by_keyword(*records: type) -> Callable[[F], F]:
    """Add the options of records to the keywords that ``help`` and notebooks show of a function."""

    def listing(function: F) -> F:
        own = inspect.signature(function)
        kept = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        options = {each.name: each for record in reversed(records) for each in fields(record)}
        added = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=_default(each), annotation=each.type
            )
            for name, each in options.items()
            if name not in own.parameters
        ]
        function.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        return function

    return listing


def _default(each: Field[Any]) -> Any:
    if each.default_factory is not MISSING:
        return each.default_factory()
    return inspect.Parameter.empty if each.default is MISSING else each.default
