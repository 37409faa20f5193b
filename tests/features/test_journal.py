"""The log: what it has said to have is there, in this process and in the next."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from feature_files import batch_of, descriptors_in, file_size_limit, same_batch
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import ArtifactError, ArtifactInvalid, ArtifactMissing
from featx.features import journal as journal_module
from featx.features import storage
from featx.features.journal import Journal, read_progress, read_settings
from featx.features.records import Batch, RowLayout, record

SETTINGS = {"spec": "ä", "num_samples": 9}


def named(sizes: Sequence[int]) -> list[list[str]]:
    """Return that many names for each batch; every third image is bad by its name."""
    numbers = iter(range(sum(sizes)))
    return [
        [f"{'bad' if number % 3 == 1 else 'ok'} {number}" for number in islice(numbers, size)]
        for size in sizes
    ]


def bad_of(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith("bad")]


def write(path: Path, batches: Sequence[Batch]) -> None:
    with Journal(path, layout=RowLayout((8,))) as journal:
        if journal.settings is None:
            journal.begin(SETTINGS)
        for batch in batches:
            journal.append(batch)


sizes = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@given(sizes=sizes, reopened_after=st.integers(0, 6), data=st.data())
def test_what_was_appended_is_there_now_and_after_reopening(sizes, reopened_after, data):
    batches = [batch_of(names, bad=bad_of(names)) for names in named(sizes)]
    rows = np.concatenate([batch.features for batch in batches])
    stamps = np.concatenate([batch.stamps[batch.has_row] for batch in batches])
    digests = np.concatenate([batch.digests[batch.has_row] for batch in batches])
    wanted = np.array(
        data.draw(st.lists(st.integers(0, len(rows) - 1)) if len(rows) else st.just([]))
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.h5"
        write(path, batches[:reopened_after])
        write(path, batches[reopened_after:])
        for _ in range(2):
            with Journal(path, layout=RowLayout((8,))) as journal:
                assert journal.settings == SETTINGS
                assert (journal.num_images, journal.num_rows) == (sum(sizes), len(rows))
                for found, batch in zip(journal.batches(), batches, strict=True):
                    assert same_batch(found, batch)
                if len(rows):
                    found_rows = journal.rows(wanted.astype(np.int64))
                    assert found_rows.features.tobytes() == rows[wanted.astype(int)].tobytes()
                    assert np.array_equal(found_rows.stamps, stamps[wanted.astype(int)])
                    assert np.array_equal(found_rows.digests, digests[wanted.astype(int)])


def test_rows_are_read_while_others_are_added(tmp_path):
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        for number in range(20):
            batch = batch_of([f"{number} {i}" for i in range(3)])
            journal.append(batch)
            assert journal.rows(np.arange(3 * number, 3 * number + 3))[0].tobytes() == (
                batch.features.tobytes()
            )
        assert len(list(journal.batches())) == 20


def test_no_file_is_made_before_the_first_batch(tmp_path):
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        assert list(journal.batches()) == []
        assert os.listdir(tmp_path) == []
        journal.append(batch_of(["a"]))
        assert os.listdir(tmp_path) == ["f.h5.partial"]
    assert os.listdir(tmp_path) == ["f.h5.partial"]


def test_beginning_again_forgets_all(tmp_path):
    write(tmp_path / "f.h5", [batch_of(["a", "b"]), batch_of(["c"])])
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin({"other": 1})
        assert (journal.num_images, journal.num_rows) == (0, 0)
        assert list(journal.batches()) == []
        journal.append(batch_of(["d"], seed=1))
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        assert journal.settings == {"other": 1}
        assert [batch.sample_ids for batch in journal.batches()] == [("d",)]


def test_removing_leaves_nothing(tmp_path):
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        journal.append(batch_of(["a"]))
        assert len(descriptors_in(tmp_path)) == 1
        journal.remove()
        assert descriptors_in(tmp_path) == []
    assert os.listdir(tmp_path) == []
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.remove()  # nothing to remove is fine


def test_an_error_in_the_run_closes_it_and_keeps_it(tmp_path):
    def run() -> None:
        with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
            journal.begin(SETTINGS)
            journal.append(batch_of(["a"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert descriptors_in(tmp_path) == []
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        assert journal.num_rows == 1


def test_memory_does_not_grow_with_the_rows(tmp_path):
    def batch(number: int) -> Batch:
        names = tuple(f"{number} {i}" for i in range(500))
        shapes = ((500, 3), np.int64), ((500, 16), np.uint8)
        stamps, digests = (np.zeros(shape, dtype) for shape, dtype in shapes)
        return Batch(names, stamps, digests, ("",) * 500, np.zeros((500, 256), np.float32))

    with Journal(tmp_path / "f.h5", layout=RowLayout((256,))) as journal:
        journal.begin(SETTINGS)
        tracemalloc.start()
        try:
            for number in range(40):
                journal.append(batch(number))
            for _ in journal.batches():
                pass
            assert tracemalloc.get_traced_memory()[1] < 6 * 500 * 256 * 4
        finally:
            tracemalloc.stop()


# --- durable ------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the files at each sync."""
    sizes: list[int] = []
    sync = storage.sync

    def note(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(storage, "sync", note)
    return sizes


def test_it_is_durable_after_4096_images(tmp_path, syncs, monkeypatch):
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: 0.0)
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        journal.append(batch_of(["0"]))
        assert len(syncs) == 1  # of record 0
        journal.append(batch_of([f"{i}" for i in range(1, 4095)]))
        assert len(syncs) == 1
        journal.append(batch_of(["last"], bad=["last"]))
        assert syncs[1:] == [journal.path.stat().st_size]
        journal.append(batch_of(["more"]))
        assert len(syncs) == 2
    assert syncs[2:] == [journal.path.stat().st_size]  # closing leaves nothing unsynced


