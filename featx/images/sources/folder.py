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
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from featx.errors import SourceError
from featx.images.decode import EXTENSIONS, read_image_file
from featx.images.sources.sample import SPLIT_ALIASES, Sample


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
        return read_image_file(self.root / sample_id, sample_id=sample_id)


def open_folder(root: Path) -> FolderSource:
    """Return the samples of a folder, sorted by id.

    Raises:
        SourceError: It holds no images, mixes split and class folders, or a link loops.
    """
    root = root.resolve()
    listing = _Listing(root)
    splits = _split_folders(root, listing.folders)
    found: list[tuple[str, str | None, str]] = []  # sample id, class name, split
    if splits:
        classes: set[str] = set()
        for folder, split in splits.items():
            inner = _Listing(root / folder)
            classes.update(inner.folders)
            found += [(f"{folder}/{i}", name, split) for i, name in inner.images]
            listing.num_ignored += inner.num_ignored
        listing.num_ignored += listing.num_beside
    else:
        classes = set(listing.folders)
        found = [(i, name, "train") for i, name in listing.images]
    if not found:
        raise SourceError(
            f"'{root}' holds no images ({listing.num_ignored} other files). Expected files ending "
            f"in {', '.join(sorted(EXTENSIONS))}, in one folder per class."
        )
    names = tuple(sorted(classes))
    index = {name: position for position, name in enumerate(names)}
    samples = [
        Sample(sample_id, -1 if name is None else index[name], split)
        for sample_id, name, split in sorted(found, key=lambda item: item[0])
    ]
    return FolderSource(root, names, tuple(samples), listing.num_ignored)


def _split_folders(root: Path, folders: list[str]) -> dict[str, str]:
    """Return the split that each split folder stands for; empty where these are class folders."""
    splits = {f: SPLIT_ALIASES[f.lower()] for f in folders if f.lower() in SPLIT_ALIASES}
    others = [folder for folder in folders if folder not in splits]
    if others and (len(splits) >= 2 or any(_Listing(root / name).folders for name in splits)):
        raise SourceError(
            f"'{root}' mixes split folders ({', '.join(splits)}) with others "
            f"({', '.join(others[:5])}). Move the others away, or describe the images in a CSV "
            "manifest."
        )
    if len(set(splits.values())) < len(splits):
        raise SourceError(f"'{root}' has two folders for one split: {', '.join(splits)}.")
    return {} if others else splits


class _Listing:
    """The class folders and images below one folder, and how many files were passed over."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.num_ignored = 0
        self.num_beside = 0
        self.folders: list[str] = []
        for entry in _entries(top):
            if _is_folder(entry) and not _is_hidden(entry):
                self.folders.append(entry.name)
            else:
                self.num_beside += 1

    @cached_property
    def images(self) -> list[tuple[str, str | None]]:
        """Relative path of each image and its class folder, None for images without one."""
        return [
            (relative, relative.partition("/")[0] if "/" in relative else None)
            for relative in self._walk(self.top, "", ())
        ]

    def _walk(self, folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
        identity = _identity(folder)
        if identity in above:
            raise SourceError(f"'{folder}' is a link to a folder that contains it; remove it.")
        for entry in _entries(folder):
            if _is_hidden(entry):
                self.num_ignored += 1
            elif _is_folder(entry):
                yield from self._walk(
                    folder / entry.name, f"{prefix}{entry.name}/", (*above, identity)
                )
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                yield prefix + entry.name
            else:
                self.num_ignored += 1


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".") or entry.name == "__MACOSX"  # left by macOS's archiver


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as err:
        raise SourceError(f"Cannot list the folder '{folder}': {err.strerror}.") from err
    return status.st_dev, status.st_ino


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as err:
        raise SourceError(f"Cannot list the folder '{folder}': {err.strerror}.") from err
