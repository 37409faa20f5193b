"""The catalog as a list for Python, which shows itself and can be a frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from featx.artifact.shown import FramedList
from featx.backbones.table import (
    Order,
    backbone_table,
    search_backbones,
    short_name,
    sort_backbones,
)
from featx.errors import counted, listed, require_choice


class Backbones(FramedList):
    """Rows of the catalog; a list of ``BackboneInfo``."""

    def __repr__(self) -> str:
        names = listed([short_name(row) for row in self], 3)
        return f"{counted(len(self), 'backbone')}: {names}" if self else "no backbones"

    def _lines(self) -> Iterator[str]:
        yield counted(len(self), "backbone")

    def _columns(self) -> dict[str, Sequence[Any]]:
        names = ("family", "num_features", "image_size", "num_parameters", "gflops", "top1")
        own = {name: [getattr(row, name) for row in self] for name in (*names, "licence")}
        return {"backbone": [short_name(row) for row in self], **own}


def list_backbones(
    part: str | None = None, *, max_params: int | None = None, sort: Order = "name"
) -> Backbones:
    """Return the backbones that ``featx backbones`` lists, with size and accuracy.

    Args:
        part: Of a name or family, written loosely; None takes all.
        max_params: Parameters that one may have at most.
        sort: ``"name"``; or ``"params"``, ``"gflops"`` or ``"features"``, the smallest first; or
            ``"top1"``, the most accurate first.

    Raises:
        ConfigError: There is no such order.
    """
    require_choice("sort", sort, get_args(Order))
    rows = backbone_table() if part is None else search_backbones(part)
    small = [row for row in rows if max_params is None or row.num_parameters <= max_params]
    return Backbones(sort_backbones(small, sort))
