"""Extraction: what goes into the feature file, and what stops it."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import h5py
import numpy as np
import pytest
from PIL import Image

from featx.artifact import Header
from featx.backbones.torch_engine import TorchEngine
from featx.errors import (
    ArtifactBusy,
    ArtifactError,
    ArtifactExists,
    ArtifactIncomplete,
    ArtifactInvalid,
    ArtifactMismatch,
    BackboneError,
    BadImages,
    ConfigError,
    FeatxError,
    SourceError,
)
from featx.extraction.options import ExtractOptions, ExtractReport
from featx.features import publish
from featx.features.file import FeatureFile, open_features
from featx.features.journal import Journal
from featx.features.lock import locked
from featx.features.records import Batch, RowLayout
from featx.images.sources.sample import FileSource, stamp_of
from featx.stages.check import check
from featx.stages.extract import extract
from featx.training.samples import choose_task

TINY = ExtractOptions(backbone="tiny", engine="torch", workers=1)  # batches one after the other


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[ExtractReport, FeatureFile]]:
    """Extract with ``tiny`` and open the result."""

    def extract_and_open(source: object, name: str = "f.h5", **settings: object) -> tuple:
        options = ExtractOptions(backbone="tiny", **settings)  # type: ignore[arg-type]
        report = extract(str(source), tmp_path / name, options)
        return report, open_features(tmp_path / name)

    return extract_and_open


def test_rows_follow_the_source_with_labels_by_class_name(photos, run):
    report, cache = run(photos({"bees": 4, "ants": 3}))
    assert cache.classes == ("ants", "bees")
    assert [name.partition("/")[0] for name in cache.sample_ids] == ["ants"] * 3 + ["bees"] * 4
    assert cache.labels.tolist() == [0] * 3 + [1] * 4
    assert cache.features.shape == (7, 192)
    assert report.num_images == 7
    assert report.skipped == ()


def test_splits_of_the_source_are_kept_and_classes_joined_by_name(photos, run):
    """``ants`` is missing in test, so ``bees`` is its first folder, yet class 1."""
    layout = {"train/ants": 3, "train/bees": 3, "valid/ants": 1, "valid/bees": 2, "test/bees": 2}
    report, cache = run(photos(layout))
    assert report.split_sizes == {"train": 6, "val": 3, "test": 2}
    assert cache.labels[cache.rows("test")].tolist() == [1, 1]


def test_a_folder_that_is_refused_leaves_nothing_behind(photos, tmp_path):
    source = photos({"train/ants": 2, "test/ants": 2, "cats": 2})
    with pytest.raises(SourceError, match="mixes split folders"):
        extract(str(source), source / "artifacts" / "features.h5", TINY)
    assert not (source / "artifacts").exists()


@pytest.mark.parametrize("layout", [{"ants": 2, "bees": 2}, {"train/ants": 2, "test/ants": 2}])
def test_the_output_may_lie_in_the_folder_of_the_images(photos, layout):
    source = photos(layout)
    output = source / "artifacts" / "features.h5"
    first, again = (extract(str(source), output, TINY) for _ in range(2))
    assert "artifacts" not in first.classes
    assert again.is_unchanged
    assert first.ignored == {}
    assert ".h5" in again.ignored


def test_the_file_says_whether_labels_have_tags(photos, run, tmp_path):
    source = photos({"Tomato|healthy": 2, "Tomato|blight": 2, "Potato|healthy": 2})
    report, file = run(source)
    assert file.header.details["label_kind"] == "classes"
    assert choose_task(file, "auto").name == "single-label"
    rows = "".join(f"{source / image},{Path(image).parent}\n" for image in file.sample_ids)
    (tmp_path / "t.csv").write_text("path,label\n" + rows)
    _, file = run(tmp_path / "t.csv", "g.h5")
    assert file.header.details["label_kind"] == "tags"
    assert choose_task(file, "auto").name == "multi-label"
    assert set(file.classes) == set(report.classes)


def test_without_classes_labels_are_minus_one(photos, run):
    report, cache = run(photos({".": 3}))
    assert cache.classes == ()
    assert cache.labels.tolist() == [-1, -1, -1]
    assert report.num_unlabelled == 3


def test_a_manifest_gives_the_features_of_its_folder(photos, run, tmp_path):
    root = photos({"ants": 3, "bees": 3})
    _, by_folder = run(root, "a.h5", val_fraction=0)
    with (root / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for name, label in zip(by_folder.sample_ids, by_folder.labels, strict=True):
            writer.writerow([name, by_folder.classes[label], "train"])
    _, by_manifest = run(root / "images.csv", "b.h5", val_fraction=0)
    np.testing.assert_array_equal(by_manifest.features, by_folder.features)
    np.testing.assert_array_equal(by_manifest.labels, by_folder.labels)
    np.testing.assert_array_equal(by_manifest.digests, by_folder.digests)


def test_a_turned_photo_has_the_features_of_the_upright_one(run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "photos" / "turned.png", exif=exif)
    _, cache = run(tmp_path / "photos")
    np.testing.assert_array_equal(cache.features[0], cache.features[1])


@pytest.mark.parametrize("bad_at", [0, 3, 6])
def test_skipping_keeps_rows_and_labels_together(photos, run, bad_at):
    """The rows that stay are those of a source without the bad image."""
    root = photos({"ants": 3, "bees": 4})
    _, whole = run(root, "whole.h5")
    bad = whole.sample_ids[bad_at]
    (root / bad).write_bytes(b"broken")
    report, cache = run(root, "rest.h5", on_error="skip", batch_size=2)
    keep = np.arange(7) != bad_at
    assert [name for name, _ in report.skipped] == [bad]
    assert cache.sample_ids == tuple(np.array(whole.sample_ids)[keep])
    np.testing.assert_array_equal(cache.labels, whole.labels[keep])
    np.testing.assert_array_equal(cache.splits, whole.splits[keep])
    np.testing.assert_allclose(cache.features, whole.features[keep], rtol=1e-4, atol=1e-5)
    assert [(image.sample_id, image.reason) for image in cache.skipped] == list(report.skipped)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_features_that_are_not_numbers_stop_it(photos, tmp_path, monkeypatch, value):
    plain = TorchEngine.features

    def overflow(self: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        features = plain(self, pixels)
        features[-1, 0] = value
        return features

    monkeypatch.setattr(TorchEngine, "features", overflow)
    with pytest.raises(BackboneError, match=r"NaN or infinite features for 'ants/004\.jpg'"):
        extract(photos({"ants": 5}), tmp_path / "f.h5", TINY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_the_output_is_checked_before_any_work(photos, tmp_path):
    output = tmp_path / "f.h5"
    output.write_text("mine")
    for overwrite in (False, True):
        options = ExtractOptions(weights="no such weights", overwrite=overwrite)
        with pytest.raises(ArtifactExists, match=r"not a feature file that featx wrote.*f-2\.h5"):
            extract(photos(name=f"p{overwrite}"), output, options)
        assert output.read_text() == "mine"
    with pytest.raises(ArtifactError, match="folder"):
        extract(photos(name="more"), tmp_path, TINY)
    with pytest.raises(SourceError, match="no such folder"):  # a typo is not hidden by it
        extract(tmp_path / "no such folder", output, TINY)


def test_a_failure_leaves_the_old_file(photos, tmp_path):
    output, root = tmp_path / "f.h5", photos({"ants": 3, "bees": 3})
    extract(root, output, TINY)
    before = output.read_bytes()
    (root / "bees" / "001.jpg").write_bytes(b"broken")
    for options in (TINY, replace(TINY, overwrite=True), replace(TINY, restart=True)):
        with pytest.raises(BadImages):
            extract(root, output, options)
        assert output.read_bytes() == before


def test_the_header_says_how_it_was_made(photos, run):
    root = photos()
    report, cache = run(root, image_size=48, crop="none", val_fraction=0.3)
    header: Header = cache.header
    assert header.spec == report.spec.to_dict()
    assert header.spec["preprocess"]["image_size"] == 48
    assert header.spec["preprocess"]["crop"] == "none"
    assert header.details["source"] == str(root.resolve())
    assert header.details["weights"] == "bundled"
    assert header.details["val_fraction"] == 0.3
    assert header.environment["device"] == "cpu"


def test_every_setting_that_changes_features_changes_the_fingerprint(photos, run):
    root = photos({"ants": 2})
    settings: list[dict[str, object]] = [
        {},
        {"image_size": 48},
        {"resize": 40},
        {"crop": "none"},
        {"layer": "stage2"},
        {"layer": "stage2", "pool": "max"},
        {"weights": "none"},
        {"weights": "none", "seed": 1},
    ]
    fingerprints = {
        run(root, f"{i}.h5", **setting)[1].header.fingerprint for i, setting in enumerate(settings)
    }
    assert len(fingerprints) == len(settings)


def test_what_does_not_change_features_does_not_change_the_fingerprint(photos, run):
    root = photos({"ants": 4})
    settings: list[dict[str, object]] = [
        {},
        {"batch_size": 3},
        {"workers": 1},
        {"on_error": "skip"},
    ]
    found = {run(root, f"{i}.h5", **s)[1].header.fingerprint for i, s in enumerate(settings)}
    assert len(found) == 1


def test_progress_counts_every_image(photos, tmp_path):
    root = photos({"ants": 7})
    (root / "ants" / "000.jpg").write_bytes(b"broken")
    seen: list[tuple[int, int]] = []
    options = ExtractOptions(backbone="tiny", batch_size=2, on_error="skip")
    extract(root, tmp_path / "f.h5", options, progress=lambda *numbers: seen.append(numbers))
    assert seen[-1] == (7, 7)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "stop"}, "on_error must be one of fail, skip; got 'stop'"),
        ({"dtype": "float64"}, "dtype must be one of float32, float16; got 'float64'"),
        ({"max_bad": 1.1}, "max_bad must be 0 to 1; got 1.1"),
        ({"max_bad": -0.1}, "max_bad must be 0 to 1; got -0.1"),
        ({"max_pixels": 0}, "max_pixels must be"),
        ({"pool": "mean"}, "pool must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_options_are_checked(settings, message):
    with pytest.raises(ConfigError, match=message):
        ExtractOptions(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "resnet19"}, BackboneError, "resnet18"),
        ({"backbone": "tiny", "layer": "stage9"}, BackboneError, "no layer 'stage9'"),
        ({"backbone": "tiny", "pool": "avg"}, ConfigError, "vector already"),
        ({"backbone": "tiny", "weights": "missing.pth"}, BackboneError, "missing.pth"),
        ({"backbone": "tiny", "val_fraction": 0.6}, ConfigError, r"val_fraction.*got 0\.6"),
        ({"backbone": "tiny", "resize": 16}, ConfigError, "at least the image size"),
        ({"backbone": "vit_b_32", "weights": "none", "image_size": 64}, BackboneError, "64 pixels"),
    ],
)
def test_settings_that_do_not_fit(photos, tmp_path, settings, error, message):
    with pytest.raises(error, match=message):
        extract(photos({"ants": 1}), tmp_path / "f.h5", ExtractOptions(**settings))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_source_of_bad_images_only(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    options = ExtractOptions(backbone="tiny", on_error="skip")
    with pytest.raises(BadImages, match="1 of 1 image cannot be used") as caught:
        extract(tmp_path / "photos", tmp_path / "f.h5", options)
    assert str(caught.value).endswith("None is left.")
    assert not (tmp_path / "f.h5").exists()


# --- the backbone sees each image once ----------------------------------------------------------


class Sizes(list[int]):
    """Sizes of batches of the runs that began since the last ``clear``.

    A thread of an interrupted run may still work on what it did ahead when the next one begins.
    """

    num_clears = 0

    def clear(self) -> None:
        self.num_clears += 1
        super().clear()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that the backbone saw."""
    sizes, began = Sizes(), WeakKeyDictionary[TorchEngine, int]()
    make, features = TorchEngine.__init__, TorchEngine.features

    def making(self: TorchEngine, *arguments: Any, **keywords: Any) -> None:
        make(self, *arguments, **keywords)
        began[self] = sizes.num_clears

    def noting(self: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        if began[self] == sizes.num_clears:
            sizes.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(TorchEngine, "__init__", making)
    monkeypatch.setattr(TorchEngine, "features", noting)
    return sizes


def copy_as_other(source: Path, target: Path) -> None:
    """Copy an image so that it looks the same, and is not: bytes behind its end."""
    target.write_bytes(source.read_bytes() + str(target).encode())


def left_in(folder: Path) -> list[str]:
    """Return what is in a folder beside the images."""
    return sorted(path.name for path in folder.iterdir() if not path.is_dir())


def stop_at(done: int) -> Callable[[int, int], None]:
    """Return a progress callable that interrupts once so many images are done."""

    def progress(now: int, _: int) -> None:
        if now >= done:
            raise KeyboardInterrupt

    return progress


def interrupted(root: Path, output: Path, options: ExtractOptions, done: int) -> str:
    """Interrupt an extraction; return what it says."""
    with pytest.raises(KeyboardInterrupt) as stopped:
        extract(root, output, options, progress=stop_at(done))
    assert f"{output.name}.partial" in left_in(output.parent)
    assert not [name for name in left_in(output.parent) if name.endswith(".tmp")]
    return " ".join(stopped.value.__notes__)


SMALL = replace(TINY, batch_size=3, on_error="skip")


def test_a_run_goes_on_from_any_batch_to_the_same_bytes(photos, tmp_path, seen):
    root = photos({"ants": 7, "bees": 7})
    (root / "ants" / "003.jpg").write_bytes(b"broken")
    extract(root, tmp_path / "whole.h5", SMALL)
    whole = (tmp_path / "whole.h5").read_bytes()
    assert seen == [3, 2, 3, 3, 2]
    for done in (3, 6, 9, 12):
        output = tmp_path / f"{done}.h5"
        seen.clear()
        message = interrupted(root, output, SMALL, done)
        assert message == (
            f"{done} images are kept in '{output}.partial'; run the same command again to resume."
        )
        assert not output.exists()
        with pytest.raises(ArtifactIncomplete, match=f"unfinished: {done} of 14 images"):
            open_features(output)
        seen.clear()  # what it did ahead is not in the log
        report = extract(root, output, SMALL)
        assert seen == [3, 2, 3, 3, 2][done // 3 :]
        assert output.read_bytes() == whole
        assert report.num_extracted == 14 - done - (done <= 3)
        assert report.num_resumed == done - (done > 3)  # one of them has no row
        assert (report.num_new, report.num_changed, report.num_removed) == (0, 0, 0)
        assert [name for name, _ in report.skipped] == ["ants/003.jpg"]
        assert not report.is_unchanged
    assert left_in(tmp_path) == ["12.h5", "3.h5", "6.h5", "9.h5", "whole.h5"]


def test_a_run_may_be_interrupted_at_every_batch(photos, tmp_path, seen):
    root, output = photos({"ants": 5, "bees": 5}), tmp_path / "f.h5"
    extract(root, tmp_path / "whole.h5", SMALL)
    for done in (1, 4, 7, 10):  # each stops after one batch; the last after all
        interrupted(root, output, SMALL, done)
    seen.clear()
    report = extract(root, output, SMALL)
    assert (seen, report.num_resumed, report.num_extracted, report.device) == ([], 10, 0, None)
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_an_interruption_while_publishing_keeps_all(photos, tmp_path, monkeypatch, seen):
    root, output = photos({"ants": 4}), tmp_path / "f.h5"

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("featx.features.publish._write", interrupt)
        with pytest.raises(KeyboardInterrupt) as stopped:
            extract(root, output, TINY)
    assert "4 images are kept" in " ".join(stopped.value.__notes__)
    assert left_in(tmp_path) == ["f.h5.partial"]
    seen.clear()
    extract(root, output, TINY)
    assert seen == []


def test_an_interruption_before_anything_was_done_says_nothing_of_kept_images(
    photos, tmp_path, monkeypatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchEngine, "features", interrupt)
    with pytest.raises(KeyboardInterrupt) as stopped:
        extract(photos({"ants": 3}), tmp_path / "f.h5", TINY)
    assert getattr(stopped.value, "__notes__", []) == []
    assert left_in(tmp_path) == []


def test_the_source_may_change_between_the_runs(photos, tmp_path, seen):
    root, output = photos({"ants": 6, "bees": 6}), tmp_path / "f.h5"
    interrupted(root, output, SMALL, 6)
    (root / "ants" / "000.jpg").unlink()
    copy_as_other(root / "bees" / "000.jpg", root / "ants" / "001.jpg")
    copy_as_other(root / "bees" / "000.jpg", root / "ants" / "new.jpg")
    seen.clear()
    report = extract(root, output, SMALL)
    assert sum(seen) == report.num_extracted == 8  # six bees, the changed and the new one
    assert report.num_resumed == 4
    assert_as_from_scratch(root, output, SMALL)


def assert_as_from_scratch(root: Path, output: Path, options: ExtractOptions) -> None:
    """The file has the rows that a first run would give; features agree to rounding."""
    scratch = output.with_name("scratch.h5")
    extract(root, scratch, options)
    found, expected = open_features(output), open_features(scratch)
    assert found.sample_ids == expected.sample_ids
    assert found.classes == expected.classes
    assert found.skipped == expected.skipped
    for name in ("labels", "digests", "stamps"):  # splits may differ: images keep theirs
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)
    assert {**found.header.details, "sha256": 0} == {**expected.header.details, "sha256": 0}
    assert found.header.environment == expected.header.environment
    scratch.unlink()


# --- running it again ---------------------------------------------------------------------------


@pytest.fixture
def made(photos: Callable, tmp_path: Path, seen: list[int]) -> tuple[Path, Path]:
    """A folder of twelve images, one of them bad, and their feature file."""
    root, output = photos({"ants": 6, "bees": 6}), tmp_path / "f.h5"
    (root / "bees" / "005.png").write_bytes(b"broken")
    extract(root, output, SMALL)
    seen.clear()
    return root, output


def test_an_up_to_date_file_is_left_alone(made, seen, monkeypatch):
    root, output = made
    before, status = output.read_bytes(), output.stat()
    monkeypatch.setattr("featx.images.sources.sample.read_image_file", unexpected)
    report = extract(root, output, SMALL)
    assert report.is_unchanged
    assert (report.num_images, report.num_extracted, seen) == (11, 0, [])
    assert [name for name, _ in report.skipped] == ["bees/005.png"]
    after = output.stat()
    assert output.read_bytes() == before
    assert (after.st_ino, after.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    assert left_in(output.parent) == ["f.h5"]


def unexpected(*arguments: object, **_: object) -> None:
    pytest.fail(f"called with {arguments}")


def test_only_new_and_changed_images_are_extracted(made, seen):
    root, output = made
    copy_as_other(root / "ants" / "000.jpg", root / "ants" / "aaa.jpg")
    copy_as_other(root / "ants" / "001.jpg", root / "bees" / "000.jpg")
    (root / "ants" / "002.png").unlink()
    os.utime(root / "bees" / "001.jpg")
    report = extract(root, output, SMALL)
    assert seen == [2]
    assert (report.num_new, report.num_changed, report.num_removed) == (1, 1, 1)
    assert (report.num_extracted, report.num_resumed) == (2, 0)
    assert left_in(output.parent) == ["f.h5"]
    assert_as_from_scratch(root, output, SMALL)


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_an_update_goes_on_too_and_readers_have_the_old_file(made, seen, photos, stopped_after):
    root, output = made
    before = output.read_bytes()
    more = photos({"wasps": 7}, name="more")
    shutil.copytree(more / "wasps", root / "wasps")
    whole = output.with_name("whole.h5")
    shutil.copy(output, whole)
    extract(root, whole, SMALL)
    interrupted(root, output, SMALL, 12 + 3 * stopped_after)
    assert output.read_bytes() == before
    assert len(open_features(output)) == 11
    seen.clear()
    report = extract(root, output, SMALL)
    assert sum(seen) == 7 - 3 * stopped_after
    assert report.num_resumed == 3 * stopped_after
    assert output.read_bytes() == whole.read_bytes()


def test_touched_images_are_read_once_and_not_extracted(made, seen):
    root, output = made
    for path in root.glob("*/*.jpg"):
        os.utime(path)
    report = extract(root, output, SMALL)
    assert (seen, report.num_extracted, report.num_changed) == ([], 0, 0)
    assert not report.is_unchanged
    assert_as_from_scratch(root, output, SMALL)
    assert extract(root, output, SMALL).is_unchanged


def test_a_repaired_image_is_extracted(made, seen):
    root, output = made
    copy_as_other(root / "ants" / "002.png", root / "bees" / "005.png")
    report = extract(root, output, SMALL)
    assert (sum(seen), report.skipped, report.num_images) == (1, (), 12)
    assert_as_from_scratch(root, output, SMALL)


def test_a_good_image_that_was_broken_is_left_out(made):
    root, output = made
    (root / "ants" / "000.jpg").write_bytes(b"broken")
    report = extract(root, output, SMALL)
    assert [name for name, _ in report.skipped] == ["ants/000.jpg", "bees/005.png"]
    assert_as_from_scratch(root, output, SMALL)


def test_moving_an_image_to_another_class_keeps_its_row_under_its_new_name(made, seen):
    root, output = made
    (root / "ants" / "000.jpg").rename(root / "bees" / "moved.jpg")
    report = extract(root, output, SMALL)
    assert (seen, report.num_new, report.num_removed) == ([], 1, 1)
    assert report.num_duplicates == 1
    assert_as_from_scratch(root, output, SMALL)


def test_a_class_that_comes_first_renumbers_the_others(made, seen, photos):
    root, output = made
    (root / "aardvarks").mkdir()
    copy_as_other(root / "ants" / "000.jpg", root / "aardvarks" / "1.jpg")
    extract(root, output, SMALL)
    assert seen == [1]
    assert open_features(output).classes == ("aardvarks", "ants", "bees")
    assert_as_from_scratch(root, output, SMALL)


def test_another_share_of_validation_extracts_nothing(made, seen):
    root, output = made
    for fraction in (0.5, 0.0):
        options = replace(SMALL, val_fraction=fraction, resplit=True)
        report = extract(root, output, options)
        assert (seen, report.is_unchanged) == ([], False)
        assert_as_from_scratch(root, output, options)
        seen.clear()
    assert report.split_sizes == {"train": 11}


def manifest(root: Path, rows: list[tuple[str, str, str]]) -> Path:
    path = root / "images.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return path


def test_a_manifest_that_is_relabelled_or_reordered_extracts_nothing(photos, tmp_path, seen):
    root, output = photos({".": 6}), tmp_path / "f.h5"
    names = sorted(path.name for path in root.iterdir())
    table = manifest(root, [(name, "ant", "train") for name in names])
    extract(table, output, TINY)
    seen.clear()
    for rows in (
        [(name, "bee" if i else "ant", "train") for i, name in enumerate(names)],
        [(name, "ant", "test" if i else "train") for i, name in enumerate(names)],
        [(name, "", "train") for name in names],
        [(name, "ant", "train") for name in reversed(names)],
        [(name, "ant", "train") for name in names[1:]],
    ):
        manifest(root, rows)
        report = extract(table, output, TINY)
        assert (seen, report.is_unchanged, report.num_extracted) == ([], False, 0)
        assert open_features(output).sample_ids == tuple(name for name, _, _ in rows)
        assert_as_from_scratch(table, output, TINY)
        assert extract(table, output, TINY).is_unchanged
        seen.clear()


def change_but_for_the_time(path: Path) -> None:
    """Change a byte of a file, and put its modification time back."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-30] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_change_shows_though_size_and_time_are_put_back(made, seen):
    root, output = made
    change_but_for_the_time(root / "ants" / "000.jpg")
    report = extract(root, output, SMALL)
    assert (seen, report.num_changed) == ([1], 1)
    assert_as_from_scratch(root, output, SMALL)


def equal_but_for_their_pixels(root: Path) -> tuple[Path, Path]:
    """Replace two images by bitmaps of one size and one modification time."""
    paths = root / "ants" / "000.jpg", root / "bees" / "003.jpg"
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, format="BMP")
        os.utime(path, (10**9, 10**9))
    return paths


@pytest.mark.parametrize("way", ["rename", "hard link", "copy", "restore", "folders"])
def test_images_of_one_size_and_time_that_trade_places(made, way):
    root, output = made
    one, two = equal_but_for_their_pixels(root)
    extract(root, output, SMALL)
    spare = root.with_name("spare")
    if way == "folders":
        (root / "ants").rename(spare)
        (root / "bees").rename(root / "ants")
        spare.rename(root / "bees")
    else:
        contents = one.read_bytes(), two.read_bytes()
        match way:
            case "rename":
                one.rename(spare), two.rename(one), spare.rename(two)
            case "hard link":
                spare.hardlink_to(one)
                one.unlink(), one.hardlink_to(two), two.unlink(), two.hardlink_to(spare)
            case "copy":
                shutil.copy2(one, spare), shutil.copy2(two, one), shutil.copy2(spare, two)
            case "restore":
                for path, content in ((two, contents[0]), (one, contents[1])):
                    path.unlink()
                    path.write_bytes(content)
                    os.utime(path, (10**9, 10**9))
        assert (one.read_bytes(), two.read_bytes()) == contents[::-1]
    assert not check(output).is_fresh
    extract(root, output, SMALL)
    assert_as_from_scratch(root, output, SMALL)


@pytest.mark.parametrize("is_early", [True, False])
def test_an_image_that_is_replaced_while_it_is_extracted_shows_next_time(
    made, monkeypatch, is_early
):
    root, output = made[0], made[1].with_name("new.h5")
    one, two = equal_but_for_their_pixels(root)
    other = two.read_bytes()
    read = FileSource.read

    def reading(self: FileSource, index: int) -> bytes:
        content = read(self, index)
        if self.samples[index].sample_id != "ants/000.jpg":
            return content
        one.unlink()
        one.write_bytes(other)  # between the look at the file and its decoding
        os.utime(one, (10**9, 10**9))
        return read(self, index) if is_early else content

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "read", reading)
        extract(root, output, SMALL)
    report = extract(root, output, SMALL)
    assert (report.num_extracted, report.num_changed) == (0, 0 if is_early else 1)
    assert_as_from_scratch(root, output, SMALL)


def test_a_link_that_leads_elsewhere_is_another_image(made):
    root, output = made
    one, two = equal_but_for_their_pixels(root)
    store = root.with_name("store")
    store.mkdir()
    one.rename(store / "1"), two.rename(store / "2")
    one.symlink_to(store / "1"), two.symlink_to(store / "1")
    extract(root, output, SMALL)
    two.unlink()
    two.symlink_to(store / "2")
    assert check(output).num_changed == 1
    extract(root, output, SMALL)
    assert_as_from_scratch(root, output, SMALL)


def test_new_rights_or_times_of_all_files_cost_no_extraction(made, seen):
    root, output = made
    for number, path in enumerate(sorted(root.rglob("*.jpg"))):
        path.chmod(0o600)
        os.utime(path, (2**33 * number, 2**33 * number))  # years 1970 to 2500
    assert check(output).is_fresh
    report = extract(root, output, SMALL)
    assert (seen, report.num_extracted, report.is_unchanged) == ([], 0, False)
    assert extract(root, output, SMALL).is_unchanged


def test_content_is_compared_if_asked_to(made, seen, monkeypatch):
    root, output = made
    stamps = {str(path): stamp_of(str(path)) for path in root.rglob("*.*")}
    change_but_for_the_time(root / "ants" / "000.jpg")
    monkeypatch.setattr("featx.images.sources.sample.stamp_of", stamps.get)  # the clock stood still
    assert extract(root, output, SMALL).is_unchanged
    report = extract(root, output, replace(SMALL, verify_content=True))
    assert (seen, report.num_changed) == ([1], 1)
    assert_as_from_scratch(root, output, SMALL)


def test_two_sources_are_told_apart_in_the_message(made):
    root, output = made
    moved = root.rename(root.with_name("moved"))
    with pytest.raises(ArtifactMismatch) as caught:
        extract(moved, output, SMALL)
    assert str(root) in str(caught.value)
    assert str(moved) in str(caught.value)


@pytest.mark.parametrize("keep_times", [True, False])
def test_a_source_that_was_moved_is_recognised_by_its_content(made, seen, keep_times):
    root, output = made
    before, moved = output.read_bytes(), root.with_name("moved")
    shutil.copytree(root, moved, copy_function=shutil.copy2 if keep_times else shutil.copy)
    with pytest.raises(ArtifactMismatch, match=r"source: expected '.*use verify_content=True"):
        extract(moved, output, SMALL)
    assert output.read_bytes() == before
    report = extract(moved, output, replace(SMALL, verify_content=True))
    assert seen == []
    assert (report.num_new, report.num_changed) == (0, 0)
    assert open_features(output).header.details["source"] == str(moved)
    seen.clear()
    assert extract(moved, output, SMALL).is_unchanged
    assert_as_from_scratch(moved, output, SMALL)


@pytest.mark.parametrize("changes", [{}, {"layer": "flatten"}])
def test_the_environment_stays_where_no_backbone_ran(made, seen, changes):
    root, output = made
    before = open_features(output).header.environment
    (root / "ants" / "000.jpg").unlink()
    extract(root, output, replace(SMALL, **changes))
    assert (seen, open_features(output).header.environment) == ([], before)
    assert before["device"] == "cpu"


# --- other settings -----------------------------------------------------------------------------

OTHER_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"image_size": 48}, r"preprocess\.image_size: expected 48, found 32"),
    ({"crop": "none"}, r"preprocess\.crop: expected 'none', found 'center'"),
    ({"layer": "stage2"}, "layer: expected 'stage2', found 'flatten'"),
    ({"weights": "none"}, "weights_sha256: expected '"),
    ({"dtype": "float16"}, "dtype: expected 'float16', found 'float32'"),
    ({"max_pixels": 10**6}, "max_pixels: expected 1000000, found 178956970"),
]


@pytest.mark.parametrize(("changes", "named"), OTHER_SETTINGS)
def test_a_file_of_other_settings_is_named_and_kept(made, seen, changes, named):
    root, output = made
    before = output.read_bytes()
    with pytest.raises(ArtifactMismatch, match=named) as caught:
        extract(root, output, replace(SMALL, **changes))
    message = str(caught.value)
    assert f"'{output}' was made with other settings" in message
    assert "overwrite=True" in message
    assert f"another output, such as {output.with_name('f-')}" in message
    assert output.read_bytes() == before
    assert seen == []
    assert left_in(output.parent) == ["f.h5"]


@pytest.mark.parametrize(
    ("changes", "named"), [case for case in OTHER_SETTINGS if "dtype" not in case[0]]
)
def test_a_log_of_other_settings_is_named_and_kept(photos, tmp_path, changes, named):
    root, output = photos({"ants": 5}), tmp_path / "f.h5"
    interrupted(root, output, SMALL, 3)
    before = output.with_name("f.h5.partial").read_bytes()
    with pytest.raises(ArtifactMismatch, match=named) as caught:
        extract(root, output, replace(SMALL, **changes))
    message = str(caught.value)
    assert f"'{output}.partial' keeps 3 images of an extraction that was not finished" in message
    assert "restart=True" in message
    assert "another output" in message
    assert output.with_name("f.h5.partial").read_bytes() == before
    assert left_in(tmp_path) == ["f.h5.partial"]


def test_another_source_is_a_setting_too(photos, tmp_path):
    root, output = photos({"ants": 5}), tmp_path / "f.h5"
    interrupted(root, output, SMALL, 3)
    other = photos({"ants": 5}, name="other")
    with pytest.raises(ArtifactMismatch, match=r"source: expected '.*', found '.*restart=True"):
        extract(other, output, SMALL)
    extract(root, output, SMALL)


def test_overwrite_replaces_a_file_of_other_settings_and_reuses_no_row(made, seen):
    root, output = made
    options = replace(SMALL, image_size=48, overwrite=True)
    assert extract(root, output, options).num_extracted == 11
    assert sum(seen) == 11
    assert open_features(output).header.spec["preprocess"]["image_size"] == 48
    seen.clear()
    assert extract(root, output, options).is_unchanged  # and replaces nothing that is right
    assert seen == []


def test_overwrite_does_not_discard_an_unfinished_extraction(photos, tmp_path, seen):
    root, output = photos({"ants": 6}), tmp_path / "f.h5"
    interrupted(root, output, SMALL, 3)
    seen.clear()
    extract(root, output, replace(SMALL, overwrite=True))
    assert seen == [3]


@pytest.mark.parametrize("changes", [{}, {"image_size": 48}])
def test_restart_discards_an_unfinished_extraction(photos, tmp_path, seen, changes):
    root, output = photos({"ants": 6}), tmp_path / "f.h5"
    options = replace(SMALL, **changes)
    extract(root, tmp_path / "whole.h5", options)
    interrupted(root, output, SMALL, 3)
    seen.clear()
    report = extract(root, output, replace(options, restart=True))
    assert (seen, report.num_resumed) == ([3, 3], 0)
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert left_in(tmp_path) == ["f.h5", "whole.h5"]


def test_restart_extracts_everything_again(made, seen):
    root, output = made
    before = output.read_bytes()
    report = extract(root, output, replace(SMALL, restart=True))
    assert (sum(seen), report.num_extracted, report.is_unchanged) == (11, 11, False)
    assert output.read_bytes() == before


@pytest.mark.parametrize("content", ["notes of mine", "features of other settings"])
def test_restart_alone_replaces_nothing_that_it_could_not_make(photos, tmp_path, content):
    root, output = photos({"ants": 3}), tmp_path / "f.h5"
    if content == "notes of mine":
        output.write_text(content)
    else:
        extract(root, output, replace(TINY, image_size=48))
    before = output.read_bytes()
    with pytest.raises(ArtifactError, match=r"another path|overwrite=True"):
        extract(root, output, replace(TINY, image_size=32, restart=True))
    assert output.read_bytes() == before


# --- bad images ---------------------------------------------------------------------------------


@pytest.fixture
def bad(photos: Callable) -> tuple[Path, list[str]]:
    """A folder of twelve images, four of which cannot be used, and their names."""
    root = photos({"ants": 6, "bees": 6})
    (root / "ants" / "000.jpg").write_bytes(b"")
    (root / "ants" / "004.jpg").write_bytes(b"no image")
    (root / "bees" / "001.jpg").write_bytes((root / "bees" / "000.jpg").read_bytes()[:300])
    (root / "bees" / "005.png").unlink()
    (root / "bees" / "005.png").symlink_to("nowhere.png")
    return root, ["ants/000.jpg", "ants/004.jpg", "bees/001.jpg", "bees/005.png"]


def num_threads() -> int:
    """Return how many threads there are but the engine's, which stay as long as it does."""
    return sum(not thread.name.startswith("torch") for thread in threading.enumerate())


def test_all_bad_images_are_named_at_once(bad, tmp_path, seen):
    root, names = bad
    options, threads = replace(SMALL, on_error="fail"), num_threads()
    with pytest.raises(BadImages) as caught:
        extract(root, tmp_path / "f.h5", options)
    message = str(caught.value)
    assert message.startswith("4 of 12 images cannot be used:\n")
    assert [name for name, _ in caught.value.images] == names
    for name, reason in caught.value.images:
        assert f"\n  {name}: {reason}" in message
    assert "on_error='skip'" in message
    assert "8 others are kept" in message
    assert left_in(tmp_path) == ["f.h5.partial"]
    assert sum(seen) == 8
    assert num_threads() == threads
    seen.clear()
    with pytest.raises(BadImages) as again:
        extract(root, tmp_path / "f.h5", options)
    assert again.value.images == caught.value.images
    assert seen == []


def test_leaving_them_out_then_costs_no_backbone(bad, tmp_path, seen):
    root, names = bad
    with pytest.raises(BadImages):
        extract(root, tmp_path / "f.h5", replace(SMALL, on_error="fail"))
    seen.clear()
    report = extract(root, tmp_path / "f.h5", SMALL)
    assert seen == []
    assert [name for name, _ in report.skipped] == names
    opened = open_features(tmp_path / "f.h5")
    assert sorted([*opened.sample_ids, *(image.sample_id for image in opened.skipped)]) == sorted(
        [*names, *opened.sample_ids]
    )
    assert len(opened) + len(opened.skipped) == 12
    assert_as_from_scratch(root, tmp_path / "f.h5", SMALL)


def test_a_bad_image_that_is_new_is_in_the_file_once_it_may_be_left_out(photos, tmp_path):
    root, output = photos({"ants": 4}), tmp_path / "f.h5"
    extract(root, output, TINY)
    (root / "ants" / "new.jpg").write_bytes(b"broken")
    with pytest.raises(BadImages):
        extract(root, output, TINY)
    extract(root, output, SMALL)
    assert [image.sample_id for image in open_features(output).skipped] == ["ants/new.jpg"]


def test_mending_them_extracts_only_them(bad, tmp_path, seen):
    root, names = bad
    options = replace(SMALL, on_error="fail")
    with pytest.raises(BadImages):
        extract(root, tmp_path / "f.h5", options)
    for name in names:
        (root / name).unlink()
        copy_as_other(root / "ants" / "001.jpg", root / name)
    seen.clear()
    assert extract(root, tmp_path / "f.h5", options).skipped == ()
    assert sum(seen) == 4
    assert_as_from_scratch(root, tmp_path / "f.h5", options)


def test_a_file_made_without_them_is_no_answer_to_someone_who_wants_all(bad, tmp_path):
    root, names = bad
    extract(root, tmp_path / "f.h5", SMALL)
    before = (tmp_path / "f.h5").read_bytes()
    with pytest.raises(BadImages) as caught:
        extract(root, tmp_path / "f.h5", replace(SMALL, on_error="fail"))
    assert [name for name, _ in caught.value.images] == names
    assert (tmp_path / "f.h5").read_bytes() == before


@pytest.mark.parametrize(
    ("max_bad", "passes"), [(0.0, False), (0.3333, False), (4 / 12, True), (1, True)]
)
def test_exactly_as_many_bad_images_as_allowed_pass(bad, tmp_path, max_bad, passes):
    root, _ = bad
    options = replace(SMALL, max_bad=max_bad)
    if passes:
        assert len(extract(root, tmp_path / "f.h5", options).skipped) == 4
        return
    for _ in range(2):
        with pytest.raises(BadImages, match=r"more than the \d+\.\d\d% allowed by max_bad"):
            extract(root, tmp_path / "f.h5", options)
        assert left_in(tmp_path) == ["f.h5.partial"]


def test_it_stops_as_soon_as_too_many_are_bad(bad, tmp_path, seen):
    root, _ = bad
    with pytest.raises(BadImages):
        extract(root, tmp_path / "f.h5", replace(SMALL, max_bad=0.0, batch_size=1))
    assert sum(seen) <= 3  # of eight: the first image is bad, and so much is done ahead


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_the_report_accounts_for_every_bad_image(bad, tmp_path, on_error):
    root, names = bad
    report, output = tmp_path / "reports" / "bad.json", tmp_path / "f.h5"
    options = replace(SMALL, on_error=on_error, report=report)  # type: ignore[arg-type]
    if on_error == "fail":
        with pytest.raises(BadImages):
            extract(root, output, options)
    else:
        extract(root, output, options)
    account = json.loads(report.read_text())
    assert [entry["sample_id"] for entry in account["bad"]] == names
    assert all(entry["reason"] for entry in account["bad"])
    assert (account["num_images"], account["num_rows"]) == (12, 8)
    assert (account["source"], account["output"]) == (str(root), str(output))
    assert os.listdir(report.parent) == ["bad.json"]


def test_a_report_of_a_good_source_is_empty_and_written_each_time(photos, tmp_path):
    root, report = photos({"ants": 3}), tmp_path / "bad.json"
    options = replace(TINY, report=report)
    for _ in range(2):
        extract(root, tmp_path / "f.h5", options)
        assert json.loads(report.read_text())["bad"] == []
        report.unlink()


def test_names_that_are_no_text_are_reported_and_stored(photos, tmp_path):
    root, report = photos({"ants": 2}), tmp_path / "bad.json"
    folder = os.fsencode(root / "ants")
    shutil.copy(folder + b"/000.jpg", folder + b"/\xff.jpg")
    shutil.copy(folder + b"/000.jpg", folder + "/é\n日本.jpg".encode())
    Path(os.fsdecode(folder + b"/\xfe.jpg")).write_bytes(b"broken")
    options = replace(SMALL, report=report)
    extract(root, tmp_path / "f.h5", options)
    opened = open_features(tmp_path / "f.h5")
    assert {"ants/\udcff.jpg", "ants/é\n日本.jpg"} < set(opened.sample_ids)
    assert [image.sample_id for image in opened.skipped] == ["ants/\udcfe.jpg"]
    assert json.loads(report.read_text())["bad"][0]["sample_id"] == "ants/\udcfe.jpg"
    assert extract(root, tmp_path / "f.h5", options).is_unchanged


def test_a_report_does_not_replace_the_features(photos, tmp_path):
    root, output = photos({"ants": 3}), tmp_path / "f.h5"
    extract(root, output, TINY)
    with pytest.raises((ConfigError, ArtifactError)):
        extract(root, output, replace(TINY, report=output))
    assert len(open_features(output)) == 3


@pytest.mark.parametrize("name", ["f.h5.partial", "f.h5.lock", "link", "photos/ants/x.png"])
def test_a_report_in_the_place_of_another_file_costs_no_rows(photos, tmp_path, name, caplog):
    root, output = photos({"ants": 3}), tmp_path / "f.h5"
    (tmp_path / "link").symlink_to("f.h5.partial")
    with pytest.raises((ConfigError, ArtifactError)):
        extract(root, output, replace(TINY, report=tmp_path / name))
    caplog.clear()
    extract(root, output, TINY)
    assert len(open_features(output)) == 3
    assert sorted(os.listdir(root / "ants")) == ["000.jpg", "001.jpg", "002.png"]


def test_an_output_behind_a_link(photos, tmp_path):
    root, link, target = photos({"ants": 3}), tmp_path / "f.h5", tmp_path / "scratch" / "f.h5"
    target.parent.mkdir()
    link.symlink_to("scratch/f.h5")
    assert extract(root, link, TINY).num_extracted == 3
    assert extract(root, target, TINY).is_unchanged
    before = target.read_bytes()
    (root / "ants" / "002.png").unlink()
    assert extract(root, link, TINY).num_removed == 1
    assert link.is_symlink()
    assert target.read_bytes() != before
    assert os.listdir(target.parent) == ["f.h5"]
    with locked(target), pytest.raises(ArtifactBusy):
        extract(root, link, TINY)


# --- what lies around the output ----------------------------------------------------------------


def test_a_log_that_is_not_ours_is_refused_and_kept(photos, tmp_path):
    root = photos({"ants": 2})
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "text.h5.partial").write_text("notes of mine")
    (tmp_path / "folder.h5.partial").mkdir()
    (tmp_path / "link.h5.partial").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "fifo.h5.partial")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("text", "folder", "link", "fifo"):
        for options in (TINY, replace(TINY, restart=True, overwrite=True)):
            with pytest.raises(ArtifactError, match=rf"{name}\.h5\.partial"):
                extract(root, tmp_path / f"{name}.h5", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "text.h5.partial").read_text() == "notes of mine"
    assert (tmp_path / "precious").read_text() == "mine"


