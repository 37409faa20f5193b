"""Complete a folder of parts, and make one feature file of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featx.artifact import Header, require_apart, require_no_links, require_replaceable
from featx.artifact.parts import is_parts, part_path
from featx.artifact.shown import Shown
from featx.errors import ArtifactExists, ArtifactInvalid, ConfigError, counted
from featx.features.file import open_features
from featx.features.lock import locked
from featx.features.merge import publish_merged
from featx.features.settle import complete_index

_WHOLE = ("features", "views")


@dataclass(frozen=True, repr=False)
class MergeReport(Shown):
    """The result of a merge.

    Attributes:
        parts: The folder, which has its index now.
        num_parts: Parts in it.
        num_images: Rows of all parts.
        num_copies: Rows whose content an earlier part has.
        path: The feature file; None where only the index was written.
        is_unchanged: The file was there already, made from these parts.
    """

    parts: Path
    num_parts: int
    num_images: int
    num_copies: int
    path: Path | None = None
    is_unchanged: bool = False

    def _lines(self) -> Iterator[str]:
        yield f"MergeReport: {self.parts}, {counted(self.num_parts, 'part')}"
        copies = counted(self.num_copies, "has", "have")
        yield f"{counted(self.num_images, 'image')}; {copies} the content of one in another part"
        if self.path:
            yield f"{'up to date' if self.is_unchanged else 'written'}: {self.path}"


def merge_parts(
    parts: str | Path, output: str | Path | None = None, *, overwrite: bool = False
) -> MergeReport:
    """Complete a folder of parts, and write all of them as one feature file.

    That file has the bytes of one extraction of the whole source. Without an output, only the
    index of the folder is written, from which readers take splits and duplicates across parts; the
    part that is finished last does the same.

    Args:
        parts: The folder, ``NAME.parts``.
        output: The feature file; None writes none.
        overwrite: Replace a feature file that is there.

    Raises:
        ArtifactMissing: There are no parts.
        ArtifactIncomplete: Parts are missing; the message names them.
        ArtifactMismatch: A part is of another plan, or has other settings.
        ArtifactInvalid: A part is damaged.
        ArtifactExists: The output exists, and is not what would be written.
        ConfigError: The output is a folder of parts by its name.
    """
    folder = Path(parts)
    index = complete_index(folder)
    report = MergeReport(folder, len(index.parts), index.num_rows, index.num_copies)
    if output is None:
        return report
    path = Path(output)
    if is_parts(path):
        raise ConfigError(f"parts are merged into one file, such as features.h5; got '{path}'.")
    own = {f"part {n}": part_path(folder, n) for n in range(1, len(index.parts) + 1)}
    require_no_links(path)
    require_apart({"the output": path}, own)
    with locked(path):
        exists = require_replaceable(path, "features")
        if exists and _is_made_of(path, index.header):
            return replace(report, path=path, is_unchanged=True)
        if exists and not overwrite:
            raise ArtifactExists(
                path, f"'{path}' exists. Use overwrite=True to replace it, or another output."
            )
        publish_merged(open_features(folder), path, overwrite=True)
    return replace(report, path=path)


def _is_made_of(path: Path, header: Header) -> bool:
    """Return whether a feature file has the rows of parts, by all but its features."""
    try:
        found = open_features(path).header
    except ArtifactInvalid:
        return False
    return _identity(found) == _identity(header)


def _identity(header: Header) -> tuple[Any, ...]:
    digests: Mapping[str, str] = header.details["sha256"]
    small = {name: own for name, own in digests.items() if name not in _WHOLE}
    return header.spec, header.classes, {**header.details, "sha256": small}
