"""Every error featx raises on purpose.

    FeatxError
    ├─ ConfigError          (ValueError)          an option has an unusable value
    ├─ SourceError                                an image source cannot be used
    │   ├─ ImageError                             one image cannot be used; carries sample_id
    │   │   └─ ImageTooLarge                      it has too many pixels
    │   └─ BadImages                              some cannot; carries their ids and reasons
    ├─ BackboneError                              unknown name, weights missing or not matching
    ├─ HubError                                   the hub refuses, or cannot be reached
    ├─ TrainingError                              training cannot go on: its loss is not finite
    ├─ ClusterError                               a cluster does not answer, or its nodes differ
    ├─ ArtifactError                              something is wrong with a file; carries path
    │   ├─ ArtifactMissing  (FileNotFoundError)
    │   ├─ ArtifactExists   (FileExistsError)
    │   ├─ ArtifactInvalid  (ValueError)          not ours, damaged, hostile, unknown version
    │   ├─ ArtifactIncomplete                     the stage that wrote it did not finish
    │   ├─ ArtifactBusy                           another process is writing it
    │   └─ ArtifactMismatch (ValueError)          two files do not belong together
    └─ ExportError
        └─ ParityError                            outputs differ; carries difference and bound

A message says what, where, expected, found and what to do, in one or two sentences with paths and
values quoted. Errors of other libraries are translated where featx touches them (``raise … from``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any


class FeatxError(Exception):
    """Base of every error that featx raises on purpose; its text is meant for the user."""


class ConfigError(FeatxError, ValueError):
    """An option has a value that cannot be used."""


class SourceError(FeatxError):
    """An image source is missing, empty, or not laid out as expected."""


class ImageError(SourceError):
    """One image cannot be used.

    Args:
        sample_id: Which image.
        reason: What is wrong with it, without its name.
        is_permanent: Whether the content of its file is the reason; None decides by the error that
            this one is raised from.
    """

    def __init__(self, sample_id: str, reason: str, *, is_permanent: bool | None = None) -> None:
        super().__init__(f"Image '{sample_id}': {reason}")
        self.sample_id = sample_id
        self.reason = reason
        self._is_permanent = is_permanent

    @property
    def is_permanent(self) -> bool:
        """Whether the content of the file is the reason.

        Memory, I/O, rights, limits and missing packages are not: another attempt may succeed.
        """
        if self._is_permanent is None:
            return not lies_in_machine(self.__cause__)
        return self._is_permanent

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), is_permanent=self.is_permanent)
        return make, (self.sample_id, self.reason)


class ImageTooLarge(ImageError):
    """An image has more pixels than are allowed, as its header says."""


_MEMORY_WORDS = ("out of memory", "cannot allocate", "insufficient memory", "error -4 ")
"""In messages of libraries that get no memory; the last is zlib's."""


