"""The way of images through the threads: order, duplicates, resuming, bounds, the profile."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest

from featx.errors import BackboneError, BadImages, ConfigError, SourceError
from featx.extraction import batches, crops, pipeline
from featx.extraction.batches import ImageBatch
from featx.extraction.crops import Decoders, Image, Outcome
from featx.extraction.options import ExtractOptions, ExtractReport
from featx.features.file import open_features
from featx.images.decode import NO_DIGEST, decode_image, decoded
from featx.images.preprocess import PreprocessSpec, preprocess
from featx.images.sources import NEVER_CHANGES
from featx.stages.extract import extract


def run(source: Path, output: Path, **options: Any) -> ExtractReport:
    return extract(source, output, ExtractOptions(backbone="tiny", **options))


def content(path: Path) -> dict[str, bytes]:
    """Return the bytes of each dataset of a feature file."""
    with h5py.File(path) as file:
        return {name: file[name][:].tobytes() for name in file}


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets how many bytes of a batch's files are kept."""

    def kept(num_bytes: int) -> None:
        for module in (crops, batches):
            monkeypatch.setattr(module, "KEPT_BYTES", num_bytes)

    return kept


def test_rows_belong_to_their_images_however_threads_run(photos, tmp_path, arithmetic):
    source = photos({"ants": 20, "bees": 23})
    found = []
    for workers, batch_size in ((1, 1), (2, 4), (5, 3), (3, 64)):
        arithmetic(wait=lambda: random.random() / 200)
        path = tmp_path / f"{workers}.h5"
        run(source, path, workers=workers, batch_size=batch_size)
        found.append(content(path))
    assert all(other == found[0] for other in found)
    file = open_features(tmp_path / "1.h5")
    for name, row in zip(file.sample_ids, file.features, strict=True):
        pixels = decode_image((source / name).read_bytes(), sample_id=name)
        crop = preprocess(pixels, arithmetic().spec().preprocess)
        assert (row == crop[None].mean(axis=(1, 2), dtype=np.float32)[0]).all()


def test_each_worker_runs_its_own_batches(photos, tmp_path, arithmetic):
    many = arithmetic(wait=lambda: 0.02)
    run(photos({"ants": 20}), tmp_path / "many.h5", workers=4, batch_size=2)
    assert len(many.threads) == 4
    assert threading.current_thread().name not in many.threads


def test_batches_have_the_size_asked_for(photos, tmp_path, arithmetic):
    source = photos({"ants": 11})
    (source / "ants" / "000.jpg").write_bytes(b"")
    backbone = arithmetic()
    run(source, tmp_path / "f.h5", batch_size=4, on_error="skip", workers=1)
    assert backbone.batches == [3, 4, 3]  # of four, the unusable one included


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_an_interrupted_run_forms_the_same_batches(stop_after, photos, tmp_path, arithmetic):
    source = photos({"ants": 13, "bees": 12})
    copy(source, "ants/001.jpg", "bees/copy.jpg", "bees/another.jpg")
    (source / "ants" / "003.jpg").write_bytes(b"bad")
    copy(source, "ants/003.jpg", "bees/bad.jpg")
    options = {"batch_size": 4, "on_error": "skip", "workers": 2}
    whole = arithmetic()
    run(source, tmp_path / "whole.h5", **options)

    again = arithmetic()
    calls = itertools.count(1)

    def stop(done: int, total: int) -> None:
        if next(calls) == stop_after:
            raise KeyboardInterrupt

    output, settings = tmp_path / "again.h5", ExtractOptions(backbone="tiny", **options)
    with pytest.raises(KeyboardInterrupt):
        extract(source, output, settings, progress=stop)
    again.batches.clear()
    run(source, output, **options)
    assert content(output) == content(tmp_path / "whole.h5")
    assert sum(again.batches) < sum(whole.batches)


