"""Images of the source, unchanged since their features were cached, and the head's answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featx.classifier.proof import EdgeCase
from featx.classifier.staleness import Staleness, find_features, open_features_of, require_current
from featx.errors import ArtifactMissing, ImageError, SourceError
from featx.features.file import FeatureFile, open_features
from featx.heads.head import Head
from featx.heads.tasks import TASKS, Labels, Targets
from featx.images.decode import NO_DIGEST
from featx.images.edge_cases import edge_cases, in_shape
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.reading import read_digests, read_images, spread
from featx.images.sources import ImageSource, open_source
from featx.stages.export.options import ExportOptions

_NUM_EDGE_CASES = 4
"""Images that edge cases are made from."""
_NUM_REFERENCES = 16
"""Images whose expected logits stay in the file, so that anyone can repeat the comparison."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """A head, its features and their images: the reference for the exported file."""

    head: Head
    cache: FeatureFile
    source: ImageSource
    staleness: Staleness = field(default_factory=Staleness)

    @property
    def preprocess(self) -> PreprocessSpec:
        return PreprocessSpec.from_dict(self.head.header.spec["preprocess"])

    def validation(self) -> np.ndarray:
        """Return all rows of labelled validation images, int64."""
        rows = self.cache.rows("val")
        labelled: np.ndarray = rows[self.cache.labels[rows] >= 0]
        return labelled

    def names(self, rows: np.ndarray) -> list[str]:
        return [self.cache.sample_ids[row] for row in rows]

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the head's logits ``(n, num_classes)`` of rows, comparable."""
        with self.cache.reading() as rows_at:
            return self._comparable(self.head.logits(rows_at(rows)))

    def targets(self, rows: np.ndarray) -> np.ndarray:
        """Return the true outputs of labelled rows, comparable."""
        return self._comparable(self._targets.values[rows])

    def trained(self) -> np.ndarray:
        """Return which outputs training rows of the head distinguish, ``(num_classes,)`` bool."""
        rows = self.cache.rows("train")
        rows = rows[self.cache.labels[rows] >= 0]
        task, count = TASKS[self.head.task], len(self.head.classes)
        return task.trained_outputs(self._targets.values[rows], count)

    def _comparable(self, outputs: np.ndarray) -> np.ndarray:
        return TASKS[self.head.task].comparable(outputs, self.head.header.details)

    @cached_property
    def _targets(self) -> Targets:
        cache = self.cache
        labels = Labels(cache.classes, cache.labels, cache.sample_ids, str(cache.path))
        return TASKS[self.head.task].read(labels, names=self.head.classes)

    def images(self, rows: np.ndarray, *, in_full: bool = False) -> Iterator[np.ndarray]:
        """Yield the pixels of rows' images, ``(height, width, 3)`` uint8 each, read ahead.

        They are decoded as the features' images were, or in full. One that was renamed since its
        features were cached is found by its content.
        """
        source, cache = self.source, self.cache
        spec = None if in_full else self.preprocess
        index_of = {sample.sample_id: index for index, sample in enumerate(source.samples)}
        renamed: dict[bytes, int] = {}
        if any(name not in index_of for name in self.names(rows)):
            with closing(read_digests(source, range(len(source.samples)))) as digests:
                renamed = {digest: index for index, digest in digests if isinstance(digest, bytes)}

        def indices() -> Iterator[int]:
            for row in rows:
                name = cache.sample_ids[row]
                index = index_of.get(name, renamed.get(cache.digests[row].tobytes()))
                if index is None:
                    raise SourceError(f"'{source.uri}' no longer holds the image '{name}'.")
                yield index

        try:
            with closing(read_images(source, indices(), np.asarray, preprocess=spec)) as found:
                for row, (_, digest, image) in zip(rows, found, strict=True):
                    if digest not in (NO_DIGEST, cache.digests[row].tobytes()):
                        raise SourceError(
                            f"The image '{cache.sample_ids[row]}' of '{source.uri}' has changed "
                            "since its features were cached."
                        )
                    if isinstance(image, ImageError):
                        raise image
                    yield image
        except SourceError as err:
            raise _needed(err) from err

    def crops(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield what the backbone sees of rows' images, ``(1, size, size, 3)`` uint8 each."""
        return (preprocess(pixels, self.preprocess)[None] for pixels in self.images(rows))

    def edge_cases(
        self,
        rows: np.ndarray,
        images: list[np.ndarray],
        features: Callable[[np.ndarray], np.ndarray],
    ) -> list[EdgeCase]:
        """Return edge cases made from some of the rows' images, with the head's answers.

        ``features`` maps crops ``(n, size, size, 3)`` uint8 to features like the cached ones.
        """
        found = []
        for i in spread(np.arange(len(images)), _NUM_EDGE_CASES):
            cases = edge_cases(images[i], image_size=self.preprocess.image_size)
            crops = np.stack([preprocess(pixels, self.preprocess) for pixels in cases.values()])
            name = self.cache.sample_ids[rows[i]]
            logits = self._comparable(self.head.logits(features(crops)))
            for (kind, pixels), row in zip(cases.items(), logits, strict=True):
                found.append(EdgeCase(kind, name, pixels, row))
        return found

    def shaped(
        self,
        rows: np.ndarray,
        images: list[np.ndarray],
        shape: tuple[int, int],
        features: Callable[[np.ndarray], np.ndarray],
    ) -> list[EdgeCase]:
        """Return each row's image brought to a height and width; as ``edge_cases``."""
        pixels = [in_shape(image, shape) for image in images]
        crops = np.stack([preprocess(each, self.preprocess) for each in pixels])
        logits = self._comparable(self.head.logits(features(crops)))
        kind = f"{shape[1]}×{shape[0]}"
        cases = zip(self.names(rows), pixels, logits, strict=True)
        return [EdgeCase(kind, *case) for case in cases]

    def references(
        self, rows: np.ndarray, logits: np.ndarray, *, with_names: bool
    ) -> list[dict[str, Any]]:
        """Return some rows ``(n,)`` with logits ``(n, num_classes)`` as JSON values."""
        return [
            {
                "digest": self.cache.digests[rows[i]].tobytes().hex(),
                "logits": [float(f"{value:.6g}") for value in logits[i]],
                **({"sample_id": self.cache.sample_ids[rows[i]]} if with_names else {}),
            }
            for i in spread(np.arange(len(rows)), _NUM_REFERENCES)
        ]


def open_evidence(head: Head, head_path: Path, options: ExportOptions) -> Evidence:
    """Return a head's features and their images."""
    path = find_features(head, head_path, options.features)
    if not path.exists():
        raise ArtifactMissing(
            path,
            f"The feature file '{path}' is not there to compare with. Give it by features=…, or "
            "export unproven with verify=False.",
        )
    cache, staleness = open_features_of(
        head, path, allow_stale=options.stale, weights=options.weights
    )
    try:
        source = open_source(options.source or str(cache.header.details["source"]))
    except SourceError as err:
        raise _needed(err) from err
    return Evidence(head, cache, source, staleness)


def staleness_if_there(head: Head, head_path: Path, options: ExportOptions) -> Staleness:
    """Return a head's staleness for an export without evidence.

    A feature file that is gone or another head's is ignored.
    """
    path = find_features(head, head_path, options.features)
    if not path.exists():
        return Staleness(known=False)
    cache = open_features(path)
    if cache.header.spec != head.header.spec and options.features is None:
        return Staleness(known=False)
    return require_current(head, cache, allow_stale=options.stale)


def _needed(err: SourceError) -> SourceError:
    return SourceError(
        f"{err} The images are needed to prove the exported file; give their place by source=…, "
        "or export unproven with verify=False."
    )
