"""Addresses of sources: a path, and how to read it where it does not say so itself.

``photos.csv?label_column=breed&root=%2Fdata`` is a table whose labels are in the column ``breed``
and whose images are below ``/data``. Files of featx keep the address, so that whatever reads the
source again reads it the same way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from featx.errors import SourceError, listed


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; an empty text leaves it to the source.

    Attributes:
        path_column: The column that holds the paths of images; in Parquet files, the images.
        label_column: The column that holds labels.
        split_column: The column that holds splits.
        group_column: The column that holds groups.
        root: The folder that paths in a table are relative to.
        suffix: What follows each path in a table that does not end in it already, like ``.jpg``.
        encoding: Of names in a zip that are neither marked as UTF-8 nor can be that.
    """

    path_column: str = ""
    label_column: str = ""
    split_column: str = ""
    group_column: str = ""
    root: str = ""
    suffix: str = ""
    encoding: str = ""

    def given(self) -> dict[str, str]:
        return {name: value for name, value in asdict(self).items() if value}

    def address(self, path: str | Path) -> str:
        """Return the address of a path that is to be read so."""
        options = self.given()
        return f"{path}?{urlencode(options, errors='surrogateescape')}" if options else str(path)

    def require_fit(self, uri: str, kind: str) -> None:
        """Refuse options that say nothing about a source of this kind."""
        for name, value in self.given().items():
            fits = "an archive" if name == "encoding" else "a table"
            is_column = name.endswith("_column") and kind == "a Parquet file"
            if kind != fits and not is_column:
                raise SourceError(
                    f"'{uri}' is {kind}: {name}={value!r} is for {fits}. Leave it out."
                )


NO_OPTIONS = SourceOptions()


def local_file(uri: str, sample_id: str) -> Path | None:
    """Return where an image of a folder or table should be; None for other sources."""
    try:
        name, options = split_address(uri)
    except SourceError:
        return None
    place = Path(name).expanduser()
    if "://" in sample_id:
        return None
    if options.root or place.suffix.lower() in (".csv", ".tsv"):
        return Path(options.root or place.parent) / sample_id
    return place / sample_id if place.is_dir() or (not place.suffix and ":" not in name) else None


def split_address(uri: str) -> tuple[str, SourceOptions]:
    """Return the path of an address, and its options.

    Raises:
        SourceError: An option is not known.
    """
    path, mark, query = uri.rpartition("?")
    if not mark or _exists(uri):
        return uri, NO_OPTIONS
    given, known = dict(parse_qsl(query, True, errors="surrogateescape")), asdict(NO_OPTIONS)
    if unknown := [name for name in given if name not in known] or ([] if given else [query]):
        if not path.startswith("hf:") and not _exists(path):
            return uri, NO_OPTIONS
        raise SourceError(
            f"'{uri}': sources have no option '{unknown[0]}'. Known are {listed(list(known), 9)}."
        )
    if root := given.get("root"):
        given["root"] = str(Path(root).expanduser().resolve())
    return path, SourceOptions(**given)


def below_one_folder(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the folder that holds all files, and their paths relative to it."""
    folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120 as below
    return folder, [os.path.relpath(path, folder) for path in paths]


def with_options(uri: str, given: Mapping[str, str]) -> str:
    """Return the address of a source with some options set, beside those that it has."""
    path, options = split_address(uri)
    return replace(options, **given).address(path)


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # noqa: PTH110, PTH111 they never raise
