"""The most confident mistakes of a head, with the pictures of their images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from featx.errors import ImageError
from featx.features.file import FeatureFile
from featx.images.decode import NO_DIGEST
from featx.images.reading import read_images
from featx.images.sources import ImageSource
from featx.reporting.summary import ClassPredictions

_SIDE = 160


@dataclass(frozen=True)
class Mistake:
    """A sample that the head is wrong about.

    Attributes:
        row: In the feature file.
        predicted: A class, a tag or a number.
        predicted_note: How sure, or how far off.
        expected: What the label says.
        expected_note: The probability of that; may be empty.
        sample_id: Its image.
        picture: A data URI of a JPEG; None where the image cannot be shown.
        why_not: Why it cannot be shown.
    """

    row: int
    predicted: str
    predicted_note: str
    expected: str
    expected_note: str = ""
    sample_id: str = ""
    picture: str | None = None
    why_not: str = ""


def worst_classes(
    seen: ClassPredictions, classes: Sequence[str], *, most: int
) -> tuple[list[Mistake], int]:
    """Return the most confident mistakes, and how many mistakes there are."""
    wrong = np.flatnonzero(seen.labels != seen.predicted)
    worst = wrong[np.argsort(-seen.confidence[wrong], kind="stable")][:most]
    mistakes = [
        Mistake(
            int(seen.rows[i]),
            classes[seen.predicted[i]],
            f"{seen.confidence[i]:.3f}",
            classes[seen.labels[i]],
            f"{seen.own[i]:.3f}",
        )
        for i in worst.tolist()
    ]
    return mistakes, len(wrong)


def worst_tags(
    rows: np.ndarray,
    probabilities: np.ndarray,
    thresholds: Sequence[float],
    tagged: np.ndarray,
    tags: Sequence[str],
    *,
    most: int,
) -> tuple[list[Mistake], int]:
    """Return the most confident wrong decisions, and how many there are.

    Args:
        rows: Of the feature file, ``(n,)`` int64.
        probabilities: Of each tag, ``(n, num_tags)``.
        thresholds: From which probability on each tag is given.
        tagged: Which tags the labels have, ``(n, num_tags)`` bool.
        tags: Their names.
        most: Mistakes to return.
    """
    own = np.where(tagged, probabilities, 1 - probabilities)  # of what is true
    samples, columns = np.nonzero((probabilities >= np.array(thresholds)) != tagged)
    worst = np.argsort(own[samples, columns], kind="stable")[:most]
    mistakes = []
    for i, tag in zip(samples[worst].tolist(), columns[worst].tolist(), strict=True):
        names = [name for name, has in zip(tags, tagged[i], strict=True) if has]
        mistakes.append(
            Mistake(
                int(rows[i]),
                f"not {tags[tag]}" if tagged[i, tag] else tags[tag],
                f"{1 - own[i, tag]:.3f}",
                ", ".join(names) or "no tag",
            )
        )
    return mistakes, len(samples)


def worst_values(
    rows: np.ndarray, values: np.ndarray, true: np.ndarray, targets: Sequence[str], *, most: int
) -> list[Mistake]:
    """Return the largest errors, in standard deviations of their target.

    Args:
        rows: Of the feature file, ``(n,)`` int64.
        values: The head's, ``(n, num_targets)``.
        true: The labels, likewise.
        targets: Names of the columns.
        most: Images to return.
    """
    deviation = true.std(axis=0)
    off = np.abs(values - true) / np.where(deviation > 0, deviation, 1)
    mistakes = []
    for i in np.argsort(-off.max(axis=1), kind="stable")[:most].tolist():
        column = int(off[i].argmax())
        value, expected = values[i, column], true[i, column]
        prefix = "" if len(targets) == 1 else f"{targets[column]}: "
        mistakes.append(
            Mistake(
                int(rows[i]),
                f"{prefix}{value:.4g}",
                f"off by {value - expected:+.3g}",
                f"{expected:.4g}",
            )
        )
    return mistakes


def with_pictures(
    mistakes: Sequence[Mistake], cache: FeatureFile, images: ImageSource | None
) -> list[Mistake]:
    """Return mistakes with the pictures of their images; None stands for a source that is gone."""
    positions = {each.sample_id: i for i, each in enumerate(images.samples if images else ())}

    shown: dict[int, tuple[str | None, str]] = {}  # by position
    wanted = {
        positions[name]: each.row
        for each in mistakes
        if (name := cache.sample_ids[each.row]) in positions
    }
    if images:
        with closing(read_images(images, wanted, thumbnail)) as read:
            for position, digest, jpeg in read:
                if digest not in (NO_DIGEST, cache.digests[wanted[position]].tobytes()):
                    shown[position] = None, "changed since it was extracted"
                elif isinstance(jpeg, ImageError):
                    shown[position] = None, jpeg.reason
                else:
                    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
                    shown[position] = uri, ""
    none = None, "no longer in the source" if images else "its source is not there"
    found = []
    for each in mistakes:
        name = cache.sample_ids[each.row]
        picture, why_not = shown.get(positions.get(name, -1), none)
        found.append(replace(each, sample_id=name, picture=picture, why_not=why_not))
    return found


def thumbnail(pixels: Image.Image | np.ndarray) -> bytes:
    """Return an image as a JPEG file that fits into 160×160 pixels.

    Smaller images are enlarged to half of that, so that the pixels of tiny ones can be seen.
    """
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    longest = max(image.size)
    scale = min(_SIDE / longest, max(1.0, _SIDE / 2 / longest))
    width, height = (max(1, round(side * scale)) for side in image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    file = io.BytesIO()
    image.resize((width, height), resample).save(file, "JPEG", quality=85)
    return file.getvalue()
