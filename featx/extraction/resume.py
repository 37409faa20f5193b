"""The file and journal at the output, and whether this run may resume or update them.

Rows depend on the settings of their extraction, which file and journal keep. Rows of other settings
are refused, never mixed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from featx.artifact import (
    Header,
    canonical_json,
    differing_settings,
    free_path,
    partial_path,
    require_replaceable,
)
from featx.backbones.licences import licence_of, licence_warning
from featx.backbones.spec import BackboneSpec
from featx.errors import (
    ArtifactBusy,
    ArtifactError,
    ArtifactExists,
    ArtifactInvalid,
    ArtifactMismatch,
    BackboneError,
    ConfigError,
    counted,
    listed,
)
from featx.extraction.backbone import LazyBackbone, calibration_pixels
from featx.extraction.options import ExtractOptions, ResolvedOptions
from featx.features.file import FeatureFile, open_features
from featx.features.journal import has_rows, read_settings
from featx.features.records import RowLayout
from featx.images.sources import ImageSource, relabels
from featx.images.views import ViewsSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings of an extraction; ``request`` holds the options that resolved to ``spec``.

    ``views`` are those of ``ViewsSpec.to_dict``, None without any.
    """

    spec: BackboneSpec
    source: str
    dtype: str
    max_pixels: int
    request: Mapping[str, Any]
    weights: str
    environment: Mapping[str, str]
    views: Mapping[str, Any] | None = None

    @property
    def view_spec(self) -> ViewsSpec | None:
        return None if self.views is None else ViewsSpec.from_dict(self.views)

    @property
    def layout(self) -> RowLayout:
        """What a journal holds for an image: of vectors float32, whatever is stored later."""
        dtype = "float32" if self.spec.cut is None else self.dtype
        views = self.view_spec
        return RowLayout(self.spec.row_shape, dtype, views.num_views if views else 0)

    @property
    def origin_details(self) -> dict[str, str]:
        """What a header says of the weights: where they came from, and their licence if known."""
        licence = licence_of(self.spec.backbone, self.weights)
        return {"weights": self.weights} | ({"licence": licence} if licence else {})

    @classmethod
    def of_file(cls, header: Header, *, path: Path) -> Self:
        names = ("source", "dtype", "max_pixels", "request", "weights", "views")
        values = {name: header.details.get(name) for name in names}
        return cls.of(values | {"spec": header.spec, "environment": header.environment}, path=path)

    @classmethod
    def of(cls, values: Any, *, path: Path) -> Self:
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
            if settings.views is not None:
                ViewsSpec.from_dict(settings.views)  # raises where they are none
            return settings
        except (KeyError, TypeError, BackboneError, ConfigError) as err:
            raise ArtifactInvalid(
                path, f"'{path}' was written by another featx. Use restart=True, or another output."
            ) from err

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self) | {"spec": self.spec.to_dict()}
        if self.views is None:
            del values["views"]
        return values

    def differences(self, found: Settings, *, any_source: bool = False) -> list[str]:
        """Return one ``"name: expected …, found …"`` for each setting on which rows depend."""
        any_source = any_source or relabels(self.source, found.source)
        wanted, other = self._identity(any_source), found._identity(any_source)
        # With a higher limit than was found, every row is as it would be.
        other["max_pixels"] = max(other["max_pixels"], wanted["max_pixels"])
        if wanted["precision"] != other["precision"]:  # which says enough
            wanted["calibration"] = other["calibration"]
        return differing_settings(wanted, other)

    def _identity(self, any_source: bool) -> dict[str, Any]:
        """Return the values to compare: defaults included, calibration by its hash."""
        spec = self.spec.to_dict() | {"cut": self.spec.cut}
        spec.pop("shape", None)  # follows from the others
        ranges = hashlib.sha256(canonical_json(spec.pop("calibration", None)).encode()).hexdigest()
        own = {
            "dtype": self.dtype,
            "max_pixels": self.max_pixels,
            "preprocess": spec["preprocess"] | {"decode": self.spec.preprocess.decode},
            "calibration": f"ranges {ranges[:16]}",
            "views": _in_words(self.views),
        }
        return spec | own | ({} if any_source else {"source": self.source})

    def name_beside(self, found: Settings, options: ResolvedOptions) -> str:
        """Return a word for a file of these settings beside one of those found."""
        if self.source != found.source:
            return Path(self.source).stem
        if self.spec.weights_sha256 != found.spec.weights_sha256:
            return "random" if options.weights == "none" else Path(options.weights).stem
        for name in ("layer", "cut", "pool", "precision"):
            if getattr(self.spec, name) != getattr(found.spec, name):
                return str(getattr(self.spec, name) or self.spec.layer)
        if self.views != found.views:
            return f"{self.views['num_views']}-views" if self.views else "no-views"
        size = self.spec.preprocess.image_size
        if size != found.spec.preprocess.image_size:
            return f"{size}px"
        return self.dtype if self.dtype != found.dtype else ""


