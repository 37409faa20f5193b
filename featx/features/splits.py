"""Which images are held out for validation where the source does not say.

A split is settled when the image's content is known: the source's own split comes first, then the
split that the published file gives to this content, then the rule.

The rule takes a share of each class: the contents with the lowest hashes, their number rounded, at
least one where a class has three, never more than half. Images with the same content, or of one
group, are one unit and share a split. The rule depends on contents, labels, groups and fraction
alone: not on names, nor on the order of the images.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from featx.errors import ArtifactInvalid, ConfigError, counted
from featx.features.held_out import FREE, VAL, Choice, Counts, distinct
from featx.images.sources import SPLITS
from featx.images.sources.labels import look_like_numbers, split_tags

log = logging.getLogger(__name__)

MAX_FRACTION = 0.5
MAX_HELD_OUT = 2**20
"""Images that a head lists: more would not fit into its header."""
_PREFIX_BYTES = 6
_TRAIN = SPLITS.index("train")


class Published(NamedTuple):
    """The contents of a feature file, ``(M, 16)`` uint8, and their splits, ``(M,)`` uint8."""

    digests: np.ndarray
    splits: np.ndarray


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The contents that a head was not trained on because featx kept them for validation.

    A head and its model carry them, so that they can be scored on their source again.

    Attributes:
        prefixes: First 6 bytes of each content hash, ascending; ``(M,)`` uint64.
    """

    prefixes: np.ndarray

    @classmethod
    def of(cls, digests: np.ndarray) -> Self:
        """Return a set of content hashes, ``(M, 16)`` uint8."""
        return cls(np.unique(_prefixes(digests)))

    @classmethod
    def from_text(cls, text: Any, *, path: Path) -> Self:
        """Return the set that ``to_text`` wrote into a file.

        Raises:
            ArtifactInvalid: It is something else.
        """
        try:
            content = np.frombuffer(base64.b64decode(text, validate=True), dtype=np.uint8)
            return cls.of(content.reshape(-1, _PREFIX_BYTES))
        except (TypeError, ValueError) as err:
            raise ArtifactInvalid(
                path, f"'{path}' does not list the images that were held out as featx does ({err})."
            ) from err

    def to_text(self) -> str:
        """Return the set as text, 8 characters for each content."""
        content = self.prefixes.astype(">u8").view(np.uint8).reshape(-1, 8)
        return base64.b64encode(content[:, -_PREFIX_BYTES:].tobytes()).decode()

    def contains(self, digests: np.ndarray) -> np.ndarray:
        """Return which content hashes ``(n, 16)`` are in the set, ``(n,)`` bool."""
        return np.isin(_prefixes(digests), self.prefixes)


def _prefixes(digests: np.ndarray) -> np.ndarray:
    padded = np.zeros((len(digests), 8), dtype=np.uint8)
    padded[:, -_PREFIX_BYTES:] = digests[:, :_PREFIX_BYTES]
    return padded.view(">u8")[:, 0].astype(np.uint64)


def require_fraction(fraction: float) -> None:
    """Check a share of images for validation.

    Raises:
        ConfigError: It is out of range.
    """
    if not 0 <= fraction <= MAX_FRACTION:
        raise ConfigError(
            f"val fraction must be at least 0 and at most {MAX_FRACTION}, because validation never "
            f"takes most of a class; got {fraction}."
        )


def assign_splits(
    digests: np.ndarray,
    labels: np.ndarray,
    own: np.ndarray,
    *,
    classes: Sequence[str],
    fraction: float,
    has_tags: bool = False,
    groups: np.ndarray | None = None,
    published: Published | None = None,
) -> np.ndarray:
    """Return the split of each image, an index into ``SPLITS``; ``(N,)`` uint8.

    A source with validation images of its own is left alone; of any other one, training images
    become validation. Labels with several tags are stratified by their combination, the rare ones
    together; measured numbers are one stratum, and so are images without a label.

    Args:
        digests: Content hashes, ``(N, 16)`` uint8.
        labels: Indices into ``classes``, -1 where unlabelled; ``(N,)`` int64.
        own: Splits that the source gives, ``(N,)`` uint8.
        classes: Labels in index order.
        fraction: Share of the training images that become validation, in [0, 0.5].
        has_tags: Whether ``|`` separates tags.
        groups: Number of each image's group, -1 for an image by itself; ``(N,)`` int64.
        published: Splits of images in the published file. They keep them, unless a group or content
            lies in two; new images are assigned so that each class gets closer to its share.

    Raises:
        ConfigError: ``fraction`` is out of range.
    """
    require_fraction(fraction)
    splits = own.astype(np.uint8)
    pool = np.flatnonzero(own == _TRAIN)
    if (own == VAL).any() or not len(pool):
        return splits
    contents, hashes, kept = _contents(digests[pool], published)
    owners = owners_of(contents, len(hashes), None if groups is None else groups[pool])
    labels = labels[pool]
    if look_like_numbers(classes, int((labels >= 0).sum())):
        classes, labels, has_tags = ("number",), np.minimum(labels, 0), False
    tags = [split_tags(name) for name in classes] if has_tags else None
    strata = np.where(labels < 0, len(classes), labels)
    choice = Choice(
        keys=_keys(owners, hashes),
        fixed=_fixed(owners, kept),
        strata=Counts.of(
            contents, strata if tags is None else _strata(tags, labels, contents, fraction), owners
        ),
        tags=None if tags is None else _tags(tags, labels, contents, owners),
        fraction=fraction,
    )
    splits[pool[choice.in_validation()[owners[contents]]]] = VAL
    return splits


