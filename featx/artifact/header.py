"""The header: metadata of an artifact, as JSON in all three files.

It says what kind of file this is, what its features mean (``spec``, one mapping with one
fingerprint that travels from features to head to classifier), its classes and its origin.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, Self, get_args

from featx.artifact.fields import require_fields
from featx.artifact.schema import Absent, Unfit, brief
from featx.errors import ArtifactInvalid, ArtifactMismatch, listed
from featx.packages import installed

Kind = Literal["features", "head", "classifier"]
SCHEMA_VERSION = 3
"""Version of all three files. It goes up only where a reader would misunderstand the old layout:
details that a reader does not know are ignored, so new ones need no new version."""
NEWEST_SCHEMA_VERSION = 4
"""Version of files with a cut or views, which readers of version 3 would misunderstand."""
OLDEST_SCHEMA_VERSION = 2
"""The oldest version that is read."""
MAX_HEADER_BYTES = 16 * 2**20
"""A header lists classes and skipped images, never rows; 16 MiB is far above any honest one."""


@dataclass(frozen=True)
class Header:
    """The metadata of an artifact.

    Attributes:
        kind: Which of the three artifacts.
        spec: Everything that decides what a feature means, JSON values only.
        classes: Class names in index order.
        details: What only this kind has (split names, metrics, the proof, …), JSON values only.
        environment: Versions and device that produced the file; provenance, not identity.
        schema_version: Layout of the file, ``OLDEST_SCHEMA_VERSION`` to ``NEWEST_SCHEMA_VERSION``;
            an older one becomes the newest where there are a cut or views.
    """

    kind: Kind
    spec: Mapping[str, Any]
    classes: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        has_views = self.kind == "features" and "views" in self.details
        is_older = self.schema_version in range(OLDEST_SCHEMA_VERSION, NEWEST_SCHEMA_VERSION)
        if is_older and (has_views or "cut" in self.spec):
            object.__setattr__(self, "schema_version", NEWEST_SCHEMA_VERSION)

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
            ArtifactInvalid: The text is not a header of this kind, of a schema version that is not
                read, or it was altered.
        """
        if isinstance(text, bytes):
            text = text.decode("utf-8", "surrogateescape")  # other bytes are not our JSON
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
        _require_known_version(version, path)
        try:
            header = cls(
                kind=kind,
                spec=dict(raw["spec"]),
                classes=tuple(_strings(raw["classes"])),
                details=dict(raw["details"]),
                environment=dict(raw["environment"]),
                schema_version=int(version),
            )
            intact = header.to_json() == text
        except (KeyError, TypeError, ValueError, RecursionError) as err:
            raise ArtifactInvalid(path, f"'{path}': its featx header is damaged ({err}).") from err
        if not intact:
            raise ArtifactInvalid(
                path, f"'{path}': its header does not match its checksum; damaged or altered."
            )
        try:
            require_fields(kind, header.spec, header.classes, header.details, header.environment)
        except Unfit as err:
            raise ArtifactInvalid(
                path, f"'{path}': its header is damaged: {err}. Make the file again."
            ) from err
        return header


def _require_known_version(version: object, path: Path) -> None:
    if version in range(OLDEST_SCHEMA_VERSION, NEWEST_SCHEMA_VERSION + 1):
        return
    is_newer = isinstance(version, int) and version > NEWEST_SCHEMA_VERSION
    raise ArtifactInvalid(
        path,
        f"'{path}' has schema version {brief(version)}; this featx reads "
        f"{OLDEST_SCHEMA_VERSION} to {NEWEST_SCHEMA_VERSION}. "
        + ("A newer featx wrote it: update featx." if is_newer else "Make the file again."),
    )


def _strings(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("classes are not a list of names")
    if len(set(values)) != len(values):
        raise ValueError("a class name occurs twice")
    return values


def _article(kind: object) -> str:
    names = {"features": "cached features", "head": "a head", "classifier": "a classifier"}
    return names.get(str(kind), f"'{kind}'") if kind in get_args(Kind) else f"kind {brief(kind)}"


def canonical_json(value: object) -> str:
    """Return JSON that is equal for equal values: keys sorted, no spaces, no NaN.

    It is pure ASCII, so that file names that are not UTF-8 survive in it.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint_of(spec: Mapping[str, Any]) -> str:
    """Return the sha256 of ``spec`` as canonical JSON, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()


def differing_settings(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, prefix: str = ""
) -> list[str]:
    """Return one ``"name: expected …, found …"`` for each setting in which two specs differ."""
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        a, b = expected.get(name, _NOTHING), found.get(name, _NOTHING)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differing_settings(a, b, prefix=f"{prefix}{name}.")
        elif _NOTHING in (a, b) or canonical_json(a) != canonical_json(b):
            lines.append(f"{prefix}{name}: expected {brief(a)}, found {brief(b)}")
    return lines


_NOTHING = Absent("nothing")


def differing_features(expected: Header, found: Header) -> list[str]:
    """Return a line for each setting, and one for the classes, in which two headers differ."""
    lines = differing_settings(expected.spec, found.spec)
    if expected.classes != found.classes:
        lines.append(_differing_classes(expected.classes, found.classes))
    return lines


def require_same_features(expected: Header, found: Header, *, path: Path) -> None:
    """Check that two artifacts speak of the same features; else name what differs."""
    if lines := differing_features(expected, found):
        raise ArtifactMismatch(
            path,
            f"'{path}' has other features than those that trained this head: "
            f"{listed(lines, 12, '; ')}. Train the head again, or give its own file "
            "by features=….",
        )


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


def without_folders(origin: str) -> str:
    """Return where something came from, without the folders that it lay in.

    >>> without_folders("/home/ann/photos"), without_folders("file:/home/ann/w.pt")
    ('photos', 'file:w.pt')
    >>> without_folders("digits:"), without_folders("torchvision:IMAGENET1K_V1")
    ('digits:', 'torchvision:IMAGENET1K_V1')
    >>> without_folders("a/b.csv?root=%2Fhome%2Fann&suffix=.jpg")
    'b.csv?suffix=.jpg'
    """
    origin = re.sub(r"([?&])root=[^&]*&?", r"\1", origin).rstrip("?&")
    if on_drive := re.fullmatch(r"(\w\w+:)?([A-Za-z]:[\\/].*)", origin):
        return (on_drive[1] or "") + PureWindowsPath(on_drive[2]).name
    scheme, colon, path = origin.partition(":")
    if not colon or "/" in scheme:
        scheme, colon, path = "", "", origin
    return scheme + colon + (path.rstrip("/").rpartition("/")[2] or path)


def describe_environment(*packages: str) -> dict[str, str]:
    """Return the versions of featx, Python and those ``packages`` that are here, for a header."""
    found = {name: installed(name) for name in ("featx", *packages)}
    versions = {name: version for name, version in found.items() if version}
    return versions | {"python": platform.python_version(), "machine": platform.machine()}