def test_what_killed_processes_left_does_no_harm(photos, tmp_path):
    root, output = photos({"ants": 4}), tmp_path / "f.h5"
    extract(root, tmp_path / "whole.h5", TINY)
    publish._free_name(output).write_bytes(b"\x89HDF\r\n\x1a\nhalf a file")
    output.with_name("f.h5.lock").write_text("process 1 on elsewhere since 2020-01-01 00:00:00\n")
    output.with_name("f.h5.partial").write_bytes(b"fxj1")
    extract(root, output, TINY)
    assert left_in(tmp_path) == ["f.h5", "whole.h5"]
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("name", ["x" * 240 + ".h5", "ü" * 100 + ".h5", "a*[b].h5"])
def test_outputs_of_any_name(photos, tmp_path, name):
    root, output = photos({"ants": 2}), tmp_path / name
    publish._free_name(output).write_bytes(b"half")
    extract(root, output, TINY)
    assert left_in(tmp_path) == [name]


def test_a_torn_log_loses_its_last_batch_only(photos, tmp_path, seen):
    root, output = photos({"ants": 8}), tmp_path / "f.h5"
    extract(root, tmp_path / "whole.h5", SMALL)
    interrupted(root, output, SMALL, 6)
    partial = output.with_name("f.h5.partial")
    partial.write_bytes(partial.read_bytes()[:-5])
    seen.clear()
    assert extract(root, output, SMALL).num_resumed == 3
    assert seen == [3, 2]
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("damage", ["features", "header"])
def test_a_damaged_file_is_kept_until_it_may_be_replaced(made, damage):
    root, output = made
    with h5py.File(output, "r+") as file:
        if damage == "features":
            file["features"][3, 3] += 1
        else:
            del file.attrs["header"]
    before = output.read_bytes()
    with pytest.raises(
        ArtifactExists, match=r"exists, and no rows can be taken from it.*overwrite"
    ):
        extract(root, output, SMALL)
    assert output.read_bytes() == before
    assert extract(root, output, replace(SMALL, overwrite=True)).num_extracted == 11
    assert_as_from_scratch(root, output, SMALL)