def test_it_is_durable_after_a_second(tmp_path, syncs, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now[0])
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        journal.append(batch_of(["a"]))
        before = len(syncs)
        now[0] += 0.9
        journal.append(batch_of(["b"]))
        assert len(syncs) == before
        now[0] += 0.2
        journal.append(batch_of(["c"]))
        assert syncs[before:] == [journal.path.stat().st_size]


def test_the_folder_is_synced_when_the_file_is_made(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: (synced.append(str(Path(f"/proc/self/fd/{fd}").readlink())), fsync(fd)),
    )
    write(tmp_path / "f.h5", [batch_of(["a"]), batch_of(["b"])])
    assert synced == [str(tmp_path)]


# --- what is found in its place -----------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"f", b"fxj1", record(0, b"{}")[:-1], bytes(100)])
def test_a_log_that_died_before_record_0_begins_anew(tmp_path, content):
    (tmp_path / "f.h5.partial").write_bytes(content)
    assert read_settings(tmp_path / "f.h5.partial") is None
    write(tmp_path / "f.h5", [batch_of(["a"])])
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        assert journal.settings == SETTINGS
        assert journal.num_rows == 1


@pytest.mark.parametrize("content", [b"notes", b"\x89HDF\r\n\x1a\n", b"\1" * 9])
def test_another_file_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "f.h5.partial"
    path.write_bytes(content)

    def again() -> None:
        Journal(tmp_path / "f.h5", layout=RowLayout((8,)))

    for look in (again, lambda: read_settings(path)):
        with pytest.raises(ArtifactInvalid, match=r"not a journal of featx's\. Move it"):
            look()
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused_and_kept(tmp_path):
    (tmp_path / "a.partial").mkdir()
    os.mkfifo(tmp_path / "b.partial")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "c.partial").symlink_to(tmp_path / "precious")
    (tmp_path / "d.partial").symlink_to(tmp_path / "nowhere")
    for name in "abcd":
        with pytest.raises(ArtifactError, match=f"{name}.partial"):
            Journal(tmp_path / name, layout=RowLayout((8,)))
        with pytest.raises(ArtifactError, match=f"{name}.partial"):
            read_settings(tmp_path / f"{name}.partial")
    assert (tmp_path / "precious").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert len(os.listdir(tmp_path)) == 5


def test_a_link_to_a_valid_journal_is_refused_and_kept(tmp_path):
    write(tmp_path / "other.h5", [batch_of(["a"])])
    journal, link = tmp_path / "other.h5.partial", tmp_path / "f.h5.partial"
    content = journal.read_bytes()
    link.symlink_to(journal)
    with pytest.raises(ArtifactError, match=r"f\.h5\.partial"):
        Journal(tmp_path / "f.h5", layout=RowLayout((8,)))
    for look in (read_settings, read_progress):
        with pytest.raises(ArtifactError, match=r"f\.h5\.partial"):
            look(link)
    assert journal.read_bytes() == content


