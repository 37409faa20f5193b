"""Where outputs lie: links are followed, and no output is another file of the same run."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path

from featx.errors import ArtifactError, ArtifactExists, ConfigError


def target_of(output: Path) -> Path:
    """Return the file that an output stands for: where its links lead, or the path itself.

    Raises:
        ArtifactError: The links lead in a circle, or into a folder that does not exist.
    """
    if not os.path.islink(output):  # noqa: PTH114  (pathlib raises for names that cannot be)
        return output
    target = Path(os.path.realpath(output))
    if target.is_symlink():
        raise ArtifactError(output, f"'{output}' is a link that leads back to itself; remove it.")
    if not target.parent.is_dir():
        raise ArtifactError(
            output,
            f"'{output}' is a link to '{target}', whose folder does not exist. Make the folder (or "
            "mount its disk), or remove the link.",
        )
    return target


def beside(output: Path, suffix: str) -> Path:
    """Return the path of a file that a run keeps beside its output, link or not.

    Raises:
        ArtifactError: As ``target_of``.
    """
    target = target_of(output)
    return target.with_name(target.name + suffix)


def run_files(features: Path) -> dict[str, Path]:
    """Return the files of an extraction, by what they are: the output and those beside it.

    Raises:
        ArtifactError: As ``target_of``.
    """
    return {
        f"the feature file '{features}'": features,
        f"the extraction log of '{features}'": beside(features, ".partial"),
        f"the lock of '{features}'": beside(features, ".lock"),
    }


def require_no_links(features: Path) -> None:
    """Check that none of the files beside an output is a link, which somebody else made.

    Raises:
        ArtifactExists: One is.
        ArtifactError: As ``target_of``.
    """
    for path in list(run_files(features).values())[1:]:
        if path.is_symlink():
            raise ArtifactExists(
                path, f"'{path}' is a link, where featx writes a file of its own; remove it."
            )


def require_apart(outputs: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    """Check that no output of a run would replace another of its files.

    Files are the same if their paths lead to the same place, or they are one file under two names.

    Args:
        outputs: What is written, by what it is: ``"the report"``.
        others: What is read, or is written beside an output.

    Raises:
        ConfigError: One would.
    """
    seen = {key: name for name, path in others.items() for key in _identities(path)}
    for name, path in outputs.items():
        for key in _identities(path):
            if key in seen:
                raise ConfigError(f"{name} '{path}' would replace {seen[key]}; give another path.")
        seen |= dict.fromkeys(_identities(path), f"{name} '{path}'")


def _identities(path: Path) -> Iterator[Hashable]:
    """Yield what two paths of one file have in common, whether it exists or not."""
    real = os.path.realpath(path)
    yield real
    folder, name = os.path.split(real)
    for place, own in ((folder, name), (real, "")):  # one folder can be mounted in two places
        try:
            status = Path(place).stat()
        except (OSError, ValueError):
            continue
        yield (status.st_dev, status.st_ino, own)
