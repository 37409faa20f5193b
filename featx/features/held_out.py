"""The choice of validation images: units with their contents by class in, a mask out.

A unit is a content, or all that has to stay together. Units of one content and one class fill each
class's share exactly; larger ones are chosen greedily, in the order of their hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from featx.images.sources import SPLITS

VAL = SPLITS.index("val")
FREE = -1
_SMALLEST_CLASS = 3
"""Contents that a class needs before it gives one to validation."""


def distinct(values: np.ndarray) -> np.ndarray:
    """Return the different ones of ``(n,)`` values, ascending; np.unique takes far longer."""
    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])] if len(values) else values


@dataclass(frozen=True, eq=False)
class Counts:
    """How many contents of each kind, a stratum or a tag, a unit has: the cells above 0.

    Attributes:
        units: Of each cell, ascending; ``(P,)`` int64.
        kinds: Of each cell, ``(P,)`` int64.
        counts: Contents, ``(P,)`` int64.
        starts: First cell of each unit, and the number of cells; ``(U + 1,)`` int64.
        num_kinds: Of all units.
    """

    units: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray
    starts: np.ndarray
    num_kinds: int

    @classmethod
    def of(cls, contents: np.ndarray, kinds: np.ndarray, owners: np.ndarray) -> Self:
        """Count contents, ``(n,)`` with a kind each, by unit; the same content counts once."""
        num_kinds = int(kinds.max(initial=0)) + 1
        pairs = distinct(contents * num_kinds + kinds)
        cells = owners[pairs // num_kinds] * num_kinds + pairs % num_kinds
        cells, counts = np.unique(cells, return_counts=True)
        units = cells // num_kinds
        starts = np.searchsorted(units, np.arange(int(owners.max()) + 2))
        return cls(units, cells % num_kinds, counts, starts, num_kinds)

    def totals(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """Return the contents of each kind, ``(num_kinds,)``, in all units or in the chosen."""
        counts = self.counts if chosen is None else self.counts * chosen[self.units]
        totals: np.ndarray = np.bincount(self.kinds, counts, self.num_kinds).astype(np.int64)
        return totals

    def row(self, unit: int) -> slice:
        return slice(int(self.starts[unit]), int(self.starts[unit + 1]))

    def most(self) -> np.ndarray:
        """Return how many contents of each kind may be in validation, ``(num_kinds,)`` int64."""
        totals = self.totals()
        most: np.ndarray = np.where(totals < _SMALLEST_CLASS, 0, totals // 2)
        return most


@dataclass(frozen=True, eq=False)
class Choice:
    """Units of images, of which some become validation.

    Attributes:
        keys: What they are sorted by, ``(U,)`` uint64.
        fixed: Their published split, -1 where it is to be chosen; ``(U,)`` int8.
        strata: Their contents by stratum.
        tags: Their contents by tag, where labels have tags.
        fraction: Share of each stratum that becomes validation.
    """

    keys: np.ndarray
    fixed: np.ndarray
    strata: Counts
    tags: Counts | None
    fraction: float

    def in_validation(self) -> np.ndarray:
        """Return which units are validation, ``(U,)`` bool."""
        chosen: np.ndarray = self.fixed == VAL
        free = self.fixed == FREE
        if not self.fraction:
            return chosen
        num_cells = np.diff(self.strata.starts)
        is_single = np.zeros(len(free), dtype=bool)
        is_single[self.strata.units[self.strata.counts == 1]] = True
        is_single &= num_cells == 1
        several = np.flatnonzero(free & ~is_single & (num_cells > 0))
        several = several[np.argsort(self.keys[several], kind="stable")]
        self._choose_several(several, ~is_single, chosen)
        self._choose_single(free & is_single, chosen)
        self._choose_for_empty(several, chosen)
        if self.tags is not None:
            self._give_back(self.tags, chosen)
            self._exchange(self.tags, free & is_single, chosen)
        return chosen

    def _has_rare_tag(self, tags: Counts) -> np.ndarray:
        """Return which units have a tag that is better trained than held out, ``(U,)`` bool."""
        rare: np.ndarray = np.zeros(len(self.fixed), dtype=bool)
        rare[tags.units[tags.most()[tags.kinds] == 0]] = True
        return rare

    def _targets(self) -> np.ndarray:
        """Return how many contents of each stratum are to become validation."""
        wanted = np.rint(self.strata.totals() * self.fraction).astype(np.int64)
        targets: np.ndarray = np.minimum(np.maximum(wanted, 1), self.strata.most())
        return targets

    def _choose_single(self, allowed: np.ndarray, chosen: np.ndarray) -> None:
        """Choose the units of one content with the lowest hashes, as many as a stratum lacks."""
        lacking = self._targets() - self.strata.totals(chosen)
        cells = self._in_order(allowed)
        kinds = self.strata.kinds[cells]
        rank = np.arange(len(kinds)) - np.searchsorted(kinds, kinds)
        chosen[self.strata.units[cells[rank < lacking[kinds]]]] = True

    def _in_order(self, units: np.ndarray) -> np.ndarray:
        """Return the cells of some units by stratum and hash, those with a rare tag last."""
        cells = np.flatnonzero(units[self.strata.units])  # ascending by hash
        kinds = self.strata.kinds[cells]
        if self.tags is None:
            return cells[np.argsort(kinds, kind="stable")]
        is_rare = self._has_rare_tag(self.tags)[self.strata.units[cells]]
        return cells[np.lexsort((is_rare, kinds))]

    def _choose_several(
        self, units: np.ndarray, is_several: np.ndarray, chosen: np.ndarray
    ) -> None:
        """Choose, in the order given, units of several contents that bring strata closer to target.

        Their target is the fraction of the contents that such units have, so that
        images without a group are validation as often as those with one.
        """
        strata = self.strata
        share = (self.fraction * strata.totals(is_several)).tolist()
        held = strata.totals(is_several & chosen).tolist()
        room = (strata.most() - strata.totals(chosen)).tolist()
        for unit in units.tolist():
            row = strata.row(unit)
            cells = list(zip(strata.kinds[row].tolist(), strata.counts[row].tolist(), strict=True))
            if any(count > room[kind] for kind, count in cells):
                continue
            if sum(_farther(held[kind], count, share[kind]) for kind, count in cells) >= 0:
                continue
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
        is_candidate = np.zeros(len(chosen), dtype=bool)
        is_candidate[units] = True
        sizes = np.add.reduceat(np.append(strata.counts, 0), strata.starts[:-1])
        cells = np.flatnonzero(is_candidate[strata.units] & empty[strata.kinds])
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

    def _give_back(self, tags: Counts, chosen: np.ndarray) -> None:
        """Take units out of validation, highest hash first, until no tag has most of its there.

        That a tag of one or two images is held out is better than no validation.
        """
        held, most = tags.totals(chosen), tags.most()
        for tag in np.flatnonzero((held > most) & (most > 0)).tolist():
            units = tags.units[tags.kinds == tag]
            units = units[chosen[units] & (self.fixed[units] == FREE)]
            for unit in units[np.argsort(self.keys[units], kind="stable")][::-1].tolist():
                if held[tag] <= most[tag]:
                    break
                chosen[unit] = False
                row = tags.row(unit)
                held[tags.kinds[row]] -= tags.counts[row]

    def _exchange(self, tags: Counts, allowed: np.ndarray, chosen: np.ndarray) -> None:
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


def _farther(held: int, added: int, wanted: float) -> float:
    """Return how much farther from what is wanted an addition leads; negative where closer."""
    return abs(held + added - wanted) - abs(held - wanted)
