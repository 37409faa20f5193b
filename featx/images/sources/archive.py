"""A zip or tar archive of images, read in place; its paths mean what those of a folder mean."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from featx.errors import SourceError, printable
from featx.images.sources.entries import tree_of
from featx.images.sources.folder import arrange
from featx.images.sources.members import Archive, ArchiveSource, Member, require_no_bomb
from featx.images.sources.tars import list_tar
from featx.images.sources.zips import list_zip

_STARTS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "XZ",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}


def open_archive(path: Path, *, encoding: str = "") -> ArchiveSource:
    """Return the images of an archive, with classes and splits as of a folder, sorted by id.

    Args:
        path: The archive.
        encoding: Of a zip's names that are neither marked as UTF-8 nor can be that.

    Raises:
        SourceError: It is damaged or made to harm, has no images, or is not laid out as expected.
    """
    path = path.resolve()
    archive = Archive.of(path)
    members = list_members(archive, encoding=encoding)
    tree = tree_of(path, (_tree_path(member) for member in members))
    classes, samples = arrange(tree)
    files = Files.of(members)
    found = [files.find(archive, sample.sample_id) for sample in samples]
    require_no_bomb(archive, found)
    places = [(archive, member) for member in found]
    return ArchiveSource(str(path), classes, samples, places, dict(tree.ignored))


def list_members(archive: Archive, *, encoding: str = "") -> list[Member]:
    """Return the members of a zip or tar archive, in its order."""
    path = Path(archive.path)
    require_random_access(path)
    if path.suffix.lower() == ".zip":
        return list_zip(archive, encoding=encoding)
    return list_tar(archive)


def require_random_access(path: Path) -> None:
    """Refuse an archive that has to be unpacked from its beginning to reach one of its files."""
    with path.open("rb") as file:
        start = file.read(8)
    name = next((name for begin, name in _STARTS.items() if start.startswith(begin)), None)
    if name or path.suffix.lower() not in (".zip", ".tar"):
        raise SourceError(
            f"'{path}' is compressed as a whole{f' by {name}' if name else ''}: an image in it "
            "cannot be read without all that lie before it. Unpack it and give the folder, or pack "
            "the images again as .zip or plain .tar."
        )


def _tree_path(member: Member) -> str:
    return f"{member.path}/" if member.kind == "folder" else member.path


@dataclass(frozen=True)
class Files:
    """The files of an archive by path, and the paths that several have."""

    by_path: Mapping[str, Member]
    repeated: frozenset[str]

    @classmethod
    def of(cls, members: Iterable[Member]) -> Files:
        by_path, repeated = dict[str, Member](), set[str]()
        for member in members:
            if member.kind != "folder":
                if member.path in by_path:
                    repeated.add(member.path)
                by_path[member.path] = member
        return cls(by_path, frozenset(repeated))

    def find(self, archive: Archive, path: str) -> Member:
        """Return the file at a path, or the one that a link at it leads to.

        What cannot be read says why. Links lead to files of the archive only, over one step.

        Raises:
            SourceError: There are several.
        """
        if self.repeated and path in self.repeated:
            raise SourceError(
                f"'{archive.path}' holds several files called '{printable(path)}'. Only one can "
                "be meant: pack the images again."
            )
        member = self.by_path[path]
        if member.kind == "other":
            return member._replace(refusal="not a regular file.")
        if member.kind != "link" or member.refusal:
            return member
        target = self.by_path.get(posixpath.normpath(member.target))
        if target is None or target.kind != "file" or target.path in self.repeated:
            shown = printable(member.target)
            return member._replace(refusal=f"it is a link to '{shown}', no file of the archive.")
        return target
