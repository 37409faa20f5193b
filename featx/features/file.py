"""The feature file: its schema and its reader.

Anyone can read one with ``h5py.File("features.h5")["features"][:]``. ``open_features`` looks before
it reads: whatever is not exactly this schema is refused. A folder of parts is read as one file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import h5py
import numpy as np

from featx.artifact import Header, fingerprint_of
from featx.artifact.parts import is_parts
from featx.errors import ArtifactInvalid, ArtifactMismatch, require_choice
from featx.features.hdf5 import (
    blocks_of,
    groups_of,
    opened_hdf5,
    ranges_of,
    require_digest,
    require_digests,
    require_range,
    stamps_of,
    translated,
)
from featx.features.part_columns import Part, StoredIds, features_at, joined, later
from featx.features.parts import read_index
from featx.features.schema import columns_of, row_shape_of, views_of
from featx.features.shown import ShownFile
from featx.features.skipped import SkippedImage
from featx.images.decode import DIGEST_BYTES
from featx.images.sources import SPLITS, Stamp
from featx.images.views import ViewsSpec

EXCLUDED = -2
"""Label of a training image that was left out by its name."""
TRAIN, VAL = SPLITS.index("train"), SPLITS.index("val")
_NETWORK_BYTES = 2**23
"""Activations that go through the rest of a network at once."""


@dataclass(frozen=True, repr=False)
class FeatureFile(ShownFile):
    """An opened, checked feature file.

    Attributes:
        labels: Index into ``classes``, -1 where unlabelled; ``(N,)`` int64.
        splits: Index into ``split_names``; ``(N,)`` uint8.
        sample_ids: Path of each image relative to the source; N strings.
        digests: Content hash of each image; ``(N, 16)`` uint8.
        stamps: ``Stamp`` of each image's file, whose change time is ``UNKNOWN_TIME`` in files of
            version 2; ``(N, 3)`` int64.
        groups: Index of each image's group, in order of first appearance, -1 where it has none;
            ``(N,)`` int64.
        features_checked: Whether features and views were compared with their sha256 when it was
            opened; if not, they are when all of them are first read.
        through: From activations ``(n, *row_shape)`` to vectors ``(n, num_features)``: the rest of
            the network behind the cut. None for vectors.
        parts: The files that hold the rows, in order; empty where ``path`` is the only one.
    """

    path: Path
    header: Header
    labels: np.ndarray
    splits: np.ndarray
    sample_ids: Sequence[str]
    digests: np.ndarray
    stamps: np.ndarray
    groups: np.ndarray
    features_checked: bool = True
    through: Callable[[np.ndarray], np.ndarray] | None = None
    parts: tuple[Part, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.header.classes

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names that ``splits`` indexes."""
        return SPLITS

    @property
    def num_features(self) -> int:
        """Length of a vector, at a cut of what ``through`` gives."""
        return int(self.header.spec["num_features"])

    @property
    def cut(self) -> str | None:
        """The module whose input is stored; None where vectors are."""
        cut: str | None = self.header.spec.get("cut")
        return cut

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of what is stored for an image; ``(num_features,)`` for vectors."""
        return row_shape_of(self.header)

    @property
    def dtype(self) -> str:
        """What is stored: ``"float32"``, ``"float16"``, or ``"uint8"`` for pixels."""
        return str(self.header.details["dtype"])

    @property
    def views(self) -> ViewsSpec | None:
        """How the views of training images were drawn; None where the file has none."""
        return views_of(self.header)

    @property
    def num_views(self) -> int:
        """Views of each training image beside its features; 0 where the file has none."""
        views = self.views
        return views.num_views if views else 0

    def with_network(self, through: Callable[[np.ndarray], np.ndarray]) -> Self:
        """Return a copy whose vectors are what ``through`` makes of the stored activations."""
        return replace(self, through=through)

    def only(self, rows: np.ndarray, features: np.ndarray) -> Self:
        """Return some rows, ``(n,)``, whose vectors ``(n, num_features)`` float32 are in memory.

        Views stay in the file.
        """
        columns = ("labels", "splits", "digests", "stamps", "groups")
        some = replace(
            self,
            sample_ids=tuple(self.sample_ids[row] for row in rows.tolist()),
            **{name: getattr(self, name)[rows] for name in columns},
        )
        some.__dict__["features"] = features  # in place of reading them
        return some

    @property
    def skipped(self) -> tuple[SkippedImage, ...]:
        return tuple(map(SkippedImage.of_list, self.header.details["skipped"]))

    @property
    def inputs_sha256(self) -> str:
        """The sha256 over what a head is made from: all but the times of the images' files."""
        details = self.header.details
        columns = {name: own for name, own in details["sha256"].items() if name != "stamps"}
        origin = {name: details.get(name) for name in ("source", "weights", "val_fraction")}
        values = {"spec": self.header.spec, "classes": list(self.classes), "columns": columns}
        return fingerprint_of(values | origin)

    @cached_property
    def features(self) -> np.ndarray:
        """All rows, ``(N, num_features)`` float32; read, or computed, when first asked for.

        Raises:
            ArtifactMismatch: The file holds activations at a cut, and ``through`` is None.
        """
        return self._vectors("features")

    @cached_property
    def view_features(self) -> np.ndarray:
        """Views of the training rows in file order, ``(N_train, num_views, num_features)`` float32.

        View v + 1 is at ``[:, v]``. Raises as ``features`` does, and ``ArtifactInvalid`` where a
        value is NaN or infinite.
        """
        shape = (len(self.rows("train")), self.num_views, self.num_features)
        if not self.num_views:
            return np.empty(shape, np.float32)
        views = self._vectors("views").reshape(shape)
        if not np.isfinite(views).all():
            raise ArtifactInvalid(self.path, f"'{self.path}' has NaN or infinite views.")
        return views

    @contextmanager
    def reading(self) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
        """Yield a function from row numbers ``(n,)`` to rows ``(n, num_features)`` float32.

        It reads from the file what it is asked for; cheapest when the numbers ascend. Raises as
        ``features`` does.
        """
        self.require_network()
        with self.same_files() as files:
            row_bytes = np.dtype(self.dtype).itemsize * math.prod(self.row_shape)
            step = max(1, _NETWORK_BYTES // row_bytes) if self.through else max(1, len(self))

            def stored_at(numbers: np.ndarray) -> np.ndarray:
                with translated(self.path):
                    return features_at(files, numbers)

            def rows_at(numbers: np.ndarray) -> np.ndarray:
                parts = [numbers[start : start + step] for start in range(0, len(numbers), step)]
                return self._joined(map(stored_at, parts), len(numbers))

            yield rows_at

    def require_network(self) -> None:
        """Check that the rows are vectors, or that there is a network that makes them some."""
        if self.cut is not None and self.through is None:
            raise ArtifactMismatch(
                self.path,
                f"'{self.path}' holds activations at the cut '{self.cut}', which are not features "
                "without the rest of the network behind it.",
            )

    def _vectors(self, column: str) -> np.ndarray:
        """Return a column as float32, views one after the other; compared with its sha256."""
        self.require_network()
        views = 1 if column == "features" else self.num_views
        num_rows = len(self) if column == "features" else views * len(self.rows("train"))
        with self.same_files() as files:
            blocks = (block for part, file in files for block in self._stored(part, file, column))
            return self._joined(blocks, num_rows)

    def _stored(self, part: Part, file: h5py.File, column: str) -> Iterator[np.ndarray]:
        """Yield the rows of a column of one file, or the views of its training rows."""
        digest, viewed = hashlib.sha256(), self.viewed_rows
        start = int(np.searchsorted(viewed, part.first))
        blocks = blocks_of(file[column], _NETWORK_BYTES if self.through else None)
        while True:
            with translated(part.path):
                block = next(blocks, None)
            if block is None:
                break
            if not self.features_checked:
                digest.update(block.data)
            if column == "views" and self.parts:
                start, own = start + len(block), viewed[start : start + len(block)]
                block = block[self.splits[own] == TRAIN]
            yield block.reshape(-1, *self.row_shape)
        if not self.features_checked:
            require_digest(part.path, part.header, column, digest)

    def _joined(self, blocks: Iterable[np.ndarray], num_rows: int) -> np.ndarray:
        """Return blocks of stored rows as vectors, ``(num_rows, num_features)`` float32."""
        rows = np.empty((num_rows, self.num_features), np.float32)
        start = 0
        for block in blocks:
            stop = start + len(block)
            rows[start:stop] = self.through(block) if self.through else block
            start = stop
        return rows

    @contextmanager
    def same_files(self) -> Iterator[list[tuple[Part, h5py.File]]]:
        """Yield the HDF5 files, open for reading, unless one was replaced since it was opened."""
        with ExitStack() as stack:
            own = (Part(self.path, self.header, 0, len(self)),)
            yield [(part, stack.enter_context(part.opened())) for part in self.parts or own]

    @property
    def viewed_rows(self) -> np.ndarray:
        """Numbers of the rows that have views where any have, ascending, int64.

        They are the training rows; in parts, also those that became validation.
        """
        viewed = self.splits == TRAIN
        if self.parts and not self.header.details.get("own_validation"):
            viewed |= self.splits == VAL
        return np.flatnonzero(viewed)

    def rows(self, split: str) -> np.ndarray:
        """Return the row numbers of a split, ascending, int64."""
        require_choice("split", split, SPLITS)
        return np.flatnonzero(self.splits == SPLITS.index(split))

    def split(self, name: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return features and labels of the labelled images of a split, or of all.

        Returns:
            ``(n, num_features)`` float32, and class names ``(n,)``; labels of tags and numbers are
            the text that the source has.

        Raises:
            ConfigError: There is no such split.
            ArtifactMismatch: As ``features``.
        """
        rows = np.arange(len(self)) if name is None else self.rows(name)
        rows = rows[self.labels[rows] >= 0]
        names = np.array(self.classes or ("",))
        return self.features[rows], names[self.labels[rows]]

    def without(self, sample_ids: Collection[str]) -> Self:
        """Return the file with the training images of these names labelled as ``EXCLUDED``."""
        if not sample_ids:
            return self
        names = frozenset(sample_ids)
        named = np.fromiter((each in names for each in self.sample_ids), bool, len(self))
        excluded = named & (self.splits == TRAIN)
        return replace(self, labels=np.where(excluded, EXCLUDED, self.labels))

    def __len__(self) -> int:
        return len(self.labels)


def open_features(
    path: str | Path, *, verify: bool = True, features_later: bool = False
) -> FeatureFile:
    """Open a feature file and check all of it.

    Args:
        path: The HDF5 file, or a folder ``NAME.parts`` of several, which are read as one.
        verify: Compare each column with its sha256; leave out only for a file you have verified.
        features_later: Compare the features when all of them are first read, which saves reading
            them twice.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is not a feature file, damaged, altered, or of another schema.
        ArtifactIncomplete: The extraction that wrote it did not finish, or parts are missing.
        ArtifactBusy: Another program has it open, and may change it.
    """
    path = Path(path)
    if is_parts(path):
        return _open_parts(path, verify=verify, features_later=features_later)
    with opened_hdf5(path) as (file, header):
        if verify:
            require_digests(file, header, path, _columns(header, features_later=features_later))
        opened = FeatureFile(
            path=path,
            header=header,
            labels=file["labels"][:],
            splits=file["splits"][:],
            sample_ids=tuple(
                name.decode("utf-8", "surrogateescape") for name in file["sample_ids"][:]
            ),
            digests=file["digests"][:],
            stamps=stamps_of(file),
            groups=groups_of(file, header),
            features_checked=not (verify and features_later),
        )
        num_viewed = len(file["views"]) if opened.num_views else None
    _require_ranges(opened)
    _require_viewed(path, num_viewed, len(opened.rows("train")))
    return opened


def _open_parts(folder: Path, *, verify: bool, features_later: bool) -> FeatureFile:
    """Open a folder of parts as one file; names, digests and stamps are read when needed."""
    index = read_index(folder)
    splits, groups, _ = index.read_settled(folder)
    for part in index.parts if verify else ():
        with part.opened() as file, translated(part.path):
            columns = _columns(part.header, features_later=features_later)
            require_digests(file, part.header, part.path, columns)
    opened = FeatureFile(
        path=folder,
        header=index.header,
        labels=joined(index.parts, lambda file: file["labels"][:]),
        splits=splits,
        sample_ids=StoredIds(index.parts),
        digests=later(index.parts, (DIGEST_BYTES,), lambda file: file["digests"][:]),
        stamps=later(index.parts, (len(Stamp._fields),), stamps_of),
        groups=groups,
        features_checked=not (verify and features_later),
        parts=index.parts,
    )
    _require_ranges(opened)
    return opened


def _columns(header: Header, *, features_later: bool) -> list[str]:
    left_out = ("features", "views") if features_later else ()
    return [name for name in columns_of(header) if name not in left_out]


def _require_ranges(opened: FeatureFile) -> None:
    for name, (low, stop) in ranges_of(opened.header, len(opened)).items():
        require_range(opened.path, name, getattr(opened, name), low, stop)


def verify_features(path: Path) -> None:
    """Check all of a feature file, or of a folder of parts, block by block."""
    if is_parts(path):
        index = read_index(path)
        for part in index.parts:
            verify_features(part.path)
        index.read_settled(path)
        return
    with opened_hdf5(path) as (file, header):
        columns = columns_of(header)
        require_digests(file, header, path, columns)
        for name, (low, stop) in ranges_of(header, len(file["labels"])).items():
            for block in blocks_of(file[name]) if name in columns else ():
                require_range(path, name, block, low, stop)
        if "views" in columns:
            num_train = sum(int((block == TRAIN).sum()) for block in blocks_of(file["splits"]))
            _require_viewed(path, len(file["views"]), num_train)


def _require_viewed(path: Path, num_viewed: int | None, num_train: int) -> None:
    if num_viewed not in (None, num_train):
        raise ArtifactInvalid(
            path, f"'{path}' has views of {num_viewed} images, but {num_train} for training."
        )