def _in_words(views: Mapping[str, Any] | None) -> str:
    """Return all that decides what views are, to compare and to read."""
    if views is None:
        return "none"
    rest = {name: value for name, value in views.items() if name not in ("num_views", "augment")}
    own = all(getattr(ViewsSpec(1), name) == _tuple(value) for name, value in rest.items())
    return f"{views['num_views']} ({','.join(views['augment']) or 'none'}{'' if own else rest})"


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def settle(
    options: ResolvedOptions, images: ImageSource, recorded: list[Settings], backbone: LazyBackbone
) -> Settings:
    """Return the settings of this run; the backbone is built where nothing recorded helps.

    Where the same request was made before, what it resolved to is known without the backbone. So
    a file keeps the ranges it was calibrated with, however its source grows.
    """
    request = options.request
    same = (
        settings
        for settings in recorded
        if _is_calibrated_for(settings, images, options)
        and request.resolves_to(
            settings.spec.weights_sha256,
            request=settings.request,
            origin=settings.weights,
            environment=settings.environment,
        )
    )
    before = next(same, None)
    settings = Settings(
        spec=before.spec if before else _new_spec(options, images, backbone),
        source=images.uri,
        dtype=options.dtype,
        max_pixels=options.max_pixels,
        request=request.to_dict(),
        weights=before.weights if before else backbone.origin(),
        # Of the rows there are, should the backbone have nothing to do.
        environment=next((settings.environment for settings in recorded), {}),
        views=options.view_spec.to_dict() if options.view_spec else None,
    )
    warning = licence_warning(options.backbone, settings.origin_details.get("licence"))
    if warning and before is None:  # the run that recorded it said it
        log.warning("%s", warning)
    return settings


def _new_spec(
    options: ResolvedOptions, images: ImageSource, backbone: LazyBackbone
) -> BackboneSpec:
    spec = backbone.spec()
    if options.precision != "int8":
        return spec
    pixels = calibration_pixels(images, spec.preprocess, max_pixels=options.max_pixels)
    return backbone.calibrated(pixels)


def _is_calibrated_for(settings: Settings, images: ImageSource, options: ResolvedOptions) -> bool:
    """Return False for int8 ranges of another source whose file is to be replaced."""
    same = settings.source == images.uri or options.verify_content or not options.overwrite
    return same or settings.spec.calibration is None


@dataclass(frozen=True)
class ExistingOutput:
    """The file and journal of previous runs, with their settings, and the options of either."""

    output: Path
    file: FeatureFile | None = None
    file_settings: Settings | None = None
    journal_settings: Settings | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    plan_settings: Settings | None = None

    @property
    def settings(self) -> list[Settings]:
        """Those of the journal, those of the file, those that all parts share."""
        recorded = (self.journal_settings, self.file_settings, self.plan_settings)
        return [settings for settings in recorded if settings]

    def completed_by(
        self, settings: Settings, handling: Mapping[str, Any], path: Path
    ) -> ExistingOutput:
        """Return the same with the settings of other parts, as the plan at ``path`` has them."""
        options = self.options or _recorded_options(settings, handling, path)
        return replace(self, options=options, plan_settings=settings)

    def resolve(self, options: ExtractOptions) -> ResolvedOptions:
        """Return the options of a run: what is not given is as recorded."""
        own = self.options.get("backbone")
        is_other = options.backbone not in (None, own)
        if self.file is None or not is_other or options.overwrite:
            start_anew = options.overwrite or is_other
            return options.resolved({} if start_anew else self.options)
        backbone = str(options.backbone)
        raise self._refusal([f"backbone: expected '{backbone}', found '{own}'"], backbone)

    def file_for(self, settings: Settings, options: ResolvedOptions) -> FeatureFile | None:
        """Return the file if its rows have these settings and may be taken."""
        if self.file_settings is None:
            return None
        differences = settings.differences(self.file_settings, any_source=options.verify_content)
        if not differences:
            return None if options.restart else self.file
        if options.overwrite:
            return None
        only_moved = not settings.differences(self.file_settings, any_source=True)
        name = settings.name_beside(self.file_settings, options)
        raise self._refusal(differences, name, only_moved=only_moved)

    def _refusal(
        self, differences: list[str], name: str, *, only_moved: bool = False
    ) -> ArtifactMismatch:
        free = shlex.quote(str(free_path(self.output, name)))
        return ArtifactMismatch(
            self.output,
            f"'{self.output}' was made with other settings: {listed(differences, 3, '; ')}. "
            + ("If the images were only moved, use verify_content=True. " if only_moved else "")
            + f"Use overwrite=True to replace it, or another output, such as {free}.",
        )

    def had_lower_limit(self, settings: Settings) -> bool:
        """Return whether images were left out that may have fewer pixels than are allowed now."""
        return any(existing.max_pixels < settings.max_pixels for existing in self.settings)

    def has_journal_for(self, settings: Settings) -> bool:
        """Return whether the journal's rows have these settings, or there is no journal."""
        return not self._journal_differences(settings)

    def require_journal_for(self, settings: Settings, num_images: int) -> None:
        """Check that the journal's rows have these settings."""
        differences = self._journal_differences(settings)
        if differences and num_images:
            raise ArtifactMismatch(
                self.output,
                f"'{partial_path(self.output)}' keeps {counted(num_images, 'image')} of an "
                "extraction that was not finished, with other settings: "
                f"{listed(differences, 3, '; ')}. "
                "Finish it with those, discard it with restart=True, or give another output.",
            )

    def _journal_differences(self, settings: Settings) -> list[str]:
        if self.journal_settings is None:
            return []
        found = self.journal_settings
        if settings.spec.cut is None:  # rows are float32 whatever they will be stored as
            found = replace(found, dtype=settings.dtype)
        return settings.differences(found)


