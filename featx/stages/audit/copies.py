"""Images of one content, by their content hashes."""

from __future__ import annotations

import numpy as np

from featx.features.file import FeatureFile


def copies_of(cache: FeatureFile) -> list[np.ndarray]:
    """Return the rows of each content that several images have, ascending, first rows first."""
    digests = np.ascontiguousarray(cache.digests).view(f"V{cache.digests.shape[1]}")[:, 0]
    known = np.flatnonzero(cache.digests.any(axis=1))
    _, contents, counts = np.unique(digests[known], return_inverse=True, return_counts=True)
    several = known[counts[contents] > 1]
    keys = contents[counts[contents] > 1]
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.diff(keys[order])) + 1
    parts = np.split(several[order], ends) if len(order) else []
    return sorted(parts, key=lambda rows: int(rows[0]))


def is_leak(cache: FeatureFile, rows: np.ndarray) -> bool:
    """Return whether rows ``(n,)`` of one content are in several splits."""
    return len(np.unique(cache.splits[rows])) > 1


def is_conflict(cache: FeatureFile, rows: np.ndarray) -> bool:
    """Return whether rows ``(n,)`` of one content have different labels."""
    labels = cache.labels[rows]
    return len(np.unique(labels[labels >= 0])) > 1
