"""Extraction: what goes into the feature file, and what stops it."""

from __future__ import annotations

import csv
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.artifact import Header
from featx.backbones.engines import TorchEngine
from featx.errors import (
    ArtifactError,
    ArtifactExists,
    BackboneError,
    ConfigError,
    ImageError,
    SourceError,
)
from featx.features.file import FeatureFile, open_features
from featx.stages.extract import ExtractOptions, ExtractReport, extract

TINY = ExtractOptions(backbone="tiny")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[ExtractReport, FeatureFile]]:
    """Extract with ``tiny`` and open the result."""

    def extract_and_open(source: object, name: str = "f.h5", **settings: object) -> tuple:
        options = ExtractOptions(backbone="tiny", **settings)  # type: ignore[arg-type]
        report = extract(str(source), tmp_path / name, options)
        return report, open_features(tmp_path / name)

    return extract_and_open


def test_rows_follow_the_source_with_labels_by_class_name(photos: Callable, run: Callable) -> None:
    report, cache = run(photos({"bees": 4, "ants": 3}))
    assert cache.classes == ("ants", "bees")
    assert [name.partition("/")[0] for name in cache.sample_ids] == ["ants"] * 3 + ["bees"] * 4
    assert cache.labels.tolist() == [0] * 3 + [1] * 4
    assert cache.features.shape == (7, 192)
    assert report.num_images == 7
    assert report.skipped == ()


def test_splits_of_the_source_are_kept_and_classes_joined_by_name(
    photos: Callable, run: Callable
) -> None:
    """``ants`` is missing in test, so ``bees`` is its first folder, yet class 1."""
    layout = {"train/ants": 3, "train/bees": 3, "valid/ants": 1, "valid/bees": 2, "test/bees": 2}
    report, cache = run(photos(layout))
    assert report.split_sizes == {"train": 6, "val": 3, "test": 2}
    assert cache.labels[cache.rows("test")].tolist() == [1, 1]


def test_an_image_keeps_its_split_as_the_data_grows(photos: Callable, run: Callable) -> None:
    _, small = run(photos({"ants": 10, "bees": 10}), "a.h5")
    _, large = run(photos({"ants": 30, "bees": 30}, name="more"), "b.h5")
    before = dict(zip(small.sample_ids, small.splits.tolist(), strict=True))
    after = dict(zip(large.sample_ids, large.splits.tolist(), strict=True))
    assert before.items() <= after.items()
    assert set(after.values()) == {0, 1}


def test_without_classes_labels_are_minus_one(photos: Callable, run: Callable) -> None:
    report, cache = run(photos({".": 3}))
    assert cache.classes == ()
    assert cache.labels.tolist() == [-1, -1, -1]
    assert report.num_unlabelled == 3


def test_a_manifest_gives_the_features_of_its_folder(
    photos: Callable, run: Callable, tmp_path: Path
) -> None:
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


def test_digests_tell_equal_content_from_other(photos: Callable, run: Callable) -> None:
    root = photos({"ants": 2})
    shutil.copy(root / "ants" / "000.jpg", root / "ants" / "copy.jpg")
    _, cache = run(root)
    rows = {name: cache.digests[i].tobytes() for i, name in enumerate(cache.sample_ids)}
    assert rows["ants/000.jpg"] == rows["ants/copy.jpg"] != rows["ants/001.jpg"]


def test_a_turned_photo_has_the_features_of_the_upright_one(run: Callable, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "photos" / "turned.png", exif=exif)
    _, cache = run(tmp_path / "photos")
    np.testing.assert_array_equal(cache.features[0], cache.features[1])


@pytest.mark.parametrize("bad_at", [0, 3, 6])
def test_skipping_keeps_rows_and_labels_together(
    photos: Callable, run: Callable, bad_at: int
) -> None:
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
    assert cache.header.details["skipped"] == [[bad, report.skipped[0][1]]]


