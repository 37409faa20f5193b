"""Runs of numbered images that are alike from each to the next, as the frames of a video.

Numbers alone make no sequence: most folders of photos are numbered. The pixels of most images must
be like those of the image before.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from featx.features.file import FeatureFile
from featx.heads.samples.data import Step
from featx.stages.audit.pictures import Pictures, compare_rows

LIKE_THE_LAST = 0.6
"""Correlation of small pictures from which a frame follows another."""
SHORTEST = 5
_MOST_APART = 5  # of the numbers of frames that follow each other
_SAMPLED, _WORTH_ALL = 200, 0.2
_NUMBERED = re.compile(r"(.*?)(\d{1,18})(\D*)", re.DOTALL)
_SPLIT_FOLDERS = ("train", "val", "valid", "validation", "test")


@dataclass(frozen=True, eq=False)
class Run:
    """One sequence.

    Attributes:
        name: What its images' names have in common.
        rows: By number, ``(n,)``.
        likeness: Median correlation from each to the next.
    """

    name: str
    rows: np.ndarray
    likeness: float


def find_sequences(cache: FeatureFile, pictures: Pictures, step: Step) -> list[Run]:
    """Return the sequences of a feature file, the longest first."""
    series = defaultdict(list)
    for row, name in enumerate(cache.sample_ids):
        match = _NUMBERED.fullmatch(name)
        if match and pictures.read[row]:
            series[_common(match[1]), match[3]].append((int(match[2]), row))
    runs = []
    for (start, _), numbered in series.items():
        if len(numbered) >= SHORTEST:
            numbers, rows = np.array(sorted(numbered)).T
            runs += _runs_of(_name(start), numbers, rows, pictures, step)
    return sorted(runs, key=lambda run: (-len(run.rows), run.name, int(run.rows[0])))


def _common(start: str) -> str:
    """Return the start of a name without the folder of its split."""
    first, slash, rest = start.partition("/")
    return rest if slash and first.lower() in _SPLIT_FOLDERS else start


def _name(start: str) -> str:
    return PurePosixPath(start).name.strip(" _-.") or "without a name"


def _runs_of(
    name: str, numbers: np.ndarray, rows: np.ndarray, pictures: Pictures, step: Step
) -> list[Run]:
    near = np.diff(numbers) <= _MOST_APART
    places = np.flatnonzero(near)
    if len(places) > 2 * _SAMPLED:
        some = places[np.linspace(0, len(places) - 1, _SAMPLED).astype(int)]
        if (_likeness(rows, some, pictures, step) >= LIKE_THE_LAST).mean() < _WORTH_ALL:
            return []
    likeness = np.zeros(len(near))
    likeness[places] = _likeness(rows, places, pictures, step)
    breaks = np.flatnonzero(likeness < LIKE_THE_LAST) + 1
    runs = []
    for part in np.split(np.arange(len(rows)), breaks):
        if len(part) >= SHORTEST:
            typical = float(np.median(likeness[part[:-1]]))
            runs.append(Run(name, rows[part], typical))
    if len(runs) > 1:
        extents = [f"{numbers[np.isin(rows, run.rows)].min()}" for run in runs]
        runs = [
            Run(f"{name} from {first}", run.rows, run.likeness)
            for run, first in zip(runs, extents, strict=True)
        ]
    return runs


def _likeness(rows: np.ndarray, places: np.ndarray, pictures: Pictures, step: Step) -> np.ndarray:
    """Return how alike images are to those that follow them, ``(len(places),)``."""
    return compare_rows(pictures, np.stack([rows[places], rows[places + 1]], axis=1), step).scores
