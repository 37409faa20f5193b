"""What the cache gives to train on, and what is wrong with it."""

from __future__ import annotations

import logging

import numpy as np

from featx.errors import ArtifactInvalid, SourceError
from featx.features.file import FeatureFile
from featx.images.sources import SPLITS

log = logging.getLogger(__name__)


def warn_of_leaks(cache: FeatureFile) -> None:
    """Warn where images that judge a head have the content of images that train it."""
    digests = np.ascontiguousarray(cache.digests).view(f"S{cache.digests.shape[1]}")[:, 0]
    judged = (cache.splits != SPLITS.index("train")) & (digests != b"")
    leaks = np.flatnonzero(judged & np.isin(digests, digests[~judged]))
    if len(leaks):
        log.warning(
            "%s validation or test images have the content of a training image ('%s' first): "
            "their scores flatter.",
            *(f"{len(leaks):,}", cache.sample_ids[leaks[0]]),
        )


def training_rows(cache: FeatureFile) -> np.ndarray:
    """Return the numbers of the labelled training rows, ascending.

    Raises:
        SourceError: There are none, or fewer than two classes have any.
    """
    rows: np.ndarray = cache.rows("train")
    unlabelled = int((cache.labels[rows] < 0).sum())
    rows = rows[cache.labels[rows] >= 0]
    if not (cache.labels >= 0).any():
        raise SourceError(
            f"'{cache.path}' has no labels: its images lie in no class folders. Sort them into one "
            "folder per class, or give their labels in a CSV manifest, and extract again."
        )
    if not len(rows):
        raise SourceError(f"'{cache.path}' has no labelled images in its training split.")
    if unlabelled:
        log.warning("%d training images have no label: left out.", unlabelled)
    counts = np.bincount(cache.labels[rows], minlength=len(cache.classes))
    empty = [name for name, count in zip(cache.classes, counts, strict=True) if not count]
    if len(cache.classes) - len(empty) < 2:
        raise SourceError(
            f"'{cache.path}' has training images of one class only "
            f"('{cache.classes[int(counts.argmax())]}'); a classifier needs two."
        )
    if empty:
        log.warning("No training images of %s: never predicted.", ", ".join(map(repr, empty)))
    return rows


def require_finite(cache: FeatureFile, bad: np.ndarray) -> None:
    """Check that no row has NaN or infinite features; ``bad`` ``(n,)`` are numbers of such.

    Raises:
        ArtifactInvalid: There are.
    """
    if len(bad):
        raise ArtifactInvalid(
            cache.path,
            f"'{cache.path}' has NaN or infinite features in {len(bad)} rows, "
            f"'{cache.sample_ids[bad[0]]}' first. Extract again with other weights.",
        )