def test_a_bad_image_stops_it_named_and_nothing_stays(photos: Callable, tmp_path: Path) -> None:
    root = photos({"ants": 5})
    (root / "ants" / "003.jpg").write_bytes(b"")
    threads = threading.active_count()
    with pytest.raises(ImageError, match=r"ants/003\.jpg.*empty") as caught:
        extract(root, tmp_path / "out" / "f.h5", TINY)
    assert caught.value.sample_id == "ants/003.jpg"
    assert list((tmp_path / "out").iterdir()) == []
    assert threading.active_count() == threads


def test_features_that_are_not_numbers_stop_it(
    photos: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TorchEngine.features

    def overflow(self: TorchEngine, pixels: np.ndarray) -> np.ndarray:
        features = plain(self, pixels)
        features[-1, 0] = np.inf
        return features

    monkeypatch.setattr(TorchEngine, "features", overflow)
    with pytest.raises(BackboneError, match=r"NaN or infinite features for 'ants/004\.jpg'"):
        extract(photos({"ants": 5}), tmp_path / "f.h5", TINY)
    assert not (tmp_path / "f.h5").exists()


def test_the_output_is_checked_before_any_work(photos: Callable, tmp_path: Path) -> None:
    output = tmp_path / "f.h5"
    output.write_text("mine")
    with pytest.raises(ArtifactExists, match="--overwrite"):
        extract(photos(), output, ExtractOptions(backbone="no such backbone"))
    assert output.read_text() == "mine"
    with pytest.raises(ArtifactError, match="folder"):
        extract(photos(name="more"), tmp_path, TINY)
    with pytest.raises(SourceError, match="no such folder"):  # a typo is not hidden by it
        extract(tmp_path / "no such folder", output, TINY)


def test_a_failure_leaves_the_old_file_under_overwrite(photos: Callable, tmp_path: Path) -> None:
    output, root = tmp_path / "f.h5", photos({"ants": 3, "bees": 3})
    extract(root, output, TINY)
    before = output.read_bytes()
    (root / "bees" / "001.jpg").write_bytes(b"broken")
    options = ExtractOptions(backbone="tiny", overwrite=True)
    with pytest.raises(ImageError):
        extract(root, output, options)
    assert output.read_bytes() == before


def test_the_header_says_how_it_was_made(photos: Callable, run: Callable) -> None:
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


def test_every_setting_that_changes_features_changes_the_fingerprint(
    photos: Callable, run: Callable
) -> None:
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


def test_what_does_not_change_features_does_not_change_the_fingerprint(
    photos: Callable, run: Callable
) -> None:
    root = photos({"ants": 4})
    settings: list[dict[str, object]] = [
        {},
        {"batch_size": 3},
        {"workers": 1},
        {"on_error": "skip"},
    ]
    found = {run(root, f"{i}.h5", **s)[1].header.fingerprint for i, s in enumerate(settings)}
    assert len(found) == 1


def test_progress_counts_every_image(photos: Callable, tmp_path: Path) -> None:
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
        ({"on_error": "stop"}, "on_error must be 'fail' or 'skip'"),
        ({"pool": "mean"}, "pool must be one of"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_options_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExtractOptions(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"backbone": "resnet19"}, BackboneError, "resnet18"),
        ({"backbone": "tiny", "layer": "stage9"}, BackboneError, "no layer 'stage9'"),
        ({"backbone": "tiny", "pool": "avg"}, ConfigError, "vector already"),
        ({"backbone": "tiny", "weights": "missing.pth"}, BackboneError, "missing.pth"),
        ({"backbone": "tiny", "val_fraction": 1.0}, ConfigError, "val fraction"),
        ({"backbone": "tiny", "resize": 16}, ConfigError, "at least the image size"),
        ({"backbone": "vit_b_32", "weights": "none", "image_size": 64}, BackboneError, "64 pixels"),
    ],
)
def test_settings_that_do_not_fit(
    photos: Callable,
    tmp_path: Path,
    settings: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        extract(photos({"ants": 1}), tmp_path / "f.h5", ExtractOptions(**settings))  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_a_source_of_bad_images_only(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    options = ExtractOptions(backbone="tiny", on_error="skip")
    with pytest.raises(SourceError, match="None of the 1 images"):
        extract(tmp_path / "photos", tmp_path / "f.h5", options)
