"""Labels: names of classes, several tags, or numbers; and warnings about odd ones.

A source keeps labels as they stand; training decides how they are read.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from featx.errors import counted, listed
from featx.images.sources.sample import Sample

log = logging.getLogger(__name__)

SEPARATOR = "|"
"""Between the tags, or the numbers, of one label."""

LABEL_NAMES = ("label", "class", "class_name", "category", "target")
"""What a label is called, in a table's first line or in JSON."""

_LARGEST = 1e30
"""Of a number that float32 can still calculate with."""
_FEW = 20
"""As many different numbers may well be the names of classes."""
_PLURAL = {"class": "classes", "tag": "tags"}

# Letters that look like a Latin one, from Unicode's table of confusable characters.
_LATIN = str.maketrans(
    "АВЕЅІЈКМНОРСТУХҮԌԚԜҺаеѕіјорсухһԁԛԝүɑɡıօսհαρυΑΒΕΖΗΙΚΜΝΟΡΤΥΧονιϳΡ",
    "ABESIJKMHOPCTYXYGQWHaesijopcyxhdqwyagiouhapuABEZHIKMNOPTYXovijP",
)
_INVISIBLE = ("Cc", "Cf")
_SELECT = frozenset(map(chr, (*range(0xFE00, 0xFE10), 0x034F, 0x115F, 0x1160, 0x2800, 0x3164)))
"""Characters that take no space though Unicode counts them as marks or letters."""
_BETWEEN = re.compile(r"(?<=\w)[\s_\-\u2010-\u2015\u2212]+(?=\w)")


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
    """Return whether labels are rather measured than names: numbers, and many different ones."""
    if len(classes) <= _FEW:
        return False
    numbers = [parse_numbers(name) for name in classes]
    if any(each is None for each in numbers):
        return False
    whole = all(float(part).is_integer() for each in numbers if each for part in each)
    return not whole or num_samples < 5 * len(classes)


def warn_of_odd_classes(
    uri: str, classes: Sequence[str], samples: Sequence[Sample], *, has_tags: bool
) -> None:
    """Log a warning for each thing about a source's classes that training would suffer from."""
    for oddity in odd_classes(classes, samples, has_tags=has_tags):
        log.warning("'%s': %s", uri, oddity)


def warn_of_split_groups(uri: str, samples: Sequence[Sample]) -> None:
    """Log a warning that names the groups whose images the source itself puts in two splits."""
    first: dict[str, str] = {}
    split_groups: dict[str, None] = {}
    for sample in samples:
        if sample.group and first.setdefault(sample.group, sample.split) != sample.split:
            split_groups[sample.group] = None
    if names := sorted(split_groups):
        log.warning(
            "'%s': %s images in several splits: %s. What is trained on some of them is tested on "
            "the others.",
            *(uri, counted(len(names), "group has", "groups have")),
            _quoted(names),
        )


def warn_of_two_labels(
    sample_ids: Sequence[str], labels: np.ndarray, digests: np.ndarray, classes: Sequence[str]
) -> None:
    """Log a warning that counts the contents with several labels, and names two images of one.

    Labels ``(n,)`` are -1 where there is none; content hashes ``(n, 16)`` uint8 are zeros where not
    known.
    """
    positions = np.flatnonzero((labels >= 0) & digests.any(axis=1))
    contents = np.ascontiguousarray(digests[positions]).view(np.uint64)  # (n, 2)
    order = np.lexsort((labels[positions], *contents.T))
    positions, is_same = positions[order], np.ones(max(0, len(order) - 1), bool)
    for column in contents.T:
        values = column[order]
        is_same &= values[1:] == values[:-1]
    differs = np.flatnonzero(is_same & (labels[positions[1:]] != labels[positions[:-1]]))
    if not len(differs):
        return
    count = len(np.unique(np.cumsum(~is_same)[differs]))
    pair = min(sorted(positions[i : i + 2].tolist()) for i in differs.tolist())
    one, two = (f"'{sample_ids[i]}' ({classes[labels[i]]})" for i in pair)
    log.warning(
        "%s: %s and %s have the same content. Keep the right one.",
        counted(count, "image has several labels", "images have several labels"),
        *(one, two),
    )


def odd_classes(
    classes: Sequence[str], samples: Sequence[Sample], *, has_tags: bool = False
) -> Iterator[str]:
    """Yield a sentence for each thing that looks wrong; none where no image has a label.

    - classes without images, which can never be predicted;
    - classes without training images, where others have some;
    - a single class that has images, so that there is nothing to tell apart;
    - names that look alike;
    - folders' names that hold ``|``, which separates tags in manifests alone.

    The tags of multi-label images are looked at. Labels that look like measured numbers are not
    classes.
    """
    thing = "tag" if has_tags else "class"
    names_of = [split_tags(name) if has_tags else (name,) for name in classes]
    names = sorted({tag for tags in names_of for tag in tags}) if has_tags else list(classes)
    filled = _names(names_of, samples)
    trained = _names(names_of, [sample for sample in samples if sample.split == "train"])
    if not filled or look_like_numbers(classes, sum(sample.label >= 0 for sample in samples)):
        return
    if empty := [name for name in names if name not in filled]:
        yield (
            f"{_counted(empty, thing)} no images: {_quoted(empty)}. Kept, but it can never be "
            "learned."
        )
    if trained and (untrained := [name for name in names if name in filled - trained]):
        yield (
            f"{_counted(untrained, thing)} images for validation or test but none for training: "
            f"{_quoted(untrained)}. What is not trained is never the answer."
        )
    if len(filled) == 1 and not has_tags:
        yield (
            f"all labelled images are of one class, {_quoted(list(filled))}: there is "
            "nothing to tell apart. Expected one folder, or label, per class."
        )
    for alike in _alike(names):
        yield (
            f"{len(alike)} {_PLURAL[thing]} look alike: {_distinguished(alike)}. Join them if they "
            "are one."
        )
    if not has_tags and (barred := [name for name in names if SEPARATOR in name]):
        yield (
            f"'{SEPARATOR}' in {_quoted(barred)} is a part of the name: it separates tags in "
            "manifests only."
        )


def _names(names_of: Sequence[Sequence[str]], samples: Iterable[Sample]) -> set[str]:
    """Return the names that some samples have; ``names_of`` has those of each label."""
    labels = {sample.label for sample in samples} - {-1}
    return {name for label in labels for name in names_of[label]}


def _alike(names: Iterable[str]) -> Iterator[list[str]]:
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_look(name)].append(name)
    return (group for group in groups.values() if len(group) > 1)


def _look(name: str) -> str:
    """Return a text that is equal for names that look alike to a reader or a file system."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).translate(_LATIN))
    text = unicodedata.normalize("NFKC", text.casefold())
    hidden = {c for c in text if c in _SELECT or unicodedata.category(c) in _INVISIBLE}
    return " ".join(_BETWEEN.sub(" ", "".join(c for c in text if c not in hidden)).split())


def _distinguished(names: list[str]) -> str:
    """Return the first few names, with the code points of what looks like something else."""
    return listed(
        [f"{name!r} ({name!a})" if ascii(name) != repr(name) else repr(name) for name in names]
    )


def _counted(names: list[str], thing: str) -> str:
    return counted(len(names), f"{thing} has", f"{_PLURAL[thing]} have")


def _quoted(names: list[str]) -> str:
    """Return the first few names; what a terminal would act on is escaped."""
    return listed(list(map(repr, names)))
