"""Options and report of an extraction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from featx.artifact.parts import parse_part
from featx.artifact.shown import Shown
from featx.backbones.engines import EngineChoice, require_fit
from featx.backbones.spec import (
    INPUT,
    PENULTIMATE,
    BackboneKeywords,
    BackboneOptions,
    BackboneRequest,
    BackboneSpec,
    Pool,
    Precision,
)
from featx.errors import ConfigError, counted, require_at_least, require_choice, require_number
from featx.features.records import DType
from featx.images.decode import MAX_PIXELS, check_max_pixels
from featx.images.preprocess import Decode
from featx.images.views import AUGMENTATIONS, ViewsSpec

OnError = Literal["fail", "skip"]


@dataclass(frozen=True)
class ExtractOptions(BackboneOptions):
    """Options of an extraction; those of the backbone are described at ``BackboneOptions``.

    None leaves an option as it is in the feature file that is brought up to date; in a new one, or
    with ``overwrite``, or with another backbone, it takes the default of ``ResolvedOptions``.

    Attributes:
        dtype: What the features are stored as: ``"float32"``, or ``"float16"`` where they allow it;
            by default float32 for vectors and float16 at a cut. Pixels are stored as they are.
        views: Augmented versions of each training image, 0 to 1,000; 0 by default.
        augment: How views differ from the image: any of ``"crop,flip,color"``, or ``"none"``; by
            default ``"crop,flip"``.
        val_fraction: Share of each class's training images that become validation where the source
            brings none, in [0, 0.5].
        resplit: Choose the validation images anew; else the images of the file that is there keep
            their split.
        on_error: What images that cannot be used lead to: ``"fail"`` is an error that names them
            all once the others are done, ``"skip"`` leaves them out.
        max_bad: Largest share of such images that ``"skip"`` leaves out, 0 to 1.
        max_pixels: Images with more are not used.
        report: JSON file that lists every image that was not used, and why.
        verify_content: Recognise images by the hash of their content, not by size and time.
        restart: Reuse nothing: neither the output nor an unfinished extraction.
        overwrite: Replace a feature file that was made with other settings, or is damaged.
        device: ``"auto"``, ``"cpu"`` or ``"cuda[:i]"``; ``"cuda"`` is every GPU that torch sees.
        engine: What runs the backbone: ``"torch"``, ``"onnxruntime"``, or ``"auto"``: ONNX Runtime
            on the CPU, torch on a GPU.
        batch_size: Images per forward pass, each view one more; None takes what suits engine and
            image size.
        workers: Threads that decode and run the backbone; beside a GPU each has a process that
            decodes. None takes one per core. With ``ray``, CPUs of each worker; None takes one.
        part: ``"3/16"`` extracts the third of sixteen ranges of the source into a file of the
            output, which is a folder ``NAME.parts`` then; None extracts all of it into one file.
        ray: A Ray cluster that reads, decodes and runs the backbone: ``"auto"`` for the one of this
            machine, ``"HOST:PORT"`` or ``"ray://HOST:PORT"``. Its nodes must see the images where
            this machine does. None takes this machine alone. ``device="cuda"`` then means a GPU for
            each worker, ``"auto"`` the CPU.
        ray_workers: Workers on the cluster, or the fewest and most of them as in ``"4:64"``; None
            takes as many as have room.
        allow_mixed: Let nodes with processors of several kinds compute, whose last bits differ.
    """

    dtype: DType | None = None
    views: int | None = None
    augment: str | None = None
    val_fraction: float | None = None
    resplit: bool = False
    on_error: OnError | None = None
    max_bad: float | None = None
    max_pixels: int | None = None
    report: Path | None = None
    verify_content: bool = False
    restart: bool = False
    overwrite: bool = False
    device: str = "auto"
    engine: EngineChoice = "auto"
    batch_size: int | None = None
    workers: int | None = None
    part: str | None = None
    ray: str | None = None
    ray_workers: str | int | None = None
    allow_mixed: bool = False

    def __post_init__(self) -> None:
        if self.cut != INPUT:
            require_choice("dtype", self.dtype, (None, "float32", "float16"))
        super().__post_init__()
        report: Any = self.report
        if isinstance(report, str):
            object.__setattr__(self, "report", Path(report))
        for name in ("batch_size", "workers"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("views", self.views, 0)
        if self.ray is None and (self.ray_workers is not None or self.allow_mixed):
            name = "allow_mixed=True" if self.ray_workers is None else "ray_workers=…"
            raise ConfigError(f"{name} needs ray=…, the address of a cluster.")
        _ = self.worker_range
        self._view_spec()
        if self.part is not None:
            parse_part(self.part)
            if self.resplit:
                raise ConfigError(
                    "resplit=True has no effect on a part: validation images are chosen once all "
                    "parts are there."
                )
        require_number("max_bad", self.max_bad, 0, 1, optional=True)
        if self.max_pixels is not None:
            check_max_pixels(self.max_pixels)
        require_fit(self.precision or "fp32", self.engine, self.device)
        if self.cut == INPUT:
            for name, own in (("dtype", (None, "uint8")), ("precision", (None, "fp32"))):
                if getattr(self, name) not in own:
                    raise ConfigError(
                        f"{name} has no effect at the cut '{INPUT}': no network runs, and pixels "
                        f"are stored as uint8. Leave out {name}=…."
                    )

    @property
    def worker_range(self) -> tuple[int, int | None]:
        """The fewest workers to begin with, and the most; None takes as many as have room."""
        if self.ray_workers is None:
            return 1, None
        least, colon, most = str(self.ray_workers).partition(":")
        if least.isdigit() and (most.isdigit() or not colon):
            low, high = (int(least), int(most)) if colon else (1, int(least))
            if 1 <= low <= high:
                return low, high
        raise ConfigError(
            "ray_workers must be a number of at least 1, or the fewest and most as in 4:64; got "
            f"'{self.ray_workers}'."
        )

    def _view_spec(self) -> ViewsSpec | None:
        """Return how views are drawn, None without any; checks the values either way."""
        names = () if self.augment in (None, "none") else self.augment.split(",")
        order = sorted(names, key=lambda name: (*AUGMENTATIONS, name).index(name))
        spec = ViewsSpec(self.views or 1, tuple(order))
        return spec if self.views else None

    def resolved(self, recorded: Mapping[str, Any] = MappingProxyType({})) -> ResolvedOptions:
        """Return the options with nothing left open; ``recorded`` are those of the file there."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.max_bad is not None and (self.on_error or recorded.get("on_error")) != "skip":
            raise ConfigError("max_bad needs on_error='skip'; by default no image may be bad.")
        if self.augment is not None and not (self.views or recorded.get("views")):
            raise ConfigError("augment=… needs views=…, the number of views.")
        kept = dict(recorded)
        if self.cut not in (None, recorded.get("cut", PENULTIMATE)):
            kept.pop("dtype", None)
        for name, other in (("cut", "layer"), ("layer", "cut")):
            if name in given:
                kept.pop(other, None)
        merged = kept | given
        merged.setdefault("dtype", default_dtype(merged.get("cut")))
        return ResolvedOptions(**merged)


