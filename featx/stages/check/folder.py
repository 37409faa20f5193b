"""Check the files of a folder: which are current, and the commands that fix the others.

Two chains lead to the model: features, head; and activations at a cut, tuned head.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from featx.artifact import (
    MAX_HEADER_BYTES,
    Written,
    is_own,
    is_unfinished,
    partial_path,
    tensor_metadata,
)
from featx.artifact.parts import SUFFIX, has_parts
from featx.artifact.shown import Framed
from featx.errors import (
    ArtifactError,
    ArtifactMismatch,
    ArtifactMissing,
    ConfigError,
    SourceError,
    counted,
)
from featx.heads.tasks import task_of
from featx.stages.check.commands import (
    DEFAULT_FOLDER,
    FEATURES,
    HEAD,
    MODEL,
    TUNED,
    command_of,
    extract_again,
    flags_of,
    given_as_files,
    train_again,
)
from featx.stages.check.parts import parts_status
from featx.stages.check.stage import CheckOptions, compare_features
from featx.stages.check.state import FileStatus

if TYPE_CHECKING:
    from featx.artifact import Header
    from featx.heads.head import Head

CUT_FEATURES = "features-*.h5"
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class StatusReport(Framed):
    """The states of features, heads and model in a folder.

    Attributes:
        folder: Where they lie.
        files: Features, head and model. Activations at a cut and the head that is tuned on them
            stand before the model, where there are any; features and head are left out where there
            are only these.
    """

    _lines_are_rows = True
    folder: Path
    files: tuple[FileStatus, ...]

    def _lines(self) -> Iterator[str]:
        yield f"StatusReport: {self.folder}"
        for each in self.files:
            yield f"{each.path.name}: {each.state}{f', {each.reason}' if each.reason else ''}"

    def _columns(self) -> dict[str, Sequence[Any]]:
        rows = [asdict(each) | {"path": str(each.path)} for each in self.files]
        return {name: [row[name] for row in rows] for name in asdict(self.files[0])}

    @property
    def is_current(self) -> bool:
        """Whether all of them are."""
        return all(file.state == "current" for file in self.files)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        files = [asdict(file) | {"path": str(file.path)} for file in self.files]
        return {"folder": str(self.folder), "is_current": self.is_current, "files": files}


def status(folder: str | Path = DEFAULT_FOLDER) -> StatusReport:
    """Return whether features, heads and model of a folder are what their inputs give today.

    Images are compared by size and times; only those that look changed are read.

    Args:
        folder: Where ``features.h5``, ``head.safetensors`` and ``model.onnx`` lie, or are to; also
            ``features-CUT.h5`` and ``tuned.safetensors``. Or a folder of parts, of which each that
            was begun and is not done is told as well; a folder with parts may have no
            ``features.h5``.

    Raises:
        ConfigError: It is a file.
    """
    folder = Path(folder)
    if os.path.isfile(folder):  # noqa: PTH113 as below
        raise ConfigError(f"'{folder}' is a file; give the folder of the three files.")
    if folder.suffix == SUFFIX:
        return StatusReport(folder, tuple(parts_status(folder)))
    head, tuned = _Trained.open(folder, HEAD), _Trained.open(folder, TUNED)
    at_cuts = _at_cuts(folder, (head, tuned))
    plain = _plain_features(folder)
    is_plain = _is_there(plain) or head.status.state != "missing"
    is_plain |= not at_cuts and tuned.status.state == "missing"
    files = list[FileStatus]()
    if is_plain:
        if has_parts(plain):
            files += parts_status(plain)
        elif head.features == plain or _is_there(plain):
            files.append(_features_status(plain, head))
        files.append(head.status)
    files += [_features_status(path, tuned if tuned.features == path else head) for path in at_cuts]
    if tuned.status.state != "missing" or not is_plain:
        files.append(tuned.status)
    heads = [own for own in (head, tuned) if own.status in files]
    return StatusReport(folder, (*files, _model_status(folder, heads)))


@dataclass(frozen=True)
class _Trained:
    """A head of a folder, the feature file there that it is of, and its status."""

    path: Path
    head: Head | None
    features: Path
    status: FileStatus

    @classmethod
    def open(cls, folder: Path, name: str) -> _Trained:
        from featx.heads.head import open_head

        path, features = folder / name, _plain_features(folder)
        if name == TUNED:
            features = next(iter(_cut_files(folder)), folder / "features-CUT.h5")
            if (unfinished := _unfinished_training(path, features)) is not None:
                return cls(path, None, features, unfinished)
        opened = _open(path, "head", train_again(path, features, None), open_head)
        if isinstance(opened, FileStatus):
            return cls(path, None, features, opened)
        trained_on = Path(str(opened.header.details["features"])).name
        if opened.cut is not None or has_parts(folder / trained_on):
            features = folder / trained_on
        return cls(path, opened, features, _head_status(path, opened, features))


def _plain_features(folder: Path) -> Path:
    """Return the features of a folder that are not at a cut: parts where there is no one file."""
    parts = (path for path in sorted(folder.glob(f"*{SUFFIX}")) if has_parts(path))
    one = folder / FEATURES
    return one if _is_there(one) else next(parts, one)


def _at_cuts(folder: Path, heads: Sequence[_Trained]) -> list[Path]:
    """Return the files of activations in a folder, or that its heads were trained on."""
    known = [own.features for own in heads if own.head is not None and own.head.cut is not None]
    return sorted({*known, *_cut_files(folder)})


def _cut_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold activations at a cut."""
    from featx.features.file import open_features

    found = []
    for path in sorted(folder.glob(CUT_FEATURES)):
        with suppress(ArtifactError):
            if open_features(path, verify=False).cut is not None:
                found.append(path)
    return found


