"""The story of a head of numbers: how far off it is, and where most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from featx.errors import counted
from featx.heads.metrics import RegressionMetrics
from featx.reporting.page import Section, Story, figures, gallery, named, share, table, text
from featx.reporting.pictures import Mistake, Statement
from featx.reporting.plots import plot_path, plot_values
from featx.reporting.summary import Subject

_MAX_SCATTERS = 6


def tell_numbers(subject: Subject) -> Story:
    """Return the story of a head that says how much."""
    head, split = subject.head, subject.split
    metrics = {
        name: own for name, own in subject.metrics.items() if isinstance(own, RegressionMetrics)
    }
    own = metrics[split]
    values = head.logits(subject.cache.features[subject.rows]).astype(np.float64)
    worst = worst_values(subject, values)
    targets = counted(len(head.classes), "target")
    sections = [
        Section("Scores", _scores(metrics)),
        Section(
            f"What it says and what is true, {split} split",
            figures(list(_figures(subject, values))),
        ),
        Section(
            "Farthest off",
            gallery(
                worst,
                f"The {len(worst):,} of {counted(len(values), 'image')} that the head is "
                "farthest off at. Look for wrong labels here first.",
            ),
        ),
    ]
    if len(head.classes) > 1:
        sections.append(Section(f"Targets, {split} split", _per_target(own, head.classes)))
    return Story(
        title=f"{head.header.spec['backbone']}: {targets}",
        summary=f"Off by {own.mae:.4g} on average on {counted(own.num_samples, 'image')} of the "
        f"{text(split)} split (95&nbsp;%: {own.mae_low:.4g} to {own.mae_high:.4g}).",
        sections=tuple(sections),
    )


def worst_values(subject: Subject, values: np.ndarray) -> list[Mistake]:
    """Return the images where a value is farthest off, counted in the target's deviations.

    Args:
        subject: What the page is about.
        values: What the head says of each row, ``(n, num_targets)``.
    """
    names, true = subject.head.classes, subject.targets
    deviation = true.std(axis=0)
    off = np.abs(values - true) / np.where(deviation > 0, deviation, 1)
    target = off.argmax(axis=1)
    order = np.argsort(-off.max(axis=1), kind="stable")[: subject.num_mistakes]
    mistakes = []
    for row in order.tolist():
        column = int(target[row])
        said, right = values[row, column], true[row, column]
        prefix = "" if len(names) == 1 else f"{names[column]}: "
        mistakes.append(
            subject.pictures.mistake(
                int(subject.rows[row]),
                Statement(f"{prefix}{said:.4g}", f"off by {said - right:+.3g}"),
                Statement(f"{right:.4g}"),
            )
        )
    return mistakes


def _figures(subject: Subject, values: np.ndarray) -> Iterator[tuple[str, str]]:
    names = subject.head.classes
    for column, name in enumerate(names[:_MAX_SCATTERS]):
        note = "On the dashed line the head is right."
        yield (
            plot_values(subject.targets[:, column], values[:, column], name),
            note if len(names) == 1 else f"{name}. {note}",
        )
    yield from plot_path(subject.head.header.details["choice"])


def _scores(metrics: Mapping[str, RegressionMetrics]) -> str:
    columns = ("split", "images", "mean absolute error", "RMSE", "R²")
    rows = [
        [
            text(split),
            f"{scores.num_samples:,}",
            f"{scores.mae:.4g} <small>{scores.mae_low:.4g}–{scores.mae_high:.4g}</small>",
            f"{scores.rmse:.4g}",
            share(scores.r2, scores.r2_low, scores.r2_high),
        ]
        for split, scores in metrics.items()
    ]
    note = "<p>Small figures are 95&nbsp;% intervals by bootstrap.</p>"
    return note + table(columns, rows)


def _per_target(scores: RegressionMetrics, names: Sequence[str]) -> str:
    rows = [
        [named(name), f"{own.mae:.4g}", f"{own.rmse:.4g}", share(own.r2)]
        for name, own in zip(names, scores.per_target, strict=True)
    ]
    return table(("target", "mean absolute error", "RMSE", "R²"), rows)