def find_existing(output: Path, options: ExtractOptions) -> ExistingOutput:
    """Return the file and journal at an output; with ``restart``, no journal."""
    exists = require_replaceable(output, "features")
    partial = partial_path(output)
    record = read_settings(partial)
    journal, recorded = None, dict[str, Any]()
    if record and not options.restart:
        journal = Settings.of(record.get("settings"), path=partial)
        if has_rows(partial):
            recorded = _recorded_options(journal, record.get("handling", {}), partial)
    if not exists:
        return ExistingOutput(output, journal_settings=journal, options=recorded)
    try:
        file = open_features(output)
        settings = Settings.of_file(file.header, path=output)
        details = file.header.details
        handling = {"on_error": "skip" if file.skipped else "fail"} | {  # old files note less
            name: details[name]
            for name in ("val_fraction", "on_error", "max_bad")
            if name in details
        }
        own = _recorded_options(settings, handling, output)
        return ExistingOutput(output, file, settings, journal, own)
    except ArtifactBusy:
        raise
    except ArtifactError as err:
        if options.overwrite:
            return ExistingOutput(output, journal_settings=journal, options=recorded)
        raise ArtifactExists(
            output,
            f"'{output}' exists, and no rows can be taken from it. {err} Use overwrite=True to "
            f"replace it, or another output, such as {shlex.quote(str(free_path(output)))}.",
        ) from err


def recorded_source(output: Path) -> str:
    """Return the source that the file at an output, or its unfinished extraction, is made from."""
    if not os.path.lexists(output):
        partial = partial_path(output)
        record = read_settings(partial)
        if not record:
            raise ConfigError(
                f"Say where the images are: '{output}' does not exist yet, which would know. "
                "Give a folder of images, or another source."
            )
        return Settings.of(record.get("settings"), path=partial).source
    require_replaceable(output, "features")
    return Settings.of_file(open_features(output, verify=False).header, path=output).source


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("backbone", "weights", "pool", "decode", "precision", "dtype"), str),
    **dict.fromkeys(("layer", "cut", "crop"), str | None),
    **dict.fromkeys(("image_size", "resize"), int | None),
    **dict.fromkeys(("seed", "max_pixels", "views"), int),
    **dict.fromkeys(("val_fraction", "max_bad"), int | float),
    **dict.fromkeys(("on_error", "augment"), str),
}


def _recorded_options(
    settings: Settings, handling: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return recorded options as ``ExtractOptions`` has them."""
    try:
        own: dict[str, Any] = {"dtype": settings.dtype, "max_pixels": settings.max_pixels}
        if views := settings.view_spec:
            augment = ",".join(views.augment) or "none"
            own |= {"views": views.num_views, "augment": augment}
        found = {**settings.request, **own, **handling}
        if wrong := [name for name, value in found.items() if not isinstance(value, _KINDS[name])]:
            raise TypeError(f"its {wrong[0]} is {found[wrong[0]]!r}")
        ExtractOptions(**found)
    except (KeyError, TypeError, ConfigError, BackboneError) as err:
        raise ArtifactInvalid(path, f"'{path}': its options are damaged ({err}).") from err
    return {name: value for name, value in found.items() if value is not None}
