"""The account of the images that were not used: as an error, or as a file for machines."""

from __future__ import annotations

import json
from pathlib import Path

from featx.artifact import publishing, require_writable
from featx.errors import ArtifactExists, BadImages, ConfigError
from featx.features.plan import Plan
from featx.images.sources import ImageSource
from featx.stages.extract.options import ResolvedOptions

_KEYS = dict.fromkeys(("source", "output", "num_images", "num_rows", "ignored", "bad")).keys()


def require_report_path(path: Path, output: Path) -> None:
    """Check that a report may be written: the path is free, or holds an earlier report.

    Raises:
        ConfigError: It is the output.
        ArtifactExists: Something else is there.
        ArtifactError: It cannot be written.
    """
    if path.resolve() == output.resolve():
        raise ConfigError(f"the report would replace '{output}', the feature file.")
    require_writable(path, overwrite=True)
    try:
        earlier = json.loads(path.read_bytes())
        is_report = isinstance(earlier, dict) and earlier.keys() == _KEYS
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError):
        is_report = False
    if not is_report:
        raise ArtifactExists(
            path, f"'{path}' exists, and is no earlier report. Give --report another path."
        )


def bad_images(plan: Plan) -> tuple[tuple[str, str], ...]:
    """Return ``(sample_id, reason)`` of each image without a row, in source order."""
    return tuple((plan.skipped[i].sample_id, plan.skipped[i].reason) for i in sorted(plan.skipped))


def too_many_are_bad(plan: Plan, options: ResolvedOptions) -> bool:
    """Return whether more images are bad than may be left out."""
    return options.on_error == "skip" and len(plan.skipped) > options.max_bad * len(plan.rows)


def account_for_bad(
    plan: Plan, images: ImageSource, output: Path, options: ResolvedOptions
) -> None:
    """Write the report that was asked for; raise if the bad images are no longer acceptable.

    Raises:
        BadImages: There are any and none may be, there are too many, or there is no other.
        ArtifactError: The report cannot be written.
    """
    bad, total = bad_images(plan), len(plan.rows)
    if options.report:
        _write(options.report, plan, images, output)
    if not bad:
        return
    kept = f"{int((plan.rows >= 0).sum()):,} others are kept."
    if len(bad) == total:
        raise BadImages(bad, total, "None is left.")
    if options.on_error == "fail":
        raise BadImages(
            bad,
            total,
            "Repair or remove them, or leave them out with --on-error skip, and run the command "
            f"again: the {kept}",
        )
    if too_many_are_bad(plan, options):
        raise BadImages(
            bad,
            total,
            f"That is more than the {options.max_bad:.2%} allowed by --max-bad. Repair them or "
            f"allow more, and run the command again: the {kept}",
        )


def _write(path: Path, plan: Plan, images: ImageSource, output: Path) -> None:
    values = (
        images.uri,
        str(output),
        len(plan.rows),
        int((plan.rows >= 0).sum()),
        dict(images.ignored),
        [{"sample_id": name, "reason": reason} for name, reason in bad_images(plan)],
    )
    account = dict(zip(_KEYS, values, strict=True))
    with publishing(path, overwrite=True) as temporary:
        temporary.write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
