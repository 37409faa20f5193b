"""The page: HTML that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

from featx.artifact import Header
from featx.heads.metrics import Metrics
from featx.stages.report.look import Confusion, Mistake

_CSS = """
:root { color-scheme: light; --ink: #1a202c; --soft: #4a5568; --line: #e2e8f0; --wash: #f7fafc; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink);
  background: #fff; font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1.75rem; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0 .75rem; color: var(--soft); max-width: 46rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child { text-align: left; max-width: 18rem; overflow: hidden;
  text-overflow: ellipsis; }
td small { color: var(--soft); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr));
  gap: 2rem; align-items: end; margin-top: 1.5rem; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .9rem; margin-top: .25rem; }
figure svg { max-width: 100%; height: auto; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr));
  gap: 1rem; }
.mistake { border: 1px solid var(--line); border-radius: .5rem; overflow: hidden;
  background: var(--wash); }
.mistake .picture { height: 10rem; display: grid; place-items: center; background: #edf2f7;
  color: var(--soft); font-size: .85rem; text-align: center; padding: .5rem; }
.mistake img { max-width: 100%; max-height: 100%; }
.mistake div + div { padding: .5rem .75rem .6rem; font-size: .9rem; overflow-wrap: anywhere; }
.mistake b { font-weight: 600; } .mistake small { color: var(--soft); }
"""


def render(
    header: Header,
    *,
    metrics: Mapping[str, Metrics],
    split: str,
    figures: Sequence[tuple[str, str]],
    pairs: Sequence[Confusion],
    mistakes: Sequence[Mistake],
    num_mistakes: int,
) -> str:
    """Return the page.

    Args:
        header: Of the head.
        metrics: Scores of each split.
        split: The one that the rest is about.
        figures: SVG and caption of each.
        pairs: The commonest mistakes.
        mistakes: The surest mistakes.
        num_mistakes: All there are.
    """
    own = metrics[split]
    title = f"{header.spec['backbone']}: {len(header.classes)} classes"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>Top-1 {own.top1:.1%} on {own.num_samples:,} images of the {_text(split)} split "
        f"(95&nbsp;%: {own.top1_low:.1%} to {own.top1_high:.1%}).</p>",
        _facts(header),
        "<h2>Scores</h2>",
        _scores(metrics),
        f"<h2>What it mistakes, {_text(split)} split</h2>",
        _pairs(pairs, num_mistakes),
        '<div class="figures">',
        *(f"<figure>{svg}<figcaption>{_text(text)}</figcaption></figure>" for svg, text in figures),
        "</div>",
        "<h2>Surest mistakes</h2>",
        _mistakes(mistakes, num_mistakes),
        f"<h2>Classes, {_text(split)} split</h2>",
        _per_class(own, header.classes),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _text(value: object) -> str:
    """Return text for a page; a name that is not UTF-8 keeps its shape."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def _facts(header: Header) -> str:
    spec, choice = header.spec, header.details["choice"]
    preprocess = spec["preprocess"]
    size = preprocess["image_size"]
    facts = {
        "features": f"{spec['num_features']} of {spec['backbone']}, layer {spec['layer']}",
        "weights": f"{header.details['weights']} (sha256 {spec['weights_sha256'][:16]}…)",
        "images": f"{size}×{size} pixels from {header.details['source']}",
        "head": f"{choice['head']}, {choice['solver']}"
        + (f", C = {choice['strength']:g}" if "strength" in choice else ""),
    }
    calibration = header.details.get("calibration")
    if calibration:
        facts["calibration"] = (
            f"temperature {calibration['temperature']:.3g}: expected calibration error "
            f"{calibration['ece_before']:.4f} before, {calibration['ece_after']:.4f} after, on "
            "held-out training images"
        )
    rows = "".join(f"<dt>{name}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _scores(metrics: Mapping[str, Metrics]) -> str:
    columns = ("split", "images", "top-1", "top-5", "balanced", "macro F1", "log loss", "ECE")
    rows = [
        [
            _text(split),
            f"{scores.num_samples:,}",
            _share(scores.top1, scores.top1_low, scores.top1_high),
            _share(scores.top5),
            f"{scores.balanced_accuracy:.4f}",
            f"{scores.macro_f1:.4f}",
            f"{scores.log_loss:.4f}",
            f"{scores.ece:.4f}",
        ]
        for split, scores in metrics.items()
    ]
    return _table(columns, rows)


def _share(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return "–"
    interval = "" if low is None else f" <small>{low:.3f}–{high:.3f}</small>"
    return f"{value:.4f}{interval}"


def _per_class(scores: Metrics, classes: Sequence[str]) -> str:
    columns = ("class", "images", "predicted", "precision", "recall")
    rows = [
        [
            f'<span title="{_text(name)}">{_text(name)}</span>',
            f"{own.num_samples:,}",
            f"{own.num_predicted:,}",
            _share(own.precision, own.precision_low, own.precision_high),
            _share(own.recall, own.recall_low, own.recall_high),
        ]
        for name, own in zip(classes, scores.per_class, strict=True)
    ]
    return "<p>Small figures are 95&nbsp;% Wilson intervals.</p>" + _table(columns, rows)


def _pairs(pairs: Sequence[Confusion], num_mistakes: int) -> str:
    if not pairs:
        return "<p>Nothing: every image of the split is recognised.</p>"
    rows = [
        [_text(pair.label), _text(pair.predicted), f"{pair.count:,}", f"{pair.share:.1%}"]
        for pair in pairs
    ]
    note = f"<p>{num_mistakes:,} images in all; the commonest mistakes:</p>"
    return note + _table(("label", "taken for", "images", "of the class"), rows)


def _mistakes(mistakes: Sequence[Mistake], num_mistakes: int) -> str:
    if not mistakes:
        return "<p>None.</p>"
    note = (
        f"<p>The {len(mistakes):,} of {num_mistakes:,} that the head is surest of. Look for wrong "
        "labels here first.</p>"
    )
    return note + '<div class="mistakes">' + "".join(map(_mistake, mistakes)) + "</div>"


def _mistake(mistake: Mistake) -> str:
    if mistake.picture is None:
        picture = f"not shown: {_text(mistake.why_not)}"
    else:
        data = base64.b64encode(mistake.picture).decode()
        picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    return (
        f'<div class="mistake"><div class="picture">{picture}</div><div>'
        f"<b>{_text(mistake.predicted)}</b> {mistake.confidence:.3f}<br>"
        f"expected <b>{_text(mistake.label)}</b> {mistake.own:.3f}<br>"
        f"<small>{_text(mistake.sample_id)}</small></div></div>"
    )
