"""What a row depends on: compared with the file and the log there are, kept in both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from featx.artifact import Header, canonical_json, differing_settings
from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactInvalid, BackboneError, ConfigError
from featx.extraction.backbone import LazyBackbone
from featx.extraction.calibration import calibration_pixels
from featx.extraction.options import ResolvedOptions
from featx.images.sources import ImageSource


@dataclass(frozen=True)
class Settings:
    """The settings of an extraction.

    Attributes:
        spec: What a feature means.
        source: The source's address.
        dtype: What the features are stored as.
        max_pixels: Images with more are not used.
        request: What was asked for and came to the spec, JSON values.
        weights: Origin of the weights.
        environment: Versions, device and engine; provenance, not compared.
    """

    spec: BackboneSpec
    source: str
    dtype: str
    max_pixels: int
    request: Mapping[str, Any]
    weights: str
    environment: Mapping[str, str]

    @classmethod
    def of_file(cls, header: Header, *, path: Path) -> Self:
        """Return the settings a feature file was made with.

        Raises:
            ArtifactInvalid: They are not all there.
        """
        names = ("source", "dtype", "max_pixels", "request", "weights")
        values = {name: header.details.get(name) for name in names}
        return cls._of(values | {"spec": header.spec, "environment": header.environment}, path=path)

    @classmethod
    def of_log(cls, record: Mapping[str, Any], *, path: Path) -> Self:
        """Return the settings that record 0 of an extraction log holds.

        Raises:
            ArtifactInvalid: They are not all there.
        """
        return cls._of(record.get("settings"), path=path)

    @classmethod
    def _of(cls, values: Any, *, path: Path) -> Self:
        try:
            settings = cls(**(dict(values) | {"spec": BackboneSpec.from_dict(values["spec"])}))
            for value, kind in (
                (settings.source, str),
                (settings.weights, str),
                (settings.dtype, str),
                (settings.max_pixels, int),
                (settings.environment, Mapping),
            ):
                if not isinstance(value, kind):
                    raise TypeError(f"{value!r} is no {kind.__name__}")
            return settings
        except (KeyError, TypeError, BackboneError, ConfigError) as err:
            raise ArtifactInvalid(
                path, f"'{path}' was written by another featx. Use --restart, or another output."
            ) from err

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, for record 0."""
        return asdict(self) | {"spec": self.spec.to_dict()}

    def differences(self, found: Settings, *, any_source: bool = False) -> list[str]:
        """Return one ``"name: expected …, found …"`` for each setting on which rows depend.

        With a higher limit of pixels than was found, every row is as it would be.
        """
        wanted, other = self._identity(any_source), found._identity(any_source)
        other["max_pixels"] = max(other["max_pixels"], wanted["max_pixels"])
        if wanted["precision"] != other["precision"]:  # which says enough
            wanted["calibration"] = other["calibration"]
        return differing_settings(wanted, other)

    def _identity(self, any_source: bool) -> dict[str, Any]:
        """Return what to compare, nothing left out where it is the default, and in few words."""
        spec = self.spec.to_dict()
        ranges = hashlib.sha256(canonical_json(spec.pop("calibration", None)).encode()).hexdigest()
        own = {
            "dtype": self.dtype,
            "max_pixels": self.max_pixels,
            "preprocess": spec["preprocess"] | {"decode": self.spec.preprocess.decode},
            "calibration": f"ranges {ranges[:16]}",
        }
        return spec | own | ({} if any_source else {"source": self.source})


def settle(
    options: ResolvedOptions, images: ImageSource, recorded: list[Settings], backbone: LazyBackbone
) -> Settings:
    """Return the settings of this run.

    Where the same request was made before, what it came to then is known without the backbone. So
    a file keeps the ranges it was calibrated with, however its source grows.

    Args:
        options: Of the run.
        images: The source.
        recorded: Of the file and the log there are.
        backbone: Is built where nothing recorded helps.

    Raises:
        BackboneError: Backbone or weights cannot be used, or not in int8.
        ConfigError: An option does not fit the backbone.
        SourceError: There is no image to calibrate int8 with.
    """
    request = options.request
    before = next(
        (
            settings
            for settings in recorded
            if _is_calibrated_for(settings, images, options)
            and request.comes_to(
                settings.spec.weights_sha256,
                request=settings.request,
                origin=settings.weights,
                environment=settings.environment,
            )
        ),
        None,
    )
    return Settings(
        spec=before.spec if before else _new_spec(options, images, backbone),
        source=images.uri,
        dtype=options.dtype,
        max_pixels=options.max_pixels,
        request=request.to_dict(),
        weights=before.weights if before else backbone.origin(),
        # Of the rows there are, should the backbone have nothing to do.
        environment=next((settings.environment for settings in recorded), {}),
    )


def _is_calibrated_for(settings: Settings, images: ImageSource, options: ResolvedOptions) -> bool:
    """Return False for int8 ranges of another source whose file is to be replaced."""
    same = settings.source == images.uri or options.verify_content or not options.overwrite
    return same or settings.spec.calibration is None


def _new_spec(
    options: ResolvedOptions, images: ImageSource, backbone: LazyBackbone
) -> BackboneSpec:
    spec = backbone.spec()
    if options.precision != "int8":
        return spec
    return backbone.calibrated(
        calibration_pixels(images, spec.preprocess, max_pixels=options.max_pixels)
    )
