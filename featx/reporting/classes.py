"""The story of a head of classes: confusions, how far to trust it, and its surest mistakes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from featx.errors import counted
from featx.heads.metrics import Metrics
from featx.reporting.page import Section, Story, figures, gallery, named, share, table, text
from featx.reporting.pictures import Mistake, Statement
from featx.reporting.plots import (
    MAX_CONFUSION_CLASSES,
    plot_confusion,
    plot_map,
    plot_path,
    plot_reliability,
)
from featx.reporting.summary import (
    Confusion,
    Subject,
    View,
    confused_pairs,
    map_features,
    reliability,
    view,
)


def tell_classes(subject: Subject) -> Story:
    """Return the story of a head that says which class."""
    head, split = subject.head, subject.split
    metrics = {name: own for name, own in subject.metrics.items() if isinstance(own, Metrics)}
    own, seen = metrics[split], view(head, subject.cache, subject.rows)
    num_mistakes = int((seen.labels != seen.predicted).sum())
    worst = worst_mistakes(subject, seen)
    pairs = confused_pairs(seen, head.classes)
    return Story(
        title=f"{head.header.spec['backbone']}: {counted(len(head.classes), 'class', 'classes')}",
        summary=f"Top-1 {own.top1:.1%} on {counted(own.num_samples, 'image')} of the "
        f"{text(split)} split (95&nbsp;%: {own.top1_low:.1%} to {own.top1_high:.1%}).",
        sections=(
            Section("Scores", _scores(metrics)),
            Section(
                f"What it mistakes, {split} split",
                _pairs(pairs, num_mistakes) + figures(list(_figures(subject, seen))),
            ),
            Section(
                "Surest mistakes",
                gallery(
                    worst,
                    f"The {len(worst):,} of {num_mistakes:,} that the head is surest of. Look for "
                    "wrong labels here first.",
                ),
            ),
            Section(f"Classes, {split} split", _per_class(own, head.classes)),
        ),
    )


def worst_mistakes(subject: Subject, seen: View) -> list[Mistake]:
    """Return the mistakes that the head is surest of, the surest first."""
    classes = subject.head.classes
    wrong = np.flatnonzero(seen.labels != seen.predicted)
    worst = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][: subject.num_mistakes]
    return [
        subject.pictures.mistake(
            int(seen.rows[i]),
            Statement(classes[seen.predicted[i]], f"{seen.confidence[i]:.3f}"),
            Statement(classes[seen.labels[i]], f"{seen.own[i]:.3f}"),
        )
        for i in worst.tolist()
    ]


def _figures(subject: Subject, seen: View) -> Iterator[tuple[str, str]]:
    """Yield each figure and its caption."""
    head = subject.head
    if len(head.classes) <= MAX_CONFUSION_CLASSES:
        yield (
            plot_confusion(seen, head.classes),
            "Each row is a class; the shade is the share of its images.",
        )
    yield (
        plot_reliability(reliability(seen.confidence, seen.labels == seen.predicted)),
        "Probabilities that can be trusted lie on the dashed line. Bars below it: too sure.",
    )
    yield from plot_path(head.header.details["choice"])
    if plane := map_features(subject.cache, seen.rows, kind=subject.map):
        how = (
            f"The two directions of most variance ({plane.explained:.0%} of it)"
            if plane.explained is not None
            else "t-SNE: neighbours stay neighbours, distances between groups mean little"
        )
        yield plot_map(plane, seen, head.classes), f"{how}. Rings are mistakes."


def _scores(metrics: Mapping[str, Metrics]) -> str:
    columns = ("split", "images", "top-1", "top-5", "balanced", "macro F1", "log loss", "ECE")
    rows = [
        [
            text(split),
            f"{scores.num_samples:,}",
            share(scores.top1, scores.top1_low, scores.top1_high),
            share(scores.top5),
            f"{scores.balanced_accuracy:.4f}",
            f"{scores.macro_f1:.4f}",
            f"{scores.log_loss:.4f}",
            f"{scores.ece:.4f}",
        ]
        for split, scores in metrics.items()
    ]
    return table(columns, rows)


def _per_class(scores: Metrics, classes: Sequence[str]) -> str:
    columns = ("class", "images", "predicted", "precision", "recall")
    rows = [
        [
            named(name),
            f"{own.num_samples:,}",
            f"{own.num_predicted:,}",
            share(own.precision, own.precision_low, own.precision_high),
            share(own.recall, own.recall_low, own.recall_high),
        ]
        for name, own in zip(classes, scores.per_class, strict=True)
    ]
    return "<p>Small figures are 95&nbsp;% Wilson intervals.</p>" + table(columns, rows)


def _pairs(pairs: Sequence[Confusion], num_mistakes: int) -> str:
    if not pairs:
        return "<p>Nothing: every image of the split is recognised.</p>"
    rows = [
        [text(pair.label), text(pair.predicted), f"{pair.count:,}", f"{pair.share:.1%}"]
        for pair in pairs
    ]
    note = f"<p>{counted(num_mistakes, 'image')} in all; the commonest mistakes:</p>"
    return note + table(("label", "taken for", "images", "of the class"), rows)
