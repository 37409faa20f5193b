"""Several layers of one backbone at once: images are read, decoded and run once for all outputs.

A run for one output forms batches of the images that it has to do, in order. So do the outputs
here, as far as they lack the same images: each gets the rows that it would get alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from featx.extraction.backbone import engine_of_several
from featx.extraction.pipeline import Target
from featx.extraction.run import OutputRun, Progress, fill

_OWN = ("layer", "pool", "num_features", "calibration")
"""Of a spec, what layers may differ in."""


def fill_together(runs: Sequence[OutputRun], progress: Progress | None) -> None:
    """Make the rows that several outputs lack; what is left, each makes by itself.

    After an interruption one may have a batch more than another; it is made for the other first.
    Where settings or contents differ beyond that, nothing is made here.
    """
    todo = {id(run): run.plan.todo() for run in runs}
    runs = [run for run in runs if len(todo[id(run)])]
    if (
        len(runs) < 2
        or runs[0].options.ray
        or any(_settings(run) != _settings(runs[0]) for run in runs)
    ):
        return
    with_views = runs[0].may_train
    if runs[0].settings.views and any((run.may_train != with_views).any() for run in runs):
        return
    common = functools.reduce(np.intersect1d, [todo[id(run)] for run in runs])
    if not len(common):
        return
    for run in runs:
        rest = np.setdiff1d(todo[id(run)], common)
        if len(rest):
            fill([run], rest, run.backbone.engine, with_views=with_views, progress=progress)
    if any(_contents(run) != _contents(runs[0]) for run in runs):
        return

    engine = engine_of_several([(run.backbone, run.settings.spec) for run in runs])
    if engine is not None:
        fill(runs, common, lambda _: engine, with_views=with_views, progress=progress)


def _settings(run: OutputRun) -> tuple[Any, ...]:
    """Return what decides the batches, and what the network sees of them."""
    spec = {name: own for name, own in run.settings.spec.to_dict().items() if name not in _OWN}
    settings = replace(run.options, layer=None, pool="auto")
    return spec, settings


def _contents(run: OutputRun) -> tuple[bytes, ...]:
    target = Target(run.existing, run.plan)
    kinds = (True, False) if run.settings.views else (False,)
    return tuple(target.contents(with_views=kind) for kind in kinds)
