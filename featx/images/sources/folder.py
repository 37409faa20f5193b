"""Folders of images: class folders, split folders of class folders, or images alone.

    photos/ants/1.jpg               class folders
    photos/train/ants/1.jpg         split folders (train; val, valid, validation; test)
    photos/1.jpg                    no classes: label -1

Below a class folder images may lie at any depth. Hidden files and folders, ``__MACOSX``, files
without an image's extension and files beside split folders are ignored and counted. Symbolic links
are followed, loops refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from featx.errors import SourceError
from featx.images.decode import EXTENSIONS, read_image_file
from featx.images.sources.sample import SPLIT_ALIASES, Sample, Stamp, stamp_of


@dataclass(frozen=True)
class FolderSource:
    """Images in a folder; see the module's text for the layouts."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    num_ignored: int

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def read(self, index: int) -> bytes:
        """Return a sample's encoded image.

        Raises:
            ImageError: The file cannot be read.
        """
        sample_id = self.samples[index].sample_id
        return read_image_file(f"{self.root}/{sample_id}", sample_id=sample_id)

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a sample's file, ``NO_FILE`` where it cannot be looked up."""
        return stamp_of(f"{self.root}/{self.samples[index].sample_id}")


def open_folder(root: Path) -> FolderSource:
    """Return the samples of a folder, sorted by id.

    Raises:
        SourceError: It holds no images, mixes split and class folders, or a link loops.
    """
    root = root.resolve()
    top = _Level(f"{root}/")
    splits = _split_folders(root, top)
    parts = {f"{name}/": split for name, split in splits.items()} or {"": "train"}
    tops = {part: _Level(f"{root}/{part}") if part else top for part in parts}
    names = sorted({name for level in tops.values() for name in level.folders})
    labels = {name: position for position, name in enumerate(names)}
    num_ignored = top.num_ignored + len(top.images) if splits else 0
    samples: list[Sample] = []
    for part, level in tops.items():
        samples += [Sample(part + image, -1, parts[part]) for image in level.images]
        num_ignored += level.num_ignored
        above = tuple(_identity(str(path)) for path in (root / part, root, *root.parents))
        for name in level.folders:
            label, split = labels[name], parts[part]
            for prefix, inner in _levels_below(f"{root}/", f"{part}{name}/", above):
                samples += [Sample(prefix + image, label, split) for image in inner.images]
                num_ignored += inner.num_ignored
    if not samples:
        raise SourceError(
            f"'{root}' holds no images ({num_ignored} other files). Expected files ending "
            f"in {', '.join(sorted(EXTENSIONS))}, in one folder per class."
        )
    samples.sort(key=attrgetter("sample_id"))
    return FolderSource(root, tuple(names), tuple(samples), num_ignored)


def _split_folders(root: Path, top: _Level) -> dict[str, str]:
    """Return the split that each split folder stands for; empty where these are class folders."""
    splits = {f: SPLIT_ALIASES[f.lower()] for f in top.folders if f.lower() in SPLIT_ALIASES}
    others = [folder for folder in top.folders if folder not in splits]
    if others and (len(splits) >= 2 or any(_Level(f"{root}/{name}/").folders for name in splits)):
        raise SourceError(
            f"'{root}' mixes split folders ({', '.join(splits)}) with others "
            f"({', '.join(others[:5])}). Move the others away, or describe the images in a CSV "
            "manifest."
        )
    if len(set(splits.values())) < len(splits):
        raise SourceError(f"'{root}' has two folders for one split: {', '.join(splits)}.")
    return {} if others else splits


@dataclass
class _Level:
    """What lies directly in one folder: names of folders, sorted, and of images, in any order.

    Raises:
        SourceError: The folder cannot be listed.
    """

    folder: str
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    num_ignored: int = 0

    def __post_init__(self) -> None:
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    self._add(entry)
        except OSError as err:
            raise _cannot_list(self.folder, err) from err
        self.folders.sort()

    def _add(self, entry: os.DirEntry[str]) -> None:
        if _is_junk(entry.name):
            self.num_ignored += 1
        elif _is_folder(entry):
            self.folders.append(entry.name)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            self.images.append(entry.name)
        else:
            self.num_ignored += 1


def _levels_below(
    root: str, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, _Level]]:
    """Yield a folder and all below it, each with its path relative to the root.

    Args:
        root: Absolute path, ending in ``/``.
        prefix: The folder, relative to the root, ending in ``/``.
        above: Identities of the folders that contain it.

    Raises:
        SourceError: A folder cannot be listed, or is a link to one that contains it.
    """
    waiting = [(prefix, above)]
    while waiting:
        prefix, above = waiting.pop()
        identity = _identity(root + prefix)
        if identity in above:
            raise SourceError(
                f"'{root}{prefix[:-1]}' is a link to a folder that contains it; remove it."
            )
        level = _Level(root + prefix)
        yield prefix, level
        inside = (*above, identity)
        waiting += [(f"{prefix}{name}/", inside) for name in reversed(level.folders)]


def _is_junk(name: str) -> bool:
    """Return whether an entry is hidden, or what macOS's archiver leaves behind."""
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so
        return False


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)  # noqa: PTH116 as in stamp_of
    except OSError as err:
        raise _cannot_list(folder, err) from err
    return status.st_dev, status.st_ino


def _cannot_list(folder: str, err: OSError) -> SourceError:
    path = folder.rstrip("/") or "/"
    return SourceError(f"Cannot list the folder '{path}': {err.strerror}.")
