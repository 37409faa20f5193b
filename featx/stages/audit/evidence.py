"""Evidence for a doubted label: the nearest images whose own label nobody doubts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featx.features.file import FeatureFile
from featx.stages.audit.findings import Evidence, Finding

NUM_NEIGHBOURS = 5
_MOST = 1000
"""Findings that get evidence, the first ones."""
_BLOCK = 256


def with_evidence(cache: FeatureFile, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings with the nearest trusted images of the first 1,000.

    Trusted is a label that no finding is about; copies of an image and images of its group are left
    out, as they would only repeat it.
    """
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    doubted = np.array([rows[each.sample_id] for each in findings], np.int64)
    is_trusted = cache.labels >= 0
    is_trusted[doubted] = False
    trusted = np.flatnonzero(is_trusted & np.isfinite(cache.features).all(axis=1))
    if not len(findings) or not len(trusted):
        return tuple(findings)
    near = _nearest(cache, doubted[:_MOST], trusted)
    return tuple(
        each if number >= len(near) else each._replace(neighbours=_evidence(cache, near[number]))
        for number, each in enumerate(findings)
    )


def _nearest(cache: FeatureFile, rows: np.ndarray, trusted: np.ndarray) -> list[np.ndarray]:
    """Return the trusted rows nearest to each row by the cosine of features less their mean."""
    mean = cache.features[trusted].mean(axis=0, dtype=np.float64).astype(np.float32)
    units, contents = _units(cache.features[trusted] - mean), cache.digests[trusted]
    groups = cache.groups[trusted]
    found = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        cosines = _units(cache.features[block] - mean) @ units.T
        for row, own in zip(block.tolist(), cosines, strict=True):
            digest, group = cache.digests[row], cache.groups[row]
            if digest.any():
                own[(contents == digest).all(axis=1)] = -np.inf
            if group >= 0:
                own[groups == group] = -np.inf
            order = np.sort(
                np.argpartition(-own, min(NUM_NEIGHBOURS, len(own) - 1))[:NUM_NEIGHBOURS]
            )
            order = order[np.argsort(-own[order], kind="stable")]
            found.append(trusted[order[own[order] > -np.inf]])
    return found


def _evidence(cache: FeatureFile, rows: np.ndarray) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(cache.sample_ids[row], cache.classes[cache.labels[row]]) for row in rows.tolist()
    )


def _units(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-30))
