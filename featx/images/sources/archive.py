"""Archives of images, read in place: a zip or tar of folders, or WebDataset's shards.

The paths in a zip or tar mean what those of a folder mean. A tar in which images have a ``.cls``
beside them is a shard, and so is each that a name with braces stands for:
``train-{000..099}.tar``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from featx.errors import SourceError, counted
from featx.images.sources.address import NO_OPTIONS, SourceOptions
from featx.images.sources.entries import tree_of
from featx.images.sources.folder import arrange
from featx.images.sources.members import Archive, ArchiveSource, Files, Member, require_no_bomb
from featx.images.sources.shards import holds_samples, read_shards
from featx.images.sources.tars import list_tar
from featx.images.sources.zips import list_zip

_MAX_SHARDS = 100_000
_BRACES = re.compile(
    r"\{(?:(?P<first>\d{1,9})\.\.(?P<last>\d{1,9})|(?P<words>[^{},]*(?:,[^{},]*)+))\}"
)
_STARTS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "XZ",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}


def open_archive(
    path: Path, options: SourceOptions = NO_OPTIONS, *, labelled: bool = True
) -> ArchiveSource:
    """Return the images of an archive, with classes and splits as of a folder, sorted by id.

    Raises:
        SourceError: It is damaged or made to harm, has no images, or is not laid out as expected.
    """
    return read_archive(Archive.of(path.resolve()), options, labelled=labelled)


def read_archive(
    archive: Archive, options: SourceOptions = NO_OPTIONS, *, labelled: bool = True
) -> ArchiveSource:
    """Return the images of an archive on this machine or elsewhere; as ``open_archive``."""
    members = list_members(archive, encoding=options.encoding)
    if archive.suffix == ".tar" and holds_samples(members):
        return read_shards(archive.path, [(archive, members)])
    tree = tree_of(
        Path(archive.path), (f"{m.path}/" if m.kind == "folder" else m.path for m in members)
    )
    classes, samples = arrange(tree, labelled=labelled)
    files = Files.of(members)
    found = [files.find(archive, sample.sample_id) for sample in samples]
    require_no_bomb(archive, found)
    places = [(archive, member) for member in found]
    uri = options.address(archive.path)
    return ArchiveSource(uri, classes, samples, places, dict(tree.ignored))


def open_shards(pattern: Path) -> ArchiveSource:
    """Return the samples of the shards that a path with braces stands for, in their order.

    Raises:
        SourceError: One is missing or damaged, or they have no images.
    """
    pattern = pattern.resolve()
    paths = list(map(Path, expand_braces(str(pattern))))
    there = [path for path in paths if path.is_file()]
    if len(there) < len(paths):
        missing = next(path for path in paths if path not in there)
        raise SourceError(
            f"'{missing}' does not exist. '{pattern}' stands for {counted(len(paths), 'shard')}; "
            f"{len(there):,} are there. Get the missing ones, or name those to be read."
        )
    archives = [Archive.of(path) for path in paths]
    return read_shards(str(pattern), [(archive, list_members(archive)) for archive in archives])


def expand_braces(text: str) -> Iterator[str]:
    """Yield the names that braces stand for, numbers as wide as they are written.

    >>> list(expand_braces("{a,b}-{08..10}.tar"))[:4]
    ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']

    Raises:
        SourceError: There are more than 100,000, or a range ends before it begins.
    """
    found = _BRACES.search(text)
    if not found:
        yield text
        return
    words = found["words"].split(",") if found["words"] else _numbers(text, found)
    for word in words:
        for rest in expand_braces(text[found.end() :]):
            yield f"{text[: found.start()]}{word}{rest}"


def list_members(archive: Archive, *, encoding: str = "") -> list[Member]:
    """Return the members of a zip or tar archive, in its order."""
    require_random_access(archive)
    if archive.suffix == ".zip":
        return list_zip(archive, encoding=encoding)
    return list_tar(archive)


def _numbers(text: str, found: re.Match[str]) -> list[str]:
    first, last = found["first"], found["last"]
    is_padded = any(number.startswith("0") and len(number) > 1 for number in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    if not int(first) <= int(last) < int(first) + _MAX_SHARDS:
        raise SourceError(
            f"'{text}': the numbers in braces go up, and stand for {_MAX_SHARDS:,} names at most."
        )
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]


def require_random_access(archive: Archive) -> None:
    """Refuse an archive that has to be unpacked from its beginning to reach one of its files."""
    if archive.remote:
        start = archive.remote.read_at(8, 0)
    else:
        with archive.opened() as file:
            start = file.read(8)
    name = next((name for begin, name in _STARTS.items() if start.startswith(begin)), None)
    if name or archive.suffix not in (".zip", ".tar"):
        raise SourceError(
            f"'{archive.path}' is compressed as a whole{f' by {name}' if name else ''}: an image "
            "in it cannot be read without all that lie before it. Unpack it and give the folder, "
            "or pack the images again as .zip or plain .tar."
        )
