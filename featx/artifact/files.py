"""Artifacts as files: which kind one is, where outputs lie and what they may replace, writing.

Links are followed, no output is another file of the same run, and only files that featx wrote are
replaced, recognised by their bytes, whole or damaged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from featx import system
from featx.artifact.header import Kind
from featx.artifact.parts import has_parts, is_parts
from featx.errors import (
    ArtifactError,
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMissing,
    ConfigError,
)

JOURNAL_MAGIC = b"fxj1"
"""The first bytes of a journal."""
Written = Literal["features", "head", "classifier", "page", "card"]
"""Outputs of the stages."""

PAGE_SIGN = '<meta name="generator" content="featx'
CARD_SIGN = "<!-- Written by featx"
_START_BYTES = 2**16
_NAMES: dict[Written, str] = {
    "features": "a feature file",
    "head": "a head",
    "classifier": "a model",
    "page": "a report",
    "card": "a model card",
}
_SIGNS: dict[Written, Callable[[bytes], bool]] = {
    # the names that HDF5 leaves at the start of a large file too
    "features": lambda start: (
        start.startswith(b"\x89HDF\r\n\x1a\n")
        and all(name in start for name in (b"sample_ids", b"digests", b"stamps"))
    ),
    "head": lambda start: start[8:].startswith(b'{"__metadata__":{"featx":'),
    "classifier": lambda start: b"\x12\x05featx" in start[:64],  # the producer of the model
    "page": lambda start: PAGE_SIGN.encode() in start[:1024],
    "card": lambda start: start.startswith(CARD_SIGN.encode()),
}


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


def partial_path(output: Path) -> Path:
    """Return where the journal of an extraction lies while its output is being made."""
    return beside(output, ".partial")


def run_files(features: Path) -> dict[str, Path]:
    """Return the files of an extraction, by what they are: the output and those beside it."""
    return {
        f"the feature file '{features}'": features,
        f"the journal of '{features}'": beside(features, ".partial"),
        f"the lock of '{features}'": beside(features, ".lock"),
    }


def require_no_links(features: Path) -> None:
    """Check that none of the files beside an output is a link, which featx never makes."""
    for path in list(run_files(features).values())[1:]:
        if path.is_symlink():
            raise ArtifactExists(
                path, f"'{path}' is a link, where featx writes a file of its own; remove it."
            )


def require_apart(outputs: Mapping[str, Path], others: Mapping[str, Path]) -> None:
    """Check that no output of a run would replace another of its files, under whatever name.

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


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that an output may be written; make its folder.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactError: The path is a folder or special file, a link that leads nowhere, or its
            folder cannot be made or written.
    """
    target = target_of(path)
    try:
        mode = path.stat().st_mode
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise ArtifactError(path, f"Cannot write '{path}': {err.strerror}.") from err
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise ArtifactError(path, f"'{path}' is a folder; give the path of a file.")
    if not stat.S_ISREG(mode):
        raise ArtifactError(path, f"'{path}' is not a regular file; it would be replaced by one.")
    if os.path.lexists(target) and not overwrite:
        raise ArtifactExists(
            path, f"'{path}' exists. Use overwrite=True to replace it, or another path."
        )
    folder = target.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ArtifactError(path, f"Cannot make the folder '{folder}': {err.strerror}.") from err
    if not os.access(folder, os.W_OK):
        raise ArtifactError(path, f"Cannot write to the folder '{folder}'.")


def is_own(path: Path, kind: Written) -> bool:
    """Return whether featx wrote a file as an output of this kind; damage further on is ignored."""
    try:
        if not path.is_file():
            return kind == "features" and has_parts(path)
        with path.open("rb") as file:
            return _SIGNS[kind](file.read(_START_BYTES))
    except OSError:
        return False


def other_kind(path: Path, kind: Written) -> str:
    """Return the sentence that says which other file of featx this is; empty where it is none."""
    names: dict[Written, str] = {
        **{"features": "a feature file", "head": "a head", "classifier": "a model"}
    }
    found = [name for other, name in names.items() if other != kind and is_own(path, other)]
    return f" It is {found[0]}." if found else ""


def require_replaceable(path: Path, kind: Written) -> bool:
    """Check, before any work is done, that an output may be written; make its folder.

    Returns:
        Whether a file of this kind lies there, to be replaced.

    Raises:
        ArtifactExists: Something else lies there.
        ArtifactError: The path is a folder or special file, or its folder cannot be made or
            written.
    """
    require_writable(path, overwrite=True)
    if not os.path.lexists(target_of(path)):
        return False
    if not is_own(path, kind):
        raise ArtifactExists(
            path,
            f"'{path}' exists and is not {_NAMES[kind]} that featx wrote; it is left as it is. "
            f"Move it, or give another path, such as '{free_path(path)}'.",
        )
    return True


def free_path(path: Path, *parts: str) -> Path:
    """Return a name that nothing has yet, beside an output: ``features-resnet50.h5``.

    A number follows where the parts do not tell it from other files.
    """
    words = [re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts]
    stem = "-".join([path.stem, *filter(None, words)])[:100]
    names = [stem] if stem != path.stem else []
    names += [f"{stem}-{number}" for number in range(2, 1000)]
    candidates = (path.with_name(f"{name}{path.suffix}") for name in names)
    return next(free for free in candidates if not _is_taken(free))


def _is_taken(path: Path) -> bool:
    return os.path.lexists(path) or os.path.lexists(partial_path(path))


@contextlib.contextmanager
def publishing(path: Path, *, overwrite: bool, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success move it there durably, else remove it.

    A reader sees the old file or the whole new one, never a part. Where ``path`` is a link, the
    file that it leads to is replaced. The new file keeps the mode and owner of the old one.

    Args:
        path: Where to.
        overwrite: Replace what is there.
        temporary: Its name, for a caller that holds a lock on ``path``; None takes one that
            is not taken.

    Raises:
        ArtifactExists: ``path`` exists and ``overwrite`` is false.
        ArtifactError: The disk refused; nothing is left behind.
    """
    require_writable(path, overwrite=overwrite)
    target = target_of(path)
    if temporary is None:
        unique = f"{os.getpid()}.{secrets.token_hex(4)}"
        temporary = target.with_name(f".{target.name[:40]}.{unique}.tmp")
    try:
        yield temporary
        if overwrite:
            _keep_mode(target, temporary)
        sync(temporary)
        if overwrite:
            temporary.replace(target)
        else:
            _move_unless_there(temporary, target)
        sync(target.parent)
    except OSError as err:
        if isinstance(err, ArtifactError):
            raise
        raise ArtifactError(path, f"Cannot write '{path}': {err.strerror or err}.") from err
    finally:
        with contextlib.suppress(OSError):  # gone already, or a folder: not ours
            temporary.unlink()


