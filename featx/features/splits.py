"""Which images are held out for validation where the source does not say.

The source's own split comes first, then the one that the published file gives to this content, then
the rule. It takes a share of each class, rounded: the contents with the lowest hashes, at least one
where a class has three, never more than half. Images with the same content, or of one group, are
one unit and share a split. Neither names nor the order of the images make a difference.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from featx.errors import ConfigError, counted
from featx.features.contents import number_contents
from featx.images.sources import SPLITS
from featx.images.sources.labels import look_like_numbers, split_tags

log = logging.getLogger(__name__)

MAX_FRACTION = 0.5
_TRAIN, VAL = SPLITS.index("train"), SPLITS.index("val")
_FREE = -1
_AT_ONCE = 2**20
_SMALLEST_CLASS = 3
"""Contents that a class needs before it gives one to validation."""


class Published(NamedTuple):
    """The contents of a feature file, ``(M, 16)`` uint8, and their splits, ``(M,)`` uint8."""

    digests: np.ndarray
    splits: np.ndarray


def require_fraction(fraction: float) -> None:
    """Check a share of images for validation."""
    if not 0 <= fraction <= MAX_FRACTION:
        raise ConfigError(
            f"val_fraction must be at least 0 and at most {MAX_FRACTION}, because validation never "
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
    """
    require_fraction(fraction)
    splits = own.astype(np.uint8)
    pool: Any = own == _TRAIN
    if (own == VAL).any() or not pool.any():
        return splits
    pool = slice(None) if pool.all() else np.flatnonzero(pool)  # without copies of all
    contents, hashes, kept = _contents(digests[pool], published)
    del digests  # which a caller may have let go
    owners = owners_of(contents, len(hashes), None if groups is None else groups[pool])
    labels = labels[pool]
    if look_like_numbers(classes, int((labels >= 0).sum())):
        classes, labels, has_tags = ("number",), np.minimum(labels, 0), False
    tags = [split_tags(name) for name in classes] if has_tags else None
    strata = np.where(labels < 0, len(classes), labels).astype(np.int32)
    keys = np.zeros(int(owners.max()) + 1, dtype=np.uint64)
    np.add.at(keys, owners, hashes)  # unlike the lowest hash, the sum does not favour large groups
    del hashes
    choice = _Choice(
        keys=keys,
        fixed=_fixed(owners, kept),
        strata=_Counts.of(
            contents, strata if tags is None else _strata(tags, labels, contents, fraction), owners
        ),
        tags=None if tags is None else _tags(tags, labels, contents, owners),
        fraction=fraction,
    )
    chosen = splits[pool]
    chosen[choice.in_validation()[owners][contents]] = VAL
    splits[pool] = chosen
    return splits


