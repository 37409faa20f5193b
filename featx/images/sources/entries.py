"""One rule for what a directory entry is: a folder, an image, or something to skip and count.

Archives follow it as well.

- Hidden entries, and what systems and network storage leave behind, are skipped; a folder as one.
- Folders are looked into, links to folders too; a loop is refused.
- Files with an image's extension are images, links that lead nowhere too: reading those fails.
- Any other link that leads nowhere is refused: it may have been a folder of images.
- All other files are skipped, and counted by extension.
- A folder without images that holds artifacts of featx is its output, and skipped as a whole.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from featx.errors import SourceError, counted
from featx.packages import install_command

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    }
)
"""Of files that are always read; ``image_extensions`` adds what optional decoders read."""
_AVIF = frozenset({".avif", ".avifs"})
_HEIF = frozenset({".heic", ".heif", ".hif", ".heics", ".heifs"})
_OTHER_PICTURES = frozenset(
    {
        *(".jp2", ".j2k", ".jpx", ".jpf", ".jxl", ".jxr", ".wdp", ".jls"),
        *(".psd", ".xcf", ".svg", ".svgz", ".eps", ".ai", ".tga", ".pcx", ".ico", ".icns", ".cur"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".exr", ".hdr", ".dds", ".sgi", ".ras", ".wbmp"),
        *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2"),
        *(".raf", ".raw", ".pef", ".3fr", ".iiq", ".x3f", ".dcm", ".dicom", ".fits", ".fit"),
        *(".svs", ".ndpi", ".scn", ".mrxs", ".vsi", ".nii"),
    }
)
_JUNK_FOLDERS = frozenset(
    {
        *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb"),
        *("~snapshot", "$recycle.bin", "recycler", "system volume information", "found.000"),
        *("lost+found", "__macosx", "network trash folder", "temporary items"),
        *("thevolumesettingsfolder", "__pycache__"),
    }
)
"""Left by NAS systems, Windows, Linux, macOS and Python; in lower case."""
_THUMBNAILS = ("synophoto_thumb_", "synofile_thumb_")
"""How the names of thumbnails start that a Synology NAS makes."""
_ARTIFACTS = (".h5", ".h5.lock", ".h5.partial", ".h5.tmp", ".safetensors", ".onnx")
_PLAIN = re.compile(r"\.[\w~!+-]{1,11}", re.ASCII)
_KINDS_SHOWN = 6


@dataclass
class Level:
    """The direct content of one folder; ``num_images`` and ``is_output`` count all below, too.

    Its prefix is its path relative to the root, ending in ``/``; empty for the root. Paths of
    images are relative to the root as well.
    """

    prefix: str
    folders: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    num_images: int = 0
    is_output: bool = False

    def inner(self) -> list[str]:
        return [f"{self.prefix}{name}/" for name in self.folders]


@dataclass
class Tree:
    """A folder and all below it: levels by prefix, a folder before those in it.

    Entries that were skipped are counted by kind: an extension like ``".txt"``, ``"hidden"``, a
    folder's name like ``"@eaDir/"``.
    """

    root: Path
    levels: dict[str, Level] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def top(self) -> Level:
        return self.levels[""]

    def inner(self, level: Level) -> list[Level]:
        return [self.levels[prefix] for prefix in level.inner()]

    def below(self, prefix: str) -> Iterator[str]:
        """Yield the images in a folder and all below it."""
        waiting = [prefix]
        while waiting:
            level = self.levels[waiting.pop()]
            yield from level.images
            waiting += level.inner()


@cache
def image_extensions() -> frozenset[str]:
    """Return the extensions of files that can be read here, in lower case, with their dot."""
    avif = _AVIF if find_spec("PIL._avif") else frozenset()
    heif = _HEIF if find_spec("pillow_heif") else frozenset()
    return EXTENSIONS | avif | heif


def is_picture(extension: str) -> bool:
    """Return whether files with an extension are pictures, whether they can be read or not."""
    return extension in EXTENSIONS | _AVIF | _HEIF | _OTHER_PICTURES


def extension_of(name: str) -> str:
    """Return a file name's extension in lower case, with its dot; empty where it has none."""
    return os.path.splitext(name)[1].lower()


def read_tree(root: Path, *, output: Path | None = None) -> Tree:
    """Return all that lies below a folder."""
    tree = Tree(root)
    above = tuple(_identity(str(path)) for path in root.parents)
    waiting = [("", above)]
    while waiting:
        prefix, above = waiting.pop()
        identity = _identity(f"{root}/{prefix}")
        if identity in above:
            raise SourceError(
                f"'{root}/{prefix[:-1]}' is a link to a folder that contains it; remove it."
            )
        level = _list_folder(tree, prefix)
        inside = (*above, identity)
        waiting += [(inner, inside) for inner in reversed(level.inner())]
    _drop_outputs(tree, output)
    warn_of_pictures(str(tree.root), tree.ignored)
    return tree


def tree_of(root: Path, paths: Iterable[str]) -> Tree:
    """Return the tree of the paths in an archive, by the same rule; folders' paths end in ``/``."""
    tree, found = Tree(root), dict[str, Level | None]({"": Level("")})

    def level_of(prefix: str) -> Level | None:
        """Return the level of a folder, after those above it; None where one is skipped."""
        if prefix not in found:
            above, name = split(prefix[:-1])
            level = level_of(above)
            kind = None if level is None else _put(level, name, is_folder=True)
            tree.ignored.update([kind] if kind else [])
            found[prefix] = None if kind or level is None else Level(prefix)
        return found[prefix]

    def split(path: str) -> tuple[str, str]:
        above, slash, name = path.rpartition("/")
        return above + slash, name

    for prefix, name in map(split, paths):
        level = level_of(prefix)
        if name and level is not None and (kind := _put(level, name, is_folder=False)):
            tree.ignored[kind] += 1
    tree.levels = {prefix: level for prefix, level in found.items() if level is not None}
    for level in tree.levels.values():
        level.folders.sort()
    _drop_outputs(tree, None)
    warn_of_pictures(str(tree.root), tree.ignored)
    return tree


