"""Views of training images: all versions of a sample, and the effect on held-out scores."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from featx.features.file import FeatureFile
from featx.heads.tasks.scores import Scores

log = logging.getLogger(__name__)

_COMPARED = {"log_loss": -1, "mae": -1, "top1": 1, "mean_average_precision": 1, "r2": 1}
"""Scores of a task that are shown with and without views; 1 where more is better."""

_CLEARLY = 0.05
"""Share by which log loss or error must grow for a warning."""


def versions_of(cache: FeatureFile, rows: np.ndarray) -> np.ndarray:
    """Return training rows and their views, ``((1 + num_views) * n, num_features)`` float32.

    The rows ``(n,)`` themselves come first, then the first view of each, then the second.
    """
    places = np.searchsorted(cache.rows("train"), rows)
    versions = np.empty((1 + cache.num_views, len(rows), cache.num_features), np.float32)
    versions[0] = cache.features[rows]
    for view, version in enumerate(versions[1:]):
        version[:] = cache.view_features[places, view]
    return versions.reshape(-1, cache.num_features)


def compare_views(
    num_views: int, with_views: Scores | None, without: Scores | None
) -> dict[str, Any]:
    """Return the scores of held-out samples, trained with views and without, as JSON values.

    Where views made all scores worse, and clearly so, a warning says it. Without held-out samples
    both are None.
    """
    found = {"num_views": num_views, "with": None, "without": None}
    if with_views is None or without is None:
        return found
    names = [name for name in _COMPARED if getattr(with_views, name, None) is not None]
    names = [name for name in names if getattr(without, name) is not None]
    ours, theirs = ({name: getattr(s, name) for name in names} for s in (with_views, without))
    error = names[0]  # log loss or mae
    worse = all((ours[name] - theirs[name]) * _COMPARED[name] < 0 for name in names)
    if worse and ours[error] > (1 + _CLEARLY) * theirs[error]:
        changes = (f"{name} {theirs[name]:.4f} → {ours[name]:.4f}" for name in names)
        log.warning(
            "Views made the held-out scores worse (%s): the augmentation may show another class, "
            "as a mirrored letter does. Train without views by use_views=False, or extract them "
            "with another augmentation.",
            ", ".join(changes).replace("_", " ").replace("top1", "top-1"),
        )
    shared = {"num_samples": with_views.num_samples}
    return found | shared | {"with": ours, "without": theirs}
