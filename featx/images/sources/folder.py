"""Folders of images: class folders, split folders, a wrapping around them, or images alone.

    ants/1.jpg                   class folders
    train/ants/1.jpg             splits above the classes
    ants/train/1.jpg             splits below the classes
    archive/train/ants/1.jpg     either, in a folder of its own
    seg_train/seg_train/ants/1.jpg

Below a class folder images may lie at any depth. Folders are splits where all that hold images are
named for one, each for another, and apart from that alike. What might be meant either way is
refused. ``entries`` says what a directory entry is.
"""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from featx.errors import SourceError, listed
from featx.images.sources.entries import (
    Level,
    Tree,
    describe_ignored,
    extension_of,
    image_extensions,
    is_picture,
    read_tree,
    require_images,
)
from featx.images.sources.sample import SPLIT_ALIASES, FileSource, Sample

log = logging.getLogger(__name__)

_GENERIC = frozenset(
    {"set", "data", "dataset", "image", "images", "img", "imgs", "photo", "photos", "picture"}
    | {"pictures", "pics", "split", "splits", "folder", "files", "samples", "resized", "cropped"}
)
"""Words that say neither a class nor a split."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")
_GLUED = re.compile(rf"^({'|'.join(SPLIT_ALIASES)})(?:set|data|images?|imgs?)$")
_ADVICE = (
    "Splits are told by folders called train, val or test (or training, valid, validation, dev, "
    "eval, testing), in every class or above all classes. Rename or move the folders, or describe "
    "the images in a CSV manifest."
)


def open_folder(root: Path, *, output: Path | None = None) -> FileSource:
    """Return the samples of a folder, sorted by id."""
    tree = read_tree(root.resolve(), output=output)
    classes, samples = arrange(tree)
    return FileSource(str(tree.root), str(tree.root), classes, samples, dict(tree.ignored))


def holds_parquet(root: Path) -> bool:
    """Return whether a folder holds Parquet files, at most two folders down, and no images."""
    found, places = False, [(root, 0)]
    for place, depth in places:
        try:
            entries = sorted(os.scandir(place), key=attrgetter("name"))
        except OSError:  # what reads the folder says so
            return False
        for entry in entries:
            ending = extension_of(entry.name)
            if ending in image_extensions():
                return False
            found |= ending == ".parquet"
            if depth < 2 and not entry.name.startswith(".") and entry.is_dir():
                places.append((place / entry.name, depth + 1))
    return found


def arrange(tree: Tree, *, labelled: bool = True) -> tuple[tuple[str, ...], tuple[Sample, ...]]:
    """Return the classes of a tree and its samples, sorted by id.

    Not ``labelled``, all images have no label, whatever their folders are called. Images that are
    left out are added to what the tree ignores.

    Raises:
        SourceError: There are no images, or what the folders stand for is not clear.
    """
    require_images(tree)
    if not labelled:
        return (), tuple(Sample(image, -1, "train") for image in sorted(tree.below("")))
    places = _find_places(tree)
    names = sorted({place.name for place in places if place.name})
    labels = {name: position for position, name in enumerate(names)}
    samples: list[Sample] = []
    for place in places:
        label = labels[place.name] if place.name else -1  # a//1.jpg of a store is in no class
        found = tree.below(place.prefix) if place.deep else tree.levels[place.prefix].images
        samples += [Sample(image, label, place.split) for image in found]
    samples.sort(key=attrgetter("sample_id"))
    return tuple(names), tuple(samples)


def list_images(root: Path) -> list[str]:
    """Return the paths of all images below a folder, relative to it, sorted."""
    tree = read_tree(root.resolve())
    require_images(tree)
    if not all(map(is_picture, tree.ignored)):  # a warning names pictures
        log.info("'%s': skipped %s.", tree.root, describe_ignored(tree.ignored))
    return sorted(tree.below(""))


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return the image files that ``paths`` name; a folder means all images below it.

    Raises:
        SourceError: A folder holds no images, cannot be listed, or holds a broken link.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # noqa: PTH112 never raises; a name too long is a bad image's
            found += [path / name for name in list_images(path)]
        else:
            found.append(path)
    return found


class _Place(NamedTuple):
    """A folder of images of one class (None: without a label) and split.

    Where it is ``deep``, images in the folders below belong to it, too.
    """

    prefix: str
    name: str | None
    split: str
    deep: bool


class Named(NamedTuple):
    """The split that a folder's name says, and its other words."""

    split: str
    rest: tuple[str, ...]