@pytest.mark.parametrize(
    "details",
    [
        {"skipped": None},
        {"skipped": [["bees/005.png"]]},
        {"skipped": [["bees/005.png", "broken", ["x", 1, 2]]]},
        {"weights": None},
        {"weights": 3},
    ],
    ids=repr,
)
def test_a_header_of_odd_details_is_an_error_of_featx(made, details):
    root, output = made
    header = open_features(output).header
    crafted = replace(header, details={**header.details, **details})
    with h5py.File(output, "r+") as file:
        del file.attrs["header"]
        file.attrs["header"] = np.bytes_(crafted.to_json().encode())
    with pytest.raises(ArtifactError):
        extract(root, output, SMALL)


def test_a_system_without_room_for_a_process(photos, tmp_path, monkeypatch, as_is):
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(FeatxError):
        extract(photos({"ants": 2}), tmp_path / "f.h5", TINY)


def test_a_log_of_another_featx_is_named_and_kept(photos, tmp_path):
    root, output = photos({"ants": 3}), tmp_path / "f.h5"
    with Journal(output, layout=RowLayout((192,))) as journal:
        journal.begin({"settings": {"of": "another"}})
        columns = np.zeros((1, 3), np.int64), np.zeros((1, 16), np.uint8)
        journal.append(Batch(("a",), *columns, ("",), np.zeros((1, 192), np.float32)))
    before = output.with_name("f.h5.partial").read_bytes()
    with pytest.raises(ArtifactInvalid, match=r"written by another featx\. Use restart=True"):
        extract(root, output, TINY)
    assert output.with_name("f.h5.partial").read_bytes() == before
    extract(root, output, replace(TINY, restart=True))