class ExtractKeywords(BackboneKeywords, total=False):
    """Options of ``ExtractOptions`` by keyword."""

    dtype: DType | None
    views: int | None
    augment: str | None
    val_fraction: float | None
    resplit: bool
    on_error: OnError | None
    max_bad: float | None
    max_pixels: int | None
    report: str | Path | None
    verify_content: bool
    restart: bool
    overwrite: bool
    device: str
    engine: EngineChoice
    batch_size: int | None
    workers: int | None
    part: str | None
    ray: str | None
    ray_workers: str | int | None
    allow_mixed: bool


@dataclass(frozen=True)
class ResolvedOptions(ExtractOptions):
    """The options of a run, none left open; None here leaves a value to the weights.

    Attributes are those of ``ExtractOptions``, with their defaults.
    """

    backbone: str = "resnet18"
    weights: str = "default"
    pool: Pool = "auto"
    decode: Decode = "full"
    dtype: DType = "float32"
    views: int = 0
    augment: str = "crop,flip"
    val_fraction: float = 0.2
    on_error: OnError = "fail"
    max_bad: float = 1.0
    max_pixels: int = MAX_PIXELS
    precision: Precision = "fp32"
    seed: int = 0

    @property
    def request(self) -> BackboneRequest:
        names = [field.name for field in fields(BackboneRequest)]
        values = {name: getattr(self, name) for name in names}
        return BackboneRequest(**values | {"cut": None if self.cut == PENULTIMATE else self.cut})

    @property
    def view_spec(self) -> ViewsSpec | None:
        """How views are drawn; None without any."""
        return self._view_spec()

    @property
    def handling(self) -> dict[str, Any]:
        """Options that a file keeps for its next update beside its settings, JSON values."""
        return {name: getattr(self, name) for name in ("val_fraction", "on_error", "max_bad")}