def _contents(
    digests: np.ndarray, published: Published | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return numbers of contents ``(n,)``, ascending by hash, and of each content hash and split.

    Returns:
        The number of each image's content; the first 8 bytes of each content's hash, ``(C,)``
        uint64; whether the published file has it in training, in validation, ``(C, 2)`` bool.
    """
    count = len(digests)
    if published is not None:
        digests = np.concatenate([digests, published.digests])
    high, low = np.ascontiguousarray(digests).view(">u8").astype(np.uint64).T
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    contents = np.empty(len(order), dtype=np.int64)
    contents[order] = np.cumsum(is_first) - 1
    kept = np.zeros((int(is_first.sum()), 2), dtype=bool)
    if published is not None:
        for column, split in enumerate((_TRAIN, VAL)):
            kept[contents[count:][published.splits == split], column] = True
    return contents[:count], high[is_first], kept


def owners_of(contents: np.ndarray, num_contents: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the number of the unit that each content belongs to, ``(C,)`` int64.

    Groups that share a content are one unit. Units are numbered by their lowest content.
    """
    root = np.arange(num_contents)
    members = np.flatnonzero(groups >= 0) if groups is not None else np.zeros(0, dtype=np.int64)
    if groups is None or not len(members):
        return root
    content, group = contents[members], np.unique(groups[members], return_inverse=True)[1]
    while True:
        lowest = np.full(int(group.max()) + 1, num_contents)
        np.minimum.at(lowest, group, root[content])
        lower = root.copy()
        np.minimum.at(lower, content, lowest[group])
        lower = lower[lower]
        if np.array_equal(lower, root):
            return np.unique(root, return_inverse=True)[1]
        root = lower


def _keys(owners: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the sort keys of units: the sum of their contents' hashes, ``(U,)`` uint64.

    Unlike the lowest hash, it does not favour large groups.
    """
    keys = np.zeros(int(owners.max()) + 1, dtype=np.uint64)
    np.add.at(keys, owners, hashes)
    return keys


def _fixed(owners: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the published split of each unit, -1 where it has none or two; ``(U,)`` int8."""
    has = np.zeros((int(owners.max()) + 1, 2), dtype=bool)
    for column in (0, 1):
        has[owners[kept[:, column]], column] = True
    if torn := int(has.all(axis=1).sum()):
        log.warning(
            "%s in both training and validation: each is in one of them now.",
            counted(
                torn, "group of images, or of copies, was", "groups of images, or copies, were"
            ),
        )
    only_train, only_val = has[:, 0] & ~has[:, 1], has[:, 1] & ~has[:, 0]
    return np.select([only_train, only_val], [_TRAIN, VAL], FREE).astype(np.int8)


def _strata(
    tags: Sequence[tuple[str, ...]], labels: np.ndarray, contents: np.ndarray, fraction: float
) -> np.ndarray:
    """Return the stratum of each image by its combination of tags, ``(n,)`` int64.

    Combinations too rare to give one to validation are one stratum together.
    """
    index: dict[tuple[str, ...], int] = {}
    of_label = [index.setdefault(combination, len(index)) for combination in tags]
    num_strata = len(index) + 1  # the last: unlabelled
    strata = np.array([*of_label, len(index)])[labels]
    sizes = np.bincount(distinct(contents * num_strata + strata) % num_strata)
    rare = (sizes * fraction < 1) & (np.arange(len(sizes)) < len(index))
    return np.where(rare[strata], num_strata, strata)


def _tags(
    tags: Sequence[tuple[str, ...]], labels: np.ndarray, contents: np.ndarray, owners: np.ndarray
) -> Counts:
    index: dict[str, int] = {}
    numbers = [[index.setdefault(tag, len(index)) for tag in combination] for combination in tags]
    numbers.append([])  # unlabelled
    lengths = np.array([len(own) for own in numbers])
    flat, ends = np.array([tag for own in numbers for tag in own], np.int64), np.cumsum(lengths)
    repeats = lengths[labels]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    of_image = flat[np.repeat((ends - lengths)[labels], repeats) + within]
    return Counts.of(np.repeat(contents, repeats), of_image, owners)
