"""Options by keyword, in place of a record of options or beside it."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from featx.artifact.schema import brief
from featx.errors import ConfigError, listed

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def record_of(record: type[T], given: T | None, keywords: Mapping[str, Any]) -> T:
    """Return a record of options; keywords count before what a given record says.

    Raises:
        ConfigError: There is no such option, or a value does not fit.
    """
    require_names(keywords, names_of(record))
    if given is None:
        return record(**keywords)
    if not isinstance(given, record):
        raise ConfigError(
            f"options must be a {record.__name__}; got {type(given).__name__}. Single options are "
            "given by their names: seed=1."
        )
    return replace(given, **keywords)  # type: ignore[type-var]


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


def require_types(options: Any) -> None:
    """Check that the values of a record of options have the types that its fields declare.

    Numbers and arrays of numpy become Python's, texts fit where a path is declared, and lists where
    a tuple is. Numbers may still be out of range, and texts unknown.

    Raises:
        ConfigError: One has another type, or is none of the choices.
    """
    record: Any = type(options)
    for name, kinds in _kinds_of(record).items():
        value = _plain(getattr(options, name))
        object.__setattr__(options, name, value)
        if not any(_fits(value, kind) for kind in kinds):
            words = dict.fromkeys(_words(kind) for kind in kinds if kind is not NoneType)
            raise ConfigError(f"{name} must be {' or '.join(words)}; got {brief(value)}.")


def _plain(value: Any) -> Any:
    """Return numbers and arrays of numpy as Python's, and lists as tuples."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


@cache
def _kinds_of(record: Any) -> dict[str, tuple[Any, ...]]:
    """Return the types that each field may have; all choices are one."""
    kinds = {}
    for name, hint in get_type_hints(record).items():
        several = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for each in several for choice in _choices(each)]
        others = [each for each in several if get_origin(each) is not Literal]
        kinds[name] = (*([Literal[tuple(choices)]] if choices else []), *others)
    return kinds


def _choices(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _fits(value: Any, kind: Any) -> bool:
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return any(isinstance(value, type(own)) and value == own for own in arguments)
    if origin in _ABSTRACT:
        is_flag = isinstance(value, bool)
        return isinstance(value, _ABSTRACT[origin]) and (origin is bool or not is_flag)
    if origin in (tuple, Sequence):
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    return origin is Any or isinstance(value, origin)


_ABSTRACT: dict[Any, tuple[type, ...]] = {
    bool: (bool, Integral),
    int: (Integral,),
    float: (Real,),
    str: (str, Path),
    Path: (str, Path),
}
_WORDS: dict[Any, str] = {
    **{bool: "True or False", int: "a whole number", float: "a number", str: "a text"},
    **{Path: "a path", Mapping: "a mapping"},
}


def _words(kind: Any) -> str:
    if choices := _choices(kind):
        return f"one of {', '.join(map(str, choices))}"
    origin = get_origin(kind) or kind
    if origin in (tuple, Sequence):
        return f"a list, each item {_words(get_args(kind)[0])}"
    return _WORDS.get(origin) or f"a {getattr(origin, '__name__', origin)}"


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