def lies_in_machine(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, comes from the system and not from a file."""
    while error is not None:
        if isinstance(error, MemoryError | ImportError | TimeoutError):
            return True
        if isinstance(error, OSError) and error.errno is not None:
            return True
        if any(words in str(error).lower() for words in _MEMORY_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


class BadImages(SourceError):
    """Some images of a source cannot be used.

    Args:
        images: ``(sample_id, reason)`` of each.
        total: Images of the source.
        advice: What the user can do, a sentence or two.
    """

    SHOWN = 20

    def __init__(self, images: Sequence[tuple[str, str]], total: int, advice: str) -> None:
        names = [printable(f"  {name}: {reason}") for name, reason in images[: self.SHOWN]]
        if len(images) > self.SHOWN:
            names.append(f"  … and {len(images) - self.SHOWN:,} more")
        head = f"{len(images):,} of {counted(total, 'image')} cannot be used:"
        super().__init__("\n".join([head, *names, advice]))
        self.images = tuple(images)
        self.total = total
        self.advice = advice

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.images, self.total, self.advice)


class BackboneError(FeatxError):
    """A backbone is unknown, or its weights are missing or do not match it."""


class HubError(FeatxError):
    """Hugging Face's hub refuses what was to be sent, or cannot be reached."""


class ArtifactError(FeatxError):
    """Something is wrong with an artifact file.

    Args:
        path: The file.
        message: The whole text for the user.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        super().__init__(message)
        self.path = Path(path)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, str(self))


class ArtifactMissing(ArtifactError, FileNotFoundError):
    """The file is not there."""


class ArtifactExists(ArtifactError, FileExistsError):
    """The output is there already and was not to be overwritten."""


class ArtifactInvalid(ArtifactError, ValueError):
    """The file is not featx's, damaged, hostile, or of an unknown version."""


class ArtifactIncomplete(ArtifactError):
    """The stage that wrote the file did not finish."""


class ArtifactBusy(ArtifactError):
    """Another process is writing the file."""


class ArtifactMismatch(ArtifactError, ValueError):
    """Two files do not belong together."""


class ClusterError(FeatxError):
    """A cluster does not answer, or its nodes cannot be used."""


class TrainingError(FeatxError):
    """A training of the network's tail cannot go on."""


class ExportError(FeatxError):
    """A classifier cannot be exported."""


class ParityError(ExportError):
    """The exported file does not answer what the head answered.

    Args:
        message: The whole text for the user.
        difference: Largest absolute logit difference that was found.
        bound: Largest absolute logit difference that was allowed.
    """

    def __init__(self, message: str, *, difference: float, bound: float) -> None:
        super().__init__(message)
        self.difference = difference
        self.bound = bound

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(type(self), difference=self.difference, bound=self.bound)
        return make, self.args


def require_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """Raise ``ConfigError`` unless an option has one of some values.

    >>> require_choice("max_bad", "few", ["all", None])
    Traceback (most recent call last):
    featx.errors.ConfigError: max_bad must be one of all; got 'few'.
    """
    choices = tuple(choices)
    if value not in choices:
        shown = ", ".join(str(choice) for choice in choices if choice is not None)
        raise ConfigError(f"{name} must be one of {shown}; got {value!r}.")


def require_number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    *,
    ends: str = "[]",
    whole: bool = False,
    optional: bool = False,
    unit: str = "",
) -> None:
    """Raise ``ConfigError`` unless an option is a finite number of an interval.

    Args:
        name: The option.
        value: What was given.
        low: Where the interval begins.
        high: Where it ends.
        ends: ``"[]"``; ``"(]"`` or ``"()"`` without ``low``, ``"[)"`` or ``"()"`` without ``high``.
        whole: The number must be an integer.
        optional: None fits, too.
        unit: Of the number, for the message.

    >>> require_number("momentum", 1.0, 0, 1, ends="[)")
    Traceback (most recent call last):
    featx.errors.ConfigError: momentum must be at least 0 and below 1; got 1.0.
    """
    if value is None and optional:
        return
    kind = Integral if whole else Real
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ConfigError(f"{name} must be a {'whole ' * whole}number; got {value!r}.")
    number: Any = value
    above = low < number if ends[0] == "(" else low <= number
    if above and (number < high if ends[1] == ")" or high == math.inf else number <= high):
        return
    words = [f"{'above' if ends[0] == '(' else 'at least'} {low}"]
    if high < math.inf:
        words.append(f"{'below' if ends[1] == ')' else 'at most'} {high}")
    expected = f"{low} to {high}" if ends == "[]" and high < math.inf else " and ".join(words)
    raise ConfigError(f"{name} must be {expected}{unit}; got {value}.")


def require_at_least(name: str, value: object, least: int) -> None:
    """Raise ``ConfigError`` unless an option is a whole number that is large enough, or None."""
    require_number(name, value, least, whole=True, optional=True)


def counted(number: int, one: str, several: str = "") -> str:
    """Return a number with what it counts, in singular or plural.

    >>> counted(1, "image"), counted(2000, "image"), counted(3, "class", "classes")
    ('1 image', '2,000 images', '3 classes')
    """
    return f"1 {one}" if number == 1 else f"{number:,} {several or one + 's'}"


def listed(items: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Join the first few items, and say how many more there are.

    >>> listed(["a", "b", "c"], 2), listed(["a", "b", "c"], 2, "; ")
    ('a, b and 1 more', 'a; b; and 1 more')
    """
    more = len(items) - most
    end = f"{separator.strip(', ')} and {more} more" if more > 0 else ""
    return separator.join(items[:most]) + end


def first_line(err: Exception) -> str:
    """Return the first line of an error's text, or the name of its type."""
    return str(err).strip().partition("\n")[0] or type(err).__name__


@contextmanager
def only_errors(*loggers: str) -> Iterator[None]:
    """Leave out warnings and notes of some loggers: of another library, or said before."""
    before = {logger: logger.level for logger in map(logging.getLogger, loggers)}
    for logger in before:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def printable(text: str, *, keep: str = "") -> str:
    r"""Return the text with escapes for characters that cannot be shown, but for those to keep.

    >>> print(printable("a\x1b[2J\n\u202eb"))
    a\x1b[2J\n\u202eb
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else escaped(c) for c in text)


def escaped(character: str) -> str:
    """Return the escape of a character, in ASCII."""
    return character.encode("unicode_escape").decode("ascii")
