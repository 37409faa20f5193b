"""What lies at the output already, and whether this run may build on it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from featx.artifact import free_path, partial_path, require_replaceable
from featx.errors import (
    ArtifactBusy,
    ArtifactError,
    ArtifactExists,
    ArtifactInvalid,
    ArtifactMismatch,
    ConfigError,
    counted,
)
from featx.extraction.options import ExtractOptions, ResolvedOptions
from featx.extraction.settings import Settings
from featx.features.file import FeatureFile, open_features
from featx.features.journal import has_rows, read_settings

_SHOWN = 3


@dataclass(frozen=True)
class Earlier:
    """The file and the log of earlier runs, and the settings they were made with.

    Attributes:
        output: The output.
        file: The feature file there.
        file_settings: Its settings.
        log_settings: Those of the log.
        recorded: Options of the file, or else of the log, as ``ExtractOptions`` has them.
    """

    output: Path
    file: FeatureFile | None = None
    file_settings: Settings | None = None
    log_settings: Settings | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> list[Settings]:
        """Those of the log, those of the file."""
        return [settings for settings in (self.log_settings, self.file_settings) if settings]

    def resolve(self, options: ExtractOptions) -> ResolvedOptions:
        """Return the options of a run: what is not given is as recorded.

        Raises:
            ArtifactMismatch: The file is of another backbone, and may not be replaced.
            BackboneError: The backbone is unknown.
            ConfigError: Options do not go together.
        """
        own = self.recorded.get("backbone")
        is_other = options.backbone not in (None, own)
        if self.file is None or not is_other or options.overwrite:
            start_anew = options.overwrite or is_other
            return options.resolved({} if start_anew else self.recorded)
        from featx.backbones.catalog import require_backbone

        backbone = str(options.backbone)
        require_backbone(backbone)  # a typo is no reason for another file
        raise self._refusal([f"backbone: expected '{backbone}', found '{own}'"], backbone)

    def file_for(self, settings: Settings, options: ResolvedOptions) -> FeatureFile | None:
        """Return the file if its rows are what these settings give, and may be taken.

        Raises:
            ArtifactMismatch: They are not, and it may not be replaced.
        """
        if self.file_settings is None:
            return None
        differences = settings.differences(self.file_settings, any_source=options.verify_content)
        if not differences:
            return None if options.restart else self.file
        if options.overwrite:
            return None
        only_moved = not settings.differences(self.file_settings, any_source=True)
        raise self._refusal(
            differences, _name_of(settings, self.file_settings, options), only_moved=only_moved
        )

    def _refusal(
        self, differences: list[str], name: str, *, only_moved: bool = False
    ) -> ArtifactMismatch:
        free = shlex.quote(str(free_path(self.output, name)))
        return ArtifactMismatch(
            self.output,
            f"'{self.output}' was made with other settings: {_brief(differences)}. "
            + ("If the images were only moved, use --verify-content. " if only_moved else "")
            + f"Use --overwrite to replace it, or -o {free} for a file of its own.",
        )

    def had_lower_limit(self, settings: Settings) -> bool:
        """Return whether images were left out that may have fewer pixels than are allowed now."""
        return any(earlier.max_pixels < settings.max_pixels for earlier in self.settings)

    def has_log_for(self, settings: Settings) -> bool:
        """Return whether the log's rows are what these settings give, or there is no log."""
        return not self._log_differences(settings)

    def require_log_for(self, settings: Settings, num_images: int) -> None:
        """Check that the log's rows are what these settings give.

        Raises:
            ArtifactMismatch: They are not.
        """
        differences = self._log_differences(settings)
        if differences and num_images:
            raise ArtifactMismatch(
                self.output,
                f"'{partial_path(self.output)}' keeps {counted(num_images, 'image')} of an "
                f"extraction that was not finished, with other settings: {_brief(differences)}. "
                "Finish it with those, discard it with --restart, or give another output with -o.",
            )

    def _log_differences(self, settings: Settings) -> list[str]:
        if self.log_settings is None:
            return []
        # Rows of a log are float32 whatever they will be stored as.
        return settings.differences(replace(self.log_settings, dtype=settings.dtype))


