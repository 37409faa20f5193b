"""Parquet files of images: a column of encoded bytes, or ``{bytes, path}`` as Hugging Face has it.

A sample is called by its file and its row: ``train-00000-of-00002.parquet/17``. Opening reads the
columns of labels, splits and groups; the images are read later, by ``parquet_rows``.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from featx.errors import SourceError, listed
from featx.images.sources.address import NO_OPTIONS, SourceOptions, below_one_folder
from featx.images.sources.archive import expand_braces
from featx.images.sources.folder import split_of
from featx.images.sources.members import Archive
from featx.images.sources.parquet_columns import (
    Columns,
    Kind,
    find_columns,
    image_leaf,
    read_labels,
)
from featx.images.sources.parquet_rows import (
    Group,
    ImageFile,
    RowReader,
    open_parquet_file,
    path_beside,
    told,
)
from featx.images.sources.sample import NO_FILE, SPLIT_ALIASES, Sample, Stamp, stamp_of

log = logging.getLogger(__name__)

_MAX_ROWS = 10**8
_AT_ONCE = 8


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Images in Parquet files; an ``ImageSource``. ``places`` has file and row of each sample."""

    uri: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    files: Sequence[ImageFile]
    places: Sequence[tuple[int, int]]
    reader: RowReader
    has_tags: bool = False
    ignored: dict[str, int] = field(default_factory=dict)

    def read(self, index: int) -> bytes:
        return self.reader.read(*self.places[index], sample_id=self.samples[index].sample_id)

    def stamp(self, index: int) -> Stamp:
        """Return the stamp of a row: that of its file, and of an image that lies beside it."""
        number, row = self.places[index]
        file = self.files[number]
        if file.archive.stamp == NO_FILE:
            return NO_FILE
        beside = path_beside(file.archive.path, file.paths[row]) if row in file.paths else None
        values = (*file.archive.stamp, row, stamp_of(beside) if beside else None)
        mixed = hashlib.blake2b(repr(values).encode(), digest_size=8).digest()
        changed = int.from_bytes(mixed, "little") >> 1  # not negative, as an unknown time is
        return Stamp(file.archive.stamp.size, file.archive.stamp.mtime_ns, changed)


class _Part(NamedTuple):
    """What the small columns of a file say of its rows."""

    file: ImageFile
    kind: Kind
    names: tuple[str, ...]
    labels: list[str]
    splits: list[str]
    groups: list[str]


def open_parquet(path: Path, options: SourceOptions = NO_OPTIONS) -> ParquetSource:
    """Return the images of a Parquet file, a folder of them, or those that braces stand for.

    Raises:
        SourceError: pyarrow is not installed; a file is missing or damaged; which column holds
            images or labels is not told; or files do not fit together.
    """
    path = path.parent.resolve() / path.name
    if path.is_dir():
        names = parquet_files(path)
        root, splits = path, splits_of(names)
        names = [name for name in names if name in splits]
        files = [(name, splits[name]) for name in names]
    else:
        paths = [str(path)] if path.exists() else list(expand_braces(str(path)))
        if missing := [each for each in paths if not Path(each).is_file()]:
            raise SourceError(f"'{missing[0]}' does not exist, and '{path}' stands for it, too.")
        root, files = Path(below_one_folder(paths)[0]), named(paths)
    return read_files(options.address(path), root, files, options)


def named(paths: Sequence[str]) -> list[tuple[str, str]]:
    """Return the name of each file below the folder that holds all, and its split."""
    _, names = below_one_folder(paths)
    splits = splits_of(names)
    return [(name, splits.get(name, "train")) for name in names]


