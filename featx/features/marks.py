"""The marks in a table of findings, made by hand or on its page, and manifests made from them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from featx.artifact import publishing, require_apart, run_files
from featx.artifact.cells import from_cell, table_rows
from featx.errors import ConfigError
from featx.features.file import FeatureFile
from featx.images.sources import origin_of
from featx.images.sources.relabelled import relabelled_table

CONTENT = "content"
"""The column that says which image a row is about."""
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no", "")


NAMED = ("missing", "surplus", "value")
"""Kinds of findings of which an image may have several, told apart by their notes."""


def key_of(sample_id: str, kind: str, other: str, note: str) -> tuple[str, str, str]:
    """Return what tells a finding from all others, in whatever audit it is made again."""
    about_itself = kind == "outlier"  # earlier versions named the nearest image
    return sample_id, kind, note if kind in NAMED else "" if about_itself else other


class Mark(NamedTuple):
    """One row of a table of findings, as it was marked."""

    sample_id: str
    kind: str
    other: str
    note: str  # of tags and numbers, the one that the row is about
    given: str  # its label when the table was written
    content: str  # as ``content_of`` has it; empty where the table does not say
    drop: bool
    keep: bool  # looked at, and right as it is
    different: bool  # the two images of a pair are not the same
    corrected: str  # the right label; empty where none was given

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells a finding from all others: image, kind, and the other image, tag or number."""
        return key_of(self.sample_id, self.kind, self.other, self.note)

    @property
    def cells(self) -> tuple[str, str, str]:
        """The columns ``different``, ``drop`` and ``corrected``; empty where nothing was marked."""
        drop = "true" if self.drop else "false" if self.keep else ""
        return "true" if self.different else "", drop, self.corrected


def content_of(cache: FeatureFile, row: int) -> str:
    """Return what tells an image's content in a table; empty where it is not known."""
    digest = cache.digests[row]
    return f"sha256:{digest.tobytes().hex()}" if digest.any() else ""


def read_marks(path: Path) -> list[Mark]:
    """Return the rows of a table that ``write_findings`` or the page of an audit wrote.

    Raises:
        ConfigError: It cannot be read, is no such table, or a mark is neither true nor false.
    """
    columns, rows = table_rows(read_table(path))
    if lacking := [each for each in ("sample_id", "kind", CONTENT) if each not in columns]:
        raise ConfigError(
            f"'{path}' is not a table of findings: it has no column {', '.join(lacking)}, but "
            f"{', '.join(columns[:8]) or 'nothing'}. featx.write_findings "
            "writes one, as featx audit does."
        )
    try:
        return [_mark(row, path) for row in rows]
    except csv.Error as err:
        raise ConfigError(f"Cannot read '{path}': {err}.") from err


def read_table(path: Path) -> str:
    """Return the text of a table; bytes that are not UTF-8 are kept as surrogates."""
    try:
        return path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as err:
        raise ConfigError(f"Cannot read '{path}': {err.strerror or err}.") from err


def is_marked(text: str | None, path: Path, column: str = "drop") -> bool:
    """Return whether a cell says yes.

    Raises:
        ConfigError: It says neither yes nor no.
    """
    value = (text or "").strip().lower()
    if value not in _YES + _NO:
        raise ConfigError(f"'{path}': {column} must be true or false; got '{text}'.")
    return value in _YES


def require_same_images(cache: FeatureFile, marks: Sequence[Mark], path: Path) -> dict[str, int]:
    """Refuse marks of other images than those of a feature file; return the rows by sample id.

    Raises:
        ConfigError: A marked image is not in the file, or has another content there.
    """
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    for mark in marks:
        row = rows.get(mark.sample_id)
        if row is None:
            raise ConfigError(
                f"'{path}' is of another feature file: its image '{mark.sample_id}' is not in "
                f"'{cache.path}', whose images have names like '{next(iter(rows), '')}'."
            )
        content = content_of(cache, row)
        if mark.content and content and mark.content != content:
            raise ConfigError(
                f"'{path}' is of another feature file, or of images that have changed since: "
                f"'{mark.sample_id}' has another content in '{cache.path}'. Audit that file again."
            )
    return rows


def write_manifest(
    cache: FeatureFile, samples: Iterable[Sequence[str]], output: Path, *, overwrite: bool
) -> Path:
    """Write a manifest of a feature file's images, which reads them where that does; return it.

    Args:
        cache: The feature file.
        samples: Sample id, label, split and group of each image.
        output: The manifest.
        overwrite: Replace one that is there.

    Raises:
        ArtifactExists: The output exists already.
        ConfigError: It is not a CSV, or one of the files that are read.
    """
    require_manifest(cache, output, {})
    origin = origin_of(str(cache.header.details["source"]))
    with publishing(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(relabelled_table(samples, origin))
    return output


def require_manifest(cache: FeatureFile, output: Path, inputs: Mapping[str, Path]) -> None:
    """Check that a manifest of a feature file's images may be written over none of its inputs.

    Raises:
        ConfigError: It is not a CSV, or one of ``inputs``, the feature file, or the source.
    """
    if output.suffix.lower() != ".csv":
        raise ConfigError(f"The manifest is a CSV; give it a name like '{output.stem}.csv'.")
    source = str(cache.header.details["source"])
    read = {**inputs, **run_files(cache.path)}
    if origin_of(source) == source:  # else a manifest of this kind: images stay where they are
        read["the source"] = Path(source)
    require_apart({"the manifest": output}, read)


def _mark(row: dict[str, str], path: Path) -> Mark:
    def cell(name: str) -> str:
        return from_cell(row.get(name) or "")

    drop = (row.get("drop") or "").strip()
    dropped = is_marked(drop, path)
    return Mark(
        *(cell("sample_id"), cell("kind"), cell("other"), cell("note"), cell("given")),
        content=cell(CONTENT).strip(),
        drop=dropped,
        keep=bool(drop) and not dropped,
        different=is_marked(row.get("different"), path, "different"),
        corrected=cell("corrected").strip(),
    )
