"""Comparison of scores with those of a constant answer, and with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from featx.errors import counted
from featx.heads.tasks.scores import Metrics, MultiLabelMetrics, RegressionMetrics, Scores

_ENOUGH = 50
"""Validation images from which on their scores are taken, and not those of cross-validation."""


def commonest(metrics: Mapping[str, Scores]) -> int | None:
    """Return the index of the class with most training images; None where there are no classes."""
    train = metrics.get("train")
    if not isinstance(train, Metrics) or not train.per_class:
        return None
    counts = [own.num_samples for own in train.per_class]
    return counts.index(max(counts))


def baselines(metrics: Mapping[str, Scores]) -> dict[str, float]:
    """Return the top-1, in [0, 1], of always answering the commonest class, for each split."""
    index = commonest(metrics)
    return {
        split: scores.per_class[index].num_samples / scores.num_samples
        for split, scores in metrics.items()
        if index is not None and isinstance(scores, Metrics) and scores.num_samples
    }


def verdict(
    metrics: Mapping[str, Scores], classes: Sequence[str], cross_validated: Scores | None = None
) -> str:
    """Return a sentence where a head is not clearly better than a constant; else an empty text.

    Validation images decide, those of the test split where there are none; fewer than 50 leave it
    to the cross-validated scores, where there are any. "Clearly" is by their 95 % interval.
    """
    scores = metrics.get("val") or metrics.get("test")
    if cross_validated is not None and (scores is None or scores.num_samples < _ENOUGH):
        scores = cross_validated
    index = commonest(metrics)
    if isinstance(scores, Metrics) and index is not None and len(classes) > 1:
        share = baselines({"train": metrics["train"], "": scores})[""]
        what, reached = f"'{classes[index]}'", share
        best, low = scores.top1, scores.top1_low
    elif isinstance(scores, RegressionMetrics) and scores.r2 is not None:
        what, reached, best, low = "the mean", 0.0, scores.r2, scores.r2_low or 0.0
    else:
        return ""
    if best <= reached:
        return f"No better than always answering {what}."
    if low <= reached:
        images = counted(scores.num_samples, "image")
        return f"Not clearly better than always answering {what}: {images} cannot show it."
    return ""


def compare_verdict(scores: Sequence[Scores]) -> str:
    """Return a sentence where the best scores differ by less than the images can show.

    Args:
        scores: Of the same images, the best first. Each difference from the first is held against
            the root of the sum of squares of both half 95 % intervals.
    """
    alike = 1
    while alike < len(scores) and _is_alike(scores[0], scores[alike]):
        alike += 1
    if alike < 2:
        return ""
    which = "These" if alike == len(scores) else f"The first {alike}"
    return f"{which} differ by less than {counted(scores[0].num_samples, 'image')} can show."


def _is_alike(one: Scores, other: Scores) -> bool:
    (a, half_a), (b, half_b) = map(_main, (one, other))
    return abs(a - b) < math.hypot(half_a, half_b)


def _main(scores: Scores) -> tuple[float, float]:
    """Return the main score that has an interval, and half of that."""
    if isinstance(scores, MultiLabelMetrics):
        return scores.exact, (scores.exact_high - scores.exact_low) / 2
    if isinstance(scores, RegressionMetrics):
        return scores.mae, (scores.mae_high - scores.mae_low) / 2
    return scores.top1, (scores.top1_high - scores.top1_low) / 2
