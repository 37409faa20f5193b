"""Folders of images: class folders, split folders, or images alone.

``entries`` says what a directory entry is, ``layout`` what a folder stands for. Below a class
folder images may lie at any depth.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from featx.images.decode import read_image_file
from featx.images.formats import is_picture
from featx.images.sources.entries import describe_ignored, read_tree, require_images
from featx.images.sources.layout import find_places
from featx.images.sources.sample import Sample, Stamp, stamp_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSource:
    """Images in a folder; see ``layout`` for how its folders are read."""

    root: Path
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    ignored: Mapping[str, int]
    has_tags: bool = False

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def read(self, index: int) -> bytes:
        """Return a sample's encoded image."""
        sample_id = self.samples[index].sample_id
        return read_image_file(f"{self.root}/{sample_id}", sample_id=sample_id)

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a sample's file, ``NO_FILE`` where it cannot be looked up."""
        return stamp_of(f"{self.root}/{self.samples[index].sample_id}")


def open_folder(root: Path, *, output: Path | None = None) -> FolderSource:
    """Return the samples of a folder, sorted by id."""
    tree = read_tree(root.resolve(), output=output)
    require_images(tree)
    places = find_places(tree)
    names = sorted({place.name for place in places if place.name is not None})
    labels = {name: position for position, name in enumerate(names)}
    samples: list[Sample] = []
    for place in places:
        label = -1 if place.name is None else labels[place.name]
        found = tree.below(place.prefix) if place.deep else tree.levels[place.prefix].images
        samples += [Sample(image, label, place.split) for image in found]
    samples.sort(key=attrgetter("sample_id"))
    return FolderSource(tree.root, tuple(names), tuple(samples), dict(tree.ignored))


def list_images(root: Path) -> list[str]:
    """Return the paths of all images below a folder, relative to it, sorted.

    Raises:
        SourceError: It holds none, or a link is broken.
    """
    tree = read_tree(root.resolve())
    require_images(tree)
    if not all(map(is_picture, tree.ignored)):  # of pictures, a warning has told
        log.info("'%s': skipped %s.", tree.root, describe_ignored(tree.ignored))
    return sorted(tree.below(""))