def default_dtype(cut: str | None) -> DType:
    """Return what is stored at a cut where nothing else is asked for."""
    if cut in (None, PENULTIMATE):
        return "float32"
    return "uint8" if cut == INPUT else "float16"


@dataclass(frozen=True)
class Profile:
    """Where the time of the backbone's run went; reading, workers and journal overlap.

    Attributes:
        seconds: Of all threads together, by step.
        num_images: Images that were gone through.
        workers: Threads that decoded and ran the backbone.
        wall: From the first image to the last row, seconds.
    """

    seconds: Mapping[str, float]
    num_images: int
    workers: int
    wall: float

    @property
    def idle(self) -> float:
        """Seconds that the workers waited, all together."""
        busy = sum(self.seconds[step] for step in ("decode", "preprocess", "inference"))
        return max(0.0, self.workers * self.wall - busy)


@dataclass(frozen=True, repr=False)
class ExtractReport(Shown):
    """The result of an extraction.

    Attributes:
        path: The feature file.
        spec: What its features mean.
        classes: Class names in index order.
        split_sizes: Rows of each split that has any.
        num_unlabelled: Rows without a label.
        ignored: Files that were skipped because they are not images, by kind.
        skipped: ``(sample_id, reason)`` of images left out.
        num_extracted: Rows that the backbone made in this run.
        num_viewed: Rows that have views, those of the training split.
        views: How the views were drawn; None without any.
        dtype: What the features are stored as.
        num_duplicates: Images that got the row of another with the same content.
        num_resumed: Images taken over from an unfinished extraction.
        num_new: Images that the file did not have before; 0 where there was no file.
        num_changed: Images whose content was another before.
        num_removed: Images of the file that the source has no more.
        num_relabelled: Images that the file had with another class, split or group.
        num_animated: Animations and multi-page images read in this run; their first frame counts.
        is_unchanged: The file was as it should be, and was left alone.
        seconds: From the first image to the published file, without loading the backbone.
        device: What the backbone ran on; None where it did not have to.
        engine: What ran it: ``"torch"`` or ``"onnxruntime"``; None where nothing had to.
        profile: Where the time went; None where the backbone did not have to run.
        part: Its number and the number of all parts, where it is one.
        missing_parts: Numbers of the parts that are not there yet.
    """

    path: Path
    spec: BackboneSpec
    classes: tuple[str, ...]
    split_sizes: dict[str, int]
    num_unlabelled: int
    ignored: Mapping[str, int]
    skipped: tuple[tuple[str, str], ...]
    dtype: str
    views: ViewsSpec | None
    num_viewed: int
    num_extracted: int
    num_duplicates: int
    num_resumed: int
    num_new: int
    num_changed: int
    num_removed: int
    num_relabelled: int
    num_animated: int
    is_unchanged: bool
    seconds: float
    device: str | None
    engine: str | None
    profile: Profile | None
    part: tuple[int, int] | None = None
    missing_parts: tuple[int, ...] = ()

    def _lines(self) -> Iterator[str]:
        yield f"ExtractReport: {self.path}"
        kinds = counted(len(self.classes), "class", "classes")
        sizes = ", ".join(f"{name} {size:,}" for name, size in self.split_sizes.items())
        yield f"{counted(self.num_images, 'image')} of {kinds}: {sizes}"
        yield f"{self.spec.backbone}, {'×'.join(map(str, self.spec.row_shape))}, {self.dtype}"
        done = f"{counted(self.num_extracted, 'image')} extracted in {self.seconds:.1f} s"
        yield "unchanged" if self.is_unchanged else ", ".join(filter(None, (done, self.changes)))
        if self.skipped:
            yield f"{counted(len(self.skipped), 'image')} left out, '{self.skipped[0][0]}' first"

    @property
    def num_images(self) -> int:
        """Rows of the feature file."""
        return sum(self.split_sizes.values())

    @property
    def changes(self) -> str:
        """The changes of an update in words; empty where there were none."""
        return describe_changes(self)


def describe_changes(report: Any) -> str:
    """Return the counts of changed images in a report in words; empty where there are none."""
    names = ("new", "changed", "removed", "relabelled")
    counts = {name: getattr(report, f"num_{name}") for name in names}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
