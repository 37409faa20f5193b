"""Options and report of an export, and whether a model is already of these options."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from featx.artifact import Header, describe_environment, fingerprint_of
from featx.artifact.keywords import require_types
from featx.artifact.shown import Shown
from featx.backbones.graph_cache import OPSET
from featx.backbones.licences import licence_warning
from featx.classifier.contract import Contract, Input, output_names
from featx.classifier.proof import Proof
from featx.classifier.runtimes import newest_opset, require_fit
from featx.classifier.staleness import find_features
from featx.errors import (
    ArtifactError,
    counted,
    listed,
    require_at_least,
    require_number,
)
from featx.features.file import open_features
from featx.heads.head import Head
from featx.heads.tasks import task_of

log = logging.getLogger(__name__)

Precision = Literal["fp32", "fp16", "int8"]
"""Of the backbone; preprocessing and head are fp32."""
MIN_OPSET = 18
DEFAULT_RTOL = 0.02
"""Largest logit difference allowed by default, as a share of the logits' typical size.

The resize in the graph rounds some pixels to another grey level than Pillow's; docs/parity.md has
what that does to logits.
"""
_NOT_OF_THE_FILE = ("card", "overwrite")
_LATER = ("image_shape", "batch", "runtime")
"""Options that files of earlier versions were made without."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        features: The feature file the head was trained on; None takes the path the head recorded.
        source: The images; None takes the source the features recorded.
        weights: The backbone's weights, as ``extract`` takes them; None takes the recorded ones.
        input: What the file takes: ``"image"``, ``"crop"`` or ``"tensor"``; see ``Contract``.
        outputs: What it gives: any of ``"logits"``, ``"probabilities"``, ``"features"`` and
            ``"top-K"``. The default is ``"values"`` for a head of numbers, which gives only these
            and ``"features"``.
        precision: Of the backbone in the file; None takes int8 where the features were made in it,
            else fp32.
        image_shape: Height and width, pixels, of the only images that the file takes, where
            ``input`` is ``"image"``; None takes any. Most runtimes but ONNX Runtime need it.
        batch: How many images the file takes at once; None takes any number.
        runtime: What will run the file: ``"tract"``, ``"onnxruntime==1.17"``; ``RUNTIMES`` has the
            names. What it cannot run is refused, and the opset is one that it reads.
        opset: Of the ONNX operators, 18 to 20; None takes 20, or the newest that ``runtime`` reads.
        atol: Largest absolute logit difference to head(cached features) that is allowed at the
            features' own precision; None takes ``DEFAULT_RTOL`` of their typical size. Values of a
            regression count in deviations of their target.
        max_drop: Points of validation accuracy that the file may lose against the head.
        max_images: Validation images that are run through the file, spread evenly over all.
        verify: Prove the file on images before it is published.
        stale: Export a head although the rows that trained it have changed; the file says so.
        with_names: Keep the names of reference images, and whole paths of source and weights, in
            the file; else it has digests and base names.
        card: Where to write a model card; None writes none.
        overwrite: Replace a model card that was edited; an existing model or unedited card is
            replaced anyway, another file never.

    Raises:
        ConfigError: A value is unknown or out of range.
    """

    features: str | Path | None = None
    source: str | None = None
    weights: str | None = None
    input: Input = "image"
    outputs: str | Sequence[str] = ("logits", "probabilities")
    precision: Precision | None = None
    image_shape: tuple[int, int] | None = None
    batch: int | None = None
    runtime: str | None = None
    opset: int | None = None
    atol: float | None = None
    max_drop: float = 1.0
    max_images: int = 2000
    verify: bool = True
    stale: bool = False
    with_names: bool = False
    card: str | Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        require_types(self)
        require_number("atol", self.atol, 0, ends="(]", optional=True)
        require_number("max_drop", self.max_drop, 0, 100, unit=" points")
        require_at_least("max_images", self.max_images, 1)
        require_number("opset", self.opset, MIN_OPSET, OPSET, whole=True, optional=True)
        contract = self.contract  # names that are unknown are the first thing to hear of
        if self.runtime is not None:
            require_fit(self.runtime, contract, opset=self.opset)

    @property
    def contract(self) -> Contract:
        """Inputs and outputs of the file."""
        names, shape = output_names(self.outputs), self.image_shape
        return Contract(self.input, names, image_shape=shape, batch=self.batch)

    @property
    def own_opset(self) -> int:
        """Opset of the file."""
        if self.opset is not None:
            return self.opset
        return OPSET if self.runtime is None else newest_opset(self.runtime)


class ExportKeywords(TypedDict, total=False):
    """Options of ``ExportOptions`` by keyword."""

    features: str | Path | None
    source: str | None
    weights: str | None
    input: Input
    outputs: str | Sequence[str]
    precision: Precision | None
    image_shape: tuple[int, int] | None
    batch: int | None
    runtime: str | None
    opset: int | None
    atol: float | None
    max_drop: float
    max_images: int
    verify: bool
    stale: bool
    with_names: bool
    card: str | Path | None
    overwrite: bool


@dataclass(frozen=True, repr=False)
class ExportReport(Shown):
    """Result of an export.

    Attributes:
        path: The ONNX file.
        header: What it says about itself.
        proof: What was compared in this run; None where verification was left out, or the file is
            unchanged. The header's details hold the proof of either.
        num_bytes: Size of the file.
        seconds: All in all.
        card: The model card; None where none was asked for.
        is_unchanged: The file there was exported from the same head with the same options, and was
            left as it is.
        replaced: The model that was replaced, in a few words; empty where there was none.
    """

    path: Path
    header: Header
    proof: Proof | None
    num_bytes: int
    seconds: float
    card: Path | None = None
    is_unchanged: bool = False
    replaced: str = ""

    def _lines(self) -> Iterator[str]:
        details = self.header.details
        contract = Contract.from_dict(details["contract"], task=task_of(details))
        yield f"ExportReport: {self.path}, {self.num_bytes / 1e6:.1f} MB, {details['precision']}"
        yield f"{contract.input} to {', '.join(contract.outputs)}"
        yield f"classes: {listed(list(self.header.classes))}"
        if proof := details.get("proof"):
            yield f"proved on {counted(proof['num_images'], 'image')}"
        else:
            yield "not proved"
        if self.is_unchanged:
            yield "unchanged"


def made_from(head: Head, options: ExportOptions) -> dict[str, Any]:
    """Return the sha256 of the head and of the options, which decide the file."""
    chosen = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(options).items()
        if name not in _NOT_OF_THE_FILE and not (name in _LATER and value is None)
    } | {"outputs": output_names(options.outputs), "opset": options.own_opset}
    return {
        "head": head.sha256,
        "options": fingerprint_of(chosen | {"date": os.environ.get("SOURCE_DATE_EPOCH")}),
        "featx": describe_environment()["featx"],
    }


def is_current(header: Header, head: Head, head_path: Path, options: ExportOptions) -> bool:
    """Return whether a model was exported from this head, its features and these options."""
    if header.details.get("made_from") != made_from(head, options):
        return False
    if (proof := header.details.get("proof")) and "graph_sha256" not in proof:
        return False  # of an earlier featx
    path = find_features(head, head_path, options.features)
    try:
        features = open_features(path, verify=False)
    except ArtifactError:
        return not path.exists()  # moved away since the proof
    trained_on = head.header.details.get("made_from", {}).get("features")
    return bool(features.inputs_sha256 == trained_on)


def warn_of_licence(head: Head) -> None:
    """Warn where the licence of the weights restricts the use of a model."""
    if warning := licence_warning(head.header.spec["backbone"], head.header.details.get("licence")):
        log.warning("%s", warning)
