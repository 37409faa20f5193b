"""Publishing: the file anyone can read, whole or not there."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from activations import write_activations
from feature_files import (
    append_rows,
    file_size_limit,
    make_columns,
    make_header,
    make_samples,
    verifier,
    write_features,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.artifact import MAX_HEADER_BYTES, is_own
from featx.errors import ArtifactError, ArtifactExists, ArtifactInvalid
from featx.features import publish, storage
from featx.features.columns import BLOCK_ROWS
from featx.features.file import open_features
from featx.features.journal import Journal
from featx.features.publish import ExistingRows, publish_features, start_verifier
from featx.features.records import RowLayout

COLUMNS = {"features", "labels", "splits", "sample_ids", "digests", "stamps", "groups"}


def test_anyone_can_read_it(published, values):
    columns = make_columns(len(values))
    with h5py.File(published) as file:
        assert set(file) == COLUMNS
        assert file["features"].dtype == np.dtype("<f4")
        assert np.array_equal(file["features"][:], values)
        for name, dtype in [("labels", "<i8"), ("splits", "u1"), ("digests", "u1")]:
            assert file[name].dtype == np.dtype(dtype), name
            assert np.array_equal(file[name][:], columns[name]), name
        assert file["stamps"].dtype == np.dtype("<i8")
        assert np.array_equal(file["stamps"][:], columns["stamps"])
        assert file["groups"][:].tolist() == [-1] * len(values)
        assert [name.decode() for name in file["sample_ids"][:]] == columns["sample_ids"]
        assert file.attrs["complete"]
        header = json.loads(file.attrs["header"])
        assert (header["kind"], header["schema_version"]) == ("features", 3)
        assert header["classes"] == ["ant", "bee", "wasp"]


def test_columns_are_fixed_checksummed_and_chunked(tmp_path):
    rows = np.zeros((9000, 100), dtype=np.float32)  # 3.6 MB
    write_features(tmp_path / "f.h5", rows)
    with h5py.File(tmp_path / "f.h5") as file:
        for name, column in file.items():
            assert column.fletcher32, name
            assert column.maxshape == column.shape, name
            assert column.compression is None, name
            assert h5py.check_vlen_dtype(column.dtype) is None, name
        chunk_bytes = np.prod(file["features"].chunks) * 4
        assert 2**19 < chunk_bytes <= 2**20
        assert h5py.check_string_dtype(file.attrs.get_id("header").dtype).length is not None


def test_the_returned_header_is_the_stored_one(tmp_path, values):
    returned = write_features(tmp_path / "f.h5", values)
    opened = open_features(tmp_path / "f.h5")
    assert opened.header == returned
    assert returned.details["num_rows"] == len(values)
    assert set(returned.details["sha256"]) == COLUMNS
    assert returned.details["source"] == "/photos"


def test_a_header_far_over_64_kib_survives(tmp_path, values):
    classes = tuple(f"class {number} – Ærøskøbing" for number in range(5000))
    skipped = [[f"odd/{number}.jpg", "truncated", [1, 2, number]] for number in range(5000)]
    header = make_header(values.shape[1], classes, skipped=skipped)
    write_features(tmp_path / "f.h5", values, header=header)
    opened = open_features(tmp_path / "f.h5")
    assert len(opened.header.to_json()) > 3 * 2**16
    assert opened.classes == classes
    assert [[*list(image[:2]), list(image.stamp)] for image in opened.skipped] == skipped
    assert np.array_equal(opened.features, values)


def test_a_header_that_no_reader_would_take_is_refused(tmp_path, values):
    skipped = [["x" * 1000, "y" * 1000, [1, 2, 3]]] * (MAX_HEADER_BYTES // 4000 + 1)
    with pytest.raises(ArtifactError, match="cannot list all the images that were left out"):
        write_features(tmp_path / "f.h5", values, header=make_header(8, skipped=skipped))
    assert os.listdir(tmp_path) == ["f.h5.partial"]


def test_equal_input_gives_equal_bytes(tmp_path, values):
    contents = []
    for name in ("first.h5", "second.h5"):
        write_features(tmp_path / name, values)
        contents.append((tmp_path / name).read_bytes())
    write_features(tmp_path / "first.h5", values, overwrite=True)
    contents.append((tmp_path / "first.h5").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_how_rows_were_batched_leaves_no_trace(tmp_path):
    rows = np.random.default_rng(0).normal(size=(BLOCK_ROWS + 50, 5)).astype(np.float32)
    contents = set()
    for step in (10_000, 1400, 57):
        write_features(tmp_path / f"{step}.h5", rows, step=step)
        contents.add((tmp_path / f"{step}.h5").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("num_in_file", [1, 30, 59])
def test_whether_rows_were_in_a_file_before_leaves_no_trace(tmp_path, values, num_in_file):
    columns = make_columns(len(values))
    path, whole = tmp_path / "f.h5", tmp_path / "whole.h5"
    write_features(whole, values, **columns)
    first = {name: column[:num_in_file] for name, column in columns.items()}
    write_features(path, values[:num_in_file], **first)
    rest = {name: column[num_in_file:] for name, column in columns.items()}
    with Journal(path, layout=RowLayout((8,))) as journal:
        journal.begin({})
        append_rows(journal, values[num_in_file:], rest, 7)
        publish_features(
            path,
            make_header(8),
            ExistingRows(open_features(path), journal),
            samples=make_samples(columns),
            rows=np.arange(len(values)),
            verifier=verifier,
            overwrite=True,
        )
    assert path.read_bytes() == whole.read_bytes()


def test_rows_come_in_the_order_of_the_samples_and_only_theirs(tmp_path, values):
    columns = make_columns(len(values))
    order = np.random.default_rng(3).permutation(len(values))
    rows = np.where(order % 4 == 0, -1, order)
    path, samples = tmp_path / "f.h5", make_samples(columns)
    with Journal(path, layout=RowLayout((8,))) as journal:
        journal.begin({})
        append_rows(journal, values, columns, 7)
        publish_features(
            path,
            make_header(8),
            ExistingRows(None, journal),
            samples=[samples[i] for i in order],
            rows=rows,
            verifier=verifier,
        )
    opened, kept = open_features(path), rows[rows >= 0]
    assert np.array_equal(opened.features, values[kept])
    assert list(opened.sample_ids) == [columns["sample_ids"][i] for i in kept]
    for name in ("labels", "splits", "digests"):
        assert np.array_equal(getattr(opened, name), columns[name][kept]), name


def test_what_is_there_stays_without_overwrite(published, values):
    before = published.read_bytes()
    with pytest.raises(ArtifactExists, match="overwrite=True"):
        write_features(published, values + 1)
    assert published.read_bytes() == before
    write_features(published, values + 1, overwrite=True)
    assert np.array_equal(open_features(published).features, values + 1)
    assert os.listdir(published.parent) == ["features.h5"]


def test_memory_does_not_grow_with_the_rows(tmp_path):
    rows = np.zeros((10 * BLOCK_ROWS, 128), dtype=np.float32)  # 20 MiB
    columns = make_columns(len(rows))
    samples, header = make_samples(columns), make_header(128)
    with Journal(tmp_path / "f.h5", layout=RowLayout((128,))) as journal:
        journal.begin({})
        append_rows(journal, rows, columns, 512)
        tracemalloc.start()
        try:
            publish_features(
                tmp_path / "f.h5",
                header,
                ExistingRows(None, journal),
                samples=samples,
                rows=np.arange(len(rows)),
                verifier=SimpleNamespace(run=lambda path: None),
            )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < rows.nbytes / 2


# --- verified by a fresh process ----------------------------------------------------------------


def test_a_fresh_process_reads_it_before_it_gets_its_name(tmp_path, values):
    with start_verifier() as verifier:
        write_features(tmp_path / "f.h5", values, verifier=verifier)
    assert np.array_equal(open_features(tmp_path / "f.h5").features, values)


def test_what_the_fresh_process_refuses_is_not_published(target, values, monkeypatch):
    before = content_of(target)
    lose_a_column(monkeypatch)
    with start_verifier() as verifier, pytest.raises(ArtifactInvalid, match="column 'features'"):
        write_features(target, values, overwrite=True, verifier=verifier)
    assert_failed_cleanly(target, before)


def test_the_temporary_file_is_what_is_verified_and_is_whole_by_then(tmp_path, values):
    seen = []

    def look(path: Path) -> None:
        assert not (tmp_path / "f.h5").exists()
        seen.append((path, path.read_bytes()))

    write_features(tmp_path / "f.h5", values, verifier=SimpleNamespace(run=look))
    ((path, content),) = seen
    assert re.fullmatch(r"\.f\.h5\.[0-9a-f]{8}-[0-9a-f]{16}\.tmp", path.name)
    assert content == (tmp_path / "f.h5").read_bytes()


# --- room ---------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    num_rows=st.integers(1, 3000),
    num_features=st.integers(1, 300),
    longest=st.integers(1, 4000),
    header_kilobytes=st.integers(0, 500),
)
def test_a_file_never_outgrows_the_room_it_claimed(
    *, tmp_path, monkeypatch, num_rows, num_features, longest, header_kilobytes
):
    claimed = []
    claim = storage._claim
    monkeypatch.setattr(
        storage, "_claim", lambda fd, room, output: (claimed.append(room), claim(fd, room, output))
    )
    names = [f"{row:04d}".ljust(longest if row == 0 else 4, "x") for row in range(num_rows)]
    columns = make_columns(num_rows) | {"sample_ids": names}
    header = make_header(num_features, padding="x" * 1000 * header_kilobytes)
    rows = np.ones((num_rows, num_features), dtype=np.float32)
    path = tmp_path / "f.h5"
    write_features(path, rows, header=header, overwrite=True, **columns)
    assert path.stat().st_size <= claimed[-1]
    assert path.stat().st_blocks * 512 <= path.stat().st_size + 2**16  # and what is left is given


def test_a_disk_with_too_little_room_is_told_how_much_it_takes(target, values, monkeypatch):
    before = content_of(target)
    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(f_bavail=7, f_frsize=512))
    with pytest.raises(ArtifactError) as caught:
        write_features(target, values, overwrite=True)
    message = str(caught.value)
    assert message.startswith(f"'{target}' needs ")
    assert " bytes, but its disk has 3,584 free." in message
    assert "nothing is lost" in message
    assert caught.value.path == target
    assert_failed_cleanly(target, before)


@pytest.mark.parametrize("fields", [{"f_bavail": 0, "f_frsize": 0}, {"f_bavail": 0, "f_frsize": 1}])
@pytest.mark.parametrize("claims", [True, False])
def test_a_disk_that_does_not_know_its_room_is_written(target, values, monkeypatch, fields, claims):
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "fstatvfs", lambda _: SimpleNamespace(**fields))
    if not claims:
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    write_features(target, values, overwrite=True)
    assert np.array_equal(open_features(target).features, values)
    monkeypatch.setattr(os, "fstatvfs", refuse)
    write_features(target, values, overwrite=True)


def test_a_full_disk_that_cannot_set_space_aside_is_noticed(target, values, monkeypatch):
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    def full(descriptor: int, data: bytes, offset: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.endswith(".tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(descriptor, data, offset)

    write, before = storage.write, content_of(target)
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    monkeypatch.setattr(storage, "write", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_features(target, values, overwrite=True)
    assert_failed_cleanly(target, before)


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.fixture(params=["new", "replacing"])
def target(request, tmp_path: Path, values) -> Path:
    """Where to publish: a free name, or one that a good file holds."""
    path = tmp_path / "f.h5"
    if request.param == "replacing":
        write_features(path, values)
    return path


def assert_failed_cleanly(target: Path, before: bytes | None) -> None:
    """Only the log is there, and the file that was there before."""
    log = f"{target.name}.partial"
    if before is None:
        assert os.listdir(target.parent) == [log]
    else:
        assert sorted(os.listdir(target.parent)) == [target.name, log]
        assert target.read_bytes() == before
    with Journal(target, layout=RowLayout((8,))) as journal:
        assert journal.num_rows


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def lose_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    write = h5py.Dataset.__setitem__

    def lose_features(self, *args) -> None:
        if self.name != "/features":
            write(self, *args)
        else:
            write(self, args[0], np.zeros_like(args[1]))

    monkeypatch.setattr(h5py.Dataset, "__setitem__", lose_features)


@pytest.mark.parametrize("limit", [0, 1000, 20_000, 500_000])
def test_a_full_disk_is_found_before_hdf5_writes(target, limit):
    before, rows, columns = content_of(target), np.ones((3000, 64), np.float32), make_columns(3000)
    with Journal(target, layout=RowLayout((64,))) as journal:
        journal.begin({})
        append_rows(journal, rows, columns, 1000)
        with file_size_limit(limit), pytest.raises(ArtifactError, match="File too large") as caught:
            publish_features(
                target,
                make_header(64),
                ExistingRows(None, journal),
                samples=make_samples(columns),
                rows=np.arange(3000),
                verifier=verifier,
                overwrite=True,
            )
    assert caught.value.path == target
    assert "Cannot write" in str(caught.value)
    assert "it needs" in str(caught.value)
    with Journal(target, layout=RowLayout((64,))) as journal:
        assert journal.num_rows == 3000
    assert sorted(os.listdir(target.parent)) == sorted(
        [f"{target.name}.partial", *([] if before is None else [target.name])]
    )
    assert content_of(target) == before


def test_a_process_whose_disk_is_full_says_so_and_lives(tmp_path):
    """HDF5 crashes the interpreter at exit when one of its writes has failed."""
    code = """
