"""Is a file what it should be: intact, safe to read, and still what its source would give?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.artifact import (
    Header,
    Kind,
    differing_features,
    differing_settings,
    file_sha256,
    kind_of_file,
)
from featx.backbones.spec import BackboneOptions, BackboneRequest, weights_file
from featx.errors import ConfigError
from featx.isolation.call import Limits, call_isolated
from featx.stages.check.model import Repeated, repeat_proof

if TYPE_CHECKING:
    from featx.classifier.staleness import Staleness

_READERS = {
    "features": "featx.features.file:verify_features",
    "head": "featx.heads.head:open_head",
    "classifier": "featx.classifier.session:open_classifier",
}
_COMPARED = [each.name for each in fields(BackboneOptions) if each.name != "weights"] + ["dtype"]


@dataclass(frozen=True)
class CheckOptions(BackboneOptions):
    """What a file is compared with, and what the comparison may take.

    Of the backbone's options, None takes what the file was made with.

    Attributes:
        dtype: The stored type; None takes that of the file.
        verify_content: Compare the images' content hashes, not sizes and times.
        seconds: Longest time that reading the file may take.
        memory_bytes: Most address space that reading the file may take.
        max_images: Labelled images that a model is run on at most.
    """

    dtype: str | None = None
    verify_content: bool = False
    seconds: float = 600
    memory_bytes: int = 4 * 2**30
    max_images: int = 2000


@dataclass(frozen=True)
class CheckReport:
    """What a check found; the file itself is intact.

    Attributes:
        path: The file.
        kind: Which of the three artifacts.
        source: What it was compared with; None for a head, and for a model without images.
        num_images: Images of the source.
        num_new: Images of the source that the file does not know.
        num_changed: Images whose content is another now.
        num_touched: Images whose file looks changed, but whose content is the same.
        num_removed: Images of the file that the source has no more.
        num_relabelled: Images with another class, split or group now.
        settings: One line for each setting that differs.
        staleness: Of a head, how its features differ from those that trained it; None where no
            feature file was found, and for another file.
        proof: What a model says of itself; None for another file, or one exported unproven.
        repeated: What came of that proof on a source.
    """

    path: Path
    kind: Kind
    source: str | None = None
    num_images: int = 0
    num_new: int = 0
    num_changed: int = 0
    num_touched: int = 0
    num_removed: int = 0
    num_relabelled: int = 0
    settings: tuple[str, ...] = field(default=())
    staleness: Staleness | None = None
    proof: Mapping[str, Any] | None = None
    repeated: Repeated | None = None

    @property
    def is_fresh(self) -> bool:
        """Whether the file is what its source gives: the same rows, labels, splits; or answers."""
        if self.repeated is not None and not self.repeated.holds:
            return False
        if self.staleness is not None and self.staleness.is_stale:
            return False
        changes = self.num_new + self.num_changed + self.num_removed + self.num_relabelled
        return not (changes or self.settings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"path": str(self.path), "is_fresh": self.is_fresh}


def check(
    path: str | Path, source: str | Path | None = None, options: CheckOptions | None = None
) -> CheckReport:
    """Check all of a file in a process of its own; compare it with its source.

    A feature file is compared with the images as they are now, a model with what its proof says of
    them.

    Args:
        path: A feature file, head or classifier.
        source: The images; None takes those that a feature file was made from, and runs no model.
            Of a head, the feature file; None takes the one that it was trained on.
        options: Settings to compare with, and limits.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is damaged, hostile, or none of featx's; or reading it crashed, or took
            more time or memory than allowed.
        ArtifactIncomplete: The extraction that writes it has not finished.
        SourceError: The source cannot be used.
        ArtifactMismatch: The source holds none of the images of a model's proof.
        ConfigError: Images were given for a head, or a source for a model without a proof.
    """
    options, path = options or CheckOptions(), Path(path)
    kind = kind_of_file(path)
    limits = Limits(memory_bytes=options.memory_bytes, seconds=options.seconds)
    call_isolated(_READERS[kind], path, limits=limits)
    if kind == "features":
        return compare_features(path, source, options)
    if kind == "classifier":
        return _prove_again(path, source, options)
    return _compare_head(path, source, limits)


def _compare_head(path: Path, features: str | Path | None, limits: Limits) -> CheckReport:
    """Compare a head that is known to be intact with its feature file."""
    from featx.classifier.staleness import find_features, header_as_read, staleness_of
    from featx.features.file import open_features
    from featx.heads.head import open_head

    head = open_head(path)
    own = find_features(head, path, features)
    if features is None and not own.is_file():
        return CheckReport(path, "head")
    if not own.is_file() or kind_of_file(own) != "features":
        raise ConfigError(
            f"'{path}' is a head: it is compared with a feature file, and '{own}' is none."
        )
    call_isolated(_READERS["features"], own, limits=limits)
    cache = open_features(own, verify=False)
    settings = differing_features(head.header, header_as_read(head, cache))
    if settings:
        return CheckReport(path, "head", str(own), len(cache), settings=tuple(settings))
    return CheckReport(path, "head", str(own), len(cache), staleness=staleness_of(head, cache))


def _prove_again(path: Path, source: str | Path | None, options: CheckOptions) -> CheckReport:
    """Show the proof of a model that is known to be intact, and repeat it on a source."""
    from featx.classifier.session import open_classifier

    proof = open_classifier(path).header.details.get("proof")
    if source is None:
        return CheckReport(path, "classifier", proof=proof)
    repeated = repeat_proof(path, str(source), max_images=options.max_images)
    return CheckReport(path, "classifier", repeated.source, proof=proof, repeated=repeated)


def compare_features(path: Path, source: str | Path | None, options: CheckOptions) -> CheckReport:
    """Compare a feature file that is known to be intact with a source.

    Raises:
        ArtifactError: The file cannot be read.
        SourceError: The source cannot be used.
    """
    from featx.extraction.plan import make_plan, num_relabelled
    from featx.features.existing import images_in_file
    from featx.features.file import open_features
    from featx.images.sources import open_source

    file = open_features(path, verify=False)
    details = file.header.details
    images = open_source(str(source or details["source"]))
    plan = make_plan(images, images_in_file(file), file, verify_content=options.verify_content)
    return CheckReport(
        path=path,
        kind="features",
        source=images.uri,
        num_images=len(images.samples),
        num_new=plan.num_new,
        num_changed=plan.num_changed,
        num_touched=len(plan.touched),
        num_removed=plan.num_removed,
        num_relabelled=num_relabelled(file, plan.rows, images.samples, images.classes),
        settings=tuple(_differing_settings(file.header, options)),
    )


def _differing_settings(header: Header, options: CheckOptions) -> list[str]:
    """Return a line for each setting asked for, and the weights' file, that is another now."""
    own = {"decode": "full", **header.spec["preprocess"], "dtype": header.details["dtype"]}
    made = {"seed": header.details["request"]["seed"], **header.spec, **own}
    asked = {
        name: value for name in _COMPARED if (value := getattr(options, name)) not in (None, "auto")
    }
    lines = differing_settings(asked, {name: made.get(name) for name in asked})
    return lines + _differing_weights(header, options)


def _differing_weights(header: Header, options: CheckOptions) -> list[str]:
    """Compare the weights by the sha256 of their file, or by name where they are official ones."""
    scheme, _, origin = str(header.details["weights"]).partition(":")
    asked = options.weights or (origin if scheme == "file" else None)
    if asked is None:
        return []
    if path := weights_file(asked):
        if not path.is_file():
            return [f"weights: '{path}' does not exist"]
        found = {"weights_sha256": header.spec["weights_sha256"]}
        return differing_settings({"weights_sha256": file_sha256(path)}, found)
    request = BackboneRequest(**header.details["request"])
    same = asked in (request.weights, origin)
    return [] if same else differing_settings({"weights": asked}, {"weights": origin or scheme})
