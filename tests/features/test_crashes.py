"""Every way a disk can fail and a process can end: no row that was committed is ever lost.

The whole of a run, from the lock to the removed log, with rows that follow from made-up images, so
that hundreds of them take seconds. The last part is the same with a backbone and photos.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_files import (
    batch_of,
    fake_source,
    fill,
    make_header,
    plan_of,
    publish_plan,
    same_batch,
    verifier,
)

from featx.errors import ArtifactError, FeatxError
from featx.features import storage
from featx.features.file import open_features
from featx.features.journal import Journal, read_settings
from featx.features.lock import locked
from featx.features.publish import ExistingRows, publish_features
from featx.features.records import Batch, RowLayout

NUM_FEATURES = 8
CONTENTS: dict[str, bytes | None] = {
    "a": b"1", "b": b"bad", "c": b"3", "d": None, "e": b"5", "f": b"6", "g": b"bad", "h": b"bad",
    "i": b"bad", "j": b"10",
}  # fmt: skip


@pytest.fixture
def run() -> Callable[..., None]:
    """Bring an output up to date, as the extraction stage does."""

    def run_(path: Path, contents: dict[str, bytes | None] = CONTENTS) -> None:
        source = fake_source(contents)
        with locked(path):
            file = open_features(path) if path.exists() else None
            with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
                known = ExistingRows(file, journal)
                plan = plan_of(source, known)
                fill(source, known, plan, batch_size=3)
                publish_plan(path, source, known, plan)
                journal.remove()

    return run_


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches that ``append`` has returned for, of all journals of this test."""
    batches: list[Batch] = []
    append = Journal.append

    def noting(self: Journal, batch: Batch) -> None:
        append(self, batch)
        batches.append(batch)

    monkeypatch.setattr(Journal, "append", noting)
    return batches


# --- (a) each call fails in turn ----------------------------------------------------------------


