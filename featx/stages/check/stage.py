"""Check one file: whether it is intact, safe to read, and what its source gives today."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from featx.artifact import (
    Header,
    Kind,
    differing_features,
    differing_settings,
    file_sha256,
    kind_of_file,
)
from featx.artifact.keywords import by_keyword, record_of
from featx.artifact.parts import is_parts
from featx.artifact.shown import Shown
from featx.backbones.spec import (
    PENULTIMATE,
    BackboneKeywords,
    BackboneOptions,
    BackboneRequest,
    weights_file,
)
from featx.classifier.hub import local_model
from featx.classifier.session import open_classifier
from featx.errors import ConfigError, counted, require_at_least, require_number
from featx.extraction.options import describe_changes
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
    """Settings to compare a feature file with, and limits of the check.

    None takes what the file was made with.

    Attributes:
        dtype: Type of the stored features.
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

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("seconds", self.seconds, 0, ends="(]")
        for name in ("memory_bytes", "max_images"):
            require_at_least(name, getattr(self, name), 1)


class CheckKeywords(BackboneKeywords, total=False):
    """Options of ``CheckOptions`` by keyword."""

    dtype: str | None
    verify_content: bool
    seconds: float
    memory_bytes: int
    max_images: int


@dataclass(frozen=True, repr=False)
class CheckReport(Shown):
    """The result of a check; the file itself is intact.

    Attributes:
        path: The file.
        kind: ``"features"``, ``"head"`` or ``"classifier"``.
        source: The images or feature file that it was compared with; None without.
        num_images: Images of the source.
        num_new: Images of the source that the file does not have.
        num_changed: Images with another content.
        num_touched: Images with other times, but the same content.
        num_removed: Images of the file that the source does not have.
        num_relabelled: Images with another class, split or group.
        settings: One line for each setting that differs.
        staleness: How the features differ from those that trained a head.
        proof: The proof in a model; None where it has none.
        repeated: The result of that proof on a source.
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
    settings: tuple[str, ...] = ()
    staleness: Staleness | None = None
    proof: Mapping[str, Any] | None = None
    repeated: Repeated | None = None

    def _lines(self) -> Iterator[str]:
        yield f"CheckReport: {self.path}, {self.kind}, intact"
        if self.source is not None:
            changes = self.changes or "other than when it was made"
            yield f"compared with {self.source}: {'the same' if self.is_fresh else changes}"
        if self.proof:
            yield f"proved on {counted(self.proof['num_images'], 'image')}"

    @property
    def changes(self) -> str:
        """How a feature file differs from its source, in words; empty where it does not."""
        return "; ".join(filter(None, (describe_changes(self), *self.settings)))

    @property
    def is_fresh(self) -> bool:
        """Whether the file is what its source gives: the same rows, labels, splits; or answers."""
        is_stale = self.staleness is not None and self.staleness.is_stale
        fails = self.repeated is not None and not self.repeated.holds
        return not (self.changes or is_stale or fails)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self) | {"path": str(self.path), "is_fresh": self.is_fresh}


@by_keyword(CheckOptions)
def check(
    path: str | Path,
    source: str | Path | None = None,
    options: CheckOptions | None = None,
    **keywords: Unpack[CheckKeywords],
) -> CheckReport:
    """Check all of a file in a process of its own, and compare it with its source.

    A feature file is compared with the images as they are now, a head with its feature file, a
    model with its proof.

    Args:
        path: A feature file, head or classifier; or ``hf:USER/NAME[@REVISION]``.
        source: The images; None takes those that a feature file was made from, and runs no model.
            For a head, the feature file; None takes the one that it was trained on.
        options: Settings to compare with, and limits.
        keywords: The same by name: ``backbone="resnet18"``.

    Raises:
        ArtifactMissing: The file is not there.
        ArtifactInvalid: It is damaged, hostile, or none of featx's; or reading it crashed, or took
            more time or memory than allowed.
        ArtifactIncomplete: The extraction that writes it has not finished.
        SourceError: The source cannot be used.
        ArtifactMismatch: The source holds none of the images of a model's proof.
        ConfigError: Images were given for a head, or a source for a model without a proof.
    """
    options, path = record_of(CheckOptions, options, keywords), local_model(path)
    kind = kind_of_file(path)
    limits = Limits(memory_bytes=options.memory_bytes, seconds=options.seconds)
    call_isolated(_READERS[kind], path, limits=limits)
    if kind == "features":
        return compare_features(path, source, options)
    if kind == "head":
        return _compare_head(path, source, limits)
    classifier = open_classifier(path)
    proof = classifier.header.details.get("proof")
    if source is None:
        return CheckReport(path, kind, proof=proof)
    repeated = repeat_proof(path, classifier, str(source), max_images=options.max_images)
    return CheckReport(path, kind, repeated.source, proof=proof, repeated=repeated)


def _compare_head(path: Path, features: str | Path | None, limits: Limits) -> CheckReport:
    """Compare a head that is known to be intact with its feature file."""
    from featx.classifier.staleness import find_features, header_as_read, staleness_of
    from featx.features.file import open_features
    from featx.heads.head import open_head

    head = open_head(path)
    own = find_features(head, path, features)
    is_there = own.is_file() or is_parts(own)
    if features is None and not is_there:
        return CheckReport(path, "head")
    if not is_there or kind_of_file(own) != "features":
        raise ConfigError(
            f"'{path}' is a head: it is compared with a feature file, and '{own}' is none."
        )
    call_isolated(_READERS["features"], own, limits=limits)
    cache = open_features(own, verify=False)
    settings = tuple(differing_features(head.header, header_as_read(head, cache)))
    staleness = None if settings else staleness_of(head, cache)
    return CheckReport(path, "head", str(own), len(cache), settings=settings, staleness=staleness)


def compare_features(path: Path, source: str | Path | None, options: CheckOptions) -> CheckReport:
    """Compare a feature file that is known to be intact with a source."""
    from featx.extraction.plan import make_plan, num_relabelled
    from featx.features.file import open_features
    from featx.features.publish import images_in_file
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
    request = {"seed": header.details["request"]["seed"], "cut": PENULTIMATE}
    made = {**request, **header.spec, **own}
    asked = {
        name: value for name in _COMPARED if (value := getattr(options, name)) not in (None, "auto")
    }
    lines = differing_settings(asked, {name: made.get(name) for name in asked})
    return lines + _differing_weights(header, options.weights)


def _differing_weights(header: Header, asked: str | None) -> list[str]:
    """Compare the weights by the sha256 of their file, or by name where they are official ones."""
    scheme, _, origin = str(header.details["weights"]).partition(":")
    asked = asked or (origin if scheme == "file" else None)
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
