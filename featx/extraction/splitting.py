"""The splits of an extraction: the source's own, else the published file's, else the rule's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Self

import numpy as np

from featx.errors import ConfigError
from featx.extraction.options import ExtractOptions, ResolvedOptions
from featx.features.file import FeatureFile
from featx.features.splits import MAX_FRACTION, VAL, Published, assign_splits, require_fraction
from featx.images.sources import (
    SPLITS,
    ImageSource,
    group_numbers,
    own_splits,
    relabels,
    warn_of_two_labels,
)
from featx.images.sources.labels import look_like_numbers

log = logging.getLogger(__name__)

_TRAIN = SPLITS.index("train")


@dataclass(frozen=True, eq=False)
class Splitting:
    """How the images of a source are split; ``own`` are the splits that it gives, ``(N,)`` uint8.

    The images of the published file keep their split, whatever its settings, unless ``resplit``.
    Those of a part keep the source's: validation images are chosen once all parts are there.
    """

    images: ImageSource
    own: np.ndarray
    fraction: float
    published: FeatureFile | None
    resplit: bool
    own_validation: bool
    is_part: bool = False

    @classmethod
    def of(
        cls,
        images: ImageSource,
        published: FeatureFile | None,
        given: ExtractOptions,
        options: ResolvedOptions,
        *,
        whole: ImageSource | None = None,
    ) -> Self:
        """Return how a run splits: as ``given``, or else as recorded or resolved in ``options``.

        Of a part, ``whole`` is the source that it is one of.
        """
        own, asked = own_splits(images.samples), given.val_fraction
        own_validation = brings_validation(own if whole is None else own_splits(whole.samples))
        recorded = None if published is None else _recorded(published, images, options)
        require_fraction(0 if asked is None else asked)
        if own_validation and (asked is not None or given.resplit):
            log.warning(
                "'%s' has a validation split of its own: %s has no effect.",
                images.uri,
                "resplit" if asked is None else "the val fraction",
            )
            asked = None
        default = options.val_fraction if recorded is None else recorded
        fraction = min(default, MAX_FRACTION) if asked is None else asked
        if published and recorded not in (None, fraction) and not given.resplit:
            raise ConfigError(
                f"'{published.path}' was made with val fraction {recorded}, not {asked}, and its "
                "images keep their split. Use resplit=True to choose all validation images anew, "
                "or leave val_fraction out."
            )
        is_part = whole is not None
        return cls(images, own, fraction, published, given.resplit, own_validation, is_part)

    def splits(self, rows: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """Return the split of each sample, an index into ``SPLITS``; ``(N,)`` uint8.

        Args:
            rows: Number of each sample's row, ``(N,)`` int64; -1 where it has none.
            digests: Content hash of each row, ``(num_rows, 16)`` uint8.
        """
        splits, samples = self.own.copy(), self.images.samples
        if self.own_validation or self.is_part:
            return splits
        kept = np.flatnonzero(rows >= 0)
        splits[kept] = assign_splits(
            digests[rows[kept]],
            np.array([samples[i].label for i in kept.tolist()], dtype=np.int64),
            splits[kept],
            classes=self.images.classes,
            fraction=self.fraction,
            has_tags=self.images.has_tags,
            groups=group_numbers(samples[i] for i in kept.tolist()),
            published=self._published(),
        )
        return splits

    def _published(self) -> Published | None:
        """Return the splits that images keep."""
        file = self.published
        if file is None or self.resplit:
            return None
        # Beside validation images of the source's own, the others were not chosen for training.
        kept = file.splits == VAL if file.header.details.get("own_validation") else slice(None)
        return Published(file.digests[kept], file.splits[kept])

    def warn_of_labels(self, rows: np.ndarray, digests: np.ndarray, splits: np.ndarray) -> None:
        """Warn of contents with several labels, and of classes left without training images."""
        images, kept = self.images, np.flatnonzero(rows >= 0)
        samples = [images.samples[i] for i in kept.tolist()]
        labels = np.array([sample.label for sample in samples], dtype=np.int64)
        names = [sample.sample_id for sample in samples]
        warn_of_two_labels(names, labels, digests[rows[kept]], images.classes)
        if images.has_tags or look_like_numbers(images.classes, int((labels >= 0).sum())):
            return
        held_out = labels[(splits[kept] == VAL) & (self.own[kept] != VAL) & (labels >= 0)]
        if len(emptied := np.setdiff1d(held_out, labels[splits[kept] == _TRAIN])):
            log.warning(
                "No images for training are left of '%s'%s: those for validation keep their split. "
                "Add images, or have the validation images chosen anew with resplit=True.",
                images.classes[emptied[0]],
                f" and {len(emptied) - 1:,} more" if len(emptied) > 1 else "",
            )

    def is_current(self, file: FeatureFile, rows: np.ndarray) -> bool:
        """Return whether a file would keep its splits, if it holds just these rows in order."""
        kept = np.flatnonzero(rows >= 0)
        return not self.resplit or np.array_equal(
            self.splits(rows, file.digests)[kept], file.splits
        )


def brings_validation(own: np.ndarray) -> bool:
    """Return whether a source's own splits ``(N,)`` have validation images."""
    return bool((own == VAL).any())


def _recorded(file: FeatureFile, images: ImageSource, options: ResolvedOptions) -> float | None:
    """Return the fraction that a file of this source was made with."""
    details = file.header.details
    same = details["source"] == images.uri or relabels(images.uri, str(details["source"]))
    if not (same or options.verify_content):
        return None
    return min(float(details["val_fraction"]), MAX_FRACTION)  # earlier versions took larger ones