import errno, os, sys, numpy as np
from pathlib import Path
from featx.artifact import Header
from featx.errors import ArtifactError
from featx.features import storage
from featx.features.journal import Journal
from featx.features.publish import ExistingRows
from featx.features.publish import publish_features
from featx.features.records import Batch, RowLayout
from featx.images.sources import Sample
path, rows = Path(sys.argv[1]), np.ones((3000, 64), "f4")
header = Header("features", {"num_features": 64}, ("a",))
names = tuple(map(str, range(3000)))
with Journal(path, layout=RowLayout((64,))) as journal:
    journal.begin({})
    journal.append(Batch(names, np.zeros((3000, 3), "i8"), np.zeros((3000, 16), "u1"),
        ("",) * 3000, rows))
    write, room = storage.write, [300_000]
    def full(descriptor, data, offset):
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, data, offset)
    storage.write = full
    try:
        publish_features(path, header, ExistingRows(None, journal), rows=np.arange(3000),
            samples=[Sample(name, 0, "train") for name in names], verifier=None)
    except ArtifactError as err:
        print(err)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f.h5")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Cannot write '{tmp_path / 'f.h5'}': No space left on device.\n"
    assert os.listdir(tmp_path) == ["f.h5.partial"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("h5py's"),
        pytest.param(
            RuntimeError("Can't write data"),
        ),
    ],
    ids=["ENOSPC", "h5py OSError", "h5py RuntimeError"],
)
def test_a_failing_column_write_leaves_nothing(target, values, monkeypatch, error):
    before, calls = content_of(target), []
    write = h5py.Dataset.__setitem__

    def fail_third(self, *args) -> None:
        calls.append(self.name)
        if len(calls) == 3:
            raise error
        write(self, *args)

    monkeypatch.setattr(h5py.Dataset, "__setitem__", fail_third)
    with pytest.raises(ArtifactError, match=r"Cannot write '.*f\.h5'") as caught:
        write_features(target, values, overwrite=True)
    assert caught.value.path == target
    assert_failed_cleanly(target, before)


