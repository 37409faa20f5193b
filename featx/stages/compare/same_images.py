"""Checks that compared files are of the same images, and the split that is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featx.errors import ArtifactMismatch, ConfigError
from featx.features.file import FeatureFile
from featx.images.sources import SPLITS


def require_several(given: Sequence[str | Path], things: str) -> list[Path]:
    """Return the paths to compare: two or more, each once."""
    paths = [Path(given)] if isinstance(given, (str, Path)) else [Path(path) for path in given]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(
            f"compare needs two or more {things}, each once; got {', '.join(map(str, paths))}."
        )
    return paths


def require_effect(weights: str | None, *, has_cut: bool) -> None:
    """Refuse weights where no network has to be built from them."""
    if weights is not None and not has_cut:
        raise ConfigError(
            "weights=… has no effect: none of the files needs the pretrained weights behind a cut."
        )


def images_of(cache: FeatureFile) -> dict[str, Any]:
    """Return all that compared files have in common."""
    return {
        "classes": cache.classes,
        "images": cache.sample_ids,
        "image contents": cache.digests,
        "labels": cache.labels,
        "splits": cache.splits,
    }


def require_same_images(cache: FeatureFile, first: Mapping[str, Any], path: Path) -> None:
    """Refuse a file with other images, labels or splits than the first one, at ``path``."""
    for name, own in images_of(cache).items():
        same = own == first[name] if isinstance(own, tuple) else np.array_equal(own, first[name])
        if not same:
            raise ArtifactMismatch(
                cache.path,
                f"'{cache.path}' has other {name} than '{path}', so that their scores "
                "cannot be compared. Extract both from the same source, with the same "
                + ("val_fraction and resplit=True." if name == "splits" else "val_fraction."),
            )


def choose_split(cache: FeatureFile, wanted: str | None) -> str:
    """Return the split that heads are compared on, which has labelled images."""
    labelled = cache.splits[cache.labels >= 0]
    there = [split for split in SPLITS if SPLITS.index(split) in labelled]
    choice = [wanted] if wanted else [split for split in ("val", "test") if split in there]
    if not choice or choice[0] not in there:
        raise ConfigError(
            f"'{cache.path}' has no labelled images in a {wanted or 'validation or test'} split; "
            f"there are {', '.join(there) or 'no labels at all'}. Extract with val_fraction=…."
        )
    return choice[0]
