"""Opening a source by what a user types."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from featx.errors import SourceError
from featx.images.sources import (
    NO_FILE,
    SPLITS,
    Sample,
    Stamp,
    open_source,
    own_splits,
)
from featx.images.sources.sample import ArraySource, FileSource, stamp_of

Photos = Callable[..., Path]


@pytest.fixture
def uris(photos: Photos, tmp_path: Path) -> dict[str, str]:
    """One source of each kind."""
    root = photos({"ants": 2, "bees": 2})
    (tmp_path / "table.CSV").write_text("path,label\nphotos/ants/000.jpg,a\n")
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    values = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    (pickles / "batches.meta").write_bytes(pickle.dumps({"label_names": ["a", "b"]}))
    (pickles / "test_batch").write_bytes(pickle.dumps(values))
    return {
        "folder": str(root),
        "manifest": str(tmp_path / "table.CSV"),
        "cifar10": f"cifar10:{pickles}",
        "digits": "digits:",
    }


class TestOpenSource:
    def test_each_kind_is_told_by_what_is_typed(self, uris):
        assert {kind: type(open_source(uri)) for kind, uri in uris.items()} == {
            "folder": FileSource,
            "manifest": FileSource,
            "cifar10": ArraySource,
            "digits": ArraySource,
        }

    def test_an_address_of_a_file_is_its_path_as_written_or_with_escapes(self, photos):
        root = photos({"ants": 1}, name="a b")
        for uri in (f"file://{root}", f"file://{root}".replace(" ", "%20")):
            assert open_source(uri).uri == str(root)
        assert open_source(f"file://{photos({'x': 1}, name='50%20')}").classes == ("x",)
        with pytest.raises(SourceError, match="does not exist"):
            open_source("file:///no/where")

    def test_all_keep_the_same_promises(self, uris):
        for uri in uris.values():
            source = open_source(uri)
            ids = [sample.sample_id for sample in source.samples]
            assert len(set(ids)) == len(ids) > 0
            assert all(-1 <= sample.label < len(source.classes) for sample in source.samples)
            assert {sample.split for sample in source.samples} <= set(SPLITS)
            assert len(set(source.classes)) == len(source.classes)
            content = source.read(0)
            if isinstance(content, np.ndarray):
                assert (content.ndim, content.dtype) == (3, np.uint8)
            else:
                assert content[:3] == b"\xff\xd8\xff"

    def test_the_uri_finds_the_source_again_from_anywhere(self, uris, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        relative = [uri.replace(f"{tmp_path}/", "") for uri in uris.values()]
        sources = [open_source(uri) for uri in relative]
        monkeypatch.chdir("/")
        for source in sources:
            again = open_source(source.uri)
            assert (again.uri, again.classes) == (source.uri, source.classes)
            assert list(again.samples) == list(source.samples)

    def test_stamps_are_those_of_the_files(self, uris, tmp_path):
        status = (tmp_path / "photos" / "ants" / "000.jpg").stat()
        expected = Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        for kind in ("folder", "manifest"):
            assert open_source(uris[kind]).stamp(0) == expected
        for uri in uris.values():
            source, again = open_source(uri), open_source(uri)
            stamps = [source.stamp(index) for index in range(len(source.samples))]
            assert stamps == [again.stamp(index) for index in range(len(stamps))]
            assert all(isinstance(stamp, Stamp) and stamp != NO_FILE for stamp in stamps)

    def test_home_is_understood(self, photos, tmp_path, monkeypatch):
        photos({"ants": 1})
        monkeypatch.setenv("HOME", str(tmp_path))
        assert len(open_source("~/photos").samples) == 1

    @pytest.mark.parametrize(
        ("uri", "message"),
        [
            ("", "'' does not exist"),
            ("no/such/folder", "'no/such/folder' does not exist"),
            ("no/such.csv", "'no/such.csv' does not exist"),
            ("a\0b", "does not exist"),
            ("digits:x", "'digits:x' does not exist"),
            ("cifar100:x", "'cifar100:x' does not exist"),
            ("cifar10:no/such", "holds no CIFAR-10"),
            ("x" * 300, "Cannot open 'xxx.*File name too long"),
            ("cifar10:" + "x" * 300, "Cannot open 'cifar10:xxx.*File name too long"),
            ("~no-such-user/photos", "Cannot open '~no-such-user/photos'.*home"),
            ("/dev/null", "'/dev/null' is not an image source. Give a folder, a .zip"),
        ],
        ids=lambda value: value[:30],
    )
    def test_what_cannot_be_a_source_is_named(self, uri, message):
        with pytest.raises(SourceError, match=message):
            open_source(uri)

    def test_files_that_are_no_source_are_refused(self, photos, tmp_path):
        image = next(photos({"ants": 1}).rglob("*.jpg"))
        os.mkfifo(tmp_path / "pipe.csv")
        for path in (image, tmp_path / "pipe.csv"):
            with pytest.raises(SourceError, match="is not an image source"):
                open_source(str(path))

    def test_links_that_lead_nowhere(self, tmp_path):
        (tmp_path / "loop").symlink_to("loop")
        (tmp_path / "gone").symlink_to("nowhere")
        for name in ("loop", "gone"):
            with pytest.raises(SourceError, match="does not exist"):
                open_source(str(tmp_path / name))

    def test_an_empty_folder_is_named(self, tmp_path):
        with pytest.raises(SourceError, match=f"'{tmp_path}' holds no images"):
            open_source(str(tmp_path))


class TestStamp:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        (tmp_path / "a.jpg").write_bytes(b"content")
        return tmp_path / "a.jpg"

    def test_new_content_of_the_same_length_and_time_has_another(self, path):
        before, times = stamp_of(str(path)), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        time.sleep(0.02)  # a tick of the file system's clock
        path.write_bytes(b"CONTENT")
        os.utime(path, ns=times)
        after = stamp_of(str(path))
        assert after[:2] == before[:2]
        assert after.ctime_ns > before.ctime_ns

    def test_reading_leaves_it_alone(self, path):
        before = stamp_of(str(path))
        assert before.size == len(path.read_bytes())
        assert stamp_of(str(path)) == before

    def test_a_link_has_that_of_its_target_and_changes_with_either(self, path):
        link = path.parent / "link.jpg"
        link.symlink_to("a.jpg")
        first, target = stamp_of(str(link)), stamp_of(str(path))
        assert first[:2] == target[:2]
        assert first.ctime_ns == link.lstat().st_ctime_ns >= target.ctime_ns
        time.sleep(0.02)
        path.chmod(0o600)
        second = stamp_of(str(link))
        assert second == stamp_of(str(path)) != first
        time.sleep(0.02)
        link.unlink()
        link.symlink_to("a.jpg")
        assert stamp_of(str(link)).ctime_ns > second.ctime_ns

    @pytest.mark.parametrize("year", [1601, 1676, 1677, 1969, 1970, 2262, 2263, 2400, 9999])
    def test_a_time_of_any_year_fits_into_64_bits(self, path, monkeypatch, year):
        nanoseconds = (year - 1970) * 31_556_952 * 10**9
        found = path.lstat()
        status = SimpleNamespace(
            **{name: getattr(found, name) for name in ("st_mode", "st_size")},
            st_mtime_ns=nanoseconds, st_ctime_ns=nanoseconds,
        )  # fmt: skip
        monkeypatch.setattr(os, "lstat", lambda _: status)
        stamp = stamp_of(str(path))
        assert np.array(stamp, dtype=np.int64).tolist() == list(stamp)
        assert stamp.mtime_ns == stamp.ctime_ns == min(max(nanoseconds, -(2**63)), 2**63 - 1)

    @pytest.mark.parametrize(
        "name", ["gone.jpg", "dangling.jpg", "loop.jpg", "a\0.jpg", "x" * 300, "a.jpg/b", "\ud800"]
    )
    def test_what_cannot_be_looked_up_has_none(self, path, name):
        (path.parent / "dangling.jpg").symlink_to("nowhere.jpg")
        (path.parent / "loop.jpg").symlink_to("loop.jpg")
        assert stamp_of(f"{path.parent}/{name}") == NO_FILE == (-1, -1, -1)


def test_splits_as_numbers():
    samples = [Sample(name, 0, name) for name in ("test", "train", "val")]
    found = own_splits(samples)
    assert (found.dtype, [SPLITS[number] for number in found]) == (
        np.uint8,
        ["test", "train", "val"],
    )