def digest_of(number: int) -> bytes:
    """Return the digest of a content; 0 stands for one that could not be read."""
    return number.to_bytes(16, "big")


def copy(source: Path, original: str, *names: str) -> None:
    for name in names:
        shutil.copy(source / original, source / name)


class TestDuplicates:
    @pytest.fixture(autouse=True, params=[1, 4096])
    def recent(self, request, monkeypatch):
        monkeypatch.setattr(pipeline, "_RECENT", request.param)

    @pytest.mark.parametrize("seed", range(3))
    def test_what_became_of_each_content_is_what_a_dict_has(self, seed, recent):
        rng = random.Random(seed)
        old = np.frombuffer(b"".join(digest_of(rng.randrange(40)) for _ in range(30)), np.uint8)
        existing: Any = SimpleNamespace(digests=lambda: old.reshape(-1, 16))
        outcomes = pipeline._Outcomes(existing, with_views=False)
        expected = {bytes(digest): row for row, digest in enumerate(old.reshape(-1, 16))}
        expected.pop(NO_DIGEST, None)
        ahead, first = deque[list[Image]](), len(old) // 16
        for number in range(200):
            images = [
                Image(0, "", NEVER_CHANGES, digest_of(rng.randrange(3 * number + 1)))
                for _ in range(rng.randrange(7))
            ]
            outcomes.mark(ImageBatch(images))
            for image in images:
                assert image.is_new == (image.digest not in expected)
                if image.digest != NO_DIGEST:
                    expected.setdefault(image.digest, -1)
            ahead.append(images)
            if len(ahead) < 5 and number < 195:
                continue
            images, wanted = ahead.popleft(), list[int]()
            for image in images:
                if image.is_new and (image.digest == NO_DIGEST or rng.random() < 0.1):
                    image.reason = f"bad {image.digest.hex()}"
            is_bad = [bool(image.reason) for image in images]
            numbers = outcomes.enter(images, first)
            for image, bad in zip(images, is_bad, strict=True):
                if image.is_new and image.digest != NO_DIGEST:
                    expected[image.digest] = -2 if bad else first + len(wanted)
                row = -2 if bad else expected[image.digest]
                assert image.reason == (f"bad {image.digest.hex()}" if row == -2 else "")
                wanted += [row] if row >= 0 else []
            assert numbers.tolist() == wanted
            first += len(wanted)

    @pytest.mark.parametrize("batch_size", [1, 3, 64])
    def test_each_content_is_extracted_once(self, batch_size, photos, tmp_path, arithmetic):
        source = photos({"ants": 6, "bees": 6})
        copy(source, "ants/002.png", "ants/0021.png", "bees/zzz.png", "bees/004.png")
        backbone = arithmetic()
        report = run(source, tmp_path / "f.h5", batch_size=batch_size)
        assert (report.num_images, report.num_extracted, report.num_duplicates) == (15, 12, 3)
        assert sum(backbone.batches) == 12
        file = open_features(tmp_path / "f.h5")
        same = [
            i for i, digest in enumerate(file.digests) if bytes(digest) == bytes(file.digests[2])
        ]
        assert len(same) == 4
        assert (file.features[same] == file.features[2]).all()
        assert [file.sample_ids[i] for i in same] == [
            *("ants/002.png", "ants/0021.png", "bees/004.png", "bees/zzz.png")
        ]
        assert len(np.unique(file.features, axis=0)) == 12

    def test_copies_and_renamed_images_of_a_published_file_are_known(
        self, photos, tmp_path, arithmetic
    ):
        source, output = photos({"ants": 6, "bees": 6}), tmp_path / "f.h5"
        arithmetic()
        run(source, output)
        before = open_features(output)
        rows = dict(zip(before.sample_ids, before.features, strict=True))
        (source / "ants" / "001.jpg").rename(source / "bees" / "renamed.jpg")
        copy(source, "bees/000.jpg", "ants/copy.jpg")
        backbone = arithmetic()
        report = run(source, output)
        assert backbone.batches == []
        assert (report.num_extracted, report.num_duplicates, report.num_new) == (0, 2, 2)
        after = open_features(output)
        found = dict(zip(after.sample_ids, after.features, strict=True))
        assert (found["bees/renamed.jpg"] == rows["ants/001.jpg"]).all()
        assert (found["ants/copy.jpg"] == rows["bees/000.jpg"]).all()

    @pytest.mark.parametrize("batch_size", [1, 64])
    def test_a_copy_of_a_bad_image_is_as_bad(self, batch_size, photos, tmp_path, arithmetic):
        source = photos({"ants": 4})
        (source / "ants" / "001.jpg").write_bytes(b"no image")
        copy(source, "ants/001.jpg", "ants/copy.jpg")
        arithmetic()
        report = run(source, tmp_path / "f.h5", batch_size=batch_size, on_error="skip")
        (first, reason), (second, other) = report.skipped
        assert (first, second, reason) == ("ants/001.jpg", "ants/copy.jpg", other)
        assert "not an image of a known format" in reason
        assert report.num_duplicates == 0

    def test_unreadable_images_are_no_copies_of_each_other(self, photos, tmp_path, arithmetic):
        source = photos({"ants": 4})
        for name in ("001.jpg", "003.jpg"):
            (source / "ants" / name).unlink()
        (source / "ants" / "001.jpg").symlink_to("nowhere")
        (source / "ants" / "003.jpg").symlink_to("x" * 300)
        arithmetic()
        report = run(source, tmp_path / "f.h5", on_error="skip")
        assert len({reason for _, reason in report.skipped}) == len(report.skipped)


