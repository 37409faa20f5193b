"""The page of an audit: findings with pictures, to be looked at and marked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from featx.artifact import PAGE_SIGN, fingerprint_of
from featx.errors import counted
from featx.features.file import FeatureFile
from featx.features.marks import NAMED, content_of
from featx.features.shown import label_of
from featx.heads.samples.data import Step, no_step
from featx.images.sources import ImageSource
from featx.images.sources.labels import has_tags
from featx.reporting.summary import pictures_of
from featx.reporting.templates import render

MAX_FINDINGS = 5000
_MAX_PICTURES = 4000
_PICTURE_BYTES = 15_000_000
"""Size of all pictures as text at most; the page with 5,000 findings stays below 25 MB."""
_MANY = 50
"""Images that are joined by findings of one kind, above which the first ones stand for all."""
_SHOWN_OF_MANY = 3


class Kind(NamedTuple):
    """Title and explanation of a kind of findings."""

    title: str
    text: str
    measure: str = ""  # what its score is called; empty for a share of 1, or of pairs
    pairs: str = ""  # what its two images have in common; empty for their likeness


KINDS = {
    "conflict": Kind("Conflicts", "The same picture with different labels: one of them is wrong."),
    "leak": Kind(
        "Leaks",
        "The same picture in different splits, so that scores on it are too good. Drop the one of "
        "the training split: the others always stay.",
    ),
    "sequence": Kind(
        "Sequences",
        "Runs of numbered images that are alike, in several splits: keep each in one group.",
        pairs="first and last of the run",
    ),
    "label": Kind(
        "Labels", "Heads that were not trained on the image say that it is of another class."
    ),
    "missing": Kind("Missing tags", "A tag that heads which did not see the image would give."),
    "surplus": Kind("Surplus tags", "A tag that heads which did not see the image would not give."),
    "value": Kind(
        "Numbers",
        "Far from what heads say that were not trained on the image.",
        measure="deviations off",
    ),
    "copy": Kind("Copies", "The same picture twice, in one split and with one label."),
    "outlier": Kind(
        "Outliers",
        "Far from all other images: by features, as a network sees them, and by their pixels.",
        measure="deviations",
    ),
    "constant": Kind("Constant", "Pictures of a single colour.", measure="range"),
    "empty": Kind("Nearly empty", "Pictures with hardly anything on them.", measure="plain share"),
    "tiny": Kind("Tiny", "Pictures of very few pixels.", measure="shorter side"),
    "blurred": Kind("Blurred", "Pictures without sharp edges.", measure="sharpness"),
}
"""In the order of the page, the surest first; kinds that are not here come last."""
_SHARES = ("label", "missing", "surplus")  # whose score is the doubt, at most 1
_GUESSES = ("label", "missing", "surplus")  # whose likely label may be taken


@dataclass(frozen=True, eq=False)
class FindingsPage:
    """Content of the page of an audit.

    Attributes:
        title: Of the page.
        summary: A sentence or two below it.
        facts: Name and text of what else was found out.
        columns: Of the table of findings.
        rows: Its rows, texts as in the table before they are made safe for spreadsheets.
        carried: Rows that were marked before and are not findings any more; saved, not shown.
        near: Sample ids of trusted images near that of each row.
        cache: What was audited.
        images: Its source; None where that is not there.
    """

    title: str
    summary: str
    facts: Sequence[tuple[str, str]]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    carried: Sequence[Sequence[str]]
    near: Sequence[Sequence[str]]
    cache: FeatureFile
    images: ImageSource | None


def render_findings(page: FindingsPage, *, step: Step = no_step) -> str:
    """Return the HTML of a page; of more findings than it has room for, the surest of each kind."""
    kinds = _kinds(page)
    chosen = _chosen(page, list(kinds))
    rows = {name: row for row, name in enumerate(page.cache.sample_ids)}
    sizes = _groups(page)
    wanted = [rows[name] for name in _images_of(page, chosen, sizes) if name in rows]
    step(f"Pictures of {counted(min(len(wanted), _MAX_PICTURES), 'image')}")
    pictures = pictures_of(
        wanted[:_MAX_PICTURES], page.cache, page.images, most_bytes=_PICTURE_BYTES
    )
    num_shown = sum(uri is not None for uri, _ in pictures.values())
    kept = [page.rows[number] for number in chosen]
    data = {
        "columns": page.columns,
        "rows": kept,
        "carried": page.carried,
        "near": [page.near[number] for number in chosen],
        "images": {page.cache.sample_ids[row]: _image(page, row, pictures) for row in wanted},
        "kinds": [{"name": name} | kind._asdict() for name, kind in kinds.items()],
        "shares": _SHARES,
        "guesses": _GUESSES,
        "named": NAMED,
        "classes": page.cache.classes,
        "tags": has_tags(page.cache.classes),
        "many": _MANY,
        "shown": _SHOWN_OF_MANY,
        "sizes": {name: size + 1 for name, size in sizes.items() if size >= _MANY},
        "store": f"featx-audit-{fingerprint_of({page.cache.inputs_sha256: kept})[:16]}",
    }
    return render(
        "findings.html",
        {
            "title": page.title,
            "summary": f"{page.summary} {_note(page, len(kept), len(wanted), num_shown)}".strip(),
            "facts": page.facts,
            "sign": PAGE_SIGN,
            "data": _as_script(data),
        },
    )


def _kinds(page: FindingsPage) -> dict[str, Kind]:
    """Return the kinds that there are, in the order of the page."""
    column = page.columns.index("kind")
    found = dict.fromkeys(row[column] for row in page.rows)
    known = {name: kind for name, kind in KINDS.items() if name in found}
    return known | {name: Kind(name.capitalize(), "") for name in found if name not in known}


def _chosen(page: FindingsPage, kinds: Sequence[str]) -> list[int]:
    """Return the numbers of the findings on the page, kind by kind, each kind getting its share."""
    column = page.columns.index("kind")
    of_kind: dict[str, list[int]] = {name: [] for name in kinds}
    for number, row in enumerate(page.rows):
        of_kind[row[column]].append(number)
    shares, room, left = {}, MAX_FINDINGS, len(of_kind)
    for name in sorted(of_kind, key=lambda each: len(of_kind[each])):
        shares[name] = min(len(of_kind[name]), room // left)
        room, left = room - shares[name], left - 1
    return [number for name in kinds for number in of_kind[name][: shares[name]]]


def _groups(page: FindingsPage) -> Counter[str]:
    """Return how many findings each group of copies has, by kind and number of the group."""
    kind, group = page.columns.index("kind"), page.columns.index("group")
    return Counter(f"{row[kind]} {row[group]}" for row in page.rows if row[group])


def _images_of(page: FindingsPage, chosen: Sequence[int], sizes: Mapping[str, int]) -> list[str]:
    """Return the sample ids on the page, in the order in which they get pictures.

    First come those of findings, then their neighbours, then the rest of very large groups.
    """
    names = ("sample_id", "other", "kind", "group")
    columns = [page.columns.index(name) for name in names]
    first, rest, seen = list[str](), list[str](), Counter[str]()
    for number in chosen:
        sample_id, other, kind, group = (page.rows[number][column] for column in columns)
        key = f"{kind} {group}"
        seen[key] += 1
        buried = sizes.get(key, 0) >= _MANY and seen[key] > _SHOWN_OF_MANY
        (rest if buried else first).extend((sample_id, other))
    near = [name for number in chosen for name in page.near[number]]
    return [name for name in dict.fromkeys((*first, *near, *rest)) if name]


def _image(
    page: FindingsPage, row: int, pictures: Mapping[int, tuple[str | None, str]]
) -> dict[str, str]:
    cache = page.cache
    uri, why = pictures.get(row, (None, "not shown"))
    values = {
        "label": label_of(cache, row),
        "split": cache.split_names[cache.splits[row]],
        "content": content_of(cache, row),
        "picture": uri or "",
        "why": why,
    }
    return {name: value for name, value in values.items() if value}


def _note(page: FindingsPage, num_kept: int, num_images: int, num_pictures: int) -> str:
    """Return what the page leaves out, in sentences."""
    parts: list[str] = []
    if num_kept < len(page.rows):
        parts.append(
            f"Shown are {num_kept:,} of {len(page.rows):,} findings, the surest of each kind; "
            "the table of featx audit --csv has all."
        )
    if page.images is None and page.rows:
        parts.append("Findings without pictures: the images are not where they were extracted.")
    elif num_pictures < num_images:
        parts.append(f"{num_pictures:,} of {num_images:,} images have a picture here.")
    return " ".join(parts)


def _as_script(data: Mapping[str, Any]) -> str:
    """Return JSON that cannot end the element of a page that it stands in, in ASCII."""
    return "".join(_escaped(json.JSONEncoder(separators=(",", ":")).iterencode(data)))


def _escaped(parts: Iterator[str]) -> Iterator[str]:
    return (
        part.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
        for part in parts
    )