def parquet_files(folder: Path) -> list[str]:
    """Return the Parquet files in a folder and below it, relative to it, sorted."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        found += [os.path.relpath(f"{place}/{name}", folder) for name in names]
    return sorted(filter(holds_rows, found))


def holds_rows(path: str) -> bool:
    """Return whether a path below a folder is that of a Parquet file to be read."""
    *folders, name = path.split("/")
    is_hidden = name.startswith((".", "_")) or any(
        folder.startswith((".", "__")) for folder in folders
    )
    return name.lower().endswith(".parquet") and not is_hidden


def splits_of(names: Sequence[str]) -> dict[str, str]:
    """Return the split of each file that is read, by ``train-00000-of-00002`` or a folder's name.

    Where some files are named for splits, others are left out with a warning. Where all are of one
    split, or none is, it is ``train``.

    Raises:
        SourceError: The files lie in folders that are not splits.
    """
    found = {name: _split_named(name) for name in names}
    folders = {str(Path(name).parent) for name in names}
    tops = {folder for folder in folders if not _folder_split(folder)}
    if len(tops) > 1:
        shown = listed([repr(folder) for folder in sorted(tops)])
        raise SourceError(
            f"Parquet files lie in several folders: {shown}. Name one of them, or files by braces: "
            "'{train,test}.parquet'."
        )
    told_splits = {name: split for name, split in found.items() if split}
    if len(set(told_splits.values())) < 2 and len(told_splits) in (0, len(names)):
        return dict.fromkeys(names, "train")
    if left := [name for name in names if name not in told_splits]:
        log.warning(
            "Left out %s: named for no split, beside files that are. Name files by braces to read "
            "them.",
            listed([repr(name) for name in left]),
        )
    return told_splits


def _folder_split(folder: str) -> str:
    name = Path(folder).name.removeprefix("partial-")
    named = split_of(name) if name else None
    return named.split if named else ""


def _split_named(name: str) -> str:
    named = split_of(Path(name).stem)
    return named.split if named else _folder_split(str(Path(name).parent))


def read_files(
    uri: str, root: Path, files: Sequence[tuple[str, str]], options: SourceOptions
) -> ParquetSource:
    """Return the images of Parquet files below ``root``, given with the split of each.

    Raises:
        SourceError: As ``open_parquet``.
    """
    archives = [(name, _archive(root / name), split) for name, split in files]
    return read_parts(uri, archives, options)


def read_parts(
    uri: str, files: Sequence[tuple[str, Archive, str]], options: SourceOptions
) -> ParquetSource:
    """Return the images of Parquet files, given by name with the split of each.

    Raises:
        SourceError: As ``open_parquet``.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        parts = list(pool.map(lambda file: _read_part(file[1], file[2], options), files))
    if not any(part.labels for part in parts):
        raise SourceError(f"'{uri}' holds no images: no rows.")
    _require_one_kind([name for name, _, _ in files], parts)
    own = {label for part in parts for label in part.labels} - {""}
    classes = tuple(sorted(own.union(*(part.names for part in parts))))
    numbers = {label: number for number, label in enumerate(classes)} | {"": -1}
    samples, places = list[Sample](), list[tuple[int, int]]()
    for number, ((name, _, _), part) in enumerate(zip(files, parts, strict=True)):
        columns = zip(part.labels, part.splits, part.groups, strict=True)
        for row, (label, split, group) in enumerate(columns):
            samples.append(Sample(f"{name}/{row}", numbers[label], split, group))
            places.append((number, row))
    images = [part.file for part in parts]
    has_tags = any(part.kind in ("text", "list") for part in parts) and any(
        "|" in name for name in classes
    )
    return ParquetSource(
        uri, classes, tuple(samples), images, places, RowReader(images), has_tags=has_tags
    )


def _require_one_kind(names: Sequence[str], parts: Sequence[_Part]) -> None:
    """Refuse numbers without names beside names: which class a number means is not told."""
    bare = [name for name, part in zip(names, parts, strict=True) if part.kind == "number"]
    named = [
        name for name, part in zip(names, parts, strict=True) if part.kind in ("text", "names")
    ]
    if bare and named:
        raise SourceError(
            f"The labels of '{bare[0]}' are numbers without names, and those of '{named[0]}' are "
            "names. Which class a number means is not told: write the names into all files."
        )


def _archive(path: Path) -> Archive:
    try:
        return Archive.of(path)
    except OSError as err:
        raise SourceError(f"Cannot read '{path}': {err.strerror}.") from err


def _read_part(archive: Archive, split: str, options: SourceOptions) -> _Part:
    path = Path(archive.path)
    with open_parquet_file(archive) as file:
        try:
            if file.metadata.num_rows > _MAX_ROWS:
                raise SourceError(f"'{path}' says it has {file.metadata.num_rows:,} rows: damaged.")
            columns = find_columns(path, file.schema_arrow, options)
            return _part_of(path, archive, file, columns, split)
        except (OSError, ValueError, MemoryError, KeyError, IndexError, TypeError) as err:
            raise SourceError(f"Cannot read '{path}': {told(err)}.") from err


def _part_of(path: Path, archive: Archive, file: Any, columns: Columns, split: str) -> _Part:
    groups, paths, start = list[Group](), dict[int, str](), 0
    leaf, leaf_path = image_leaf(file, columns)
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        chunk = group.column(leaf)
        if not 0 <= group.num_rows <= _MAX_ROWS:
            raise SourceError(f"'{path}' has a row group of {group.num_rows:,} rows: damaged.")
        groups.append(Group(start, group.num_rows, max(chunk.total_uncompressed_size, 0)))
        statistics = chunk.statistics
        is_full = statistics is not None and statistics.null_count == 0
        if leaf_path and not (is_full and leaf_path != columns.image):
            paths |= _paths(file, number, start, leaf_path)
        start += group.num_rows
    kind, labels = read_labels(path, file, columns)
    splits = [
        _split(path, row, value) if value else split
        for row, value in enumerate(_texts(file, columns.split) or [""] * start)
    ]
    in_groups = _texts(file, columns.group) or [""] * start
    if not start == len(labels) == len(splits) == len(in_groups):
        raise SourceError(f"'{path}' has columns of different lengths: it is damaged.")
    image = ImageFile(archive, columns.image, tuple(groups), paths)
    return _Part(image, kind, columns.names, labels, splits, in_groups)


def _paths(file: Any, group: int, start: int, column: str) -> dict[int, str]:
    values = file.read_row_group(group, columns=[column], use_threads=False).column(0)
    if column.endswith(".path"):
        values = (value for chunk in values.chunks for value in chunk.flatten()[0])
    rows = enumerate((value.as_py() for value in values), start)
    return {row: value for row, value in rows if isinstance(value, str) and len(value) < 256}


def _texts(file: Any, column: str) -> list[str]:
    if not column:
        return []
    values = file.read(columns=[column], use_threads=False).column(0).to_pylist()
    return ["" if value is None else str(value).strip() for value in values]


def _split(path: Path, row: int, value: str) -> str:
    if value.lower() not in SPLIT_ALIASES:
        raise SourceError(f"'{path}', row {row}: split must be train, val or test; got '{value}'.")
    return SPLIT_ALIASES[value.lower()]
