"""Publishing: the file anyone can read, whole or not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import featx.features.publish
from featx.errors import ArtifactError, ArtifactExists
from featx.features.file import open_features
from featx.features.journal import BLOCK_ROWS, Journal
from featx.features.publish import publish_features


def test_anyone_can_read_it(published: Path, values: np.ndarray, make_columns) -> None:
    columns = make_columns(len(values))
    with h5py.File(published) as file:
        assert set(file) == {"features", "labels", "splits", "sample_ids", "digests"}
        assert file["features"].dtype == np.dtype("<f4")
        assert np.array_equal(file["features"][:], values)
        for name, dtype in [("labels", "<i8"), ("splits", "u1"), ("digests", "u1")]:
            assert file[name].dtype == np.dtype(dtype), name
            assert np.array_equal(file[name][:], columns[name]), name
        assert [name.decode() for name in file["sample_ids"][:]] == columns["sample_ids"]
        assert file.attrs["complete"]
        header = json.loads(file.attrs["header"])
        assert (header["kind"], header["schema_version"]) == ("features", 1)
        assert header["classes"] == ["ant", "bee", "wasp"]


def test_columns_are_fixed_checksummed_and_chunked(tmp_path: Path, write_features) -> None:
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


def test_the_returned_header_is_the_stored_one(tmp_path: Path, write_features, values) -> None:
    returned = write_features(tmp_path / "f.h5", values)
    opened = open_features(tmp_path / "f.h5")
    assert opened.header == returned
    assert returned.details["num_rows"] == len(values)
    assert set(returned.details["sha256"]) == {
        "features", "labels", "splits", "sample_ids", "digests",
    }  # fmt: skip
    assert returned.details["source"] == "/photos"


def test_a_header_far_over_64_kib_survives(
    tmp_path: Path, write_features, make_header, values
) -> None:
    classes = tuple(f"class {number} – Ærøskøbing" for number in range(5000))
    skipped = [[f"odd/{number}.jpg", "truncated"] for number in range(5000)]
    header = make_header(values.shape[1], classes, skipped=skipped)
    write_features(tmp_path / "f.h5", values, header=header)
    opened = open_features(tmp_path / "f.h5")
    assert len(opened.header.to_json()) > 3 * 2**16
    assert opened.classes == classes
    assert opened.header.details["skipped"] == skipped
    assert np.array_equal(opened.features, values)


def test_equal_input_gives_equal_bytes(tmp_path: Path, write_features, values) -> None:
    contents = []
    for name in ("first.h5", "second.h5"):
        write_features(tmp_path / name, values)
        contents.append((tmp_path / name).read_bytes())
    write_features(tmp_path / "first.h5", values, overwrite=True)
    contents.append((tmp_path / "first.h5").read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_how_rows_were_batched_leaves_no_trace(tmp_path: Path, make_columns, make_header) -> None:
    rows = np.random.default_rng(0).normal(size=(BLOCK_ROWS + 50, 5)).astype(np.float32)
    contents = set()
    for batches in (1, 3, 77):
        path = tmp_path / f"{batches}.h5"
        with Journal(path, num_features=5) as journal:
            for batch in np.array_split(rows, batches):
                journal.append(batch)
            publish_features(path, make_header(5), journal, **make_columns(len(rows)))
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_what_is_there_stays_without_overwrite(published: Path, write_features, values) -> None:
    before = published.read_bytes()
    with pytest.raises(ArtifactExists, match="--overwrite"):
        write_features(published, values + 1)
    assert published.read_bytes() == before
    write_features(published, values + 1, overwrite=True)
    assert np.array_equal(open_features(published).features, values + 1)
    assert os.listdir(published.parent) == ["features.h5"]


def test_nothing_shows_while_rows_wait(tmp_path: Path, make_columns, make_header, values) -> None:
    path = tmp_path / "f.h5"
    with Journal(path, num_features=8) as journal:
        journal.append(values)
        assert os.listdir(tmp_path) == []
        publish_features(path, make_header(8), journal, **make_columns(len(values)))
        assert os.listdir(tmp_path) == ["f.h5"]


@pytest.fixture(params=["new", "replacing"])
def target(request, tmp_path: Path, write_features, values) -> Path:
    """Where to publish: a free name, or one that a good file holds."""
    path = tmp_path / "f.h5"
    if request.param == "replacing":
        write_features(path, values)
    return path


def assert_failed_cleanly(target: Path, before: bytes | None) -> None:
    if before is None:
        assert os.listdir(target.parent) == []
    else:
        assert os.listdir(target.parent) == [target.name]
        assert target.read_bytes() == before


def content_of(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


@pytest.mark.parametrize("limit", [0, 1000, 20_000, 500_000])
def test_a_full_disk_is_found_before_hdf5_writes(
    *, target: Path, write_features, file_size_limit, make_columns, make_header, limit: int
) -> None:
    before, rows = content_of(target), np.ones((3000, 64), dtype=np.float32)
    with Journal(target, num_features=64) as journal:
        journal.append(rows)
        with file_size_limit(limit), pytest.raises(ArtifactError, match="File too large") as caught:
            publish_features(target, make_header(64), journal, **make_columns(3000), overwrite=True)
    assert caught.value.path == target
    assert "Cannot write" in str(caught.value)
    assert_failed_cleanly(target, before)


def test_a_process_whose_disk_is_full_says_so_and_lives(tmp_path: Path) -> None:
    """HDF5 crashes the interpreter at exit when one of its writes has failed."""
    code = """
