"""Tables of scores, one look for each task: what train-head, evaluate and info print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from featx.cli.output import interval, print_table

if TYPE_CHECKING:
    from featx.heads.metrics import (
        ClassScores,
        Metrics,
        MultiLabelMetrics,
        RegressionMetrics,
        Scores,
        TagScores,
    )

_COLUMNS = {
    "single-label": ("top-1", "95 %", "top-5", "balanced", "macro F1", "log loss", "ECE"),
    "multi-label": ("mAP", "micro F1", "macro F1", "exact", "95 %", "log loss", "ECE"),
    "regression": ("MAE", "95 %", "RMSE", "R²", "95 %"),
}
_OWN_COLUMNS = {
    "single-label": ("images", "predicted", "precision", "95 %", "recall", "95 %"),
    "multi-label": ("images", "given", "from", "AP", "precision", "95 %", "recall", "95 %"),
    "regression": ("MAE", "RMSE", "R²"),
}


def print_metrics(metrics: Mapping[str, Scores]) -> None:
    """Print a row for each split; 95 % is the interval of the score before it."""
    rows = [
        [split, f"{scores.num_samples:,}", *_overall(scores)] for split, scores in metrics.items()
    ]
    task = next(iter(metrics.values())).task if metrics else "single-label"
    print_table(["split", "images", *_COLUMNS[task]], rows)


def print_per_class(metrics: Mapping[str, Scores], classes: Sequence[str]) -> None:
    """Print a row for each class, tag or target, with 95 % intervals, for each split."""
    for split, scores in metrics.items():
        rows = [[name, *own] for name, own in zip(classes, _each(scores), strict=True)]
        thing = {"single-label": "class", "multi-label": "tag", "regression": "target"}
        print_table([f"{thing[scores.task]} ({split})", *_OWN_COLUMNS[scores.task]], rows)
        click.echo()


def headline(scores: Scores) -> dict[str, str]:
    """Return the few cells that say most, by the name of their column."""
    if scores.task == "multi-label":
        return {
            "mAP": _or_dash(scores.mean_average_precision),
            "micro F1": f"{scores.micro_f1:.4f}",
            "log loss": f"{scores.log_loss:.4f}",
        }
    if scores.task == "regression":
        mae, bounds, _, r2, _ = _numbers(scores)
        return {"MAE": mae, "95 %": bounds, "R²": r2}
    bounds = interval(scores.top1_low, scores.top1_high)
    return {"top-1": f"{scores.top1:.4f}", "95 %": bounds, "log loss": f"{scores.log_loss:.4f}"}


def _overall(scores: Scores) -> list[str]:
    """Return the cells of a split, in the order of ``_COLUMNS``."""
    if scores.task == "single-label":
        return _classes(scores)
    return _tags(scores) if scores.task == "multi-label" else _numbers(scores)


def _classes(scores: Metrics) -> list[str]:
    return [
        f"{scores.top1:.4f}",
        interval(scores.top1_low, scores.top1_high),
        _or_dash(scores.top5),
        f"{scores.balanced_accuracy:.4f}",
        f"{scores.macro_f1:.4f}",
        f"{scores.log_loss:.4f}",
        f"{scores.ece:.4f}",
    ]


def _tags(scores: MultiLabelMetrics) -> list[str]:
    return [
        _or_dash(scores.mean_average_precision),
        f"{scores.micro_f1:.4f}",
        f"{scores.macro_f1:.4f}",
        f"{scores.exact:.4f}",
        interval(scores.exact_low, scores.exact_high),
        f"{scores.log_loss:.4f}",
        f"{scores.ece:.4f}",
    ]


def _numbers(scores: RegressionMetrics) -> list[str]:
    return [
        f"{scores.mae:.4g}",
        f"{scores.mae_low:.4g}–{scores.mae_high:.4g}",
        f"{scores.rmse:.4g}",
        _or_dash(scores.r2),
        interval(scores.r2_low, scores.r2_high),
    ]


def _each(scores: Scores) -> Iterator[list[str]]:
    """Yield the cells of each class, tag or target, in the order of ``_OWN_COLUMNS``."""
    if scores.task == "regression":
        for target in scores.per_target:
            yield [f"{target.mae:.4g}", f"{target.rmse:.4g}", _or_dash(target.r2)]
        return
    per_class: Sequence[ClassScores | TagScores] = scores.per_class
    areas: list[list[str]] = [[]] * len(per_class)
    if scores.task == "multi-label":
        areas = [
            [f"{tag.threshold:.3f}", _or_dash(tag.average_precision)] for tag in scores.per_class
        ]
    for own, area in zip(per_class, areas, strict=True):
        yield [
            f"{own.num_samples:,}",
            f"{own.num_predicted:,}",
            *area,
            _or_dash(own.precision),
            interval(own.precision_low, own.precision_high),
            _or_dash(own.recall),
            interval(own.recall_low, own.recall_high),
        ]


def _or_dash(share: float | None) -> str:
    return "–" if share is None else f"{share:.4f}"
