"""Images in object stores and on the web: ``s3://bucket/folder/``, ``https://…/images.csv``.

The keys below a prefix mean what the paths of a folder mean; a table is read as a local one, with
paths relative to its own address. Nothing is kept on disk.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import ClassVar
from urllib.parse import quote, urljoin, urlsplit

from featx.errors import ImageError, SourceError, listed
from featx.images.decode import MAX_FILE_BYTES
from featx.images.sources.address import SourceOptions
from featx.images.sources.archive import expand_braces, list_members, read_archive
from featx.images.sources.entries import tree_of
from featx.images.sources.folder import arrange
from featx.images.sources.manifest import open_manifest
from featx.images.sources.members import Archive
from featx.images.sources.objects import ObjectStore, remote_of
from featx.images.sources.parquet import holds_rows, named, read_parts, splits_of
from featx.images.sources.parts import RemoteFile
from featx.images.sources.remote import (
    Entry,
    Gone,
    Refused,
    Remote,
    is_page,
    path_of,
    without_secrets,
)
from featx.images.sources.sample import NO_FILE, FileSource, ImageSource, Sample, Stamp
from featx.images.sources.shards import read_shards

_TABLES = (".csv", ".tsv")
_NAMED = ("http://", "https://", "s3://", "s3a://", "gs://", "gcs://")
_WHOLE, _SEVERAL = (".zip", ".tar", ".parquet"), (".tar", ".parquet")
_READERS, _FILES_AT_ONCE = 32, 8
_NO_HOST = "http://"
"""Of images on many hosts: one that cannot be reached is no reason to leave the others."""
_MOST_BESIDE = 10_000
"""Objects that are listed to find names beside a folder that is not there."""


@dataclass(eq=False)
class StoreSource:
    """Objects of a store or the web; an ``ImageSource``.

    ``addresses`` are those of the samples; None where they are ``uri`` and the sample's id.
    """

    parallel_reads: ClassVar[int] = _READERS
    uri: str
    remote: Remote
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    addresses: Sequence[str] | None
    entries: list[Entry | None] | None = None  # None: not looked up yet
    ignored: Mapping[str, int] = field(default_factory=dict)
    has_tags: bool = False
    _lock: Lock = field(default_factory=Lock)
    _refused: set[int] = field(default_factory=set)

    def read(self, index: int) -> bytes:
        sample_id = self.samples[index].sample_id
        entry = self.looked_up()[index]
        if entry and entry.size > MAX_FILE_BYTES:
            reason = f"{entry.size} bytes is more than the {MAX_FILE_BYTES} allowed."
            raise ImageError(sample_id, reason)
        try:
            content = self.remote.get(self.address(index), entry)
        except Gone as err:
            if isinstance(err, Refused):
                self._note_refused(index, str(err))
            raise ImageError(sample_id, str(err), is_permanent=False) from None
        if len(content) > MAX_FILE_BYTES:
            raise ImageError(sample_id, f"more than the {MAX_FILE_BYTES} bytes allowed.")
        if is_page(content):
            reason = "got a web page instead of an image; its address may need a login."
            self._note_refused(index, reason)
            raise ImageError(sample_id, reason, is_permanent=False)
        return content

    def stamp(self, index: int) -> Stamp:
        entry = self.looked_up()[index]
        return entry.stamp() if entry else NO_FILE

    def address(self, index: int) -> str:
        if self.addresses is None:
            return self.uri + self.samples[index].sample_id
        return self.addresses[index]

    def _note_refused(self, index: int, reason: str) -> None:
        """Refuse the source where none of its first images can be read, as before a login."""
        first = min(_READERS, len(self.samples))
        with self._lock:
            if index < first:
                self._refused.add(index)
            if len(self._refused) == first:
                raise SourceError(f"No image of '{self.uri}' can be read; the last: {reason}")

    def looked_up(self) -> list[Entry | None]:
        """Return what is known of each object, looked up once, many at a time."""
        with self._lock:
            if self.entries is None:
                addresses = map(self.address, range(len(self.samples)))
                with ThreadPoolExecutor(_READERS) as pool:
                    self.entries = list(pool.map(self.remote.look_up, addresses))
            return self.entries


def open_store(uri: str, options: SourceOptions, *, labelled: bool = True) -> ImageSource:
    """Return the images below a prefix of a store, or of a file in a store or on the web.

    The file is a table of images, or an archive or Parquet file, which is read in place.

    Raises:
        SourceError: There is no connection, bucket, right or image, or it is not laid out as
            expected.
    """
    shown = without_secrets(uri)
    user, at, _ = urlsplit(uri).netloc.rpartition("@")
    if at and (":" in user or _kind(uri) == "http"):
        raise SourceError(f"'{shown}': leave out user and password, which would be recorded.")
    if not urlsplit(uri).netloc and uri.startswith(_NAMED):
        raise SourceError(f"'{uri}' names no bucket or host, as s3://bucket/photos/ does.")
    ending = path_of(uri).lower()
    if ending.endswith(_TABLES):
        options.require_fit(shown, "a table")
        return _open_table(uri, shown, remote_of(uri), options)
    if ending.endswith(_WHOLE):
        return _open_whole(uri, options, labelled=labelled)
    if _kind(uri) == "http":
        raise SourceError(
            f"'{shown}' is not a table. Give a .csv or .tsv that lists web images, or a .zip, .tar "
            "or .parquet file."
        )
    return _open_prefix(uri.rstrip("/") + "/", options, labelled=labelled)


def _open_whole(uri: str, options: SourceOptions, *, labelled: bool) -> ImageSource:
    """Return the images of archives or Parquet files that are read part by part."""
    shown, remote = without_secrets(uri), remote_of(uri)
    addresses = _addresses(uri, remote)
    with _naming(shown), ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        try:
            archives = list(pool.map(lambda each: _archive(RemoteFile.of(each, remote)), addresses))
        except SourceError as err:
            of = f" '{shown}' stands for {len(addresses):,} files." if len(addresses) > 1 else ""
            raise SourceError(f"{err}{of}") from err
        if archives[0].suffix == ".parquet":
            options.require_fit(shown, "a Parquet file")
            files = named([path_of(archive.path) for archive in archives])
            parts = [(name, a, split) for a, (name, split) in zip(archives, files, strict=True)]
            return read_parts(options.address(shown), parts, options)
        options.require_fit(shown, "an archive")
        if addresses != [uri]:
            shards = zip(archives, pool.map(list_members, archives), strict=True)
            return read_shards(shown, list(shards))
        return read_archive(archives[0], options, labelled=labelled)


def _addresses(uri: str, remote: Remote) -> list[str]:
    """Return what an address with braces stands for, if there is nothing at the address itself."""
    path = path_of(uri)
    names = list(expand_braces(path)) if path.lower().endswith(_SEVERAL) else [path]
    if names == [path] or remote.look_up(uri):
        return [uri]
    return [f"{name}{uri.removeprefix(path)}" for name in names]


def _archive(file: RemoteFile) -> Archive:
    entry = file.entry
    identity = (0, 0, entry.size, entry.mtime_ns)
    return Archive(without_secrets(file.address), entry.stamp(), identity, file)


@contextlib.contextmanager
def _naming(shown: str) -> Iterator[None]:
    """Have errors name addresses as they were given, where a path would have one slash less."""
    try:
        yield
    except SourceError as err:
        scheme = shown.partition("://")[0]
        text = re.sub(rf"\b{re.escape(scheme)}:/(?=[^/])", f"{scheme}://", str(err))
        raise SourceError(text) from err.__cause__
    except OSError as err:
        raise SourceError(f"Cannot read '{shown}': {err.strerror or err}.") from err


def _open_prefix(uri: str, options: SourceOptions, *, labelled: bool) -> ImageSource:
    """Return the images below a prefix, or of the Parquet files there if it has no images."""
    store, prefix = ObjectStore(uri), uri.partition("://")[2]
    found = {path.removeprefix(prefix): entry for path, entry in store.listed(prefix)}
    if not found:
        raise SourceError(f"There is nothing below '{uri}'.{_nearest(store, prefix)}")
    with _naming(uri):
        tree = tree_of(Path(uri), found)
        tables = [] if tree.top.num_images else sorted(filter(holds_rows, found))
        options.require_fit(uri, "a Parquet file" if tables else "a folder")
        if tables:
            splits = splits_of(tables)
            files = {name: RemoteFile(f"{uri}{name}", found[name], store) for name in splits}
            parts = [(name, _archive(file), splits[name]) for name, file in files.items()]
            return read_parts(options.address(uri), parts, options)
        classes, samples = arrange(tree, labelled=labelled)
    entries: list[Entry | None] = [found[sample.sample_id] for sample in samples]
    ignored = dict(tree.ignored)
    return StoreSource(uri, store, classes, samples, None, entries, ignored)


def _nearest(store: ObjectStore, prefix: str) -> str:
    """Return a sentence with the folders beside a prefix that is not there."""
    name = prefix.rstrip("/")
    above = name.rpartition("/")[0]
    beside = [path for path, _ in islice(store.listed(f"{above}/"), _MOST_BESIDE)]
    if name in beside:
        return " It is one object: give the folder that it is in."
    names = {path[len(above) + 1 :].split("/")[0] for path in beside} - {""}
    return f" Beside it are {listed(sorted(names))}." if names else ""


def _open_table(uri: str, shown: str, remote: Remote, options: SourceOptions) -> StoreSource:
    if options.root:
        raise SourceError(f"'{shown}': root is for tables on this machine.")
    try:
        content = remote.get(uri, None)
    except Gone as err:
        raise SourceError(f"Cannot read '{shown}': {err}") from None
    if is_page(content):
        raise SourceError(f"'{shown}' gives a web page instead of a table; it may need a login.")
    images = _Addresses(shown, uri, uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / f"table{Path(path_of(uri)).suffix}"
        path.write_bytes(content)
        try:
            table = open_manifest(path, options, sample_id=images.sample_id)
        except SourceError as err:
            raise SourceError(str(err).replace(str(path), shown)) from None
    return _listed(table, options.address(shown), remote, images)


def open_addresses(path: Path, options: SourceOptions, first: str) -> StoreSource:
    """Return the images of a table on this machine that lists addresses, ``first`` is one of them.

    Raises:
        SourceError: It is damaged, or lists anything but addresses of one kind of store.
    """
    if options.root:
        raise SourceError(f"'{path}': root is for paths, and it lists addresses.")
    images = _Addresses(str(path), first)
    table = open_manifest(path, options, sample_id=images.sample_id)
    remote = remote_of(_NO_HOST if _kind(first) == "http" else first)
    return _listed(table, table.uri, remote, images)


def _listed(table: FileSource, uri: str, remote: Remote, images: _Addresses) -> StoreSource:
    places = [images.by_id[sample.sample_id] for sample in table.samples]
    return StoreSource(uri, remote, table.classes, table.samples, places, has_tags=table.has_tags)


@dataclass
class _Addresses:
    """Where the images are that a table lists, by id: what it has, without what signs it.

    All are of the kind of store of ``like``. Paths are relative to ``table``, if that has an
    address.
    """

    shown: str
    like: str
    table: str = ""
    by_id: dict[str, str] = field(default_factory=dict)

    def sample_id(self, image: str) -> str:
        """Return the id of an image that the table lists, and take note of its address."""
        name = image
        if "://" in image:
            if _kind(image) != _kind(self.like):
                raise SourceError(
                    f"'{self.shown}': '{without_secrets(image)}' is of another store."
                )
            name, address = without_secrets(image), image
        elif not self.table:
            raise SourceError(f"'{self.shown}' lists addresses, but '{image}' is none.")
        elif _kind(self.table) == "http":
            address = urljoin(self.table, quote(image, safe="/"))
        else:
            address = f"{self.table.rpartition('/')[0]}/{image.removeprefix('./')}"
        if self.by_id.setdefault(name, address) != address:
            raise SourceError(f"'{self.shown}' lists '{name}' twice, signed in two ways. Keep one.")
        return name


def _kind(uri: str) -> str:
    scheme = urlsplit(uri).scheme
    return "http" if scheme == "https" else scheme