def test_a_failing_sync_leaves_nothing(target, values, monkeypatch):
    before = content_of(target)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match="Input/output error"):
        write_features(target, values, overwrite=True)
    assert_failed_cleanly(target, before)


@pytest.mark.parametrize("where", ["_write", "_blocks", "sync"])
def test_an_interruption_leaves_nothing(target, values, monkeypatch, where):
    before = content_of(target)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def from_now_on(*arguments: Any, **options: Any) -> Any:
        owner = storage if where == "sync" else publish
        monkeypatch.setattr(owner, where, interrupt)
        return open_disk(*arguments, **options)

    open_disk = storage.Disk.open
    monkeypatch.setattr(storage.Disk, "open", from_now_on)
    with pytest.raises(KeyboardInterrupt):
        write_features(target, values, overwrite=True)
    monkeypatch.undo()
    assert_failed_cleanly(target, before)


def test_a_file_that_hdf5_falsified_is_not_published(target, values, monkeypatch):
    """The library can lose a chunk and report success: what was written is read back."""
    before = content_of(target)
    lose_a_column(monkeypatch)
    with pytest.raises(ArtifactError, match="column 'features'"):
        write_features(target, values, overwrite=True)
    assert_failed_cleanly(target, before)


def test_another_process_that_was_faster_wins(tmp_path, values):
    path = tmp_path / "f.h5"
    theirs = SimpleNamespace(run=lambda _: path.write_bytes(b"theirs"))
    with pytest.raises(ArtifactExists, match="another process"):
        write_features(path, values, verifier=theirs)
    assert path.read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == ["f.h5", "f.h5.partial"]


