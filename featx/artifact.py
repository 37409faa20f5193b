"""What the three artifacts share: the header, atomic publishing, and open-and-check.

A header says what kind of file this is, what its features mean (``spec``, one mapping with one
fingerprint that travels from features to head to classifier), which classes it knows, and where it
came from. It is JSON in all three files.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self, get_args

from featx.errors import (
    ArtifactError,
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMismatch,
    ArtifactMissing,
)

Kind = Literal["features", "head", "classifier"]
SCHEMA_VERSION = 2
LOG_MAGIC = b"fxj1"
"""What the log of an extraction starts with."""
MAX_HEADER_BYTES = 16 * 2**20
"""A header lists classes and skipped images, never rows; 16 MiB is far above any honest one."""


@dataclass(frozen=True)
class Header:
    """What an artifact says about itself.

    Attributes:
        kind: Which of the three artifacts.
        spec: Everything that decides what a feature means, JSON values only.
        classes: Class names in index order.
        details: What only this kind has (split names, metrics, the proof, …), JSON values only.
        environment: Versions and device that produced the file; provenance, not identity.
        schema_version: Layout of the file.
    """

    kind: Kind
    spec: Mapping[str, Any]
    classes: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def fingerprint(self) -> str:
        """The spec's identity, 64 hexadecimal digits."""
        return fingerprint_of(self.spec)

    def to_json(self) -> str:
        """Return the header as one line of JSON, keys sorted, with fingerprint and checksum."""
        values = asdict(self) | {"fingerprint": self.fingerprint}
        return canonical_json(values | {"checksum": fingerprint_of(values)})

    @classmethod
    def from_json(cls, text: str | bytes, *, path: Path, kind: Kind) -> Self:
        """Return the header that ``to_json`` wrote into the file at ``path``.

        Raises:
            ArtifactInvalid: The text is no header of this kind and schema version, or it was
                altered.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")  # what is no UTF-8 is no JSON of ours
        if len(text) > MAX_HEADER_BYTES:
            raise ArtifactInvalid(
                path, f"'{path}': its header is {len(text)} bytes, over {MAX_HEADER_BYTES}."
            )
        try:
            raw = json.loads(text)
            found_kind, version = raw["kind"], raw["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            raise ArtifactInvalid(path, f"'{path}' has no readable featx header.") from err
        if found_kind != kind:
            raise ArtifactInvalid(
                path, f"'{path}' holds {_article(found_kind)}, but {_article(kind)} is needed here."
            )
        if version != SCHEMA_VERSION:
            raise ArtifactInvalid(
                path,
                f"'{path}' has schema version {version!r}; this featx reads {SCHEMA_VERSION}. "
                "Make the file again, or use the featx that wrote it.",
            )
        try:
            header = cls(
                kind=kind,
                spec=dict(raw["spec"]),
                classes=tuple(_strings(raw["classes"])),
                details=dict(raw["details"]),
                environment=dict(raw["environment"]),
            )
            intact = header.to_json() == text
        except (KeyError, TypeError, ValueError, RecursionError) as err:
            raise ArtifactInvalid(path, f"'{path}': its featx header is damaged ({err}).") from err
        if not intact:
            raise ArtifactInvalid(
                path, f"'{path}': its header does not match its checksum; damaged or altered."
            )
        return header


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("classes are not a list of names")
    if len(set(values)) != len(values):
        raise ValueError("a class name occurs twice")
    return values


def _article(kind: object) -> str:
    names = {"features": "cached features", "head": "a head", "classifier": "a classifier"}
    return names.get(str(kind), f"'{kind}'") if kind in get_args(Kind) else f"kind {kind!r}"


def canonical_json(value: object) -> str:
    """Return JSON that is equal for equal values: keys sorted, no spaces, no NaN.

    It is pure ASCII, so that file names that are not UTF-8 survive in it.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint_of(spec: Mapping[str, Any]) -> str:
    """Return the sha256 of ``spec`` as canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing_settings(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, prefix: str = ""
) -> list[str]:
    """Return one ``"name: expected …, found …"`` for each setting in which two specs differ.

    None of them exactly where the specs have the same fingerprint.
    """
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        a, b = expected.get(name, _NOTHING), found.get(name, _NOTHING)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_settings(a, b, prefix=f"{prefix}{name}.")
        elif _NOTHING in (a, b) or canonical_json(a) != canonical_json(b):
            lines.append(f"{prefix}{name}: expected {_brief(a)}, found {_brief(b)}")
    return lines


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()
_SHOWN = 12


def _brief(value: object) -> str:
    """Return a value, shortened: digests by their start, paths by their end."""
    text = repr(value)
    if re.fullmatch("'[0-9a-f]{64}'", text):
        return f"{text[:13]}…'"
    return text if len(text) <= 240 else f"{text[:60]}…{text[-160:]}"


def require_same_features(expected: Header, found: Header, *, path: Path) -> None:
    """Check that two artifacts speak of the same features.

    Raises:
        ArtifactMismatch: They do not; the message names each setting or class that differs.
    """
    lines = differing_settings(expected.spec, found.spec)
    if expected.classes != found.classes:
        lines.append(_differing_classes(expected.classes, found.classes))
    if lines:
        more = len(lines) - _SHOWN
        shown = "; ".join(lines[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise ArtifactMismatch(path, f"'{path}' belongs to other features than this head: {shown}.")


def _differing_classes(expected: tuple[str, ...], found: tuple[str, ...]) -> str:
    if sorted(expected) == sorted(found):
        return "classes: the same names in another order"
    sides = [
        f"{word} {', '.join(map(repr, names[:3]))}{', …' if len(names) > 3 else ''}"
        for word, names in (
            ("missing", [name for name in expected if name not in found]),
            ("unexpected", [name for name in found if name not in expected]),
        )
        if names
    ]
    return f"classes: {'; '.join(sides)}"


def describe_environment(*packages: str) -> dict[str, str]:
    """Return the versions of featx, Python and ``packages``, for a header."""
    versions = {name: metadata.version(name) for name in ("featx", *packages)}
    return versions | {"python": platform.python_version(), "machine": platform.machine()}


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


def partial_path(output: Path) -> Path:
    """Return where the log of an extraction lies while its output is being made."""
    return output.with_name(output.name + ".partial")


def is_unfinished(output: Path) -> bool:
    """Return whether only the log of an extraction is there, and not its output."""
    # os.path answers where pathlib raises: for names that cannot be.
    return not os.path.exists(output) and os.path.isfile(partial_path(output))  # noqa: PTH110, PTH113


def kind_of_file(path: Path) -> Kind:
    """Return which of the three a file seems to be, by its first bytes, or is going to be.

    Raises:
        ArtifactMissing: Nothing is there.
        ArtifactInvalid: It is a folder or special file.
        ArtifactIncomplete: It is the log of an extraction that has not finished.
        ArtifactError: It cannot be read.
    """
    if is_unfinished(path):
        return "features"
    require_file(path, made_by="featx extract, train-head or export")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as err:
        raise ArtifactError(path, f"Cannot read '{path}': {err.strerror}.") from err
    if start.startswith(LOG_MAGIC):
        raise ArtifactIncomplete(
            path, f"'{path}' is the log of an extraction; run featx extract again to finish it."
        )
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return "features"
    return "head" if start[8:9] == b"{" else "classifier"


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Check, before any work is done, that an output may be written; make its folder.

    Raises:
        ArtifactExists: Something is there and ``overwrite`` is false.
        ArtifactError: The path is a folder or special file, or its folder cannot be made or
            written.
    """
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
    if os.path.lexists(path) and not overwrite:
        raise ArtifactExists(
            path, f"'{path}' exists. Use --overwrite to replace it, or -o for another path."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise ArtifactError(
            path, f"Cannot make the folder '{path.parent}': {err.strerror}."
        ) from err
    if not os.access(path.parent, os.W_OK):
        raise ArtifactError(path, f"Cannot write to the folder '{path.parent}'.")


@contextlib.contextmanager
def publishing(path: Path, *, overwrite: bool, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; on success move it there durably, else remove it.

    A reader sees the old file or the whole new one, never a part.

    Args:
        path: Where to.
        overwrite: Replace what is there.
        temporary: Its name, for a caller that holds a lock on ``path``; None takes one that
            nobody else has.

    Raises:
        ArtifactExists: ``path`` exists and ``overwrite`` is false.
        ArtifactError: The disk refused; nothing is left behind.
    """
    require_writable(path, overwrite=overwrite)
    if temporary is None:
        temporary = path.with_name(f".{path.name[:40]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _sync(temporary)
        if overwrite:
            temporary.replace(path)
        else:
            _move_unless_there(temporary, path)
        _sync(path.parent)
    except OSError as err:
        if isinstance(err, ArtifactError):
            raise
        raise ArtifactError(path, f"Cannot write '{path}': {err.strerror or err}.") from err
    finally:
        with contextlib.suppress(OSError):  # gone already, or a folder: not ours
            temporary.unlink()


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


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)