def publish(path: Path, content: bytes | str, *, overwrite: bool) -> None:
    """Write all of a file as ``publishing`` does; text is UTF-8."""
    with publishing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


def _keep_mode(old: Path, new: Path) -> None:
    """Give a file the mode of the one it replaces, and the owner and group where that may be."""
    try:
        status, own = old.stat(), new.stat()
    except FileNotFoundError:  # nothing is replaced, and the umask decides
        return
    for user, group in ((status.st_uid, -1), (-1, status.st_gid)):
        if (user, group) not in ((own.st_uid, -1), (-1, own.st_gid)):
            with contextlib.suppress(OSError):
                system.give(new, user, group)
    with contextlib.suppress(OSError):
        new.chmod(stat.S_IMODE(status.st_mode))


def _move_unless_there(temporary: Path, path: Path) -> None:
    """Move a file to a name that must be free, atomically where the file system can link."""
    try:
        os.link(temporary, path)
    except FileExistsError as err:
        raise ArtifactExists(
            path, f"'{path}' was written by another process meanwhile; it was left as it is."
        ) from err
    except OSError:  # no hard links here: a check just before has to do
        require_writable(path, overwrite=False)
        temporary.replace(path)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


# --- inputs -------------------------------------------------------------------------------------


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, *, made_by: str) -> None:
    """Check that an input is a regular file.

    Raises:
        ArtifactMissing: Nothing is there; the message names the command that makes it.
        ArtifactInvalid: It is a folder or a special file.
        ArtifactError: Its path cannot be looked up.
    """
    try:
        there = path.exists()
    except OSError as err:
        raise ArtifactError(path, f"Cannot open '{path}': {err.strerror}.") from err
    if not there:
        raise ArtifactMissing(path, f"'{path}' does not exist. Make it with '{made_by}'.")
    if not path.is_file():
        raise ArtifactInvalid(path, f"'{path}' is not a file.")


def is_unfinished(output: Path) -> bool:
    """Return whether only the journal of an extraction is there, for any name, not its output."""
    return not os.path.exists(output) and os.path.isfile(partial_path(output))  # noqa: PTH110, PTH113


def tensor_metadata(path: Path, *, most: int) -> dict[str, str]:
    """Return the texts in the metadata of a safetensors file; none where it is no such file.

    Args:
        path: The file.
        most: Bytes of its listing that are read.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            texts = json.loads(file.read(min(length, most)))["__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return texts if isinstance(texts, dict) else {}


def kind_of_file(path: Path) -> Kind:
    """Return which of the three a file seems to be, by its first bytes, or is going to be.

    Raises:
        ArtifactMissing: Nothing is there.
        ArtifactInvalid: It is a folder, not of parts, or a special file.
        ArtifactIncomplete: It is the journal of an unfinished extraction.
        ArtifactError: It cannot be read.
    """
    if is_parts(path) or is_unfinished(path):
        return "features"
    require_file(path, made_by="featx extract, train-head or export")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as err:
        raise ArtifactError(path, f"Cannot read '{path}': {err.strerror}.") from err
    if start.startswith(JOURNAL_MAGIC):
        raise ArtifactIncomplete(
            path, f"'{path}' is the journal of an extraction; run featx extract again to finish it."
        )
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "features"
    return "head" if start[8:9] == b"{" else "classifier"