@pytest.mark.parametrize(
    "leave",
    [
        lambda path: path.write_bytes(bytes(2**21)),
        lambda path: path.write_bytes(b""),
        lambda path: (path.write_bytes(b"\x89HDF"), path.chmod(0o444)),
    ],
    ids=["long", "empty", "read-only"],
)
def test_what_a_killed_process_left_does_no_harm(tmp_path, values, leave):
    write_features(tmp_path / "whole.h5", values)
    leave(publish._free_name(tmp_path / "f.h5"))
    write_features(tmp_path / "f.h5", values)
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["f.h5", "whole.h5"]


def test_what_others_have_made_is_left_alone(tmp_path, values):
    output, other = tmp_path / "f.h5", tmp_path / "g.h5"
    write_features(tmp_path / "f.h5.tmp", values)
    (tmp_path / ".f.h5.tmp").write_text("mine")
    publish._free_name(other).write_text("another extraction's, which is running")
    publish._free_name(output).mkdir()
    publish._free_name(output).symlink_to("f.h5.tmp")
    before = sorted(os.listdir(tmp_path))
    assert len(before) == 5
    write_features(output, values)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "f.h5"])
    assert len(open_features(tmp_path / "f.h5.tmp")) == len(values)


@pytest.mark.parametrize(("num_rows", "num_features"), [(1, 1), (60, 16), (3000, 64)])
def test_the_space_that_is_claimed_is_hardly_more_than_the_file_takes(
    tmp_path, monkeypatch, num_rows, num_features
):
    claimed, claim = [], os.posix_fallocate

    def note(descriptor: int, offset: int, length: int) -> None:
        claimed.append(length)
        claim(descriptor, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", note)
    columns = make_columns(num_rows)
    with Journal(tmp_path / "f.h5", layout=RowLayout((num_features,))) as journal:
        journal.begin({})
        append_rows(journal, np.ones((num_rows, num_features), np.float32), columns, 1000)
        publish_features(
            tmp_path / "f.h5",
            make_header(num_features),
            ExistingRows(None, journal),
            samples=make_samples(columns),
            rows=np.arange(num_rows),
            verifier=verifier,
        )
    size = (tmp_path / "f.h5").stat().st_size
    assert size <= claimed[0] <= size + 70_000
    assert is_own(tmp_path / "f.h5", "features")


def test_a_large_file_is_known_by_its_start(tmp_path):
    write_activations(tmp_path / "f.h5", RowLayout((32, 32, 3), "uint8"), 3000, step=500)
    assert is_own(tmp_path / "f.h5", "features")
