"""Where samples come from.

``open_source`` takes what a user types: a folder, a ``.zip`` or ``.tar`` archive,
``shards-{000..099}.tar``, a ``.csv`` or ``.tsv`` manifest, ``.parquet`` files,
``hf:NAME``, ``s3://bucket/folder/``, ``https://…/images.csv`` (or an archive or Parquet file
there), ``cifar10:FOLDER``, or ``digits:``.
All give the same ``ImageSource``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from featx.errors import SourceError, first_line
from featx.images.sources.address import SourceOptions, split_address, with_options
from featx.images.sources.entries import extension_of
from featx.images.sources.labels import (
    warn_of_odd_classes,
    warn_of_split_groups,
    warn_of_two_labels,
)
from featx.images.sources.relabelled import open_relabelled, origin_of, relabels
from featx.images.sources.sample import (
    NEVER_CHANGES,
    NO_FILE,
    SPLITS,
    UNKNOWN_TIME,
    ImageSource,
    Sample,
    Stamp,
    group_numbers,
    own_splits,
)

__all__ = [
    "NEVER_CHANGES",
    "NO_FILE",
    "SPLITS",
    "UNKNOWN_TIME",
    "ImageSource",
    "Sample",
    "SourceOptions",
    "Stamp",
    "group_numbers",
    "is_source",
    "open_source",
    "origin_of",
    "own_splits",
    "relabels",
    "warn_of_odd_classes",
    "warn_of_split_groups",
    "warn_of_two_labels",
    "with_options",
]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_TABLES = (".csv", ".tsv")
_ARCHIVES = frozenset(
    {
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".tzst"),
        *(".7z", ".rar", ".lz4", ".lzma", ".z"),
    }
)
"""Endings of archives; of those that cannot be read in place, a sentence says so."""


def is_source(name: str) -> bool:
    """Return whether a name stands for images, and is neither an image nor a plain folder."""
    path, _ = split_address(name)
    if path == "digits:" or path.startswith(("cifar10:", "hf:")) or _SCHEME.match(path):
        return True
    folder = os.path.expanduser(path)  # noqa: PTH111 as PTH112: these never raise
    if os.path.isdir(folder):  # noqa: PTH112
        from featx.images.sources.folder import holds_parquet

        return holds_parquet(Path(folder))
    return extension_of(path) in {*_TABLES, ".parquet", *_ARCHIVES}


def open_source(uri: str, *, output: Path | None = None, labelled: bool = True) -> ImageSource:
    """Return the samples that ``uri`` names; images are read later, one by one.

    Args:
        uri: What a user types; ``with_options`` adds how to read it.
        output: A file that is about to be made, whose folder is not a class.
        labelled: Whether folders, also in archives and stores, mean classes and splits; else all
            images below are taken, whatever the folders are called.

    Raises:
        SourceError: It is missing, empty, or not laid out as expected.
    """
    from featx.images.sources.arrays import open_cifar10, open_digits

    if uri == "digits:":
        return open_digits()
    try:
        if uri.startswith("cifar10:"):
            return open_cifar10(Path(uri.removeprefix("cifar10:")).expanduser())
        name, options = split_address(uri)
        if name.startswith("hf:"):
            from featx.images.sources.hub import open_hub

            options.require_fit(name, "a Parquet file")
            return open_hub(name, options)
        if name.startswith("file:///"):
            name = _path_of(name)
        if _SCHEME.match(name):
            from featx.images.sources.stores import open_store

            return open_store(name, options, labelled=labelled)
        path = Path(name).expanduser()
        return _open_path(name, path, output, options, labelled=labelled)
    except (OSError, RuntimeError) as err:  # RuntimeError: no such home folder; nested too deeply
        raise SourceError(f"Cannot open '{uri}': {first_line(err).rstrip('.')}.") from err


def _path_of(address: str) -> str:
    """Return the path of ``file:///…``, as it is written or with its escapes decoded."""
    path = address.removeprefix("file://")
    return path if Path(path).exists() else unquote(path, errors="surrogateescape")


def _open_path(
    uri: str, path: Path, output: Path | None, options: SourceOptions, *, labelled: bool
) -> ImageSource:
    ending = path.suffix.lower()
    if ending == ".tar" and "{" in uri and not path.exists():
        from featx.images.sources.archive import open_shards

        options.require_fit(uri, "an archive")
        return open_shards(path)
    if ending == ".parquet" and (path.is_file() or "{" in uri):
        from featx.images.sources.parquet import open_parquet

        options.require_fit(uri, "a Parquet file")
        return open_parquet(path, options)
    if not uri or not path.exists():
        raise SourceError(f"'{uri}' does not exist.")
    if path.is_dir():
        from featx.images.sources.folder import holds_parquet, open_folder

        if holds_parquet(path):
            from featx.images.sources.parquet import open_parquet

            options.require_fit(uri, "a Parquet file")
            return open_parquet(path, options)
        options.require_fit(uri, "a folder")
        return open_folder(path, output=output)
    if ending in _TABLES and path.is_file():
        options.require_fit(uri, "a table")
        return _open_table(path, options)
    if ending in _ARCHIVES and path.is_file():
        from featx.images.sources.archive import open_archive

        options.require_fit(uri, "an archive")
        return open_archive(path, options, labelled=labelled)
    raise SourceError(
        f"'{uri}' is not an image source. Give a folder, a .zip or .tar archive, a .csv or .tsv "
        "manifest, a .parquet file, hf:NAME, s3://…, https://…/images.csv, cifar10:FOLDER, or "
        "digits:."
    )


def _open_table(path: Path, options: SourceOptions) -> ImageSource:
    if (origin := origin_of(str(path))) != str(path):
        return open_relabelled(path.resolve(), open_source(origin))
    from featx.images.sources.manifest import first_path, open_manifest

    first = first_path(path.resolve(), options)
    if _SCHEME.match(first):
        from featx.images.sources.stores import open_addresses

        return open_addresses(path.resolve(), options, first)
    return open_manifest(path, options)
