"""What looks wrong with a source's classes though it can be used: warnings before the long run."""

from __future__ import annotations

import logging
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from featx.images.sources.sample import Sample

log = logging.getLogger(__name__)

_SHOWN = 5


def warn_of_odd_classes(uri: str, classes: Sequence[str], samples: Sequence[Sample]) -> None:
    """Log a warning for each thing about a source's classes that training would suffer from."""
    for oddity in odd_classes(classes, samples):
        log.warning("'%s': %s", uri, oddity)


def odd_classes(classes: Sequence[str], samples: Sequence[Sample]) -> Iterator[str]:
    """Yield a sentence for each thing that looks wrong; none where no image has a label.

    - classes without images, which nothing can be told to belong to;
    - classes without training images, where others have some;
    - a single class that has images, so that there is nothing to tell apart;
    - names that differ only in case, or in how an accent is written.

    Args:
        classes: Names in index order.
        samples: With the splits that they will be trained by.
    """
    filled = {sample.label for sample in samples} - {-1}
    trained = {sample.label for sample in samples if sample.split == "train"} - {-1}
    if not filled:
        return
    if empty := [name for label, name in enumerate(classes) if label not in filled]:
        yield f"{_counted(empty)} no images: {_quoted(empty)}. Kept, but it can never be learned."
    if trained and (untrained := [classes[label] for label in sorted(filled - trained)]):
        yield (
            f"{_counted(untrained)} images for validation or test but none for training: "
            f"{_quoted(untrained)}. What is not trained is never the answer."
        )
    if len(filled) == 1:
        yield (
            f"all labelled images are of one class, {_quoted([classes[min(filled)]])}: there is "
            "nothing to tell apart. Expected one folder, or label, per class."
        )
    for alike in _alike(classes):
        yield (
            f"{len(alike)} classes differ only in case or in how accents are written: "
            f"{_quoted(alike)}. Join them if they are one."
        )


def _alike(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the names that many file systems, and readers, take for one."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[unicodedata.normalize("NFC", name.casefold())].append(name)
    return (group for group in groups.values() if len(group) > 1)


def _counted(names: list[str]) -> str:
    return "1 class has" if len(names) == 1 else f"{len(names)} classes have"


def _quoted(names: list[str]) -> str:
    """Return the first few names; what a terminal would act on is escaped."""
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
