"""Archives packed from folders, or from names and contents."""

from __future__ import annotations

import io
import random
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from featx.images.sources.sample import FileSource


def pack(root: Path, path: Path, *, inside: str = "") -> Path:
    """Pack what lies in a folder, empty folders too, under a folder ``inside`` the archive."""
    found = sorted(root.rglob("*"))
    names = [f"{inside}{each.relative_to(root)}" for each in found]
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for each, name in zip(found, names, strict=True):
                tar.add(each, name, recursive=False)
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number, (each, name) in enumerate(zip(found, names, strict=True)):
            file.write(each, name, compress_type=(number % 2) * zipfile.ZIP_DEFLATED)
    return path


def archive_of(path: Path, contents: Mapping[str, bytes] | Iterable[tuple[str, bytes]]) -> Path:
    """Write an archive of names and contents; a name may come twice."""
    pairs = contents.items() if isinstance(contents, Mapping) else contents
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as tar:
            for name, content in pairs:
                add_to_tar(tar, name, content)
        return path
    with zipfile.ZipFile(path, "w") as file:
        for name, content in pairs:
            file.writestr(zipfile.ZipInfo(name), content)
    return path


def add_to_tar(tar: tarfile.TarFile, name: str, content: bytes = b"", **values: object) -> None:
    """Add a member; ``values`` are attributes of its ``TarInfo``."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in values.items():
        setattr(info, attribute, value)
    tar.addfile(info, io.BytesIO(content))


def mutated(original: bytes, rng: random.Random) -> bytes:
    """Return bytes with a few of them changed, repeated, left out, or others between them."""
    content = bytearray(original)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(content))
        kind, length = rng.choice("fcdxi"), rng.randint(1, 600)
        if kind == "f":
            content[start] = rng.randrange(256)
        elif kind == "x":
            content[start : start + 8] = rng.choice([b"\xff" * 8, bytes(8), b"9" * 8])
        elif kind == "d":
            del content[start : start + length]
        elif kind == "c":
            at = rng.randrange(len(content))
            content[start : start + length] = content[at : at + length]
        else:
            content[start:start] = rng.randbytes(length)
    return bytes(content)


def listed(source: FileSource) -> list[tuple[str, str | None, str]]:
    """Return id, class name and split of each sample."""
    return [
        (s.sample_id, source.classes[s.label] if s.label >= 0 else None, s.split)
        for s in source.samples
    ]
