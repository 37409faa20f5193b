"""Mistakes worth looking at, with the pictures of their images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from featx.errors import ImageError
from featx.features.file import FeatureFile
from featx.images.decode import content_digest, pixels_of
from featx.images.sources import ImageSource
from featx.images.thumbnail import thumbnail


class Statement(NamedTuple):
    """What is said of an image.

    Attributes:
        what: A class, tags, or a number.
        how: How sure, or how far off; may be empty.
    """

    what: str
    how: str = ""


@dataclass(frozen=True, eq=False)
class Mistake:
    """A sample that the head is wrong about.

    Attributes:
        sample_id: Which.
        said: What the head says.
        expected: What is true.
        picture: JPEG file; None where the image cannot be shown.
        why_not: Why it cannot be shown.
    """

    sample_id: str
    said: Statement
    expected: Statement
    picture: bytes | None
    why_not: str | None


class Pictures:
    """Where the pictures of a feature file's rows come from.

    Args:
        cache: The feature file.
        images: Its source; None where that is not there.

    Attributes:
        num_missing: Images asked for so far that cannot be shown.
    """

    def __init__(self, cache: FeatureFile, images: ImageSource | None) -> None:
        self.num_missing = 0
        self._cache, self._images = cache, images
        samples = images.samples if images else ()
        self._positions = {sample.sample_id: i for i, sample in enumerate(samples)}

    def mistake(self, row: int, said: Statement, expected: Statement) -> Mistake:
        """Return a mistake about a row of the feature file, with its picture."""
        picture, why_not = self._picture(row)
        self.num_missing += picture is None
        return Mistake(self._cache.sample_ids[row], said, expected, picture, why_not)

    def _picture(self, row: int) -> tuple[bytes | None, str | None]:
        """Return a picture of a row's image, or why there is none."""
        name = self._cache.sample_ids[row]
        if self._images is None:
            return None, "its source is not there"
        if name not in self._positions:
            return None, "no longer in the source"
        try:
            content = self._images.read(self._positions[name])
            if content_digest(content) != self._cache.digests[row].tobytes():
                return None, "changed since it was extracted"
            return thumbnail(pixels_of(content, sample_id=name)), None
        except ImageError as err:
            return None, err.reason
