"""The catalog as a table that comes with featx: answers about names, and lists, without torch.

``tools/backbone_table.py`` writes it from torchvision and timm, whose rows are ``timm/NAME.TAG``;
the first one of a ``NAME`` has timm's default weights. Other models of timm are asked of timm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from featx.errors import BackboneError

TABLE = Path(__file__).with_name("table.json")
LAYERS = Path(__file__).with_name("layers.json")
UNSAID = "see torchvision"
"""The licence of weights about which torchvision says nothing."""

Order = Literal["name", "params", "gflops", "top1", "features"]


@dataclass(frozen=True)
class BackboneInfo:
    """One row of the catalog.

    Attributes:
        name: What the backbone goes by.
        family: Module of torchvision or timm that has it, such as ``"vision_transformer"``.
        num_features: Length of the penultimate features.
        image_size: Input of the default weights, pixels.
        num_parameters: Of the whole model, classifier included, auxiliary heads left out.
        gflops: Of one image at that size, in billions of multiply-adds.
        top1: Accuracy of the default weights on ImageNet-1K, percent; None where there is none.
        weights: Names of the weights, the default ones first.
        licences: Of weights about which something is said, by their names.
    """

    name: str
    family: str
    num_features: int
    image_size: int
    num_parameters: int
    gflops: float
    top1: float | None
    weights: tuple[str, ...]
    licences: Mapping[str, str]

    @property
    def licence(self) -> str:
        """The licence of the default weights."""
        return self.licences.get(self.weights[0], UNSAID)


@cache
def backbone_table() -> tuple[BackboneInfo, ...]:
    """Return the rows: ``tiny`` and ``lite0``, torchvision's and timm's by name."""
    rows = _content()["rows"]
    return tuple(BackboneInfo(**row | {"weights": tuple(row["weights"])}) for row in rows)


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))
    return content


def find_backbone(name: str) -> str | None:
    """Return the catalog's name for one that is written loosely, None where it has none such.

    >>> find_backbone("ResNet-18"), find_backbone("ViT B/16"), find_backbone("resnet")
    ('resnet18', 'vit_b_16', None)
    """
    plain = _plain(name)
    rows = [row.name for row in backbone_table()]
    for known in (_plain, lambda row: _plain(_without_tag(row))):
        if found := next((row for row in rows if known(row) == plain), None):
            return found
    if name.startswith("timm/") and find_spec("timm"):
        from featx.backbones.with_timm import full_name

        try:
            return full_name(name)
        except BackboneError:
            return None
    return name if name in _added_names() else None


def require_backbone(name: str) -> str:
    """Return the catalog's name for one that may be written loosely.

    Raises:
        BackboneError: There is none such; the message offers the nearest names.
    """
    if found := find_backbone(name):
        return found
    if name.startswith("timm/"):
        from featx.backbones.with_timm import full_name

        return full_name(name)  # which says what is wrong
    near = _nearest(name)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise BackboneError(f"Unknown backbone '{name}'.{hint} 'featx backbones' lists them all.")


def _nearest(name: str) -> list[str]:
    """Return the three names that are most like one: first those that it is a part of."""
    import difflib

    plain, names = _plain(name), [row.name for row in backbone_table()]
    longer = sorted((each for each in names if plain and plain in _plain(each)), key=len)
    similar = difflib.get_close_matches(name.lower(), names, n=3)
    return list(dict.fromkeys((*longer, *similar)))[:3]


def short_name(row: BackboneInfo) -> str:
    """Return a row's name, of timm's without the tag where that is the default one."""
    short = _without_tag(row.name)
    return short if find_backbone(short) == row.name else row.name


def _without_tag(name: str) -> str:
    return name.partition(".")[0] if name.startswith("timm/") else name


def search_backbones(part: str) -> list[BackboneInfo]:
    """Return the rows that have ``part`` in their name or family, as loosely as names."""
    plain = _plain(part)

    def has(row: BackboneInfo) -> bool:
        names = _plain(_without_tag(row.name)), _plain(row.family)
        return any(plain in name for name in names) or part.lower() in row.name

    return [row for row in backbone_table() if plain and has(row)]


def sort_backbones(rows: Iterable[BackboneInfo], order: Order) -> list[BackboneInfo]:
    """Return rows by name, or with the smallest value first; of ``"top1"`` the largest."""
    values: dict[Order, Callable[[BackboneInfo], float]] = {
        "name": lambda _: 0,
        "params": lambda row: row.num_parameters,
        "gflops": lambda row: row.gflops,
        "features": lambda row: row.num_features,
        "top1": lambda row: -(row.top1 or 0),
    }
    return sorted(rows, key=lambda row: (values[order](row), row.name))


def public_version(package: str) -> str:
    """Return the version of an installed package without the build that it is."""
    from importlib import metadata

    return metadata.version(package).partition("+")[0]


@cache
def _added_names() -> frozenset[str]:
    """Return the names of another torchvision than the table's, for which torch is loaded."""
    try:
        if public_version("torchvision") == _content()["versions"]["torchvision"]:
            return frozenset()
        from torchvision import models
    except ImportError:
        return frozenset()
    return frozenset(models.list_models(module=models))


@cache
def _plain(name: str) -> str:
    """Return a name without case and separators, but for one between digits, as in 1_6gf."""
    joined = re.sub(r"(?<=[0-9])[-_. /]+(?=[0-9])", "\0", name.lower())
    return re.sub(r"[-_. /]", "", joined)


def known_layers(name: str) -> tuple[list[str], list[str]]:
    """Return the names of a backbone's layers and of its main cuts, as far as they are recorded.

    ``tools/backbone_layers.py`` records them for torchvision's; others have none.
    """
    record = json.loads(LAYERS.read_text(encoding="utf-8"))
    index = record["backbones"].get(name)
    layers, cuts = ([], []) if index is None else record["lists"][index]
    return layers, cuts