def split_of(name: str, *, beside: Sequence[str] = ()) -> Named | None:
    """Return the split that a folder's name says; None where it says none, or several.

    >>> split_of("Training"), split_of("01_valImages")
    (Named(split='train', rest=()), Named(split='val', rest=()))
    >>> split_of("seg_test"), split_of("ants")
    (Named(split='test', rest=('seg',)), None)
    """
    words = [_GLUED.sub(r"\1", word) for word in _words(name)]
    splits = [SPLIT_ALIASES[word] for word in words if word in SPLIT_ALIASES]
    if len(splits) != 1:
        return None
    generic = _GENERIC.union(SPLIT_ALIASES, beside)
    rest = [word for word in words if word not in generic]
    if words[0].isdigit():  # counted: 1_train, 2_val
        rest = rest[1:]
    return Named(splits[0], tuple(rest))


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _says_nothing(level: Level) -> bool:
    words = _words(_name(level))
    return bool(words) and _GENERIC.issuperset(words)


def _find_places(tree: Tree) -> list[_Place]:
    """Return where the images of each class and split lie; others are counted as ignored."""
    level, splits = _unwrapped(tree)
    if level.prefix:
        log.info("'%s': all images are in its folder '%s'.", tree.root, level.prefix[:-1])
    if not splits:
        return list(_class_places(tree, level))
    if level.images:
        tree.ignored["images beside split folders"] += len(level.images)
    places: list[_Place] = []
    for name, split in splits.items():
        inner = _unwrapped_split(tree, tree.levels[f"{level.prefix}{name}/"], split)
        if len(_splits_among(tree, inner)) > 1:
            raise SourceError(f"'{_path(tree, inner)}' has split folders in a split. {_ADVICE}")
        places += _direct_places(tree, inner, split)
    return places


def _unwrapped(tree: Tree) -> tuple[Level, dict[str, str]]:
    """Return the level of the classes or splits, and the split that each folder stands for."""
    level = tree.top
    while not (splits := _splits_among(tree, level)):
        wrapped = _only_folder(tree, level)
        if not wrapped or (wrapped.images and not _says_nothing(wrapped)):
            break
        inner = _splits_among(tree, wrapped)
        above_classes = any(tree.levels[f"{wrapped.prefix}{name}/"].folders for name in inner)
        if inner and not above_classes and not _says_nothing(wrapped):
            break  # cats/train/1.jpg: a class
        if not inner and len(level.folders) > 1:
            break  # a class beside others without images
        level = wrapped
    return level, splits


def _unwrapped_split(tree: Tree, level: Level, split: str) -> Level:
    """Return the level of a split's classes, which may lie in a folder called like the split."""
    while wrapped := _only_folder(tree, level):
        named = split_of(_name(wrapped))
        if not _says_nothing(wrapped) and (not named or named.split != split):
            break
        level = wrapped
    return level


def _only_folder(tree: Tree, level: Level) -> Level | None:
    """Return the one folder in a level that holds images, None where there are more or others."""
    full = _full_folders(tree, level)
    return full[0] if len(full) == 1 and not level.images else None


def _splits_among(tree: Tree, level: Level) -> dict[str, str]:
    """Return the split that each split folder in a level stands for; empty where there are none."""
    full = [_name(inner) for inner in _full_folders(tree, level)]
    found = {name: named for name in full if (named := split_of(name))}
    rests = {named.rest for named in found.values()}
    splits = {name: named.split for name, named in found.items()}
    is_alike = rests == {()} or (len(rests) == 1 and len(found) > 1)
    if is_alike and len(found) == len(full) and len(set(splits.values())) == len(splits):
        return splits
    if found and _look_like_splits(tree, level, full, found):
        _refuse(tree, level, full, found)
    return {}


def _look_like_splits(
    tree: Tree, level: Level, full: Sequence[str], found: dict[str, Named]
) -> bool:
    """Return whether folders look like splits that do not fit together."""
    splits_with: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for named in found.values():
        splits_with[named.rest].add(named.split)
    levels = {name: tree.levels[f"{level.prefix}{name}/"] for name in found}
    hold_folders = [name for name in found if levels[name].folders]
    return (
        any(len(splits) > 1 for splits in splits_with.values())
        or any(not found[name].rest for name in hold_folders)
        or sum(name.lower() in SPLIT_ALIASES for name in found) > 1
        or len(hold_folders) == len(full) > 1 > sum(len(levels[n].images) for n in found)
    )


