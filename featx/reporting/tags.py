"""The story of a head of tags: each tag at its threshold, and the decisions it is surest of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from featx.errors import counted
from featx.heads.metrics import MultiLabelMetrics
from featx.heads.metrics.multi_label import sigmoid
from featx.reporting.page import Section, Story, figures, gallery, named, share, table, text
from featx.reporting.pictures import Mistake, Statement
from featx.reporting.plots import plot_path, plot_reliability
from featx.reporting.summary import Subject, reliability


def tell_tags(subject: Subject) -> Story:
    """Return the story of a head that says which tags."""
    head, split = subject.head, subject.split
    metrics = {
        name: own for name, own in subject.metrics.items() if isinstance(own, MultiLabelMetrics)
    }
    own = metrics[split]
    probabilities = sigmoid(head.logits(subject.cache.features[subject.rows]).astype(np.float64))
    wrong = (probabilities >= np.array(head.thresholds)) != subject.targets
    worst = worst_tags(subject, probabilities, wrong)
    return Story(
        title=f"{head.header.spec['backbone']}: {counted(len(head.classes), 'tag')}",
        summary=f"All tags right on {own.exact:.1%} of {counted(own.num_samples, 'image')} of the "
        f"{text(split)} split (95&nbsp;%: {own.exact_low:.1%} to {own.exact_high:.1%}), mean "
        f"average precision {_or_dash(own.mean_average_precision)}.",
        sections=(
            Section("Scores", _scores(metrics)),
            Section(f"Tags, {split} split", _per_tag(own, head.classes)),
            Section("How far to trust it", figures(list(_figures(subject, probabilities)))),
            Section(
                "Surest mistakes",
                gallery(
                    worst,
                    f"The {len(worst):,} of {int(wrong.sum()):,} wrong decisions that the head is "
                    "surest of. Look for wrong labels here first.",
                ),
            ),
        ),
    )


def worst_tags(subject: Subject, probabilities: np.ndarray, wrong: np.ndarray) -> list[Mistake]:
    """Return the wrong decisions that the head is surest of, the surest first.

    Args:
        subject: What the page is about.
        probabilities: Of each tag of each row, ``(n, num_tags)``.
        wrong: Which decisions are, ``(n, num_tags)`` bool.
    """
    names, has = subject.head.classes, subject.targets > 0
    own = np.where(has, probabilities, 1 - probabilities)  # of what is true
    rows, tags = np.nonzero(wrong)
    order = np.argsort(own[rows, tags], kind="stable")[: subject.num_mistakes]
    mistakes = []
    for row, tag in zip(rows[order].tolist(), tags[order].tolist(), strict=True):
        said = names[tag] if not has[row, tag] else f"not {names[tag]}"
        every = [name for name, there in zip(names, has[row], strict=True) if there]
        mistakes.append(
            subject.pictures.mistake(
                int(subject.rows[row]),
                Statement(said, f"{1 - own[row, tag]:.3f}"),
                Statement(", ".join(every) or "no tag"),
            )
        )
    return mistakes


def _figures(subject: Subject, probabilities: np.ndarray) -> Iterator[tuple[str, str]]:
    yield (
        plot_reliability(reliability(probabilities.reshape(-1), subject.targets.reshape(-1) > 0)),
        "Of all tags of all images. Probabilities that can be trusted lie on the dashed line.",
    )
    yield from plot_path(subject.head.header.details["choice"])


def _scores(metrics: Mapping[str, MultiLabelMetrics]) -> str:
    columns = ("split", "images", "mAP", "micro F1", "macro F1", "all right", "log loss", "ECE")
    rows = [
        [
            text(split),
            f"{scores.num_samples:,}",
            _or_dash(scores.mean_average_precision),
            f"{scores.micro_f1:.4f}",
            f"{scores.macro_f1:.4f}",
            share(scores.exact, scores.exact_low, scores.exact_high),
            f"{scores.log_loss:.4f}",
            f"{scores.ece:.4f}",
        ]
        for split, scores in metrics.items()
    ]
    return table(columns, rows)


def _per_tag(scores: MultiLabelMetrics, names: Sequence[str]) -> str:
    columns = ("tag", "images", "given", "from", "average precision", "precision", "recall")
    rows = [
        [
            named(name),
            f"{own.num_samples:,}",
            f"{own.num_predicted:,}",
            f"{own.threshold:.3f}",
            _or_dash(own.average_precision),
            share(own.precision, own.precision_low, own.precision_high),
            share(own.recall, own.recall_low, own.recall_high),
        ]
        for name, own in zip(names, scores.per_class, strict=True)
    ]
    note = (
        "<p>A tag is given from that probability on where its F1 score was best on held-out "
        "training images. Small figures are 95&nbsp;% Wilson intervals.</p>"
    )
    return note + table(columns, rows)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