class TestLargeFiles:
    @pytest.fixture(autouse=True)
    def small_room(self, keep: Callable[[int], None]) -> None:
        keep(1000)

    def test_what_is_not_kept_is_read_again(self, photos, tmp_path, arithmetic, keep):
        source = photos({"ants": 12})
        arithmetic()
        run(source, tmp_path / "small.h5", batch_size=5)
        keep(2**30)
        run(source, tmp_path / "large.h5", batch_size=5)
        assert content(tmp_path / "small.h5") == content(tmp_path / "large.h5")

    def test_a_file_that_changes_in_between_is_bad(self, photos, tmp_path, arithmetic, monkeypatch):
        monkeypatch.setattr(crops, "content_digest", lambda content: random.randbytes(16))
        arithmetic()
        with pytest.raises(BadImages, match=r"1\.jpg: the file changes while it is read"):
            run(photos({"ants": 3}), tmp_path / "f.h5", on_error="skip", batch_size=64)


def test_an_engine_that_fails_stops_it_and_leaves_no_thread(photos, tmp_path, arithmetic):
    def fail() -> float:
        raise BackboneError("it broke")

    arithmetic(wait=fail)
    before = threading.active_count()
    with pytest.raises(BackboneError, match="it broke"):
        run(photos({"ants": 40}), tmp_path / "f.h5", batch_size=2)
    assert threading.active_count() == before


def test_only_so_many_batches_are_on_their_way(photos, tmp_path, arithmetic):
    source = photos({"ants": 60})
    ahead: list[int] = []
    backbone = arithmetic()

    def note(done: int, total: int) -> None:
        ahead.append(sum(backbone.batches) - done)

    settings = ExtractOptions(backbone="tiny", batch_size=2, workers=2)
    extract(source, tmp_path / "f.h5", settings, progress=note)
    assert max(ahead) <= 2 * (2 + 2 + 1)


def num_waiting() -> int:
    """Return how many threads wait at a semaphore."""
    stacks = (traceback.walk_stack(frame) for frame in sys._current_frames().values())
    waits = threading.Semaphore.acquire.__code__
    return sum(any(frame.f_code is waits for frame, _ in stack) for stack in stacks)