def _refuse(tree: Tree, level: Level, full: Sequence[str], found: dict[str, Named]) -> None:
    plain = [name for name, named in found.items() if not named.rest]
    splits = plain or list(found)
    others = [name for name in full if name not in splits]
    where = f"'{_path(tree, level)}'"
    if others:
        raise SourceError(
            f"{where} mixes split folders ({listed(splits)}) with others ({listed(others)}). "
            f"{_ADVICE}"
        )
    if plain:
        raise SourceError(f"{where} has two folders for one split: {listed(splits)}. {_ADVICE}")
    raise SourceError(
        f"{where} has folders that look like splits, but not one for each: {listed(splits)}. "
        f"{_ADVICE}"
    )


def _class_places(tree: Tree, level: Level) -> Iterator[_Place]:
    """Yield the places of class folders, which may hold splits, and of images without a class."""
    splits = _splits_in_classes(tree, level)
    if not splits:
        _warn_of_classes_named_like_splits(tree, level)
        yield from _direct_places(tree, level, "train")
        return
    log.info("'%s': splits are told by the folders in each class.", tree.root)
    yield _Place(level.prefix, None, "train", deep=False)
    for inner in tree.inner(level):
        yield _Place(inner.prefix, _name(inner), "train", deep=False)  # without images
        for prefix, split in splits.get(inner.prefix, {}).items():
            yield _Place(prefix, _name(inner), split, deep=True)


def _warn_of_classes_named_like_splits(tree: Tree, level: Level) -> None:
    full = sorted(map(_name, _full_folders(tree, level)))
    named = [(name, split_of(name)) for name in full]
    names = [name for name, found in named if found and found.split != "train" and not found.rest]
    if names and len(full) > 1:  # a train may be a vehicle
        log.warning(
            "'%s': %s is taken for a class, beside other class folders. If it is a split, move "
            "these into a folder called train.",
            *(_path(tree, level), listed(names)),
        )


def _direct_places(tree: Tree, level: Level, split: str) -> Iterator[_Place]:
    """Yield the places of class folders in a level, and of images without a class."""
    yield _Place(level.prefix, None, split, deep=False)
    for inner in tree.inner(level):
        yield _Place(inner.prefix, _name(inner), split, deep=True)


def _splits_in_classes(tree: Tree, level: Level) -> dict[str, dict[str, str]]:
    """Return the splits of folders below each class folder, by prefixes; empty where none are."""
    full = _full_folders(tree, level)
    found = {inner.prefix: _split_folders_in(tree, inner) for inner in full}
    pairs = [pair for own in found.values() for pair in own.items()]
    odd = [
        inner
        for inner in full
        if inner.images or len(found[inner.prefix]) < len(_full_folders(tree, inner))
    ]
    if not odd:
        return found
    names = sorted({_name(tree.levels[prefix]) for prefix, _ in pairs})
    if len(pairs) == len(names) and len({split for _, split in pairs}) < 2:
        return {}  # one folder called test in one class says nothing
    raise SourceError(
        f"'{_path(tree, level)}' has split folders in its class folders ({listed(names)}), but "
        f"'{_name(odd[0])}' has images outside of them. {_ADVICE}"
    )


def _split_folders_in(tree: Tree, level: Level) -> dict[str, str]:
    """Return the split that folders in a class folder stand for, by prefix."""
    beside = _words(_name(level))
    named = {
        inner.prefix: split_of(_name(inner), beside=beside) for inner in _full_folders(tree, level)
    }
    return {prefix: own.split for prefix, own in named.items() if own and not own.rest}


def _full_folders(tree: Tree, level: Level) -> list[Level]:
    """Return the folders in a level that hold images, here or below."""
    return [inner for inner in tree.inner(level) if inner.num_images]


def _name(level: Level) -> str:
    return level.prefix[:-1].rpartition("/")[2]


def _path(tree: Tree, level: Level) -> str:
    return f"{tree.root}/{level.prefix}".rstrip("/")
