"""The spec of a feature, and the request that it was resolved from, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, get_args

from featx.artifact import file_sha256, fingerprint_of
from featx.artifact.keywords import require_types
from featx.backbones.table import require_backbone
from featx.errors import BackboneError, ConfigError
from featx.images.preprocess import Crop, Decode, PreprocessSpec
from featx.packages import installed

BUNDLED_WEIGHTS = Path(__file__).with_name("tiny.safetensors")
WEIGHTS_SUFFIXES = frozenset({".pth", ".pt", ".safetensors"})

Pool = Literal["auto", "none", "avg", "max", "cls", "flatten", "cls+avg", "map"]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]
SPEC_FROM = ("featx", "torch", "torchvision")
"""Packages whose versions decide what a request resolves to."""
INPUT = "input"
"""The cut before the whole network: uint8 pixels."""
PENULTIMATE = "penultimate"
"""No cut: the features are vectors."""
SCHEME = 1
"""How a graph is quantised by a table; another number where the same table gives other bytes."""


@dataclass(frozen=True)
class Calibration:
    """The ranges of a graph's activations, ``(tensor, lowest, highest)``, which int8 needs to know.

    What is not in the table stays float32, so the table alone decides what the quantised graph is.
    """

    ranges: tuple[tuple[str, float, float], ...]
    scheme: int = SCHEME

    def to_dict(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {"scheme": self.scheme, "ranges": {name: [a, b] for name, a, b in self.ranges}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the table that ``to_dict`` described."""
        try:
            scheme, ranges = values["scheme"], values["ranges"]
            table = tuple((name, float(a), float(b)) for name, (a, b) in sorted(ranges.items()))
            if not all(map(math.isfinite, (x for _, a, b in table for x in (a, b)))):
                raise ValueError("a range is not finite")
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise BackboneError(f"Not a table of int8 ranges ({err}).") from err
        if scheme != SCHEME:
            raise BackboneError(
                f"The int8 ranges were made for scheme {scheme} of quantising; this featx has "
                f"{SCHEME}. Extract the features again."
            )
        return cls(table, scheme)