def _is_there(path: Path) -> bool:
    # os.path answers where pathlib raises: for a folder that may not be searched.
    return os.path.exists(path) or os.path.exists(partial_path(path))  # noqa: PTH110


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


def _features_status(path: Path, trained: _Trained) -> FileStatus:
    head, command = trained.head, command_of("extract", "-o", path)
    if os.path.exists(partial_path(path)):  # noqa: PTH110
        return FileStatus(path, "unfinished", _progress(path), command)
    if not os.path.exists(path):  # noqa: PTH110
        return FileStatus(path, "missing", command=extract_again(path, head))
    try:
        found = compare_features(path, None, CheckOptions())
    except SourceError as err:
        moved = command_of("extract", "NEW_FOLDER", "--verify-content", "-o", path)
        return FileStatus(path, "unchecked", str(err), moved)
    except ArtifactError as err:
        return _damaged(path, "features", err, extract_again(path, head, "--overwrite"))
    if found.is_fresh:
        return FileStatus(path, "current")
    if found.settings:  # of the file's own, only the weights can be others now
        command = command_of("extract", "-w", "WEIGHTS_FILE", "-o", path)
    return FileStatus(path, "stale", found.changes, command)


def _progress(path: Path) -> str:
    from featx.features.journal import read_progress

    try:
        done, total = read_progress(partial_path(path))
    except ArtifactError as err:
        return str(err)
    what = "the extraction" if is_unfinished(path) else "an update"
    return f"{what} was interrupted: {done:,} of {counted(total, 'image')} done"


def _head_status(path: Path, head: Head, features: Path) -> FileStatus:
    from featx.classifier.staleness import staleness_of
    from featx.features.file import open_features

    command = train_again(path, features, head)
    try:
        found = staleness_of(head, open_features(features, verify=False))
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


def _unfinished_training(path: Path, features: Path) -> FileStatus | None:
    """Return the status of a tuned head whose training was interrupted, None where none was."""
    from featx.training.finetune.options import FinetuneOptions

    try:
        texts = tensor_metadata(partial_path(path), most=2 * MAX_HEADER_BYTES)
        state = json.loads(texts["featx-training"])
        settings = state["settings"]
        options, count = dict(settings["options"]), len(state["state"]["epochs"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    as_files = (options.pop(name, None) for name in ("exclude", "class_weight"))
    flags = given_as_files(path, settings.get("start"), *as_files)
    flags += flags_of(options, FinetuneOptions().to_dict())
    reason = f"a training was interrupted after {counted(count, 'epoch')}"
    return FileStatus(
        path, "unfinished", reason, command_of("finetune", *flags, features, "-o", path)
    )


def _model_status(folder: Path, heads: Sequence[_Trained]) -> FileStatus:
    from featx.classifier.seal import read_sealed_header

    path, (chosen, why) = folder / MODEL, _to_export(heads)
    command = command_of("export", chosen.path, "--onnx", path)
    header = _open(path, "classifier", command, read_sealed_header)
    if isinstance(header, FileStatus):
        return replace(header, reason="; ".join(filter(None, (header.reason, why))))
    opened = [(own, own.head) for own in heads if own.head is not None]
    if not opened:
        return FileStatus(path, "unchecked", "its head is not there, or damaged")
    exported = [own for own, head in opened if _is_of(header, head)]
    if not exported:
        reason = "; ".join(filter(None, ("it was exported from another head", why)))
        return FileStatus(path, "stale", reason, command)
    if exported[0].status.state == "stale":
        return FileStatus(path, "stale", "its head is stale")
    return FileStatus(path, "current")


def _to_export(heads: Sequence[_Trained]) -> tuple[_Trained, str]:
    """Return the head that a model should be made of, and why where there are two.

    It is one that is current; of two, the better on the same validation images, else the newer.
    """
    current = [own for own in heads if own.status.state == "current"]
    if len(current) < 2 or len(heads) < 2:
        chosen = (current or list(heads))[-1]
        return chosen, f"only {chosen.path.name} is current" if current and heads[1:] else ""
    details = [own.head.header.details for own in current if own.head is not None]
    task = task_of(details[0])
    scores = [task.scores_from_dict(own["metrics"]["val"]) for own in details if _val_rows(own)]
    if len(scores) == 2 and len({_val_rows(own) for own in details}) == 1:
        better, worse = sorted((0, 1), key=lambda i: task.rank(scores[i]))
        main = next(column for column in task.columns if column.is_main)
        told = [main.text(scores[i]) for i in (better, worse)]
        if told[0] != told[1]:
            images = counted(scores[0].num_samples, "validation image")
            why = f"{main.title} {told[0]} against {told[1]} on the same {images}"
            return current[better], f"{current[better].path.name} is the better head: {why}"
    newer = max(current, key=lambda own: own.path.stat().st_mtime_ns)
    return newer, f"{newer.path.name} is the newer head"


def _val_rows(details: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the task of a head and a digest of the validation images that it was scored on."""
    rows = details.get("provenance", {}).get("scored", {}).get("val")
    has_scores = rows and "val" in details.get("metrics", {})
    return (task_of(details).name, str(rows["labels_sha256"])) if has_scores else None


def _is_of(header: Header, head: Head) -> bool:
    """Return whether a model was exported from a head."""
    made_from = header.details.get("made_from")
    if isinstance(made_from, dict):
        return bool(made_from.get("head") == head.sha256)
    # earlier versions noted the weights of the head alone
    return bool(header.details.get("head_sha256") == head.header.details["sha256"])
