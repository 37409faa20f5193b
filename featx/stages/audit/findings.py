"""What an audit finds, and the table of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from featx.artifact import publishing, require_apart, run_files
from featx.artifact.cells import table_bytes
from featx.artifact.frames import frame_of
from featx.artifact.shown import Cells, Picture, Shown
from featx.errors import FeatxError, counted
from featx.features.file import FeatureFile
from featx.features.marks import CONTENT, content_of, key_of
from featx.features.shown import label_of

if TYPE_CHECKING:
    from featx.artifact.frames import Frame

FindingKind = Literal[
    "label",
    "missing",
    "surplus",
    "value",
    "conflict",
    "leak",
    "copy",
    "sequence",
    "outlier",
    "constant",
    "empty",
    "tiny",
    "blurred",
]
COLUMNS = (
    *("sample_id", "kind", "other", "split", "given", "likely", "score"),
    *("limit", "group", "note", "neighbours", "different", "drop", "corrected", CONTENT),
)


class Evidence(NamedTuple):
    """An image near one that is doubted, whose own label is not."""

    sample_id: str
    label: str


class Finding(NamedTuple):
    """One image that should be looked at.

    ``kind`` is ``"label"`` where other images contradict its class, ``"missing"`` where they say
    that a tag is lacking and ``"surplus"`` that one is too many, which ``note`` names, and
    ``"value"`` where they contradict a number. Of two images of the same
    content, or of nearly the same pixels, it is ``"conflict"`` where the other one has another
    label, ``"leak"`` where it is in another split, and ``"copy"`` where it is in the same;
    ``other`` is that image. A ``"sequence"`` is a run of numbered images that are alike, in several
    splits: one finding for all, from ``sample_id`` to ``other``. An ``"outlier"`` is far from all
    images; ``"constant"``, ``"empty"``, ``"tiny"`` and ``"blurred"`` are about its own pixels.

    ``score`` is, of classes and tags, the doubt about them, (0, 1]; of numbers
    the distance in deviations of such residuals; of copies the
    correlation of their pixels, 1 for the same content; of others the value beyond ``limit``.
    """

    sample_id: str
    kind: FindingKind
    split: str
    given: str  # its label; empty without one
    score: float  # by how much a label is contradicted, how alike pixels are; or beyond the limit
    other: str = ""
    likely: str = ""
    limit: float | None = None  # of the score, where it has one
    group: int = 0  # from 1: images that are copies of one another; 0 where it is in none
    note: str = ""  # a tag; a sequence; "flipped"; "chain": not every two of a group are alike
    neighbours: tuple[Evidence, ...] = ()  # of a label: the nearest images whose label is trusted
    content: str = ""  # as ``content_of`` has it; empty where it is not known
    marks: tuple[str, str, str] = ("", "", "")  # different, drop, corrected, of an earlier table

    @property
    def key(self) -> tuple[str, str, str]:
        """As of ``Mark``: what tells it from all other findings."""
        return key_of(self.sample_id, self.kind, self.other, self.note)

    @classmethod
    def of(cls, cache: FeatureFile, row: int, kind: FindingKind, score: float) -> Finding:
        """Return what was found of a row of a feature file, with what tells that image."""
        name, split = cache.sample_ids[row], cache.split_names[cache.splits[row]]
        return cls(name, kind, split, label_of(cache, row), score, content=content_of(cache, row))


class Confusion(NamedTuple):
    """How many images labelled as one class seem to be of another, at a guess."""

    given: str
    likely: str
    num_images: int


class ImageSequence(NamedTuple):
    """A run of numbered images that are alike, as frames of a video.

    ``splits`` has the number of its images in each.
    """

    name: str
    sample_ids: tuple[str, ...]
    splits: dict[str, int]


class LeaksWorth(NamedTuple):
    """Accuracy of the default head on a split, with and without copies of training images."""

    split: str
    num_images: int
    num_leaked: int
    accuracy: float  # on all images, [0, 1]
    accuracy_without: float  # on those that are not copies of training images


class AlikeClasses(NamedTuple):
    """Two classes that a head which was not trained on the images cannot tell apart."""

    first: str
    second: str
    num_first: int
    num_second: int
    accuracy: float  # of the choice between the two, mean of both classes, [0, 1]


class CurvePoint(NamedTuple):
    """The accuracy of heads trained on a share of the training images."""

    share: float  # (0, 1]
    num_images: int
    accuracy: float


class ClassGain(NamedTuple):
    """How much the recall of a class rose when its training images were doubled, at last."""

    name: str
    num_images: int
    gain: float  # [-1, 1]


@dataclass(frozen=True, repr=False)
class AuditReport(Shown):
    """What may be wrong with the images of a feature file.

    Attributes:
        path: The feature file.
        findings: What to look at: labels first, those most contradicted first, then content.
        num_evaluated: Labelled images whose label was compared with what heads say that were not
            trained on them; 0 where labels cannot be evaluated.
        num_wrong: Estimated number of wrong labels among them.
        confusions: Pairs of classes of that estimate, the most frequent first.
        small_classes: Classes of fewer than five training images, with their number.
        num_images: Of the file.
        seconds: All in all.
        sequences: Runs of numbered images that are alike; those in several splits are findings.
        leaks: What copies of training images add to the score of each held-out split.
        alike: Pairs of classes that cannot be told apart.
        curve: Accuracy by number of training images, ascending.
        gains: Classes that more images would help most, the most first.
        dismissed: What was marked in an earlier table and is not a finding any more: pairs that are
            different pictures, images that are right as they are, and labels that were corrected.
        notes: What could not be looked at, and why, a sentence each.
    """

    path: Path
    findings: tuple[Finding, ...]
    num_evaluated: int
    num_wrong: float
    confusions: tuple[Confusion, ...]
    small_classes: tuple[tuple[str, int], ...]
    num_images: int
    seconds: float
    sequences: tuple[ImageSequence, ...] = ()
    leaks: tuple[LeaksWorth, ...] = ()
    alike: tuple[AlikeClasses, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    gains: tuple[ClassGain, ...] = ()
    dismissed: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def of_kind(self, kind: FindingKind) -> tuple[Finding, ...]:
        """Return the findings of one kind, in their order."""
        return tuple(each for each in self.findings if each.kind == kind)

    def _lines(self) -> Iterator[str]:
        yield f"AuditReport: {self.path}, {counted(self.num_images, 'image')}"
        kinds = Counter(each.kind for each in self.findings)
        found = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
        yield f"findings: {found or 'none'}"
        if self.num_evaluated:
            yield f"about {self.num_wrong:.0f} of {self.num_evaluated:,} labels are wrong"
        yield from self.notes

    def _cells(self) -> Cells:
        names = ("kind", "sample_id", "other", "given", "likely")
        rows = [
            [*(str(getattr(each, name)) for name in names), f"{each.score:.3f}"]
            for each in self.findings[:21]
        ]
        return (*names, "score"), rows

    def _pictures(self) -> Iterator[Picture]:
        """Yield the images of the first findings, as long as the feature file is there."""
        from featx.features.file import open_features
        from featx.features.shown import NUM_PICTURES, pictures_of

        try:
            cache = open_features(self.path, verify=False)
        except FeatxError:
            return
        row_of = {name: row for row, name in enumerate(cache.sample_ids)}
        first = [each for each in self.findings if each.sample_id in row_of][:NUM_PICTURES]
        captions = (f"{each.given} → {each.likely}" if each.likely else each.kind for each in first)
        rows = [row_of[each.sample_id] for each in first]
        yield from pictures_of(cache, list(zip(rows, captions, strict=True)))

    def to_frame(self) -> Frame:
        """Return the findings as a pandas frame, one a row, with the columns of the table.

        Raises:
            FeatxError: pandas is not installed.
        """
        rows = [cells_of(each) for each in self.findings]
        columns: dict[str, list[Any]] = {
            name: [row[number] for row in rows] for number, name in enumerate(COLUMNS)
        }
        columns["score"] = [each.score for each in self.findings]
        columns["limit"] = [each.limit for each in self.findings]
        columns["group"] = [each.group for each in self.findings]
        return frame_of(columns)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        tables = ("findings", "confusions", "sequences", "leaks", "alike", "curve", "gains")
        listed = {
            name: [each._asdict() for each in getattr(self, name)]
            for name in (*tables, "dismissed")
        }
        small = dict(self.small_classes)
        return asdict(self) | listed | {"path": str(self.path), "small_classes": small}


def write_findings(report: AuditReport, output: str | Path, *, overwrite: bool = False) -> None:
    """Write one line for each finding as CSV, to be marked in its last columns.

    These are ``different`` and ``drop``, true or false, and ``corrected``, the right label.

    Args:
        report: Of ``audit``.
        output: The table.
        overwrite: Replace a file that is there, and the marks in it.

    Raises:
        ArtifactExists: The file is there already.
        ConfigError: It is the feature file, or one beside it.
    """
    output = Path(output)
    require_apart({"the table": output}, run_files(report.path))
    with publishing(output, overwrite=overwrite) as temporary:
        temporary.write_bytes(table_bytes(COLUMNS, table_of(report)))


def table_of(report: AuditReport) -> Iterator[Sequence[str]]:
    """Yield the cells of all findings, and of what was marked before and is none any more."""
    yield from map(cells_of, (*report.findings, *report.dismissed))


def cells_of(each: Finding) -> Sequence[str]:
    """Return the cells of a finding, as ``COLUMNS`` names them."""
    limit = "" if each.limit is None else f"{each.limit:.4g}"
    return (
        *(each.sample_id, each.kind, each.other, each.split, each.given, each.likely),
        *(f"{each.score:.4f}", limit, str(each.group or ""), each.note),
        "; ".join(f"{near.sample_id} ({near.label})" for near in each.neighbours),
        *each.marks,
        each.content,
    )