@pytest.mark.parametrize(("side", "at_once"), [(8, 1), (300, 3)])
def test_small_images_are_decoded_by_one_thread_at_a_time(
    side, at_once, tmp_path, arithmetic, monkeypatch
):
    lock, now, most, seen = threading.Lock(), 0, 0, threading.Event()
    end = time.monotonic() + 30

    def noted(*args: Any, **options: Any) -> Any:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        # The first images stay until every worker decodes or waits for its turn.
        while not seen.wait(0.001) and now + num_waiting() < 6 and time.monotonic() < end:
            pass
        seen.set()
        with lock:
            now -= 1
        return decoded(*args, **options)

    noise = np.random.default_rng(0).integers(0, 256, (24, side, side, 3), np.uint8)
    for number, pixels in enumerate(noise):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
    monkeypatch.setattr(crops, "decoded", noted)
    monkeypatch.setattr(crops, "_DECODING", 3)
    arithmetic()
    run(tmp_path / "photos", tmp_path / "f.h5", batch_size=2, workers=6)
    assert most == at_once


class TestBesideAGpu:
    """Squares come from processes, and are the same."""

    def test_rows_are_those_that_threads_make(
        self, photos, tmp_path, arithmetic, monkeypatch, keep
    ):
        source = photos({"ants": 12, "bees": 9})
        (source / "ants" / "003.jpg").write_bytes(b"broken")
        (source / "bees" / "004.jpg").write_bytes((source / "ants" / "001.jpg").read_bytes())
        options = {"batch_size": 4, "workers": 2, "on_error": "skip"}
        arithmetic()
        here = run(source, tmp_path / "here.h5", **options)
        used = list[int]()
        own = Decoders.crops

        def noted(self: Decoders, contents: list[bytes], *rest: Any) -> Outcome:
            used.append(len(contents))
            return own(self, contents, *rest)

        monkeypatch.setattr(Decoders, "crops", noted)
        largest = max(path.stat().st_size for path in source.rglob("*.jpg"))
        for kept_bytes in (batches.KEPT_BYTES, largest):  # read once more, and fewer at once
            keep(kept_bytes)
            used.clear()
            arithmetic(device="cuda:0")
            there = run(source, tmp_path / f"{kept_bytes}.h5", **options)
            assert content(there.path) == content(here.path)
            assert there.skipped == here.skipped
            assert (there.num_duplicates, len(there.skipped)) == (1, 1)
            assert sum(used) == 20
            assert there.profile is not None
            assert all(seconds > 0 for seconds in there.profile.seconds.values())
        assert max(used) < 4

    def test_views_are_those_that_threads_draw(self, photos, tmp_path, arithmetic):
        source = photos({"train/ants": 9, "train/bees": 9, "test/bees": 9})
        (source / "train" / "ants" / "003.jpg").write_bytes(b"broken")
        options = {"batch_size": 4, "workers": 2, "on_error": "skip", "views": 2}
        arithmetic()
        here = run(source, tmp_path / "here.h5", **options)
        backbone = arithmetic(device="cuda:0")
        there = run(source, tmp_path / "there.h5", **options)
        assert content(there.path) == content(here.path)
        assert max(backbone.batches) <= 4
        assert here.num_viewed > 10

    def test_few_images_are_not_worth_processes(self, photos, tmp_path, arithmetic, monkeypatch):
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError

        monkeypatch.setattr(Decoders, "__init__", refuse)
        arithmetic(device="cuda:0")
        run(photos({"ants": 8}), tmp_path / "f.h5", batch_size=4, workers=2)
        arithmetic(device="cpu")
        run(photos({"ants": 40}), tmp_path / "f.h5", batch_size=4, workers=2, overwrite=True)

    def test_a_process_gets_no_more_images_than_it_has_room_for(
        self, photos, tmp_path, arithmetic, monkeypatch
    ):
        source = photos({"ants": 30})
        arithmetic()
        here = run(source, tmp_path / "here.h5", batch_size=10)
        own = pipeline.start_decoders

        def smaller(count: int, spec: PreprocessSpec, options: ExtractOptions) -> Decoders | None:
            return own(count, spec, replace(options, batch_size=3))

        monkeypatch.setattr("featx.extraction.run.start_decoders", smaller)
        arithmetic(device="cuda:0")
        there = run(source, tmp_path / "there.h5", batch_size=10, workers=2)
        assert content(there.path) == content(here.path)

    @pytest.mark.parametrize("fault", ["engine", "decoder"])
    def test_nothing_is_left_of_them_after_an_error(
        self, fault, photos, tmp_path, arithmetic, monkeypatch
    ):
        started = list[int]()

        def noted(*settings: Any) -> Decoders | None:
            decoders = pipeline.start_decoders(*settings)
            assert decoders
            started.extend(process.pid for process in decoders._processes.processes)
            return decoders

        def fail() -> float:
            if fault == "decoder":
                with contextlib.suppress(ProcessLookupError):  # the other worker was first
                    os.kill(started[0], signal.SIGKILL)
                return 0
            raise BackboneError("it broke")

        monkeypatch.setattr("featx.extraction.run.start_decoders", noted)
        arithmetic(device="cuda:0", wait=fail)
        before = len(os.listdir("/proc/self/fd"))
        error = BackboneError if fault == "engine" else SourceError
        with pytest.raises(error, match=r"it broke|ended \(SIGKILL\)"):
            run(photos({"ants": 60}), tmp_path / "f.h5", batch_size=2, workers=2)
        assert len(started) == 2
        assert not any(Path(f"/proc/{pid}").exists() for pid in started)
        assert len(os.listdir("/proc/self/fd")) == before

    def test_arrays_are_left_to_the_threads(self, tmp_path, arithmetic, monkeypatch):
        def refuse(*_: object) -> None:
            raise AssertionError

        monkeypatch.setattr(Decoders, "crops", refuse)
        arithmetic(device="cuda:0")
        report = extract("digits:", tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
        assert report.num_extracted > 1000


def test_a_log_of_bad_images_alone_holds_nobody_up(photos, tmp_path, arithmetic):
    source, output = photos({"ants": 6}), tmp_path / "f.h5"
    arithmetic()
    with pytest.raises(BadImages):
        run(source, output, max_pixels=10)
    assert run(source, output).num_extracted == 6


def test_fp16_that_leaves_nothing_but_zeros_is_refused(tmp_path, arithmetic):
    for number in range(8):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.new("RGB", (10 + number, 10)).save(path)
    arithmetic()
    with pytest.raises(ConfigError, match=r"In fp16 all features of 8 images are zero"):
        run(tmp_path / "photos", tmp_path / "f.h5", precision="fp16", batch_size=8)
    assert run(tmp_path / "photos", tmp_path / "f.h5", batch_size=8).num_extracted == 8


class TestProfile:
    def test_it_says_where_the_time_went(self, photos, tmp_path, arithmetic):
        arithmetic(wait=lambda: 0.05)
        report = run(photos({"ants": 8}), tmp_path / "f.h5", batch_size=2, workers=2)
        profile = report.profile
        assert profile is not None
        assert (profile.num_images, profile.workers) == (8, 2)
        assert list(profile.seconds) == ["read", "decode", "preprocess", "inference", "journal"]
        assert all(seconds > 0 for seconds in profile.seconds.values())
        assert profile.seconds["inference"] >= 4 * 0.05
        assert 0.1 <= profile.wall <= report.seconds
        busy = sum(profile.seconds[step] for step in ("decode", "preprocess", "inference"))
        assert profile.idle == pytest.approx(2 * profile.wall - busy)

    def test_nothing_to_do_has_none(self, photos, tmp_path, arithmetic):
        arithmetic()
        source = photos()
        run(source, tmp_path / "f.h5")
        assert run(source, tmp_path / "f.h5").profile is None
