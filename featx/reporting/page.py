"""The page: HTML that needs nothing but itself."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from featx.artifact import PAGE_SIGN, Header
from featx.classifier.references import without_folders
from featx.classifier.staleness import Staleness
from featx.errors import printable
from featx.reporting.pictures import Mistake

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


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        title: Its heading, text.
        content: HTML.
    """

    title: str
    content: str


@dataclass(frozen=True)
class Story:
    """What the page tells of a head.

    Attributes:
        title: Text.
        summary: The sentence below it, HTML.
        sections: The rest.
    """

    title: str
    summary: str
    sections: tuple[Section, ...]


def render(header: Header, story: Story, *, staleness: Staleness, made_from: str) -> str:
    """Return the page about the head of a header.

    Args:
        header: Of the head.
        story: The rest of the content.
        staleness: How the features differ from those that trained it.
        made_from: What the page notes about its inputs, for ``is_page_of``; empty notes nothing.
    """
    parts = [
        f"<h1>{text(story.title)}</h1>",
        f"<p>{story.summary}</p>",
        *_stale(staleness),
        _facts(header),
        *(f"<h2>{text(section.title)}</h2>\n{section.content}" for section in story.sections),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'{PAGE_SIGN}; {made_from}">\n'
        f"<title>{text(story.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _stale(staleness: Staleness) -> Iterator[str]:
    """Yield what is to be known before the scores: that the head is of earlier rows."""
    if staleness.changes:
        yield f"<p><b>The head is stale: {text(staleness.changes)}.</b></p>"


def is_page_of(path: Path, made_from: str) -> bool:
    """Return whether a page notes these inputs, and is whole."""
    try:
        page = path.read_bytes()
    except OSError:
        return False
    noted = f'{PAGE_SIGN}; {made_from}">'.encode()
    return bool(made_from) and noted in page[:1024] and page.endswith(b"</html>\n")


def text(value: object) -> str:
    """Return text for a page; what cannot be shown, in a name that is not UTF-8, as an escape."""
    return escape(printable(str(value)))


def _facts(header: Header) -> str:
    spec, choice = header.spec, header.details["choice"]
    preprocess = spec["preprocess"]
    size = preprocess["image_size"]
    weights, source = (without_folders(header.details[name]) for name in ("weights", "source"))
    facts = {
        "features": f"{spec['num_features']} of {spec['backbone']}, layer {spec['layer']}",
        "weights": f"{weights} (sha256 {spec['weights_sha256'][:16]}…)",
        "images": f"{size}×{size} pixels from {source}",
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
    rows = "".join(f"<dt>{name}</dt><dd>{text(value)}</dd>" for name, value in facts.items())
    return f"<dl>{rows}</dl>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def share(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a proportion and, small, its interval."""
    if value is None:
        return "–"
    interval = "" if low is None else f" <small>{low:.3f}–{high:.3f}</small>"
    return f"{value:.4f}{interval}"


def named(name: str) -> str:
    """Return a cell with the name of a class, in full where the mouse rests."""
    return f'<span title="{text(name)}">{text(name)}</span>'


def figures(drawn: Sequence[tuple[str, str]]) -> str:
    """Return figures side by side, of the SVG and caption of each."""
    each = (f"<figure>{svg}<figcaption>{text(note)}</figcaption></figure>" for svg, note in drawn)
    return '<div class="figures">\n' + "\n".join(each) + "\n</div>"


def gallery(mistakes: Sequence[Mistake], note: str) -> str:
    """Return mistakes as pictures, below a note."""
    if not mistakes:
        return "<p>None.</p>"
    return (
        f"<p>{text(note)}</p>"
        + '<div class="mistakes">'
        + "".join(map(_mistake, mistakes))
        + "</div>"
    )


def _mistake(mistake: Mistake) -> str:
    if mistake.picture is None:
        picture = f"not shown: {text(mistake.why_not)}"
    else:
        data = base64.b64encode(mistake.picture).decode()
        picture = f'<img alt="" src="data:image/jpeg;base64,{data}">'
    return (
        f'<div class="mistake"><div class="picture">{picture}</div><div>'
        f"<b>{text(mistake.said.what)}</b> {text(mistake.said.how)}<br>"
        f"expected <b>{text(mistake.expected.what)}</b> {text(mistake.expected.how)}<br>"
        f"<small>{text(mistake.sample_id)}</small></div></div>"
    )