def test_what_is_refused_is_closed(tmp_path):
    (tmp_path / "f.h5.partial").write_text("notes of mine")
    with pytest.raises(ArtifactInvalid):
        Journal(tmp_path / "f.h5", layout=RowLayout((8,)))
    assert descriptors_in(tmp_path) == []


def test_rows_of_another_length_are_refused(tmp_path):
    write(tmp_path / "f.h5", [batch_of(["a", "b"])])
    with (
        Journal(tmp_path / "f.h5", layout=RowLayout((7,))) as journal,
        pytest.raises(ArtifactInvalid, match="rows of another length than 7"),
    ):
        list(journal.batches())


def test_damage_after_opening_is_found_on_reading(tmp_path):
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        journal.append(batch_of(["a"]))
        content = bytearray(journal.path.read_bytes())
        content[-1] ^= 1
        journal.path.write_bytes(bytes(content))
        with pytest.raises(ArtifactInvalid, match="is damaged at byte"):
            journal.rows(np.array([0]))


def test_a_whole_record_that_is_no_batch_is_cut_off(tmp_path):
    write(tmp_path / "f.h5", [batch_of(["a"])])
    path = tmp_path / "f.h5.partial"
    path.write_bytes(path.read_bytes() + record(2, b"of a later featx"))
    write(tmp_path / "f.h5", [batch_of(["b"])])
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        assert [batch.sample_ids for batch in journal.batches()] == [("a",), ("b",)]


# --- others look --------------------------------------------------------------------------------


def test_progress_and_settings_can_be_read_while_it_grows(tmp_path):
    path = tmp_path / "f.h5.partial"
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        for number in range(1, 4):
            journal.append(batch_of([f"{number}a", f"{number}b"], bad=[f"{number}b"]))
            assert read_progress(path) == (2 * number, 9)
            assert read_settings(path) == SETTINGS


def test_looking_changes_nothing(tmp_path):
    write(tmp_path / "f.h5", [batch_of(["a", "b"]), batch_of(["c"])])
    path = tmp_path / "f.h5.partial"
    content = path.read_bytes()[:-1]  # torn
    path.write_bytes(content)
    path.chmod(0o444)
    assert read_progress(path) == (2, 9)
    assert read_settings(path) == SETTINGS
    assert path.read_bytes() == content


def test_no_log_is_missing(tmp_path):
    assert read_settings(tmp_path / "f.h5.partial") is None
    with pytest.raises(ArtifactMissing, match="does not exist"):
        read_progress(tmp_path / "f.h5.partial")


# --- a failing disk -----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_rows", [1, 50, 5000], ids=lambda rows: f"{rows}-row batches")
def test_a_full_disk_is_an_artifact_error_and_keeps_what_was_said(tmp_path, batch_rows):
    said: list[Batch] = []

    def fill() -> None:
        with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
            journal.begin(SETTINGS)
            for number in range(20_000 // batch_rows):
                batch = batch_of([f"{number} {i}" for i in range(batch_rows)])
                journal.append(batch)
                said.append(batch)

    with file_size_limit(20_000), pytest.raises(ArtifactError, match="File too large") as caught:
        fill()
    kept = sum(len(batch.sample_ids) for batch in said)
    assert f" {kept:,} images are kept in it; run the same command again" in str(caught.value)
    assert caught.value.path == tmp_path / "f.h5"
    assert os.listdir(tmp_path) == ["f.h5.partial"]
    assert descriptors_in(tmp_path) == []
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        assert all(same_batch(a, b) for a, b in zip(journal.batches(), said, strict=True))


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    path = tmp_path / "missing" / "f.h5"
    message = r"Cannot write the features of '.*missing/f\.h5'"
    with Journal(path, layout=RowLayout((8,))) as journal:
        journal.begin(SETTINGS)
        with pytest.raises(ArtifactError, match=message) as e:
            journal.append(batch_of(["a"]))
    assert e.value.path == path


@pytest.mark.parametrize("name", ["begin", "remove"])
def test_other_refusals_of_the_disk_are_artifact_errors(tmp_path, monkeypatch, name):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    write(tmp_path / "f.h5", [batch_of(["a"])])
    with Journal(tmp_path / "f.h5", layout=RowLayout((8,))) as journal:
        monkeypatch.setattr(storage, "truncate", refuse)
        monkeypatch.setattr(Path, "unlink", refuse)
        with pytest.raises(ArtifactError, match="Input/output error"):
            journal.begin({}) if name == "begin" else journal.remove()
