"""Samples of WebDataset: files of one key in a tar, an image and its label.

The key of ``a/22.05.png`` is ``a/22``, and what follows the first dot of the name says what the
file is: ``jpg`` and the like an image, ``cls``, ``json`` or ``txt`` its label, in this order.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from featx.errors import ImageError, SourceError, counted, listed
from featx.images.sources.address import below_one_folder
from featx.images.sources.entries import (
    describe_ignored,
    extension_of,
    image_extensions,
    warn_of_pictures,
)
from featx.images.sources.folder import split_of
from featx.images.sources.labels import LABEL_NAMES, SEPARATOR, has_tags
from featx.images.sources.members import Archive, ArchiveSource, Files, Member, read_member
from featx.images.sources.remote import path_of
from featx.images.sources.sample import Sample

log = logging.getLogger(__name__)

Shard = tuple[Archive, Sequence[Member]]

_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
_PLAIN = re.compile(r"[\w~!+-]{1,11}", re.ASCII)
_LABELS = ("cls", "json", "txt")
_MAX_LABEL_BYTES = 2**20
_MAX_LABEL = 256
_DOTTED = "with a dot in the name"


class _NoLabel(ValueError):
    """A sample has no label that can be read; the text says why."""


def split_key(path: str) -> tuple[str, str] | None:
    """Return key and extension of a file as WebDataset has them; None for what is not a sample's.

    >>> split_key("train.v1/IMG.JPG"), split_key("x.seg.png"), split_key("a/.hidden.jpg")
    (('train.v1/IMG', 'jpg'), ('x', 'seg.png'), None)
    """
    found = _NAME.fullmatch(path)
    is_hidden = path.startswith((".", "__MACOSX/")) or "/." in path
    return (found[1], found[2].lower()) if found and not is_hidden else None


def holds_samples(members: Iterable[Member]) -> bool:
    """Return whether any image of a tar has a ``.cls`` beside it."""
    extensions: dict[str, set[str]] = {}
    for member in members:
        if member.kind == "file" and (parts := split_key(member.path)):
            extensions.setdefault(parts[0], set()).add(parts[1])
    return any("cls" in own and any(map(_is_image, own)) for own in extensions.values())


def read_shards(uri: str, shards: Sequence[Shard]) -> ArchiveSource:
    """Return the samples of shards in their order; each is called by its shard and its key.

    Raises:
        SourceError: There are none, or two images have one key.
    """
    _, names = below_one_folder([path_of(archive.path) for archive, _ in shards])
    splits = _splits_of(names)
    ignored, problems = Counter[str](), list[tuple[str, str]]()
    found, places = list[tuple[str, str, str]](), list[tuple[Archive, Member]]()
    has_labels = False
    for (archive, members), name, split in zip(shards, names, splits, strict=True):
        for key, image, files in _samples(archive, members, ignored):
            sample_id, label = f"{name}/{key}", ""
            has_labels |= bool(files)
            try:
                label = _label_of(archive, files)
            except _NoLabel as err:
                problems.append((sample_id, str(err)))
            found.append((sample_id, label, split))
            places.append((archive, image))
    if not found:
        raise SourceError(
            f"'{uri}' holds no images ({describe_ignored(ignored) or 'it is empty'}). Expected "
            "files of one key, such as 0001.jpg and 0001.cls."
        )
    _warn(uri, ignored, problems if has_labels else [])
    classes = tuple(sorted({label for _, label, _ in found} - {""}))
    numbers = {label: number for number, label in enumerate(classes)} | {"": -1}
    return ArchiveSource(
        uri,
        classes,
        tuple(Sample(sample_id, numbers[label], split) for sample_id, label, split in found),
        places,
        dict(ignored),
        has_tags(classes),
    )


def _is_image(extension: str) -> bool:
    return f".{extension}" in image_extensions()


def _splits_of(names: Sequence[str]) -> list[str]:
    """Return the split of each shard; of several ones where all are named for one."""
    found = [split_of(name.removesuffix(".tar")) for name in names]
    splits = [named.split for named in found if named]
    is_told = len(splits) == len(names) and len(set(splits)) > 1
    return splits if is_told else ["train"] * len(names)


def _samples(
    archive: Archive, members: Sequence[Member], ignored: Counter[str]
) -> Iterator[tuple[str, Member, dict[str, Member]]]:
    """Yield each key with its image, and the files that may hold its label, by extension.

    Files of keys without an image are counted.
    """
    files, keys = Files.of(members), dict[str, list[tuple[str, str]]]()
    for path in files.by_path:
        if parts := split_key(path):
            keys.setdefault(parts[0], []).append((parts[1], path))
        else:
            ignored["hidden" if "/." in f"/{path}" else "without a key"] += 1
    for key, own in keys.items():
        images = [path for extension, path in own if _is_image(extension)]
        if len(images) > 1:
            raise SourceError(
                f"'{archive.path}' has several images of the key '{key}': {listed(images)}. A "
                "sample is one image: give each a name of its own before the first dot."
            )
        paths = {extension: path for extension, path in own if images and extension in _LABELS}
        ignored.update(
            _kind_of(extension)
            for extension, _ in own
            if extension not in paths and not _is_image(extension)
        )
        if images:
            labels = {extension: files.find(archive, path) for extension, path in paths.items()}
            yield key, files.find(archive, images[0]), labels


def _kind_of(extension: str) -> str:
    if "." in extension and extension_of(extension) in image_extensions():
        return _DOTTED
    last = extension.rpartition(".")[2]
    return f".{last}" if _PLAIN.fullmatch(last) else "with an odd extension"


def _warn(uri: str, ignored: Counter[str], problems: list[tuple[str, str]]) -> None:
    warn_of_pictures(uri, ignored)
    if dotted := ignored[_DOTTED]:
        log.warning(
            "'%s': %s skipped. A key ends at the first dot of a name, so that 22.05.png is the "
            "file 05.png of the key 22. Rename what is to be a sample.",
            *(uri, counted(dotted, "image with a dot in its name was", "images with dots were")),
        )
    if problems:
        log.warning(
            "'%s': %s no label: %s.",
            *(uri, counted(len(problems), "sample has", "samples have")),
            listed([f"'{sample_id}' ({why})" for sample_id, why in problems]),
        )


def _label_of(archive: Archive, files: dict[str, Member]) -> str:
    """Return the label of a sample.

    Raises:
        _NoLabel: There is none, or it cannot be read.
    """
    if "cls" in files:
        return _text_of(archive, files["cls"])
    if "json" in files:
        label = _label_in_json(_content_of(archive, files["json"]))
        if label or "txt" not in files:
            return label or _no_label("its .json has none")
    return _text_of(archive, files["txt"]) if "txt" in files else _no_label("no .cls beside it")


def _no_label(why: str) -> str:
    raise _NoLabel(why)


def _content_of(archive: Archive, member: Member) -> str:
    name = extension_of(member.path)
    if member.size > _MAX_LABEL_BYTES:
        raise _NoLabel(f"its {name} has {member.size} bytes")
    try:
        return read_member(archive, member, sample_id=member.path).decode("utf-8-sig")
    except ImageError as err:
        raise _NoLabel(f"its {name} {err.reason.rstrip('.')}") from err
    except UnicodeDecodeError as err:
        raise _NoLabel(f"its {name} is not UTF-8") from err


def _text_of(archive: Archive, member: Member) -> str:
    name = extension_of(member.path)
    text = _checked(_content_of(archive, member).strip(), name)
    return text or _no_label(f"its {name} is empty")


def _checked(label: str, name: str) -> str:
    if len(label) > _MAX_LABEL or len(label.splitlines()) > 1:
        raise _NoLabel(f"its {name} is more than a line of {_MAX_LABEL} characters")
    return label


def _label_in_json(text: str) -> str:
    """Return the label that JSON holds; empty where it has none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as err:
        raise _NoLabel("its .json is damaged") from err
    if not isinstance(values, dict):
        return _text(values)
    labels = {name: label for name in LABEL_NAMES if (label := _text(values.get(name)))}
    if len(set(labels.values())) > 1:
        raise _NoLabel(f"its .json has {' and '.join(labels)}")
    return next(iter(labels.values()), "")


def _text(value: Any) -> str:
    """Return a text or number, or several of them as tags; empty for null and nothing."""
    values = value if isinstance(value, list) else [value]
    if any(isinstance(each, list | dict) for each in values):
        raise _NoLabel("its .json has a label that is not text, a number, or a list of these")
    values = [each for each in values if each is not None]
    texts = [each.strip() if isinstance(each, str) else json.dumps(each) for each in values]
    return _checked(SEPARATOR.join(filter(None, texts)), ".json")
