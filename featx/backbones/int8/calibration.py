"""What int8 needs to know of a backbone: which range each of its activations takes.

The table stands in the spec. What is not in it stays float32, so that the table alone decides what
the quantised graph is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from featx.errors import BackboneError

SCHEME = 1
"""How a graph is quantised by a table; another number where the same table gives other bytes."""


@dataclass(frozen=True)
class Calibration:
    """The ranges of a graph's activations.

    Attributes:
        ranges: ``(tensor, lowest, highest)`` of each tensor that is quantised, by name.
        scheme: How they are used.
    """

    ranges: tuple[tuple[str, float, float], ...]
    scheme: int = SCHEME

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {"scheme": self.scheme, "ranges": {name: [a, b] for name, a, b in self.ranges}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the table that ``to_dict`` described.

        Raises:
            BackboneError: It is none, or one of another featx.
        """
        try:
            scheme, ranges = values["scheme"], values["ranges"]
            table = tuple((name, float(a), float(b)) for name, (a, b) in sorted(ranges.items()))
            if not all(map(math.isfinite, (x for _, a, b in table for x in (a, b)))):
                raise ValueError("a range is not finite")
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise BackboneError(f"Not a table of int8 ranges ({err}).") from err
        if scheme != SCHEME:
            raise BackboneError(
                f"The int8 ranges were made for scheme {scheme} of quantising; this featx has "
                f"{SCHEME}. Extract the features again."
            )
        return cls(table, scheme)
