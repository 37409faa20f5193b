"""One part of an extraction: a range of the plan that all parts of a folder share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from featx.artifact import publishing
from featx.artifact.parts import SUFFIX, has_parts, parse_part, part_path
from featx.errors import ArtifactMismatch, ConfigError, counted, listed
from featx.extraction.options import ExtractOptions, ResolvedOptions
from featx.extraction.resume import ExistingOutput, Settings
from featx.features.parts import PartsPlan, plan_path, read_plan
from featx.images.sources import ImageSource, group_numbers
from featx.images.sources.selection import RangeSource

_AT_ONCE = 2**16
_WORDS = {
    "source": "source",
    "images_sha256": "images, or images in another order",
    "labels_sha256": "labels, splits or groups",
}


@dataclass(frozen=True, eq=False)
class PartOf:
    """A part of a folder, and the source that all parts are made from.

    Attributes:
        folder: Of all parts.
        number: Of this one, from 1.
        whole: The source.
        digests: sha256 of its images, and of their labels, as in ``PartsPlan``.
        num_parts: How many there are.
    """

    folder: Path
    number: int
    num_parts: int
    whole: ImageSource
    digests: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, part: str, whole: ImageSource) -> PartOf:
        """Return a part, whose folder has the same plan or none.

        Raises:
            ConfigError: There is no such part, or the folder has another ending.
            ArtifactMismatch: The parts there are of another plan.
        """
        number, num_parts = parse_part(part)
        if folder.suffix != SUFFIX:
            raise ConfigError(
                f"parts lie in a folder whose name ends in {SUFFIX}, such as "
                f"'{folder.with_suffix(SUFFIX)}'; got '{folder}'."
            )
        count = len(whole.samples)
        if num_parts > count:
            raise ConfigError(
                f"part='{part}': '{whole.uri}' has {counted(count, 'image')}, which make at most "
                f"{counted(count, 'part')}."
            )
        own = cls(folder, number, num_parts, whole, _digests_of(whole))
        own._require_same(own._plan({}, {}))
        return own

    @property
    def path(self) -> Path:
        """The feature file."""
        return part_path(self.folder, self.number)

    @property
    def images(self) -> RangeSource:
        """The images of this part."""
        first, stop = self._plan({}, {}).range(self.number)
        return RangeSource(self.whole, self.whole.samples[first:stop], first)

    def with_plan(self, existing: ExistingOutput, given: ExtractOptions) -> ExistingOutput:
        """Return what there is of this part, completed by what the plan says.

        Raises:
            ArtifactMismatch: The parts there are of another backbone.
        """
        if not has_parts(self.folder):
            return existing
        plan, path = read_plan(self.folder), plan_path(self.folder)
        settings = Settings.of(plan.settings, path=path)
        if given.backbone not in (None, settings.request.get("backbone")):
            found = settings.request.get("backbone")
            raise self._refusal(f"backbone '{found}', and this part has '{given.backbone}'")
        return existing.completed_by(settings, plan.handling, path)

    def fix_plan(
        self, settings: Settings, options: ResolvedOptions
    ) -> Callable[[Iterable[int]], dict[str, Any]]:
        """Write the plan unless there is one, and check that this part has it.

        Returns:
            What the header says of the part, given the positions of its skipped images.

        Raises:
            ArtifactMismatch: The parts there have other settings.
        """
        wanted = self._plan(settings.to_dict(), options.handling)
        if not has_parts(self.folder):
            self._write(wanted)
        self._require_same(wanted)
        plan = read_plan(self.folder)
        found = Settings.of(plan.settings, path=plan_path(self.folder))
        differences = settings.differences(found)
        fractions = [each["val_fraction"] for each in (plan.handling, options.handling)]
        if fractions[0] != fractions[1]:
            differences.append(f"val_fraction: expected {fractions[1]}, found {fractions[0]}")
        if differences:
            raise self._refusal(f"other settings: {listed(differences, 3, '; ')}")
        own = {"number": self.number, "of": self.num_parts, "plan": plan.fingerprint}
        return lambda skipped: {"part": own | {"skipped_at": sorted(skipped)}}

    def _plan(self, settings: Mapping[str, Any], handling: Mapping[str, Any]) -> PartsPlan:
        return PartsPlan(
            num_parts=self.num_parts,
            num_images=len(self.whole.samples),
            source=self.whole.uri,
            settings=settings,
            handling=handling,
            **self.digests,
        )

    def _write(self, plan: PartsPlan) -> None:
        if plan.groups:
            with publishing(self.folder / plan.groups, overwrite=True) as temporary:
                temporary.write_bytes(group_numbers(self.whole.samples).astype("<i8").tobytes())
        plan.fix(self.folder)

    def _require_same(self, wanted: PartsPlan) -> None:
        """Check number, source and order of the parts there, if there are any."""
        if not has_parts(self.folder):
            return
        found = read_plan(self.folder)
        if found.num_parts != self.num_parts:
            raise self._refusal(f"{found.num_parts} parts, and this is one of {self.num_parts}")
        for name, words in _WORDS.items():
            if getattr(found, name) != getattr(wanted, name):
                counts = ""
                if found.num_images != wanted.num_images:
                    counts = f" ({counted(found.num_images, 'image')}, now {wanted.num_images:,})"
                raise self._refusal(f"a plan of other {words}{counts}")

    def _refusal(self, why: str) -> ArtifactMismatch:
        return ArtifactMismatch(
            self.folder,
            f"'{self.folder}' was begun with {why}. Give the same again, or another folder; or "
            "delete this one to begin anew.",
        )


def _digests_of(images: ImageSource) -> dict[str, str]:
    """Return the sha256 of a source's names, and of all that is known of each image."""
    names, labels, has_groups = hashlib.sha256(), hashlib.sha256(), False
    labels.update(repr((images.classes, images.has_tags)).encode("utf-8", "surrogateescape"))
    samples = iter(images.samples)
    while block := list(islice(samples, _AT_ONCE)):
        text = "\0".join(each.sample_id for each in block) + "\0"
        names.update(text.encode("utf-8", "surrogateescape"))
        rest = "\0".join(f"{each.label} {each.split} {each.group}" for each in block) + "\0"
        labels.update(rest.encode("utf-8", "surrogateescape"))
        has_groups = has_groups or any(each.group for each in block)
    found = {"images_sha256": names.hexdigest(), "labels_sha256": labels.hexdigest()}
    groups = f"groups-{found['labels_sha256'][:12]}.bin" if has_groups else ""
    return found | {"groups": groups}
