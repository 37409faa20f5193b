"""Headers with every field that readers ask for, so that a test names only those it is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featx.artifact import Header, Kind

SPEC: dict[str, Any] = {
    "backbone": "tiny",
    "weights_sha256": "0" * 64,
    "layer": "flatten",
    "pool": "none",
    "num_features": 4,
    "preprocess": {
        "image_size": 32,
        "resize": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "crop": "none",
        "interpolation": "bilinear",
    },
    "precision": "fp32",
}
PROVENANCE = {"source": "/photos", "weights": "bundled", "val_fraction": 0.2}
REQUEST = {
    **{"backbone": "tiny", "weights": "default", "layer": None, "pool": "auto"},
    **{"image_size": None, "resize": None, "crop": None, "seed": 0},
}
COLUMNS = ("features", "labels", "splits", "sample_ids", "digests", "stamps")
DETAILS: dict[str, dict[str, Any]] = {
    "features": {
        **PROVENANCE,
        "num_rows": 1,
        "sha256": dict.fromkeys(COLUMNS, "0" * 64),
        "request": REQUEST,
        "dtype": "float32",
        "max_pixels": 10**8,
        "skipped": [],
    },
    "head": {
        **PROVENANCE,
        "sha256": "0" * 64,
        "features": "/features.h5",
        "choice": {"head": "linear", "solver": "lbfgs"},
        "metrics": {},
    },
    "classifier": {**PROVENANCE, "metrics": {}},
}


def complete_header(
    kind: Kind,
    spec: Mapping[str, Any] | None = None,
    classes: Sequence[str] = ("ants", "bees"),
    details: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Header:
    """Return a header whose readers find all they need; arguments as those of ``Header``."""
    geometry = SPEC["preprocess"] | dict((spec or {}).get("preprocess", {}))
    return Header(
        kind,
        {**SPEC, **(spec or {}), "preprocess": geometry},
        tuple(classes),
        DETAILS[kind] | dict(details or {}),
        environment or {},
    )