def test_too_little_room_is_said_and_costs_nothing(photos, tmp_path, monkeypatch, seen):
    root, output = photos({"ants": 4}), tmp_path / "f.h5"
    with monkeypatch.context() as patch:
        full = SimpleNamespace(f_bavail=1, f_frsize=4096)
        patch.setattr(os, "fstatvfs", lambda _: full)
        with pytest.raises(ArtifactError, match=r"needs [\d,]+ bytes, but its disk has 4,096 free"):
            extract(root, output, TINY)
    assert left_in(tmp_path) == ["f.h5.partial"]
    seen.clear()
    extract(root, output, TINY)
    assert seen == []


# --- two at once --------------------------------------------------------------------------------

SLOW = """
import sys, time
from pathlib import Path
from featx.stages.extract import ExtractOptions, extract

def progress(done, total):
    print(done, flush=True)
    if done == 3:
        sys.stdin.readline()

options = ExtractOptions(backbone="tiny", engine="torch", batch_size=3)
extract(sys.argv[1], sys.argv[2], options,
    progress=progress)
"""


def test_the_second_of_two_is_turned_away_and_the_first_goes_on(photos, tmp_path):
    root, output = photos({"ants": 8}), tmp_path / "f.h5"
    extract(root, tmp_path / "whole.h5", replace(TINY, batch_size=3))
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW, root, output],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "3\n"
        before = output.with_name("f.h5.partial").read_bytes()
        with pytest.raises(ArtifactBusy) as caught:
            extract(root, output, replace(TINY, restart=True, overwrite=True))
        assert first.poll() is None  # nobody waited for it: it goes on when it is told to, below
        assert f"process {first.pid} on {socket.gethostname()} since " in str(caught.value)
        with pytest.raises(ArtifactIncomplete, match="unfinished: 3 of 8 images"):
            open_features(output)
        assert output.with_name("f.h5.partial").read_bytes() == before
        first.communicate("\n", timeout=120)
    finally:
        first.kill()
        first.wait(60)
    assert first.returncode == 0
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert left_in(tmp_path) == ["f.h5", "whole.h5"]


