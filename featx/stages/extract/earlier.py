"""What lies at the output already, and whether this run may build on it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from featx.artifact import partial_path
from featx.errors import ArtifactError, ArtifactExists, ArtifactMismatch
from featx.features.file import FeatureFile, open_features
from featx.features.journal import read_settings
from featx.stages.extract.options import ExtractOptions
from featx.stages.extract.settings import Settings

_SHOWN = 3


@dataclass(frozen=True)
class Earlier:
    """The file and the log of earlier runs, and the settings they were made with."""

    output: Path
    file: FeatureFile | None = None
    file_settings: Settings | None = None
    log_settings: Settings | None = None

    @property
    def settings(self) -> list[Settings]:
        """Those of the log, those of the file."""
        return [settings for settings in (self.log_settings, self.file_settings) if settings]

    def file_for(self, settings: Settings, options: ExtractOptions) -> FeatureFile | None:
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
        raise ArtifactMismatch(
            self.output,
            f"'{self.output}' was made with other settings: {_brief(differences)}. "
            + ("If the images were only moved, use --verify-content. " if only_moved else "")
            + "Use --overwrite to replace it, or -o for another path.",
        )

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
                f"'{partial_path(self.output)}' keeps {num_images:,} images of an extraction that "
                f"was not finished, with other settings: {_brief(differences)}. Finish it with "
                "those, discard it with --restart, or give another output with -o.",
            )

    def _log_differences(self, settings: Settings) -> list[str]:
        if self.log_settings is None:
            return []
        # Rows of a log are float32 whatever they will be stored as.
        return settings.differences(replace(self.log_settings, dtype=settings.dtype))


def _brief(differences: list[str]) -> str:
    """Return the first differences; another backbone alone makes a dozen."""
    more = len(differences) - _SHOWN
    return "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def find_earlier(output: Path, options: ExtractOptions) -> Earlier:
    """Return what earlier runs left at an output; with ``restart``, no log.

    Raises:
        ArtifactExists: Something else lies there, or a damaged file, and may not be replaced.
        ArtifactInvalid: Something that is no extraction log lies in its place.
        ArtifactMissing: A file cannot be read.
    """
    partial = partial_path(output)
    record = read_settings(partial)
    log = None if options.restart or not record else Settings.of_log(record, path=partial)
    if not os.path.lexists(output):
        return Earlier(output, log_settings=log)
    try:
        file = open_features(output)
        return Earlier(output, file, Settings.of_file(file.header, path=output), log)
    except ArtifactError as err:
        if options.overwrite:
            return Earlier(output, log_settings=log)
        raise ArtifactExists(
            output,
            f"'{output}' exists, and no rows can be taken from it. {err} Use --overwrite to "
            "replace it, or -o for another path.",
        ) from err
