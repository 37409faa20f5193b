"""Size of an extraction at a cut or with views: logged, and compared with the free disk space."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from featx.artifact import target_of
from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactError, counted
from featx.extraction.resume import Settings
from featx.features.publish import required_bytes
from featx.features.records import RowLayout

log = logging.getLogger(__name__)

_UNITS = ("B", "kB", "MB", "GB", "TB")
_OFFERED = 3


def log_size(settings: Settings, num_images: int, num_viewed: int) -> None:
    """Say in the log what is stored of so many images, of which some have views."""
    layout = settings.layout
    each = layout.size * np.dtype(settings.dtype).itemsize
    num_versions = num_images + num_viewed * layout.num_views
    images = counted(num_images, "image")
    if num_viewed and layout.num_views:
        images = f"{layout.num_views + 1} versions of {counted(num_viewed, 'image')}"
        if others := num_images - num_viewed:
            images += f" and {counted(others, 'other')}"
    log.info(
        "At %s: %s, %s an image, %s: %s.",
        settings.spec.cut or settings.spec.layer,
        describe_rows(settings.spec, settings.dtype),
        readable(each),
        images,
        readable(num_versions * each),
    )


def describe_rows(spec: BackboneSpec, dtype: str) -> str:
    """Return shape and type of what is stored for an image, such as ``256×14×14 float16``."""
    return f"{'×'.join(map(str, spec.row_shape))} {dtype}"


def require_space(
    output: Path, settings: Settings, *, todo: tuple[int, int], all_images: tuple[int, int]
) -> None:
    """Check that the disk holds the journal and, at the same time, the file made from it.

    Args:
        output: The file.
        settings: What is stored.
        todo: Images that the journal is yet to get, and how many of them have views.
        all_images: Images of the file, and how many of them may have views.

    Raises:
        ArtifactError: It does not; the message names what would fit.
    """
    free, layout = free_bytes(output), settings.layout

    def needed(layout: RowLayout) -> int:
        stored = settings.dtype if settings.spec.cut is None else None
        journal, _ = required_bytes(layout, *todo)
        _, file = required_bytes(layout, *all_images, dtype=stored)
        return journal + file

    if free is None or needed(layout) <= free:
        return
    fitting = [
        f"cut='{name}' ({readable(needed(smaller))})"
        for name, smaller in _smaller_cuts(settings)
        if needed(smaller) <= free
    ][:_OFFERED]
    if layout.num_views and needed(replace(layout, num_views=0)) <= free:
        fitting.append("no views")
    hint = f" These would fit: {', '.join(fitting)}." if fitting else ""
    raise ArtifactError(
        output,
        f"'{output}' needs {readable(needed(layout))} of disk until it is written, journal and "
        f"file together, but its disk has {readable(free)} free. Free some, or choose a later cut "
        f"or fewer views.{hint}",
    )


def _smaller_cuts(settings: Settings) -> list[tuple[str, RowLayout]]:
    """Return the cuts behind this one, the vectors last."""
    from featx.backbones.cuts import list_cuts, main_cuts

    spec, layout = settings.spec, settings.layout
    found: list[tuple[str, RowLayout]] = []
    if spec.cut is None:
        return found
    cuts = list_cuts(spec.backbone, spec.preprocess.image_size, layer=spec.layer)
    names = [cut.name for cut in cuts]
    behind = cuts[names.index(spec.cut) + 1 :] if spec.cut in names else cuts[1:]
    dtype = "float32" if layout.dtype == "float32" else "float16"
    worthwhile = main_cuts(cuts)
    for cut in (cut for cut in behind if cut in worthwhile):
        smaller = replace(layout, shape=tuple(cut.shape), dtype=dtype)
        if smaller.row_bytes < layout.row_bytes:
            found.append((cut.name, smaller))
    return [*found, ("penultimate", replace(layout, shape=(spec.num_features,), dtype="float32"))]


def free_bytes(output: Path) -> int | None:
    """Return how many bytes the disk of a file has free, None where it does not say."""
    folder = target_of(output).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free or None
    except OSError:
        return None


def readable(count: int) -> str:
    """Return a number of bytes with its unit.

    >>> readable(100_352), readable(1_500_000_000)
    ('100 kB', '1.5 GB')
    """
    size, units = float(count), list(_UNITS)
    while size >= 999.5 and len(units) > 1:
        size /= 1000
        del units[0]
    return f"{size:.3g} {units[0]}"
