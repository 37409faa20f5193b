"""What HDF5 reads before it can be asked is looked at on the bytes."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from featx.errors import ArtifactInvalid
from featx.features.file import open_features
from featx.features.schema import require_plain_root, without_plugins


def refused_unopened(path: Path, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that a file is refused before the library itself opens it."""
    monkeypatch.setattr(h5py, "File", lambda *_, **__: pytest.fail("HDF5 opened the file"))
    with pytest.raises(ArtifactInvalid, match=message):
        open_features(path)


def dense(path: Path, what: str) -> Path:
    """Add so many links or attributes that the root group keeps them in a heap."""
    with h5py.File(path, "r+", libver=("v108", "v110")) as file:
        for number in range(20):
            if what == "links":
                file[f"own {number}"] = number
            else:
                file.attrs[f"own {number}"] = number
    return path


@pytest.mark.parametrize("what", ["links", "attributes"])
def test_heaps_without_filters_are_read(published, what):
    before = open_features(published).features
    dense(published, what)
    assert b"FRHP" in published.read_bytes()
    np.testing.assert_array_equal(open_features(published).features, before)


@pytest.mark.parametrize("what", ["links", "attributes"])
def test_a_heap_with_a_filter_is_refused_before_hdf5_opens_it(published, what, monkeypatch):
    dense(published, what)
    content = bytearray(published.read_bytes())
    heap = content.index(b"FRHP\0")
    content[heap + 7] = 24  # the length of the heap's filters
    published.write_bytes(content)
    refused_unopened(published, "heap of the root group has a filter", monkeypatch)


def test_a_filter_of_the_root_group_is_refused_before_hdf5_opens_it(published, monkeypatch):
    content = bytearray(published.read_bytes())
    root = content.index(b"OHDR\x02")
    message = content.index(b"\x0a\x02\x00\x01", root)  # group info
    content[message] = 0x0B
    published.write_bytes(content)
    refused_unopened(published, "the root group has a filter", monkeypatch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"libver": "earliest"}, "is an HDF5 file, but not one of featx"),
        ({"libver": "v108", "fs_strategy": "page"}, "superblock has an extension"),
        ({"libver": "v108", "userblock_size": 512}, "not an HDF5 file"),
    ],
    ids=str,
)
def test_other_layouts(tmp_path, settings, message):
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", **settings) as file:
        file.attrs["header"] = np.bytes_(b"{}")
    with pytest.raises(ArtifactInvalid, match=message):
        require_plain_root(path)


def test_any_damage_to_the_root_is_refused_or_harmless(published):
    whole = published.read_bytes()
    root = whole.index(b"OHDR\x02")
    generator = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        where = int(generator.choice([*range(48), *range(root, root + 400)]))
        damaged[where] = int(generator.integers(256))
        published.write_bytes(damaged[: None if where % 3 else where + 500])
        with suppress(ArtifactInvalid):
            require_plain_root(published)


def test_a_header_that_is_continued_in_itself_ends(published):
    content = bytearray(published.read_bytes())
    root = content.index(b"OHDR\x02")
    message = content.index(b"\x0a\x02\x00\x01", root)
    loop = b"\x10\x10\x00\x00" + (root + 3000).to_bytes(8, "little") + (28).to_bytes(8, "little")
    content[message : message + 20] = loop
    content[root + 3000 : root + 3028] = b"OCHK" + loop + b"sum!"
    published.write_bytes(content)
    with pytest.raises(ArtifactInvalid, match=r"parts|ends too early"):
        require_plain_root(published)


def plugin_paths() -> list[bytes]:
    return [h5py.h5pl.get(i) for i in range(h5py.h5pl.size())]


def test_plugins_are_off_only_while_a_file_is_opened():
    before = plugin_paths()
    h5py.h5pl.append(b"/own/plugins")
    try:
        with without_plugins():
            assert plugin_paths() == []
        with pytest.raises(KeyError), without_plugins():
            raise KeyError
        assert plugin_paths() == [*before, b"/own/plugins"]
    finally:
        h5py.h5pl.remove(len(before))
    assert plugin_paths() == before


def test_a_virtual_column_of_any_length_is_refused(published, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other.create_dataset("x", data=np.zeros((60, 8), "f4"), maxshape=(None, 8))
    layout = h5py.VirtualLayout((60, 8), "f4", maxshape=(None, 8))
    source = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (60, 8), maxshape=(None, 8))
    layout[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
    with h5py.File(published, "r+") as file:
        del file["features"]
        file.create_virtual_dataset("features", layout)
    with pytest.raises(ArtifactInvalid, match="keeps its values in another file"):
        open_features(published)