def _name_of(wanted: Settings, found: Settings, options: ResolvedOptions) -> str:
    """Return a word for what tells the wanted features from those of the file."""
    if wanted.source != found.source:
        return Path(wanted.source).stem
    if wanted.spec.weights_sha256 != found.spec.weights_sha256:
        return "random" if options.weights == "none" else Path(options.weights).stem
    for name in ("layer", "pool", "precision"):
        if getattr(wanted.spec, name) != getattr(found.spec, name):
            return str(getattr(wanted.spec, name))
    size = wanted.spec.preprocess.image_size
    if size != found.spec.preprocess.image_size:
        return f"{size}px"
    return wanted.dtype if wanted.dtype != found.dtype else ""


def _brief(differences: list[str]) -> str:
    """Return the first differences; another backbone alone makes a dozen."""
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def find_earlier(output: Path, options: ExtractOptions) -> Earlier:
    """Return what earlier runs left at an output; with ``restart``, no log.

    Raises:
        ArtifactExists: Something else lies there; or a damaged file, and may not be replaced.
        ArtifactInvalid: Something that is no extraction log lies in its place.
        ArtifactMissing: A file cannot be read.
        ArtifactBusy: Another program has it open, and may change it.
    """
    exists = require_replaceable(output, "features")
    partial = partial_path(output)
    record = read_settings(partial)
    log = None if options.restart or not record else Settings.of_log(record, path=partial)
    of_log = _of_log(record, log, partial) if record and log and has_rows(partial) else {}
    if not exists:
        return Earlier(output, log_settings=log, recorded=of_log)
    try:
        file = open_features(output)
        settings = Settings.of_file(file.header, path=output)
        return Earlier(output, file, settings, log, _of_file(file, settings))
    except ArtifactBusy:
        raise
    except ArtifactError as err:
        if options.overwrite:
            return Earlier(output, log_settings=log, recorded=of_log)
        raise ArtifactExists(
            output,
            f"'{output}' exists, and no rows can be taken from it. {err} Use --overwrite to "
            f"replace it, or -o {shlex.quote(str(free_path(output)))} for another file.",
        ) from err


def recorded_source(output: Path) -> str:
    """Return the source that the file at an output, or its unfinished extraction, is made from.

    Raises:
        ConfigError: Neither is there.
        ArtifactError: It cannot be read.
    """
    if not os.path.lexists(output):
        partial = partial_path(output)
        record = read_settings(partial)
        if not record:
            raise ConfigError(
                f"Say where the images are: '{output}' does not exist yet, which would know. "
                "Give a folder of images, or another source."
            )
        return Settings.of_log(record, path=partial).source
    require_replaceable(output, "features")
    return Settings.of_file(open_features(output, verify=False).header, path=output).source


_KINDS: dict[str, Any] = {
    **dict.fromkeys(("backbone", "weights", "pool", "decode", "precision", "dtype"), str),
    **dict.fromkeys(("layer", "crop"), str | None),
    **dict.fromkeys(("image_size", "resize"), int | None),
    **dict.fromkeys(("seed", "max_pixels"), int),
    **dict.fromkeys(("val_fraction", "max_bad"), int | float),
    "on_error": str,
}


def _of_file(file: FeatureFile, settings: Settings) -> dict[str, Any]:
    """Return the options that a file was made with; earlier versions noted fewer of them."""
    details = file.header.details
    handling = {"on_error": "skip" if file.skipped else "fail"} | {
        name: details[name] for name in ("val_fraction", "on_error", "max_bad") if name in details
    }
    return _options(settings, handling, file.path)


def _of_log(record: Mapping[str, Any], settings: Settings, path: Path) -> dict[str, Any]:
    return _options(settings, record.get("handling", {}), path)


def _options(settings: Settings, handling: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return recorded options as ``ExtractOptions`` has them.

    Raises:
        ArtifactInvalid: They are not as featx writes them.
    """
    try:
        own = {"dtype": settings.dtype, "max_pixels": settings.max_pixels}
        found = {**settings.request, **own, **handling}
        if wrong := [name for name, value in found.items() if not isinstance(value, _KINDS[name])]:
            raise TypeError(f"its {wrong[0]} is {found[wrong[0]]!r}")
        ExtractOptions(**found)
    except (KeyError, TypeError, ConfigError) as err:
        raise ArtifactInvalid(path, f"'{path}': its options are damaged ({err}).") from err
    return {name: value for name, value in found.items() if value is not None}