@dataclass
class Faults:
    """A disk whose n-th call fails, or every call from the n-th on.

    Attributes:
        fail_at: Which, counted from 1.
        error: Its errno.
        for_ever: Whether all after it fail as well.
        half: Whether half of what is written arrives before the error.
        calls: Calls so far, by name.
    """

    fail_at: int
    error: int = errno.ENOSPC
    for_ever: bool = False
    half: bool = False
    calls: list[str] = field(default_factory=list)

    def check(self, name: str) -> bool:
        """Count a call and return whether it fails."""
        self.calls.append(name)
        return len(self.calls) == self.fail_at or (self.for_ever and len(self.calls) > self.fail_at)

    def failure(self) -> OSError:
        return OSError(self.error, os.strerror(self.error))

    @contextlib.contextmanager
    def installed(self) -> Iterator[Faults]:
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in (
                (storage, "write"), (storage, "sync"), (storage, "truncate"), (os, "fsync"),
                (os, "replace"), (os, "link"), (os, "posix_fallocate"),
            ):  # fmt: skip
                patch.setattr(owner, name, self._wrapped(name, getattr(owner, name)))
            yield self

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if not self.check(name):
                return call(*arguments, **options)
            if name == "write" and self.half:
                descriptor, data, offset = arguments
                call(descriptor, memoryview(data).cast("B")[: len(data) // 2], offset)
            raise self.failure()

        return wrapped


def each_fault(attempt: Callable[[Faults], bool], **settings: Any) -> int:
    """Try with the first call failing, the second, … until none is left; return how many."""
    number = 1
    while attempt(Faults(number, **settings)):
        number += 1
        assert number < 500
    return number - 1


FAULTS = pytest.mark.parametrize(
    "settings",
    [
        {"error": errno.ENOSPC},
        {"error": errno.EIO, "half": True},
        {"error": errno.ENOSPC, "half": True, "for_ever": True},
    ],
    ids=["ENOSPC", "EIO half-way", "ENOSPC half-way, from then on"],
)


def failed_cleanly(faults: Faults, work: Callable[[], None]) -> bool:
    """Return whether a call failed; the work then ends with an error of featx's."""
    caught: FeatxError | None = None
    with faults.installed():
        try:
            work()
        except FeatxError as err:
            caught = err
    if caught is None:  # a folder that could not be synced stops nobody, nor does closing
        failed = faults.calls[faults.fail_at - 1 : faults.fail_at]
        assert failed in ([], ["fsync"], ["sync"]), failed
    else:
        assert type(caught) is ArtifactError, repr(caught)
        assert os.strerror(faults.error) in str(caught)
    return len(faults.calls) >= faults.fail_at


def assert_kept(path: Path, batches: list[Batch]) -> None:
    """Every committed batch is read by the next process."""
    with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
        found = list(journal.batches())
        assert len(found) >= len(batches)
        for expected, batch in zip(batches, found, strict=False):
            assert same_batch(expected, batch)
        if batches and journal.num_rows:
            rows = np.concatenate([batch.features for batch in found])
            assert journal.rows(np.arange(len(rows)))[0].tobytes() == rows.tobytes()


@FAULTS
def test_a_failing_disk_costs_nothing_that_was_committed(tmp_path, run, committed, settings):
    whole = tmp_path / "whole" / "f.h5"
    run(whole)
    log = whole.with_name("f.h5.partial")

    def attempt(faults: Faults) -> bool:
        committed.clear()
        path = tmp_path / str(faults.fail_at) / "f.h5"
        if not failed_cleanly(faults, lambda: run(path)):
            return False
        names = set(os.listdir(path.parent)) if path.parent.exists() else set()
        assert names <= {"f.h5", "f.h5.partial"}
        if path.exists():
            assert path.read_bytes() == whole.read_bytes()
        if "f.h5.partial" in names or not path.exists():
            assert_kept(path, committed)
        run(path)
        assert path.read_bytes() == whole.read_bytes()
        assert os.listdir(path.parent) == ["f.h5"]
        return True

    assert each_fault(attempt, **settings) > 15
    assert not log.exists()


@FAULTS
def test_a_failing_disk_during_an_update_leaves_the_old_file(tmp_path, run, committed, settings):
    """Two images are new, one is changed, one gone, one touched."""
    new = CONTENTS | {"c": b"changed", "k": b"11", "l": b"bad"}
    del new["f"]
    moved = {"e": new.pop("e"), **new}  # another stamp
    old_whole, whole = tmp_path / "old" / "f.h5", tmp_path / "whole" / "f.h5"
    run(old_whole)
    run(whole)
    run(whole, moved)
    old, expected = old_whole.read_bytes(), whole.read_bytes()
    assert old != expected

    def attempt(faults: Faults) -> bool:
        path = tmp_path / str(faults.fail_at) / "f.h5"
        path.parent.mkdir()
        path.write_bytes(old)
        committed.clear()
        if not failed_cleanly(faults, lambda: run(path, moved)):
            return False
        assert path.read_bytes() in (old, expected)
        assert set(os.listdir(path.parent)) <= {"f.h5", "f.h5.partial"}
        if path.read_bytes() == old:
            assert_kept(path, committed)
        run(path, moved)
        assert path.read_bytes() == expected
        assert os.listdir(path.parent) == ["f.h5"]
        return True

    assert each_fault(attempt, **settings) > 10


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_where_nothing_may_be_replaced(tmp_path, error, links):
    """Without ``overwrite`` the file is linked to its name, and moved where links don't work."""

    def publish(path: Path) -> None:
        source = fake_source(CONTENTS)
        with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
            known = ExistingRows(None, journal)
            plan = plan_of(source, known)
            fill(source, known, plan)
            if not path.exists():
                publish_features(
                    path, make_header(8), known,
                    samples=source.samples, rows=plan.rows, verifier=verifier,
                )  # fmt: skip

    whole = tmp_path / "whole.h5"
    publish(whole)

    def attempt(faults: Faults) -> bool:
        path = tmp_path / f"{faults.fail_at}.h5"
        caught: ArtifactError | None = None
        with faults.installed(), pytest.MonkeyPatch.context() as patch:
            if not links:
                patch.setattr(os, "link", refuse_links)
            try:
                publish(path)
            except ArtifactError as err:
                caught = err
        if len(faults.calls) < faults.fail_at:
            return False
        if caught is None:  # without links it is moved
            assert faults.calls[faults.fail_at - 1] in ("fsync", "sync", "link")
        else:
            assert os.strerror(error) in str(caught)
        assert not list(path.parent.glob(".*.tmp"))
        publish(path)
        assert path.read_bytes() == whole.read_bytes()
        return True

    assert each_fault(attempt, error=error) > 15


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


# --- (b) a process ends between any two writes, or within one -----------------------------------


@dataclass
class Disk:
    """What is written to one file, call by call.

    Attributes:
        calls: ``("write", offset, data)``, ``("truncate", length, b"")`` or ``("sync", 0, b"")``.
        committed: For each batch that ``append`` returned for, the calls there were by then.
        is_noting: False while a test looks at what came of it.
    """

    calls: list[tuple[str, int, bytes]] = field(default_factory=list)
    committed: list[int] = field(default_factory=list)
    is_noting: bool = True

    def note(self, *call: Any) -> None:
        if self.is_noting:
            self.calls.append(call)

    def content(self, num_calls: int | None = None, *, start: bytes = b"") -> bytes:
        """Return the file as it is after some calls."""
        content = bytearray(start)
        for name, number, data in self.calls[:num_calls]:
            if name == "truncate":
                content[number:] = bytes(max(0, number - len(content)))
            elif name == "write":
                content[len(content) :] = bytes(max(0, number - len(content)))
                content[number : number + len(data)] = data
        return bytes(content)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Note what goes to regular files through ``storage``."""
    noted = Disk()
    write, sync, truncate = storage.write, storage.sync, storage.truncate

    def noting_write(descriptor: int, data: bytes, offset: int) -> None:
        assert stat.S_ISREG(os.fstat(descriptor).st_mode)
        noted.note("write", offset, bytes(data))
        write(descriptor, data, offset)

    def noting_sync(descriptor: int) -> None:
        noted.note("sync", 0, b"")
        sync(descriptor)

    def noting_truncate(descriptor: int, length: int) -> None:
        noted.note("truncate", length, b"")
        truncate(descriptor, length)

    monkeypatch.setattr(storage, "write", noting_write)
    monkeypatch.setattr(storage, "sync", noting_sync)
    monkeypatch.setattr(storage, "truncate", noting_truncate)
    return noted


SIZES = (3, 1, 4, 1, 5, 2)


def batches_of(batch_of, *, seed: int = 0, bad: bool = True) -> list[Batch]:
    names = [[f"{number}/{i}" for i in range(size)] for number, size in enumerate(SIZES)]
    return [batch_of(part, bad=part[1::2] if bad else (), seed=seed) for part in names]


def append_all(path: Path, batches: list[Batch], disk: Disk, settings: dict[str, Any]) -> None:
    with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
        if journal.settings != settings:
            journal.begin(settings)
        for batch in batches:
            journal.append(batch)
            disk.committed.append(len(disk.calls))


def recovered(path: Path) -> tuple[Any, list[Batch]]:
    with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
        return journal.settings, list(journal.batches())


def test_every_prefix_and_every_torn_write_gives_the_whole_batches(tmp_path, disk):
    batches, settings = batches_of(batch_of), {"a": 1}
    append_all(tmp_path / "f.h5", batches, disk, settings)
    disk.is_noting, log = False, disk.calls
    path = tmp_path / "g.h5"
    assert Disk(log).content() == (tmp_path / "f.h5.partial").read_bytes()
    tried = 0
    for number, (name, offset, data) in enumerate(log):
        before = Disk(log).content(number)
        cuts = [c for c in range(len(data)) if c < 30 or c % 7 == 0] if data else [0]
        whole = sum(calls <= number for calls in disk.committed)
        for cut in cuts:
            torn = Disk([*log[:number], (name, offset, data[:cut])]).content() if data else before
            path.with_name("g.h5.partial").write_bytes(torn)
            found_settings, found = recovered(path)
            assert len(found) == whole, (number, cut)
            assert all(same_batch(a, b) for a, b in zip(batches, found, strict=False))
            assert found_settings == (settings if number or whole else None)
            tried += 1
    assert tried > 200


def test_after_any_torn_write_the_log_goes_on(tmp_path, disk):
    batches, settings = batches_of(batch_of), {"a": 1}
    append_all(tmp_path / "f.h5", batches, disk, settings)
    content = (tmp_path / "f.h5.partial").read_bytes()
    for cut in range(0, len(content), 37):
        path = tmp_path / f"{cut}.h5"
        path.with_name(f"{cut}.h5.partial").write_bytes(content[:cut])
        _, found = recovered(path)
        append_all(path, batches[len(found) :], Disk(), settings)
        assert path.with_name(f"{cut}.h5.partial").read_bytes() == content


# --- (c) the power fails ------------------------------------------------------------------------

SECTOR = 512
FIRST_SYNC = 2
"""Calls until record 0 is on the disk: its write and its sync."""


def after_power_loss(
    disk: Disk, num_calls: int, random: np.random.Generator, start: bytes = b""
) -> bytes:
    """Return a file that a power failure after some calls may leave.

    What was there at the last sync is there. Of what came later, truncations among it, each sector
    has arrived or not; one that was never written before may hold zeros. The length is any between.
    """
    calls = disk.calls[:num_calls]
    synced = max((i + 1 for i, call in enumerate(calls) if call[0] == "sync"), default=0)
    old, new = disk.content(synced, start=start), disk.content(num_calls, start=start)
    longest = max(len(old), len(new))
    sectors = []
    for at in range(0, longest, SECTOR):
        choices = [old[at : at + SECTOR].ljust(SECTOR, b"\0")] if at < len(old) else [bytes(SECTOR)]
        if at < len(new):
            choices.append(new[at : at + SECTOR].ljust(SECTOR, b"\0"))
        sectors.append(choices[random.integers(len(choices))])
    length = int(random.integers(min(len(old), len(new)), longest + 1))
    return b"".join(sectors)[:length]


def num_synced(disk: Disk, num_calls: int) -> int:
    """Return how many batches are on the disk for good: written before the last sync."""
    syncs = [i for i in range(num_calls) if disk.calls[i][0] == "sync"]
    last = syncs[-1] if syncs else 0
    writes = [i for i, call in enumerate(disk.calls) if call[0] == "write"][1:]
    return sum(i < last for i in writes[: len(disk.committed)])


@pytest.mark.parametrize("sync_every", [1, 2, 1000])
def test_a_power_failure_costs_only_what_was_not_synced(tmp_path, disk, monkeypatch, sync_every):
    monkeypatch.setattr("featx.features.journal._SYNC_IMAGES", sync_every)
    batches, settings = batches_of(batch_of), {"a": 1}
    batches += batches_of(batch_of, seed=1)
    append_all(tmp_path / "f.h5", batches, disk, settings)
    disk.is_noting, lost = False, 0
    for trial in range(100):
        random = np.random.default_rng([trial, sync_every])
        num_calls = int(random.integers(FIRST_SYNC, len(disk.calls) + 1))
        path = tmp_path / f"{trial}.h5"
        log = path.with_name(path.name + ".partial")
        log.write_bytes(after_power_loss(disk, num_calls, random))
        found_settings, found = recovered(path)
        assert len(found) >= num_synced(disk, num_calls)
        assert all(same_batch(a, b) for a, b in zip(batches, found, strict=False))
        assert found_settings in (None, settings)
        lost += len(found) < sum(calls <= num_calls for calls in disk.committed)
        append_all(path, batches[len(found) :], Disk(), settings)
        assert all(same_batch(a, b) for a, b in zip(recovered(path)[1], batches, strict=True))
    assert lost or sync_every == 1  # the model does fail sometimes


def test_power_failures_one_after_another(tmp_path, disk, monkeypatch):
    """Each run resumes where the last one was cut; what is synced by then survives all of them."""
    monkeypatch.setattr("featx.features.journal._SYNC_IMAGES", 6)
    batches, settings = batches_of(batch_of), {"a": 1}
    for trial in range(60):
        random = np.random.default_rng(trial)
        path, safe = tmp_path / f"{trial}.h5", 0
        log = path.with_name(path.name + ".partial")
        for _ in range(5):
            before = log.read_bytes() if log.exists() else b""
            disk.calls.clear()
            with Journal(path, layout=RowLayout((NUM_FEATURES,))) as journal:
                if journal.settings is None:
                    journal.begin(settings)
                have = len(list(journal.batches()))
                until = int(random.integers(have, len(batches) + 1))
                for batch in batches[have:until]:
                    journal.append(batch)
            first = [call[0] for call in disk.calls].index("sync") + 1 if have < until else 0
            num_calls = int(random.integers(first, len(disk.calls) + 1))
            content = after_power_loss(disk, num_calls, random, start=before)
            synced = [i for i in range(num_calls) if disk.calls[i][0] == "sync"]
            writes = [i for i, call in enumerate(disk.calls) if call[0] == "write"]
            writes = writes[0 if before else 1 :]  # without record 0
            safe = max(safe, have + sum(i < synced[-1] for i in writes) if synced else 0)
            log.write_bytes(content)
            disk.is_noting = False
            _, found = recovered(path)
            disk.is_noting = True
            assert len(found) >= safe
            assert all(same_batch(a, b) for a, b in zip(batches, found, strict=False))


def test_a_power_failure_before_the_first_sync_leaves_no_work_to_the_user(tmp_path, disk):
    """A file whose length is on the disk and whose content is not reads as zeros."""
    batches, settings = batches_of(batch_of), {"a": 1}
    append_all(tmp_path / "f.h5", batches, disk, settings)
    for trial in range(20):
        path = tmp_path / f"{trial}.h5"
        log = path.with_name(path.name + ".partial")
        log.write_bytes(after_power_loss(disk, 1, np.random.default_rng(trial)))
        append_all(path, batches, Disk(), settings)
        assert len(recovered(path)[1]) == len(batches)


@pytest.mark.parametrize(
    "record_0",
    [
        "short",
        pytest.param(
            "whole sectors",
        ),
    ],
)
def test_a_power_failure_never_brings_back_rows_of_other_settings(
    tmp_path, disk, monkeypatch, record_0
):
    """A log is begun anew with settings of the same length: the old rows are where the new go."""
    monkeypatch.setattr("featx.features.journal._SYNC_IMAGES", 6)
    old, new = batches_of(batch_of), batches_of(batch_of, seed=1)
    padding = "" if record_0 == "short" else "x" * (SECTOR - 20 - len('{"padding":"","seed":0}'))
    append_all(tmp_path / "f.h5", old, disk, {"seed": 0, "padding": padding})
    start = (tmp_path / "f.h5.partial").read_bytes()
    disk.calls.clear()
    append_all(tmp_path / "f.h5", new, disk, {"seed": 1, "padding": padding})
    disk.is_noting = False
    seen = set()
    for trial in range(300):
        random = np.random.default_rng(trial)
        num_calls = int(random.integers(len(disk.calls) + 1))
        path = tmp_path / f"{trial}.h5"
        log = path.with_name(path.name + ".partial")
        log.write_bytes(after_power_loss(disk, num_calls, random, start=start))
        found_settings, found = recovered(path)
        seed = None if found_settings is None else found_settings["seed"]
        seen.add(seed)
        expected = {None: [], 0: old, 1: new}[seed]
        assert all(same_batch(a, b) for a, b in zip(expected, found, strict=False)), trial
        assert len(found) <= len(expected)
    assert seen >= {0, 1}


# --- the whole extraction -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"error": errno.ENOSPC}, {"error": errno.EIO, "half": True}],
    ids=["ENOSPC", "EIO half-way"],
)
def test_an_extraction_on_a_failing_disk_goes_on_where_it_was(
    tmp_path, photos, monkeypatch, committed, settings
):
    from featx.extraction import backbone
    from featx.extraction.options import ExtractOptions
    from featx.stages.extract import extract

    monkeypatch.setattr("featx.extraction.run.start_verifier", lambda _: verifier)
    build = functools.cache(backbone.open_backbone)
    monkeypatch.setattr(backbone, "open_backbone", build)  # half a second each time
    root = photos({"ants": 6, "bees": 6})
    for name in ("ants/002.png", "bees/004.jpg"):
        (root / name).write_bytes(b"broken")
    options = ExtractOptions(
        backbone="tiny", batch_size=3, on_error="skip", workers=1, report=tmp_path / "report.json"
    )
    whole = tmp_path / "whole" / "f.h5"
    extract(root, whole, options)

    def attempt(faults: Faults) -> bool:
        committed.clear()
        path = tmp_path / str(faults.fail_at) / "f.h5"
        if not failed_cleanly(faults, lambda: extract(root, path, options) and None):
            return False
        left = os.listdir(path.parent) if path.parent.exists() else []
        assert set(left) <= {"f.h5", "f.h5.partial"}
        done = {name for batch in committed for name in batch.sample_ids}
        if "f.h5.partial" in left:
            with Journal(path, layout=RowLayout((192,))) as journal:
                found = list(journal.batches())
            assert done <= {name for batch in found for name in batch.sample_ids}
            assert read_settings(path.with_name("f.h5.partial")) is not None or not done
        elif not path.exists():
            assert not done
        again = extract(root, path, options)
        assert again.num_extracted <= 12 - len(done)
        assert path.read_bytes() == whole.read_bytes()
        assert os.listdir(path.parent) == ["f.h5"]
        return True

    assert each_fault(attempt, **settings) > 15
