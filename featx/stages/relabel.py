"""Write a manifest with the labels that were corrected in a table of findings."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from featx.artifact.shown import Framed
from featx.errors import ConfigError, counted, listed
from featx.features.file import FeatureFile, open_features
from featx.features.marks import (
    Mark,
    read_marks,
    require_manifest,
    require_same_images,
    write_manifest,
)
from featx.features.shown import label_of
from featx.images.sources.labels import SEPARATOR, has_tags, split_tags

log = logging.getLogger(__name__)


class Correction(NamedTuple):
    """An image whose label was corrected."""

    sample_id: str
    before: str
    after: str


@dataclass(frozen=True, repr=False)
class RelabelReport(Framed):
    """The result of a correction.

    Attributes:
        path: The manifest; ``extract`` takes it as the source.
        corrections: Images with another label, in the order of the feature file.
        num_images: Of the manifest: all of the feature file.
        num_done: Corrections of the table that the feature file has already.
        num_dropped: Images that the table marks to be left out; they are in the manifest.
    """

    path: Path
    corrections: tuple[Correction, ...]
    num_images: int
    num_done: int
    num_dropped: int

    def _lines(self) -> Iterator[str]:
        yield f"RelabelReport: {self.path}, {counted(self.num_images, 'image')}"
        for before, after, count in self.changes:
            yield f"{before} to {after}: {counted(count, 'image')}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        names = Correction._fields
        return {name: [getattr(each, name) for each in self.corrections] for name in names}

    @property
    def changes(self) -> tuple[tuple[str, str, int], ...]:
        """Label before, label after and number of images, the most frequent first."""
        counts = Counter((each.before, each.after) for each in self.corrections)
        return tuple((*pair, count) for pair, count in counts.most_common())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        corrections = [each._asdict() for each in self.corrections]
        return asdict(self) | {"path": str(self.path), "corrections": corrections}


def relabel(
    features: str | Path, table: str | Path, output: str | Path, *, overwrite: bool = False
) -> RelabelReport:
    """Write a manifest of a feature file's images with the labels that a table corrects.

    Images are not touched, and neither is the feature file: ``extract`` with the manifest as the
    source brings that up to date, without running the backbone. The manifest has the sample ids,
    splits and groups of the feature file, and reads the images where that does.

    Args:
        features: The feature file.
        table: Findings of ``audit`` of that file, with right labels in the column ``corrected``.
        output: The manifest, a CSV.
        overwrite: Replace one that is there.

    Raises:
        ArtifactError: The feature file cannot be used, or the output exists already.
        ConfigError: The table is of another feature file, corrects nothing, or corrects an image
            in two ways; or the output is one of the files that are read.
    """
    table, output = Path(table), Path(output)
    cache = open_features(features, verify=False)
    require_manifest(cache, output, {"the table": table})
    marks = read_marks(table)
    rows = require_same_images(cache, marks, table)
    labels, num_done = _corrected(cache, marks, rows, table)
    _warn_of_new_classes(cache, labels)
    write_manifest(cache, _samples(cache, labels), output, overwrite=overwrite)
    corrections = [
        Correction(cache.sample_ids[row], label_of(cache, row), labels[row])
        for row in sorted(labels)
    ]
    dropped = {mark.sample_id for mark in marks if mark.drop}
    return RelabelReport(output, tuple(corrections), len(cache), num_done, len(dropped))


def _corrected(
    cache: FeatureFile, marks: Sequence[Mark], rows: Mapping[str, int], table: Path
) -> tuple[dict[int, str], int]:
    """Return the new label of each row that gets one, and how many have theirs already."""
    are_tags = cache.header.details.get("label_kind") == "tags" or has_tags(cache.classes)
    wanted: defaultdict[int, dict[str, None]] = defaultdict(dict)
    done: set[int] = set()
    for mark in marks:
        row = rows[mark.sample_id]
        label = label_of(cache, row)
        if not mark.corrected or mark.corrected == mark.given:
            continue
        if mark.corrected == label:
            done.add(row)
        elif mark.given != label:
            raise ConfigError(
                f"'{table}' is of an earlier state of '{cache.path}': there '{mark.sample_id}' has "
                f"the label '{label}' now, not '{mark.given}'. Audit the file again."
            )
        else:
            wanted[row][mark.corrected] = None
    labels = {}
    for row, found in wanted.items():
        if len(found) > 1 and not are_tags:
            raise ConfigError(
                f"'{table}' corrects '{cache.sample_ids[row]}' to {listed(list(found))}. Keep the "
                "right one."
            )
        labels[row] = (
            _with_tags(label_of(cache, row), list(found)) if are_tags else next(iter(found))
        )
    if not labels and not done:
        raise ConfigError(
            f"'{table}' corrects no label. Write the right ones into its column corrected, or mark "
            "them on the page of the audit."
        )
    return labels, len(done)


def _with_tags(given: str, corrected: Sequence[str]) -> str:
    """Return a label with the tags that any correction adds, and without those that any takes."""
    before = set(split_tags(given))
    after = [set(split_tags(each)) for each in corrected]
    added = set().union(*(each - before for each in after))
    taken = set().union(*(before - each for each in after))
    return SEPARATOR.join(sorted((before | added) - taken)) or SEPARATOR


def _warn_of_new_classes(cache: FeatureFile, labels: Mapping[int, str]) -> None:
    are_tags = has_tags([*cache.classes, *labels.values()])
    known, found = (
        {tag for name in names for tag in (split_tags(name) if are_tags else (name,))}
        for names in (cache.classes, labels.values())
    )
    if new := sorted(found - known):
        log.warning(
            "%s not in '%s' yet: %s.",
            counted(len(new), "label is", "labels are"),
            *(cache.path, listed(list(map(repr, new)))),
        )


def _samples(cache: FeatureFile, labels: Mapping[int, str]) -> Iterator[tuple[str, ...]]:
    for row, name in enumerate(cache.sample_ids):
        group = int(cache.groups[row])
        yield (
            name,
            labels.get(row, label_of(cache, row)),
            cache.split_names[cache.splits[row]],
            f"group {group + 1}" if group >= 0 else "",
        )