@dataclass(frozen=True)
class BackboneSpec:
    """Everything that decides what a feature means.

    Attributes:
        backbone: Name in the catalog.
        weights_sha256: Of the weights file; of the tensors where they come from no file.
        layer: Node of the model's graph that the network ends at.
        pool: How that node's maps or tokens became a vector; ``"none"`` where it gives one.
        num_features: Length of the vector.
        preprocess: From pixels to the network's input.
        precision: Arithmetic of the forward pass.
        calibration: What int8 knows of the activations; None with any other precision.
        cut: Module whose input is cached in place of the vector, or ``"input"``; None for none.
        shape: Of one image's activations at the cut, ``(H, W, 3)`` at the input.
    """

    backbone: str
    weights_sha256: str
    layer: str
    pool: Pool
    num_features: int
    preprocess: PreprocessSpec
    precision: Precision = "fp32"
    calibration: Calibration | None = None
    cut: str | None = None
    shape: tuple[int, ...] | None = None

    @property
    def fingerprint(self) -> str:
        """The spec's identity, 64 hexadecimal digits."""
        return fingerprint_of(self.to_dict())

    @property
    def in_float32(self) -> Self:
        """The spec of the same backbone in fp32."""
        return replace(self, precision="fp32", calibration=None)

    @property
    def without_cut(self) -> Self:
        """The spec of the vectors that stem and tail give together."""
        return replace(self, cut=None, shape=None)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of what is cached for an image."""
        return self.shape or (self.num_features,)

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as JSON values; what files without it do not know is left out."""
        values = asdict(self) | {"preprocess": self.preprocess.to_dict()}
        if self.calibration is not None:
            values["calibration"] = self.calibration.to_dict()
        if self.shape is not None:
            values["shape"] = list(self.shape)
        for name in ("calibration", "cut", "shape"):
            if values[name] is None:
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the spec that ``to_dict`` described.

        Raises:
            BackboneError: A value is missing or unknown.
            ConfigError: A preprocessing value is out of range.
        """
        try:
            parts = dict(values)
            parts["preprocess"] = PreprocessSpec.from_dict(values["preprocess"])
            if "calibration" in parts:
                parts["calibration"] = Calibration.from_dict(parts["calibration"])
            if "shape" in parts:
                parts["shape"] = tuple(parts["shape"])
            spec = cls(**parts)
        except (KeyError, TypeError) as err:
            raise BackboneError(f"Not the spec of a backbone ({err}).") from err
        if spec.precision not in get_args(Precision):
            raise BackboneError(f"This featx has no precision '{spec.precision}'.")
        if (spec.precision == "int8") != (spec.calibration is not None):
            raise BackboneError("Not the spec of a backbone (int8 and its ranges go together).")
        if (spec.cut is None) != (spec.shape is None):
            raise BackboneError("Not the spec of a backbone (a cut and its shape go together).")
        return spec


@dataclass(frozen=True)
class BackboneOptions:
    """What is asked of a backbone; None leaves an option open.

    Attributes:
        backbone: Name in the catalog; ``"ResNet-18"`` becomes ``"resnet18"``.
        weights: ``"default"``, ``"none"`` (seeded random), a torchvision weights name or a file.
        layer: Node of the backbone's graph; by default the penultimate one.
        pool: How maps or tokens become a vector.
        cut: Module whose input is cached, unpooled, in place of a vector; ``"input"`` caches pixels
            and ``"penultimate"`` is not a cut.
        image_size: Input of the backbone, pixels; by default the weights' own.
        resize: Length of the shorter side before the crop, pixels; by default the weights' own, or
            ``image_size`` where that is given.
        crop: ``"center"``, ``"none"``, ``"squash"`` or ``"border"``; by default the weights' own.
        decode: ``"full"``; or ``"scaled"``: JPEGs much larger than the resize target are decoded at
            a half, a quarter or an eighth of their size.
        seed: Of random weights.
        precision: Arithmetic of the forward pass: ``"fp32"``; ``"int8"`` on the CPU, calibrated
            with the source's images; ``"bf16"`` with torch; ``"tf32"`` and ``"fp16"`` on a GPU.

    Raises:
        ConfigError: A value is unknown.
        BackboneError: The backbone is unknown.
    """

    backbone: str | None = None
    weights: str | None = None
    layer: str | None = None
    pool: Pool | None = None
    cut: str | None = None
    image_size: int | None = None
    resize: int | None = None
    crop: Crop | None = None
    decode: Decode | None = None
    seed: int | None = None
    precision: Precision | None = None

    def __post_init__(self) -> None:
        require_types(self)
        if self.backbone is not None:
            object.__setattr__(self, "backbone", require_backbone(self.backbone))
        if self.cut is not None and self.layer is not None:
            raise ConfigError(
                "cut=… and layer=… exclude each other: a cut is the unpooled input of a module, a "
                "layer the pooled output of one. Leave one of them out."
            )
        if self.cut is not None and self.precision == "int8":
            raise ConfigError(
                "activations at a cut are not calculated in int8: leave out precision='int8'."
            )


class BackboneKeywords(TypedDict, total=False):
    """Options of ``BackboneOptions`` by keyword."""

    backbone: str | None
    weights: str | None
    layer: str | None
    pool: Pool | None
    cut: str | None
    image_size: int | None
    resize: int | None
    crop: Crop | None
    decode: Decode | None
    seed: int | None
    precision: Precision | None


@dataclass(frozen=True)
class BackboneRequest(BackboneOptions):
    """Options of a backbone that leave nothing open but to the weights' own preprocessing."""

    backbone: str = "resnet18"
    weights: str = "default"
    pool: Pool = "auto"
    decode: Decode = "full"
    seed: int = 0
    precision: Precision = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON values, the path of a weights file made absolute.

        Defaults of later options are left out: requests made before there was a choice stay the
        same.
        """
        file = weights_file(self.weights)
        values = asdict(self) | ({} if file is None else {"weights": str(file)})
        if self.precision == "fp32":
            del values["precision"]
        if self.decode == "full":
            del values["decode"]
        if self.cut is None:
            del values["cut"]
        return values

    def resolves_to(
        self,
        weights_sha256: str,
        *,
        request: object,
        origin: str,
        environment: Mapping[str, str],
    ) -> bool:
        """Return whether a spec that was recorded for a request is still that of this one.

        Args:
            weights_sha256: Of that spec.
            request: The recorded one, JSON values.
            origin: Of its weights.
            environment: Versions it was worked out with; of a package not here, any will do.
        """
        names = spec_from(self.backbone)
        found = {name: installed(name) for name in names}
        same = all(environment.get(name) == here for name, here in found.items() if here)
        return same and request == self.to_dict() and has_sha256(origin, weights_sha256)


def spec_from(backbone: str) -> tuple[str, ...]:
    """Return the packages whose versions decide what a request of a backbone resolves to."""
    uses_timm = backbone == "lite0" or backbone.startswith("timm/")
    return (*SPEC_FROM, "timm") if uses_timm and find_spec("timm") else SPEC_FROM


def has_sha256(origin: str, expected: str) -> bool:
    """Return whether weights of an origin are known to be those of a sha256, without loading."""
    scheme, _, rest = origin.partition(":")
    if scheme not in ("file", "bundled"):
        return True  # an official name means one file, a seed one set of numbers
    try:
        return file_sha256(BUNDLED_WEIGHTS if scheme == "bundled" else Path(rest)) == expected
    except OSError:
        return False


def weights_file(choice: str) -> Path | None:
    """Return the absolute path where a choice of weights is a file, None where it is a name."""
    if choice in ("default", "none"):
        return None
    path = Path(choice)
    if path.suffix in WEIGHTS_SUFFIXES or path.is_file():
        return path.expanduser().resolve()
    return None
