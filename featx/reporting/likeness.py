"""The page of similar images: each picture that was asked for beside its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featx.artifact import PAGE_SIGN
from featx.errors import counted
from featx.features.file import FeatureFile
from featx.images.sources import ImageSource
from featx.reporting.summary import jpeg_uri, pictures_of
from featx.reporting.templates import render


def render_similar(
    asked: Sequence[tuple[str, bytes]],
    found: Sequence[Sequence[Any]],
    cache: FeatureFile,
    images: ImageSource | None,
) -> str:
    """Return the HTML of a page.

    Args:
        asked: Name of each image that was asked for, and its picture as a JPEG file.
        found: The neighbours of each, with ``sample_id``, ``label``, ``split``, ``similarity``.
        cache: The feature file that they are in.
        images: Its source; None where that is gone.
    """
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    wanted = dict.fromkeys(rows[each.sample_id] for near in found for each in near)
    pictures = pictures_of(list(wanted), cache, images)
    return render(
        "similar.html",
        {
            "title": f"Like {counted(len(asked), 'image')}",
            "sign": PAGE_SIGN,
            "features": cache.path.name,
            "has_source": images is not None,
            "rows": [
                (name, jpeg_uri(jpeg), [(each, pictures[rows[each.sample_id]]) for each in near])
                for (name, jpeg), near in zip(asked, found, strict=True)
            ],
        },
    )