def require_images(tree: Tree) -> None:
    if not tree.top.num_images:
        found = describe_ignored(tree.ignored) or "it is empty"
        raise SourceError(
            f"'{tree.root}' holds no images ({found}). Expected files ending in "
            f"{', '.join(sorted(image_extensions()))}, in one folder per class.{_shards_in(tree)}"
        )


def _shards_in(tree: Tree) -> str:
    return " Name shards by braces: 'train-{000..099}.tar'." if tree.ignored[".tar"] else ""


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """Return how many entries were skipped, by kind, pictures first; empty where none were.

    >>> describe_ignored({".txt": 1, "hidden": 4, ".heic": 3})
    '8 other files: 3 .heic, 4 hidden, 1 .txt'
    """
    kinds = [(kind, count) for kind, count in ignored.items() if count]
    if not kinds:
        return ""
    kinds.sort(key=lambda item: (not is_picture(item[0]), -item[1], item[0]))
    shown = [f"{count:,} {kind}" for kind, count in kinds[:_KINDS_SHOWN]]
    if len(kinds) > _KINDS_SHOWN:
        shown.append(f"{sum(count for _, count in kinds[_KINDS_SHOWN:]):,} of other kinds")
    total = sum(count for _, count in kinds)
    return f"{counted(total, 'other file')}: {', '.join(shown)}"


def _list_folder(tree: Tree, prefix: str) -> Level:
    level, folder = Level(prefix), f"{tree.root}/{prefix}"
    try:
        with os.scandir(folder) as entries:
            tree.ignored.update(kind for entry in entries if (kind := _add(level, entry)))
    except OSError as err:
        raise _cannot_list(folder, err) from err
    level.folders.sort()
    tree.levels[prefix] = level
    return level


def _add(level: Level, entry: os.DirEntry[str]) -> str | None:
    """Put an entry where it belongs; return its kind if it is to be skipped."""
    name = entry.name
    is_image = extension_of(name) in image_extensions()
    is_folder = not name.startswith(".") and _is_folder(entry, is_image=is_image)
    return _put(level, name, is_folder=is_folder)


def _put(level: Level, name: str, *, is_folder: bool) -> str | None:
    """Put a name where it belongs; return its kind if it is to be skipped."""
    if name.startswith("."):
        return "hidden"
    if is_folder and name.lower() in _JUNK_FOLDERS:
        return f"{name}/"
    if is_folder:
        level.folders.append(name)
        return None
    if extension_of(name) in image_extensions() and not name.lower().startswith(_THUMBNAILS):
        level.images.append(level.prefix + name)
        return None
    level.is_output |= name.endswith(_ARTIFACTS)
    return _kind_of_file(name)


def _is_folder(entry: os.DirEntry[str], *, is_image: bool) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        if entry.is_dir():
            return True
        if is_image or not entry.is_symlink():
            return False
        entry.stat()  # a file, or nothing
    except OSError as err:
        if is_image:  # reading it will say so
            return False
        raise SourceError(_broken(entry, err)) from err
    return False


def _broken(entry: os.DirEntry[str], err: OSError) -> str:
    if not entry.is_symlink():
        return f"Cannot look up '{entry.path}': {err.strerror}."
    target = Path(entry.path).readlink()
    reason = "which does not exist" if err.errno == errno.ENOENT else f"where: {err.strerror}"
    return (
        f"'{entry.path}' is a link to '{target}', {reason}. It may have been a folder of images: "
        "restore its target, or remove the link."
    )


def _kind_of_file(name: str) -> str:
    """Return an extension, or a word for names that have none to be shown."""
    if name.lower().startswith(_THUMBNAILS):
        return "thumbnail"
    extension = extension_of(name)
    if not extension:
        return "without extension"
    return extension if _PLAIN.fullmatch(extension) else "with an odd extension"


def _drop_outputs(tree: Tree, output: Path | None) -> None:
    """Count images from the inside out, and take out folders of featx's own files."""
    folder = str(output.resolve().parent) if output else None
    for prefix, level in reversed(tree.levels.items()):
        level.is_output |= folder == f"{tree.root}/{prefix}"[:-1]
        level.num_images += len(level.images)
        for name, inner in zip(list(level.folders), tree.inner(level), strict=True):
            level.num_images += inner.num_images
            level.is_output |= inner.is_output
            if inner.is_output and not inner.num_images:
                level.folders.remove(name)  # its files are counted


def warn_of_pictures(uri: str, ignored: Mapping[str, int]) -> None:
    """Log a warning where pictures are skipped because nothing here reads them."""
    pictures = {kind: count for kind, count in ignored.items() if is_picture(kind)}
    advice = []
    if any(kind in _HEIF for kind in pictures):
        command = install_command("heif")
        advice.append(f"HEIC is read once pillow-heif is installed: {command}.")
    if not all(kind in _HEIF for kind in pictures):
        advice.append("Formats that featx does not read can be converted to JPEG or PNG.")
    if pictures:
        log.warning("'%s': skipped %s. %s", uri, describe_ignored(pictures), " ".join(advice))


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)  # noqa: PTH116 as in stamp_of
    except OSError as err:
        raise _cannot_list(folder, err) from err
    return status.st_dev, status.st_ino


def _cannot_list(folder: str, err: OSError) -> SourceError:
    path = folder.rstrip("/") or "/"
    return SourceError(f"Cannot list the folder '{path}': {err.strerror}.")