import resource, sys, numpy as np
from pathlib import Path
from featx.artifact import Header
from featx.errors import ArtifactError
from featx.features.journal import Journal
from featx.features.publish import publish_features
path, rows = Path(sys.argv[1]), np.ones((3000, 64), "f4")
header = Header("features", {"num_features": 64}, ("a",))
with Journal(path, num_features=64) as journal:
    journal.append(rows)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        publish_features(path, header, journal, labels=np.zeros(3000, "i8"),
            splits=np.zeros(3000, "u1"), sample_ids=map(str, range(3000)),
            digests=np.zeros((3000, 16), "u1"))
    except ArtifactError as err:
        print(err)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "f.h5")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Cannot write '{tmp_path / 'f.h5'}': File too large.\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), RuntimeError("Can't write data"), OSError("h5py's")],
    ids=["ENOSPC", "h5py RuntimeError", "h5py OSError"],
)
def test_a_failing_column_write_leaves_nothing(
    target: Path, write_features, values, monkeypatch, error: Exception
) -> None:
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


def test_a_failing_sync_leaves_nothing(target: Path, write_features, values, monkeypatch) -> None:
    before = content_of(target)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtifactError, match="Input/output error"):
        write_features(target, values, overwrite=True)
    assert_failed_cleanly(target, before)


def test_an_interruption_leaves_nothing(target: Path, write_features, values, monkeypatch) -> None:
    before = content_of(target)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(featx.features.publish, "_write_column", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_features(target, values, overwrite=True)
    assert_failed_cleanly(target, before)


def test_a_file_that_hdf5_falsified_is_not_published(
    target: Path, write_features, values, monkeypatch
) -> None:
    """The library can lose a chunk and report success: what was written is read back."""
    before = content_of(target)
    write = h5py.Dataset.__setitem__

    def lose_features(self, *args) -> None:
        if self.name != "/features":
            write(self, *args)
        else:
            write(self, args[0], np.zeros_like(args[1]))

    monkeypatch.setattr(h5py.Dataset, "__setitem__", lose_features)
    with pytest.raises(ArtifactError, match="column 'features'"):
        write_features(target, values, overwrite=True)
    assert_failed_cleanly(target, before)


def test_another_process_that_was_faster_wins(
    tmp_path: Path, write_features, values, monkeypatch
) -> None:
    path = tmp_path / "f.h5"

    def publish_meanwhile(temporary: Path) -> None:
        path.write_bytes(b"theirs")
        opened(temporary)

    opened = featx.features.publish.open_features
    monkeypatch.setattr(featx.features.publish, "open_features", publish_meanwhile)
    with pytest.raises(ArtifactExists, match="another process"):
        write_features(path, values)
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["f.h5"]
