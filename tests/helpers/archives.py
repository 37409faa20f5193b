"""Archives packed from folders, or from names and contents."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path


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