def _contents(
    digests: np.ndarray, published: Published | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of each image's content, ascending by hash, and of each content two things.

    The first 8 bytes of its hash, ``(C,)`` uint64, and whether the published file has it in
    training and in validation, ``(C, 2)`` bool. Numbers are as small as they can be: of all that
    is done to an image, this is done to the most at once.
    """
    count = len(digests)
    if published is not None:
        digests = np.concatenate([digests, published.digests])
    contents, firsts = number_contents(digests)
    high = np.ascontiguousarray(digests).view(">u8")[firsts, 0].astype(np.uint64)
    kept = np.zeros((len(firsts), 2), dtype=bool)
    if published is not None:
        for column, split in enumerate((_TRAIN, VAL)):
            kept[contents[count:][published.splits == split], column] = True
    return contents[:count], high, kept


def owners_of(contents: np.ndarray, num_contents: int, groups: np.ndarray | None) -> np.ndarray:
    """Return the number of the unit that each content belongs to, ``(C,)`` int64.

    Groups that share a content are one unit. Units are numbered by their lowest content.
    """
    root = np.arange(num_contents, dtype=contents.dtype)
    if groups is None or not (groups >= 0).any():
        return root
    members = np.flatnonzero(groups >= 0)
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


def _fixed(owners: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the published split of each unit, -1 where it has none or two; ``(U,)`` int8."""
    num_units = int(owners.max()) + 1
    if not kept.any():
        return np.full(num_units, _FREE, np.int8)
    in_train, in_val = (np.bincount(owners[own], minlength=num_units) > 0 for own in kept.T)
    if torn := int((in_train & in_val).sum()):
        log.warning(
            "%s in both training and validation: each is in one of them now.",
            counted(
                torn, "group of images, or of copies, was", "groups of images, or copies, were"
            ),
        )
    only = [in_train & ~in_val, in_val & ~in_train]
    return np.select(only, [_TRAIN, VAL], _FREE).astype(np.int8)


def _strata(
    tags: Sequence[tuple[str, ...]], labels: np.ndarray, contents: np.ndarray, fraction: float
) -> np.ndarray:
    """Return the stratum of each image by its combination of tags, the rare ones together."""
    index: dict[tuple[str, ...], int] = {}
    of_label = [index.setdefault(combination, len(index)) for combination in tags]
    num_strata = len(index) + 1  # the last: unlabelled
    strata = np.array([*of_label, len(index)])[labels]
    sizes = np.bincount(_distinct(contents * num_strata + strata) % num_strata)
    rare = (sizes * fraction < 1) & (np.arange(len(sizes)) < len(index))
    return np.where(rare[strata], num_strata, strata)


def _tags(
    tags: Sequence[tuple[str, ...]], labels: np.ndarray, contents: np.ndarray, owners: np.ndarray
) -> _Counts:
    index: dict[str, int] = {}
    numbers = [[index.setdefault(tag, len(index)) for tag in combination] for combination in tags]
    numbers.append([])  # unlabelled
    of_images = np.array([tag for label in labels.tolist() for tag in numbers[label]], np.int64)
    lengths = np.array([len(own) for own in numbers])[labels]
    return _Counts.of(np.repeat(contents, lengths), of_images, owners)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return the different ones of ``(n,)`` values, which are sorted; np.unique takes longer."""
    values.sort()
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


@dataclass(frozen=True, eq=False)
class _Counts:
    """How many contents of each kind, a stratum or a tag, a unit has: the cells above 0.

    Cells are sorted by unit; ``starts`` is the first of each unit, and the number of cells.
    """

    units: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    num_kinds: int

    @classmethod
    def of(cls, contents: np.ndarray, kinds: np.ndarray, owners: np.ndarray) -> Self:
        """Count contents, ``(n,)`` with a kind each, by unit; the same content counts once."""
        num_kinds, num_units = int(kinds.max(initial=0)) + 1, int(owners.max()) + 1
        cells = contents.astype(np.int64)
        cells *= num_kinds
        cells += kinds
        cells = _distinct(cells)
        if num_units < len(owners):  # else each content is a unit, with the same number
            cells = owners[cells // num_kinds] * np.int64(num_kinds) + cells % num_kinds
            cells, counts = np.unique(cells, return_counts=True)
            counts = counts.astype(np.int32)
        else:
            counts = np.ones(len(cells), np.int32)
        kinds = (cells % num_kinds).astype(np.int32)
        cells //= num_kinds
        units = cells.astype(owners.dtype)
        del cells
        starts = np.zeros(num_units + 1, owners.dtype)
        np.cumsum(np.bincount(units, minlength=num_units), out=starts[1:], dtype=owners.dtype)
        return cls(units, kinds, counts, starts, num_kinds)

    def totals(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Return the contents of each kind, ``(num_kinds,)``, in all units or in the chosen."""
        total = np.zeros(self.num_kinds)
        for start in range(0, len(self.kinds), _AT_ONCE):
            at = slice(start, start + _AT_ONCE)
            counts = self.counts[at] if chosen is None else self.counts[at] * chosen[self.units[at]]
            total += np.bincount(self.kinds[at], counts, self.num_kinds)
        return total.astype(np.int64)

    def row(self, unit: int) -> slice:
        return slice(int(self.starts[unit]), int(self.starts[unit + 1]))

    def most(self) -> np.ndarray:
        """Return how many contents of each kind may be in validation, ``(num_kinds,)`` int64."""
        totals = self.totals()
        return np.where(totals < _SMALLEST_CLASS, 0, totals // 2)


@dataclass(frozen=True, eq=False)
class _Choice:
    """Units of images, sorted by ``keys``, of which a fraction of each stratum becomes validation.

    ``fixed`` is the split of each in the published file, -1 where it is to be chosen.
    """

    keys: np.ndarray
    fixed: np.ndarray
    strata: _Counts
    tags: _Counts | None
    fraction: float

    def in_validation(self) -> np.ndarray:
        """Return which units are validation, ``(U,)`` bool."""
        chosen = np.asarray(self.fixed == VAL)
        free = self.fixed == _FREE
        if not self.fraction:
            return chosen
        num_cells = np.diff(self.strata.starts)
        is_single = num_cells == 1
        is_single[self.strata.units[self.strata.counts > 1]] = False
        several = np.flatnonzero(free & ~is_single & (num_cells > 0))
        several = several[np.argsort(self.keys[several], kind="stable")]
        self._choose_several(several, ~is_single, chosen)
        self._choose_single(free & is_single, chosen)
        self._choose_for_empty(several, chosen)
        if self.tags is not None:
            self._give_back(self.tags, chosen)
            self._exchange(self.tags, free & is_single, chosen)
        return chosen

    def _targets(self) -> np.ndarray:
        """Return how many contents of each stratum are to become validation."""
        wanted = np.rint(self.strata.totals() * self.fraction).astype(np.int64)
        return np.asarray(np.minimum(np.maximum(wanted, 1), self.strata.most()))

    def _choose_single(self, allowed: np.ndarray, chosen: np.ndarray) -> None:
        """Choose the units of one content with the lowest hashes, as many as a stratum lacks."""
        lacking = self._targets() - self.strata.totals(chosen)
        cells = self._in_order(allowed)
        firsts = np.searchsorted(self.strata.kinds[cells], np.arange(self.strata.num_kinds + 1))
        for kind, (first, stop) in enumerate(itertools.pairwise(firsts.tolist())):
            most = min(stop, first + max(0, int(lacking[kind])))
            chosen[self.strata.units[cells[first:most]]] = True

    def _in_order(self, units: np.ndarray) -> np.ndarray:
        """Return the cells of some units by stratum and hash, those with a rare tag last."""
        cells = np.flatnonzero(units[self.strata.units]).astype(self.strata.units.dtype)  # by hash
        kinds = self.strata.kinds[cells]
        if self.tags is None:
            return cells[np.argsort(kinds, kind="stable")]
        is_rare = np.zeros(len(self.fixed), dtype=bool)  # better trained than held out
        is_rare[self.tags.units[self.tags.most()[self.tags.kinds] == 0]] = True
        return cells[np.lexsort((is_rare[self.strata.units[cells]], kinds))]

    def _choose_several(
        self, units: np.ndarray, is_several: np.ndarray, chosen: np.ndarray
    ) -> None:
        """Choose, in the order given, those that bring strata closer to a share of their contents.

        So images without a group become validation as often as those with one.
        """
        strata = self.strata
        share = (self.fraction * strata.totals(is_several)).tolist()
        held = strata.totals(is_several & chosen).tolist()
        room = (strata.most() - strata.totals(chosen)).tolist()
        for unit in units.tolist():
            row = strata.row(unit)
            cells = list(zip(strata.kinds[row].tolist(), strata.counts[row].tolist(), strict=True))
            farther = sum(
                abs(held[kind] + count - share[kind]) - abs(held[kind] - share[kind])
                for kind, count in cells
            )
            if farther < 0 and all(count <= room[kind] for kind, count in cells):
                chosen[unit] = True
                for kind, count in cells:
                    held[kind] += count
                    room[kind] -= count

    def _choose_for_empty(self, units: np.ndarray, chosen: np.ndarray) -> None:
        """Choose the smallest unit that fits for each stratum that is still without validation."""
        strata = self.strata
        room = strata.most() - strata.totals(chosen)
        held = strata.totals(chosen)
        empty = (held == 0) & (self._targets() > 0)
        sizes = np.add.reduceat(np.append(strata.counts, 0), strata.starts[:-1])
        cells = np.flatnonzero(np.isin(strata.units, units) & empty[strata.kinds])
        members = strata.units[cells]
        order = np.lexsort((self.keys[members], sizes[members], strata.kinds[cells]))
        for cell in cells[order].tolist():
            unit = int(strata.units[cell])
            row = strata.row(unit)
            kinds, counts = strata.kinds[row], strata.counts[row]
            if held[strata.kinds[cell]] == 0 and (counts <= room[kinds]).all():
                chosen[unit] = True
                held[kinds] += counts
                room[kinds] -= counts

    def _give_back(self, tags: _Counts, chosen: np.ndarray) -> None:
        """Take units out of validation, highest hash first, where a tag of three has most there."""
        held, most = tags.totals(chosen), tags.most()
        for tag in np.flatnonzero((held > most) & (most > 0)).tolist():
            units = tags.units[tags.kinds == tag]
            units = units[chosen[units] & (self.fixed[units] == _FREE)]
            for unit in units[np.argsort(self.keys[units], kind="stable")][::-1].tolist():
                if held[tag] <= most[tag]:
                    break
                chosen[unit] = False
                row = tags.row(unit)
                held[tags.kinds[row]] -= tags.counts[row]

    def _exchange(self, tags: _Counts, allowed: np.ndarray, chosen: np.ndarray) -> None:
        """Choose units whose tags have room for those that were given back."""
        lacking = self._targets() - self.strata.totals(chosen)
        held, most = tags.totals(chosen), tags.most()
        cells = self._in_order(allowed & ~chosen)
        for cell in cells[lacking[self.strata.kinds[cells]] > 0].tolist():
            unit, kind = int(self.strata.units[cell]), int(self.strata.kinds[cell])
            row = tags.row(unit)
            own, counts = tags.kinds[row], tags.counts[row]
            if lacking[kind] > 0 and (held[own] + counts <= most[own]).all():
                chosen[unit] = True
                lacking[kind] -= 1
                held[own] += counts
