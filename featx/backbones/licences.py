"""The licence of weights, and what has to be said of it, without torch.

A model that is exported is derived from the weights, so all three files record their licence.
"""

from __future__ import annotations

from featx.backbones.table import UNSAID, backbone_table

FREE = frozenset(
    {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc"}
)
"""Licences that let anybody use the weights for anything, as long as their authors are named."""
UNKNOWN = "unknown"
_NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "amlr", "research")
_SHARE_ALIKE = ("-sa", "gpl")


def licence_of(backbone: str, origin: str) -> str | None:
    """Return the licence of named weights, with a link where it has one; ``"unknown"`` without.

    None where nobody asks for it: random weights, a file of the user's, and weights of torchvision
    about which torchvision says nothing.

    Args:
        backbone: Name in the catalog.
        origin: Of the weights, as artifacts record it.
    """
    scheme, _, name = origin.partition(":")
    if scheme in ("bundled", "package"):
        return {"tiny": "MIT", "lite0": "Apache-2.0"}.get(backbone)
    rows = {row.name: row for row in backbone_table()}
    if scheme == "torchvision":
        found = rows[backbone].licences.get(name) if backbone in rows else None
        return f"cc-by-nc-4.0, {found}" if found and "/SWAG/" in found else found
    if scheme == "timm":
        own = rows.get(f"timm/{name}")
        licence = own.licences.get(name.partition(".")[2]) if own else _asked_of_timm(name)
        return f"{licence or UNKNOWN}, https://huggingface.co/timm/{name}"
    return None


def _asked_of_timm(name: str) -> str | None:
    from featx.backbones.with_timm import pretrained_cfg

    return pretrained_cfg(f"timm/{name}").get("license")


def has_terms(backbone: str, licence: str) -> bool:
    """Return whether a licence that the table has is known to restrict the use.

    >>> has_terms("resnet18", "MIT"), has_terms("resnet18", "cc-by-nc-4.0")
    (False, True)
    """
    return licence != UNSAID and licence_warning(backbone, licence) is not None


def licence_warning(backbone: str, licence: str | None) -> str | None:
    """Return a sentence about a licence that restricts what may be done; None for a free one.

    >>> licence_warning("resnet18", "MIT")
    """
    name, _, link = (licence or "MIT").partition(", ")
    plain = name.lower()
    if plain in FREE:
        return None
    see = f" See {link}" if link else ""
    if plain == UNKNOWN:
        return (
            f"The licence of the weights of {backbone} is not known: find out whether you may use "
            f"them, and models made from them, before you do.{see}"
        )
    if any(part in plain for part in _NON_COMMERCIAL):
        kind = "allows no commercial use"
    elif any(part in plain for part in _SHARE_ALIKE):
        kind = "asks that what is made from them has the same licence"
    else:
        kind = "has terms of its owner"
    return (
        f"The licence of the weights of {backbone} {kind}, which holds for models made from them "
        f"as well: {name}.{see}"
    )
