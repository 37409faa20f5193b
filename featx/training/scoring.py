"""Scores of samples that come a few at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featx.heads.metrics import Judged, Scores, judge, measure_for, measure_judged
from featx.heads.tasks.task import Task


class Tally:
    """What scores need to know of the samples seen so far.

    Of classes that is a few values for each sample. Of tags and numbers the outputs themselves are
    kept, which are small beside the features.

    Args:
        task: What the outputs are.
        thresholds: From which probability on a tag is given.
    """

    def __init__(self, task: Task, thresholds: Sequence[float] = ()) -> None:
        self._task, self._thresholds = task, thresholds
        self._judged: list[Judged] = []
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        """Take in labelled samples.

        Args:
            outputs: Logits, or values of a regression, ``(n, num_outputs)``.
            targets: As ``heads.targets`` reads them.
        """
        if self._task == "single-label":
            self._judged.append(judge(outputs, targets))
        else:
            self._kept.append((outputs, targets))

    def scores(self, num_outputs: int) -> Scores | None:
        """Return the scores of all samples, None if there are none."""
        if self._judged:
            return measure_judged(self._judged, num_outputs)
        if not self._kept:
            return None
        outputs, targets = map(np.concatenate, zip(*self._kept, strict=True))
        return measure_for(self._task, outputs, targets, thresholds=self._thresholds)