def test_a_killed_process_is_taken_over_from(photos, tmp_path):
    root, output = photos({"ants": 8}), tmp_path / "f.h5"
    extract(root, tmp_path / "whole.h5", replace(TINY, batch_size=3))
    first = subprocess.Popen(
        [sys.executable, "-c", SLOW, root, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"3\n"
    first.kill()
    first.communicate(timeout=60)
    report = extract(root, output, replace(TINY, batch_size=3))
    assert (report.num_resumed, report.num_extracted) == (3, 5)
    assert output.read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert left_in(tmp_path) == ["f.h5", "whole.h5"]


def test_an_up_to_date_run_loads_no_torch(photos, tmp_path, as_is):
    root, output = photos({"ants": 4}), tmp_path / "f.h5"
    extract(root, output, TINY)
    code = (
        "import sys; from featx.stages.extract import ExtractOptions, extract; "
        "report = extract(sys.argv[1], sys.argv[2], ExtractOptions(backbone='tiny')); "
        "print(report.is_unchanged, *sorted({'torch', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, root, output],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout == "True\n"


# --- float16 ------------------------------------------------------------------------------------


def test_float16_is_stored_and_updated(photos, tmp_path, seen):
    root, output = photos({"ants": 6}), tmp_path / "f.h5"
    half = replace(SMALL, dtype="float16")
    extract(root, tmp_path / "whole.h5", SMALL)
    extract(root, output, half)
    with h5py.File(output) as file:
        assert file["features"].dtype == np.float16
    whole = open_features(tmp_path / "whole.h5").features
    stored = open_features(output).features
    np.testing.assert_array_equal(stored, whole.astype(np.float16).astype(np.float32))
    seen.clear()
    copy_as_other(root / "ants" / "000.jpg", root / "ants" / "new.jpg")
    extract(root, output, half)
    assert seen == [1]
    np.testing.assert_array_equal(open_features(output).features[:6], stored)
    assert_as_from_scratch(root, output, half)


@pytest.mark.parametrize(("factor", "words"), [(1e6, "up to 65,504"), (1e-9, "too small")])
def test_float16_is_refused_where_it_loses_too_much(photos, tmp_path, monkeypatch, factor, words):
    plain = TorchEngine.features
    monkeypatch.setattr(
        TorchEngine, "features", lambda self, pixels: plain(self, pixels) * np.float32(factor)
    )
    root = photos({"ants": 4})
    with pytest.raises(ConfigError, match=rf"{words}.*Use dtype='float32'") as caught:
        extract(root, tmp_path / "f.h5", replace(TINY, dtype="float16"))
    assert "ants/00" in str(caught.value)
    assert not (tmp_path / "f.h5").exists()
    extract(root, tmp_path / "f.h5", TINY)


def test_after_float16_was_refused_float32_goes_on(photos, tmp_path, monkeypatch):
    root = photos({"ants": 6})
    plain, calls = TorchEngine.features, []

    def grows(self: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        return plain(self, pixels) * np.float32(1e6 if len(calls) == 2 else 1)

    monkeypatch.setattr(TorchEngine, "features", grows)
    with pytest.raises(ConfigError, match="Use dtype='float32'"):
        extract(root, tmp_path / "f.h5", replace(SMALL, dtype="float16"))
    assert extract(root, tmp_path / "f.h5", SMALL).num_resumed == 3
