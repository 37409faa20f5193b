"""Check the three files of a folder: which are current, and the commands that fix the others."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from featx.artifact import Written, is_own, is_unfinished, partial_path
from featx.errors import (
    ArtifactError,
    ArtifactMismatch,
    ArtifactMissing,
    ConfigError,
    SourceError,
    counted,
)
from featx.stages.check.stage import CheckOptions, compare_features

if TYPE_CHECKING:
    from featx.heads.head import Head

State = Literal["current", "stale", "missing", "unfinished", "damaged", "unchecked"]

FEATURES, HEAD, MODEL = "features.h5", "head.safetensors", "model.onnx"
DEFAULT_FOLDER = Path("artifacts")
T = TypeVar("T")


@dataclass(frozen=True)
class FileStatus:
    """Whether one file is current.

    Attributes:
        path: The file.
        state: ``"current"``: what its inputs give; ``"stale"``: they have changed; ``"missing"``;
            ``"unfinished"``: an extraction was interrupted; ``"damaged"``; or ``"unchecked"``: what
            it was made from is not there to compare with.
        reason: Why it is not current; empty where it is.
        command: What brings it up to date; empty where it is, where another file comes first,
            and where featx did not write the file.
    """

    path: Path
    state: State
    reason: str = ""
    command: str = ""


@dataclass(frozen=True)
class StatusReport:
    """Whether features, head and model of a folder are current."""

    folder: Path
    files: tuple[FileStatus, FileStatus, FileStatus]

    @property
    def is_current(self) -> bool:
        """Whether all three are."""
        return all(file.state == "current" for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        files = [asdict(file) | {"path": str(file.path)} for file in self.files]
        return {"folder": str(self.folder), "is_current": self.is_current, "files": files}


def status(folder: str | Path = DEFAULT_FOLDER) -> StatusReport:
    """Return whether features, head and model of a folder are what their inputs give today.

    Images are compared by size and times; only those that look changed are read.

    Args:
        folder: Where ``features.h5``, ``head.safetensors`` and ``model.onnx`` lie, or are to.

    Raises:
        ConfigError: It is a file.
    """
    from featx.heads.head import open_head

    folder = Path(folder)
    if os.path.isfile(folder):  # noqa: PTH113 as below
        raise ConfigError(f"'{folder}' is a file; give the folder of the three files.")
    opened = _open(folder / HEAD, "head", _command("train-head", folder), open_head)
    head = None if isinstance(opened, FileStatus) else opened
    head_status = opened if isinstance(opened, FileStatus) else _head_status(folder, opened)
    model_status = _model_status(folder, head)
    if head_status.state == "stale" and model_status.state == "current":
        model_status = FileStatus(model_status.path, "stale", "its head is stale")
    return StatusReport(folder, (_features_status(folder, head), head_status, model_status))


def _open(path: Path, kind: Written, command: str, read: Callable[[Path], T]) -> T | FileStatus:
    """Return the content of a file, or its status where it cannot be opened."""
    try:
        return read(path)
    except ArtifactMissing:
        return FileStatus(path, "missing", command=command)
    except ArtifactError as err:
        return _damaged(path, kind, err, command)


def _damaged(path: Path, kind: Written, err: ArtifactError, command: str) -> FileStatus:
    """Return the status of a file that cannot be used; featx does not replace a foreign one."""
    if is_own(path, kind):
        return FileStatus(path, "damaged", str(err), command)
    return FileStatus(path, "damaged", f"{err} Move it: featx does not replace it.")


def _command(stage: str, folder: Path, *arguments: str) -> str:
    """Return the command that makes a file of a folder; short for the default folder."""
    features, head, model = (str(folder / name) for name in (FEATURES, HEAD, MODEL))
    paths = {
        "extract": ("-o", features),
        "train-head": (features, "-o", head),
        "export": (head, "--onnx", model),
    }[stage]
    return shlex.join(("featx", stage, *arguments, *(() if folder == DEFAULT_FOLDER else paths)))


def _extract_again(folder: Path, head: Head | None, *arguments: str) -> str:
    """Return the command that makes features again, with what a head knows of them."""
    if head is None:
        return _command("extract", folder, "photos/", *arguments)
    details = head.header.details
    scheme, _, name = str(details["weights"]).partition(":")
    weights = "none" if scheme == "random" else name
    arguments = (*(("-w", weights) if weights else ()), *arguments)
    source, backbone = str(details["source"]), str(head.header.spec["backbone"])
    return _command("extract", folder, source, "-b", backbone, *arguments)


def _features_status(folder: Path, head: Head | None) -> FileStatus:
    path, command = folder / FEATURES, _command("extract", folder)
    # os.path answers where pathlib raises: for a folder that may not be searched.
    if os.path.exists(partial_path(path)):  # noqa: PTH110
        return FileStatus(path, "unfinished", _progress(path), command)
    if not os.path.exists(path):  # noqa: PTH110
        return FileStatus(path, "missing", command=_extract_again(folder, head))
    try:
        found = compare_features(path, None, CheckOptions())
    except SourceError as err:
        moved = _command("extract", folder, "NEW_FOLDER", "--verify-content")
        return FileStatus(path, "unchecked", str(err), moved)
    except ArtifactError as err:
        return _damaged(path, "features", err, _extract_again(folder, head, "--overwrite"))
    if found.is_fresh:
        return FileStatus(path, "current")
    if found.settings:  # of the file's own, only the weights can be others now
        command = _command("extract", folder, "-w", "WEIGHTS_FILE")
    return FileStatus(path, "stale", found.changes, command)


def _progress(path: Path) -> str:
    from featx.features.journal import read_progress

    try:
        done, total = read_progress(partial_path(path))
    except ArtifactError as err:
        return str(err)
    what = "the extraction" if is_unfinished(path) else "an update"
    return f"{what} was interrupted: {done:,} of {counted(total, 'image')} done"


def _head_status(folder: Path, head: Head) -> FileStatus:
    from featx.classifier.staleness import staleness_of
    from featx.features.file import open_features

    given = head.trained_with.items()
    options = [(f"--{name}", value) for name, value in given if value not in ("auto", "linear")]
    path, command = folder / HEAD, _command("train-head", folder, *chain.from_iterable(options))
    try:
        found = staleness_of(head, open_features(folder / FEATURES, verify=False))
    except ArtifactMismatch as err:
        return FileStatus(path, "stale", str(err), command)
    except ArtifactError as err:
        return FileStatus(path, "unchecked", f"Its features cannot be read. {err}")
    reason = ""
    if not found.known:
        reason = "it comes from an earlier featx and does not say what trained it"
    elif found.changes:
        reason = str(found.changes)
    elif found.outdated:
        reason = f"its scores are of earlier {' and '.join(found.outdated)} images"
    return FileStatus(path, "stale", reason, command) if reason else FileStatus(path, "current")


def _model_status(folder: Path, head: Head | None) -> FileStatus:
    from featx.classifier.seal import read_sealed_header

    path, command = folder / MODEL, _command("export", folder)
    header = _open(path, "classifier", command, read_sealed_header)
    if isinstance(header, FileStatus):
        return header
    if head is None:
        return FileStatus(path, "unchecked", "its head is not there, or damaged")
    made_from = header.details.get("made_from")
    if isinstance(made_from, dict):
        same = made_from.get("head") == head.sha256
    else:  # earlier versions noted the weights of the head alone
        same = header.details.get("head_sha256") == head.header.details["sha256"]
    if same:
        return FileStatus(path, "current")
    return FileStatus(path, "stale", "it was exported from another head", command)
