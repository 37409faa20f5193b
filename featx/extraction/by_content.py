"""Features of images that a caller has, each image's computed once, by its content."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import numpy as np

from featx.artifact.bars import drawing
from featx.backbones.engines import Engine, default_batch_size
from featx.backbones.graph_cache import own_folder
from featx.backbones.licences import licence_of
from featx.backbones.spec import BackboneSpec
from featx.errors import BackboneError, BadImages, ImageError
from featx.extraction.backbone import LazyBackbone
from featx.extraction.options import ResolvedOptions
from featx.features.records import require_finite
from featx.features.vectors import VectorStore
from featx.images.decode import content_digest, read_image_file
from featx.images.given import ImageLike, decode_given, name_of
from featx.images.preprocess import preprocess
from featx.images.reading import map_ahead, num_cores

_ATTEMPTS = 3
Cache = str | os.PathLike[str] | bool | None
"""A folder; None for one in the user's cache folder, False for none."""


class FeaturesByContent:
    """Features of images by one backbone; a forked process opens its own engine.

    Args:
        options: Of the backbone, in fp32 and without a cut.
        cache: Where features are cached. Processes that share a folder compute each image's once.
        progress: None draws a bar in a terminal or notebook while they are computed, False none.

    Raises:
        BackboneError: Backbone or weights cannot be used.
        ConfigError: An option does not fit the backbone.
    """

    def __init__(
        self, options: ResolvedOptions, cache: Cache, *, progress: bool | None = None
    ) -> None:
        self._progress = progress
        self._backbone = LazyBackbone(options)
        self.spec: BackboneSpec = self._backbone.spec()
        licence = licence_of(self.spec.backbone, origin := self._backbone.origin())
        self.details: dict[str, Any] = {"weights": origin, "request": options.request.to_dict()}
        """Where the features are from, as in the header of a feature file."""
        self.details |= {"licence": licence} if licence else {}
        self._store = VectorStore(_folder(cache, self.spec), self.spec.num_features)
        self._engine: Engine | None = None
        self._process = os.getpid()

    def require(self, expected: BackboneSpec) -> Self:
        """Return itself, if its features are those of another spec; ``BackboneError`` if not."""
        if self.spec != expected:
            raise BackboneError(
                f"The backbone {expected.backbone} gives other features than when this was fitted: "
                "its weights, or the versions of its packages, have changed. Fit again."
            )
        return self

    def features(self, images: Sequence[ImageLike]) -> tuple[np.ndarray, list[bytes]]:
        """Return features ``(len(images), num_features)`` float32, and digests of the contents.

        Raises:
            BadImages: Images cannot be used; all of them are named.
            BackboneError: The backbone fails, or gives NaN or infinite features.
            ConfigError: Something is not an image.
        """
        digests = self._digests(images)
        places = dict(zip(digests, range(len(images)), strict=True))
        left = _ATTEMPTS
        while True:
            store = self._store
            if not store.is_on_disk or not left:  # or it does not read as it should
                store = VectorStore(None, self.spec.num_features)
            left -= 1
            if missing := store.missing(digests):
                with store.writing():
                    wanted = store.missing(missing)  # others may have added some meanwhile
                    self._compute(images, {digest: places[digest] for digest in wanted}, store)
            if (found := store.read(digests)) is not None:
                return found, digests

    def _digests(self, images: Sequence[ImageLike]) -> list[bytes]:
        # An image that is there several times is opened by one thread.
        first = {id(image): (place, image) for place, image in reversed(list(enumerate(images)))}

        def digest(pair: tuple[int, ImageLike]) -> bytes | ImageError:
            place, image = pair
            try:
                return self._digest(name_of(image, place), image)
            except ImageError as err:
                return err

        with closing(map_ahead(digest, first.values())) as found:
            by_id = dict(zip(first, found, strict=True))
        results = [by_id[id(image)] for image in images]
        _require_usable(results, images)
        return [each for each in results if isinstance(each, bytes)]

    def _digest(self, name: str, image: ImageLike) -> bytes:
        """Return the hash of a file's content, or of the pixels of an image without a file."""
        if isinstance(image, bytes):
            return content_digest(image)
        if isinstance(image, (str, Path)):
            try:
                status = Path(image).stat()
                times = status.st_mtime_ns, status.st_ctime_ns
                return _file_digest(str(Path(image).absolute()), status.st_size, *times)
            except (OSError, ValueError):  # told by reading it
                return content_digest(read_image_file(image, sample_id=name))
        pixels = np.asarray(decode_given(name, image, self.spec.preprocess))
        return content_digest(f"{pixels.shape}".encode() + pixels.tobytes())

    def _compute(
        self, images: Sequence[ImageLike], places: dict[bytes, int], store: VectorStore
    ) -> None:
        """Add the features of some images, by digest and place; a batch is safe when it is done."""
        if not places:
            return
        engine, geometry = self._opened(), self.spec.preprocess
        size = default_batch_size(engine.name, geometry.image_size, device=engine.device)
        wanted = list(places.items())

        def crop(digest: bytes, place: int) -> np.ndarray | ImageError:
            name, image = name_of(images[place], place), images[place]
            try:
                content = image
                if isinstance(image, (str, Path)):
                    content = read_image_file(image, sample_id=name)
                if isinstance(content, bytes) and content_digest(content) != digest:
                    raise ImageError(name, "it was changed while it was read.")
                return preprocess(decode_given(name, content, geometry), geometry)
            except ImageError as err:
                return err

        def batch(start: int) -> tuple[list[bytes], np.ndarray | None, list[ImageError]]:
            part = wanted[start : start + size]
            crops = [crop(*each) for each in part]
            usable = [each for each in crops if not isinstance(each, ImageError)]
            rows = engine.features(np.stack(usable)) if usable else None
            pairs = zip(part, crops, strict=True)
            kept = [digest for (digest, _), each in pairs if not isinstance(each, ImageError)]
            return kept, rows, [each for each in crops if isinstance(each, ImageError)]

        bad: list[ImageError] = []
        starts = range(0, len(wanted), size)
        work = closing(map_ahead(batch, starts, workers=num_cores()))
        with drawing(self._progress) as draw, work as parts:
            tell = draw.bar(self._progress, "Computing features")
            for start, (digests, rows, errors) in zip(starts, parts, strict=True):
                if tell:
                    tell(min(start + size, len(wanted)), len(wanted))
                bad += errors
                if rows is not None:
                    require_finite(rows, [name_of(images[places[d]], places[d]) for d in digests])
                    store.add(digests, rows)
        _require_usable(bad, images)

    def _opened(self) -> Engine:
        if self._engine is None or self._process != os.getpid():
            self._engine, self._process = self._backbone.engine(self.spec), os.getpid()
        return self._engine


@functools.lru_cache(maxsize=2**18)
def _file_digest(path: str, _size: int, _modified: int, _changed: int) -> bytes:
    """Return the hash of a file, which is read again where its size or times are others."""
    return content_digest(read_image_file(path, sample_id=path))


def _require_usable(results: Sequence[object], images: Sequence[ImageLike]) -> None:
    bad = [(each.sample_id, each.reason) for each in results if isinstance(each, ImageError)]
    if bad:
        raise BadImages(bad, len(images), "Repair them, or leave them out with their labels.")


def _folder(cache: Cache, spec: BackboneSpec) -> Path | None:
    """Return where the features of a spec are cached; None for nowhere."""
    if cache is False:
        return None
    root = own_folder("vectors") if cache is None or cache is True else Path(cache)
    return root and root / f"{spec.backbone.replace('/', '-')}-{spec.fingerprint[:32]}"
