"""Extraction of views: drawn from the content alone, for training images alone."""

from __future__ import annotations

import itertools
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import PIL.Image
import pytest

from featx.backbones.spec import BackboneSpec
from featx.errors import ArtifactInvalid, ArtifactMismatch, ConfigError
from featx.extraction import batches
from featx.extraction.options import ExtractOptions
from featx.features.file import FeatureFile, open_features
from featx.images.decode import content_digest, decoded
from featx.images.preprocess import preprocess
from featx.images.views import ViewsSpec, draw_view, render_view
from featx.stages.check import check
from featx.stages.check.stage import CheckOptions, compare_features
from featx.stages.extract import extract

PIXELS = ExtractOptions(backbone="tiny", cut="input", views=3, workers=1)
MAPS = replace(PIXELS, cut="stage3", engine="torch", views=2)
VECTORS = replace(MAPS, cut=None)
LAYOUT = {"train/ants": 4, "train/bees": 4, "test/ants": 2, "test/bees": 3}


def columns(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][:] for name in file}


def rendered(source: Path, name: str, file: FeatureFile) -> np.ndarray:
    """Return evaluation view and views of an image, ``(1 + num_views, size, size, 3)``."""
    spec, views = BackboneSpec.from_dict(file.header.spec).preprocess, file.views
    assert views
    content = (source / name).read_bytes()
    image = decoded(content, sample_id=name)
    assert isinstance(image, PIL.Image.Image)
    digest, size = content_digest(content), {"height": image.height, "width": image.width}
    numbers = range(1, views.num_views + 1)
    drawn = [render_view(image, draw_view(views, digest, n, **size), spec) for n in numbers]
    return np.stack([preprocess(image, spec), *drawn])


def assert_views(source: Path, path: Path) -> None:
    """Each training image of a file of pixels has its views, and no other image has any."""
    file, stored = open_features(path), columns(path)
    train = file.rows("train")
    assert stored["views"].shape[:2] == (len(train), file.num_views)
    for row, name in enumerate(file.sample_ids):
        versions = rendered(source, name, file)
        assert (stored["features"][row] == versions[0]).all()
        if row in train:
            assert (stored["views"][np.flatnonzero(train == row)[0]] == versions[1:]).all()


def test_views_are_those_of_the_content_and_of_training_images(photos, tmp_path):
    source, path = photos(LAYOUT), tmp_path / "pixels.h5"
    report = extract(source, path, PIXELS)
    assert_views(source, path)
    file = open_features(path)
    assert len(file.rows("test")) == 5
    assert (report.num_viewed, report.views) == (len(file.rows("train")), ViewsSpec(3))
    assert file.header.details["views"] == ViewsSpec(3).to_dict()
    views = columns(path)["views"]
    assert all((a != b).any() for a, b in itertools.combinations(views.swapaxes(0, 1)[:, 0], 2))


def test_images_that_featx_holds_out_have_none_in_the_file(photos, tmp_path):
    source, path = photos({"ants": 8, "bees": 8}), tmp_path / "pixels.h5"
    extract(source, path, PIXELS)
    file = open_features(path)
    assert (len(file.rows("train")), len(file.rows("val"))) == (12, 4)
    assert_views(source, path)


@pytest.mark.parametrize("augment", ["none", "flip", "color", "color,crop"])
def test_only_what_is_asked_for_varies(augment, photos, tmp_path):
    source, path = photos({"ants": 3}), tmp_path / "pixels.h5"
    report = extract(source, path, replace(PIXELS, augment=augment, val_fraction=0.0))
    assert_views(source, path)
    stored = columns(path)
    if augment == "none":
        assert (stored["views"] == stored["features"][:, None]).all()
    if augment == "color,crop":
        assert report.views
        assert report.views.augment == ("crop", "color")


@pytest.mark.parametrize("options", [PIXELS, MAPS, VECTORS], ids=["pixels", "maps", "vectors"])
def test_bytes_do_not_depend_on_workers(options, photos, tmp_path):
    source = photos({"train/ants": 9, "train/bees": 8, "test/bees": 5})
    found = []
    for workers in (1, 2, 8):
        path = tmp_path / f"{workers}.h5"
        extract(source, path, replace(options, workers=workers, batch_size=6))
        found.append(path.read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("options", [MAPS, VECTORS], ids=["maps", "vectors"])
def test_the_evaluation_view_is_that_of_a_cache_without_views(options, photos, tmp_path):
    source = photos(LAYOUT)
    extract(source, tmp_path / "views.h5", options)
    extract(source, tmp_path / "plain.h5", replace(options, views=0))
    with_views, plain = columns(tmp_path / "views.h5"), columns(tmp_path / "plain.h5")
    np.testing.assert_allclose(with_views["features"], plain["features"], rtol=1e-3, atol=1e-4)
    alike = replace(options, batch_size=1)  # of a batch of one image each version is alone
    extract(source, tmp_path / "views1.h5", alike)
    extract(source, tmp_path / "plain1.h5", replace(alike, views=0))
    with_views, plain = columns(tmp_path / "views1.h5"), columns(tmp_path / "plain1.h5")
    assert (with_views["features"] == plain["features"]).all()


def test_views_count_in_a_batch(photos, tmp_path, monkeypatch):
    sizes: list[int] = []
    own = batches.Computer.compute

    def noted(self: Any, batch: Any) -> Any:
        result = own(self, batch)
        sizes.append(result.rows.shape[0] * result.rows.shape[1])
        return result

    monkeypatch.setattr(batches.Computer, "compute", noted)
    source = photos({"train/ants": 5, "test/bees": 5})
    extract(source, tmp_path / "f.h5", replace(VECTORS, batch_size=4))
    assert sizes == [3, 3, 3, 3, 3, 4, 1]
    sizes.clear()
    extract(source, tmp_path / "g.h5", replace(VECTORS, batch_size=8))
    assert sizes == [6, 6, 3, 5]


def mixed(photos: Any) -> Path:
    """Return a folder with copies between training and test images, and bad ones."""
    source: Path = photos({"train/ants": 5, "train/bees": 4, "test/ants": 3})
    shutil.copy(source / "test/ants/000.jpg", source / "train/bees/copy.jpg")
    shutil.copy(source / "train/ants/001.jpg", source / "test/ants/copy.jpg")
    shutil.copy(source / "train/ants/001.jpg", source / "train/ants/copy.jpg")
    (source / "train/ants/003.jpg").write_bytes(b"broken")
    shutil.copy(source / "train/ants/003.jpg", source / "test/ants/broken.jpg")
    return source


def interrupt(source: Path, path: Path, options: ExtractOptions, *, after: int) -> bool:
    """Extract until so many batches are kept; return whether there were as many."""
    calls = itertools.count(1)

    def stop(_done: int, _all: int) -> None:
        if next(calls) == after:
            raise KeyboardInterrupt

    try:
        extract(source, path, options, progress=stop)
    except KeyboardInterrupt:
        return True
    return False


@pytest.mark.parametrize("options", [PIXELS, MAPS, VECTORS], ids=["pixels", "maps", "vectors"])
def test_a_run_resumes_from_any_batch_to_the_same_bytes(options, photos, tmp_path):
    source = mixed(photos)
    options = replace(options, batch_size=6, on_error="skip")
    extract(source, tmp_path / "whole.h5", options)
    whole = (tmp_path / "whole.h5").read_bytes()
    if options.cut == "input":
        assert_views(source, tmp_path / "whole.h5")
    for after in itertools.count(1):
        path = tmp_path / f"{after}.h5"
        if not interrupt(source, path, options, after=after):
            break
        report = extract(source, path, options)
        assert path.read_bytes() == whole
        assert report.num_resumed > 0
    assert after > 5


KILLED = """
import os, signal, sys
from featx.extraction.options import ExtractOptions
from featx.stages.extract import extract
count = int(sys.argv[4])
def progress(done, total):
    global count
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
options = ExtractOptions(
    backbone="tiny", cut=sys.argv[3] or None, views=2, batch_size=6, on_error="skip"
)
extract(sys.argv[1], sys.argv[2], options, progress=progress)
"""


@pytest.mark.parametrize("cut", ["stage3", ""])
def test_a_killed_run_resumes_to_the_same_bytes(cut, photos, tmp_path):
    source = mixed(photos)
    options = ExtractOptions(backbone="tiny", cut=cut or None, views=2, batch_size=6)
    options = replace(options, on_error="skip")
    extract(source, tmp_path / "whole.h5", options)
    path = tmp_path / "killed.h5"
    for after in (3, 2):
        arguments = [sys.executable, "-c", KILLED, source, path, cut, after]
        ended = subprocess.run(list(map(str, arguments)), check=False)
        assert ended.returncode == -signal.SIGKILL
    extract(source, path, options)
    assert path.read_bytes() == (tmp_path / "whole.h5").read_bytes()


AT_ANY_TIME = KILLED.replace(
    "os.kill(os.getpid(), signal.SIGKILL)",
    "threading.Timer(float(sys.argv[5]), os.kill, (os.getpid(), signal.SIGKILL)).start()",
).replace("import os, signal, sys", "import os, signal, sys, threading")


@pytest.mark.slow
@pytest.mark.parametrize("cut", ["stage3", ""])
def test_sixty_kills_at_any_time_lose_nothing(cut, photos, tmp_path):
    source, random, kills = mixed(photos), np.random.default_rng(0), 0
    options = ExtractOptions(backbone="tiny", cut=cut or None, views=2, batch_size=6)
    options = replace(options, on_error="skip")
    extract(source, tmp_path / "whole.h5", options)
    whole, path = (tmp_path / "whole.h5").read_bytes(), tmp_path / "killed.h5"
    while kills < 30:  # of each of the two
        arguments = (source, path, cut, random.integers(1, 5), random.uniform(0, 0.06))
        ended = subprocess.run(
            [sys.executable, "-c", AT_ANY_TIME, *map(str, arguments)],
            check=False,
            capture_output=True,
        )
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        kills += ended.returncode != 0
        if ended.returncode == 0:
            assert path.read_bytes() == whole
            path.unlink()
    extract(source, path, options)
    assert path.read_bytes() == whole


class TestUpdates:
    def test_nothing_is_done_where_nothing_changed(self, photos, tmp_path):
        source, path = photos(LAYOUT), tmp_path / "maps.h5"
        extract(source, path, MAPS)
        assert extract(source, path).is_unchanged
        assert extract(source, path, MAPS).is_unchanged
        assert compare_features(path, None, CheckOptions()).is_fresh

    def test_options_are_kept_and_only_new_images_extracted(self, photos, tmp_path):
        source, path = photos(LAYOUT), tmp_path / "pixels.h5"
        extract(source, path, replace(PIXELS, augment="flip"))
        shutil.copy(source / "train/ants/000.jpg", source / "train/ants/renamed.jpg")
        (source / "train/ants/000.jpg").unlink()
        (source / "train/ants/001.jpg").touch()
        PIL.Image.new("RGB", (40, 30), "red").save(source / "train/bees/new.png")
        report = extract(source, path)
        assert report.views == ViewsSpec(3, ("flip",))
        assert (report.num_extracted, report.num_new, report.num_duplicates) == (1, 2, 1)
        assert_views(source, path)

    def test_an_image_moved_to_training_gets_views(self, photos, tmp_path):
        source, path = photos(LAYOUT), tmp_path / "pixels.h5"
        extract(source, path, PIXELS)
        for name in ("ants/000.jpg", "bees/001.jpg"):
            (source / "test" / name).rename(source / "train" / name.replace("/", "/moved"))
        (source / "train/ants/000.jpg").rename(source / "test/ants/moved.jpg")
        report = extract(source, path)
        assert report.num_extracted == 2
        assert_views(source, path)

    def test_an_image_moved_by_a_table_gets_views_and_is_not_called_changed(self, photos, tmp_path):
        source, path = photos({"ants": 5, "bees": 5}), tmp_path / "pixels.h5"
        table, names = tmp_path / "table.csv", sorted(map(str, source.rglob("*.*g")))

        def write(num_train: int) -> None:
            splits = [*["train"] * num_train, *["test"] * (4 - num_train), "val"]
            lines = [
                f"{name},{Path(name).parent.name},{split}"
                for name, split in zip(names, 2 * splits, strict=True)
            ]
            table.write_text("\n".join(["path,label,split", *lines]) + "\n")

        write(1)
        extract(table, path, PIXELS)
        write(4)
        options = replace(PIXELS, batch_size=4)
        assert interrupt(table, path, options, after=2)
        report = extract(table, path, options)
        assert (report.num_changed, report.num_new, report.num_relabelled) == (0, 0, 6)
        assert (report.num_extracted, report.num_viewed) == (4, 8)
        assert_views(Path("/"), path)
        assert extract(table, path).is_unchanged
        write(1)
        assert extract(table, path).num_extracted == 0
        assert_views(Path("/"), path)

    def test_validation_chosen_anew_gets_and_loses_views(self, photos, tmp_path):
        source, path = photos({"ants": 10, "bees": 10}), tmp_path / "pixels.h5"
        extract(source, path, PIXELS)
        report = extract(source, path, ExtractOptions(val_fraction=0.4, resplit=True))
        assert report.num_extracted == 0
        assert_views(source, path)
        report = extract(source, path, ExtractOptions(val_fraction=0.1, resplit=True))
        assert report.num_extracted > 0
        assert_views(source, path)

    def test_new_images_that_make_training_images_of_others(self, photos, tmp_path):
        source, path = photos({"ants": 10, "bees": 10}), tmp_path / "pixels.h5"
        extract(source, path, PIXELS)
        for number in range(12):
            name = source / "ants" / f"new{number}.png"
            PIL.Image.new("RGB", (40, 30), (20 * number, 0, 0)).save(name)
        extract(source, path, ExtractOptions(resplit=True))
        assert_views(source, path)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"views": 2}, r"views: expected '2 \(crop,flip\)', found '3 \(crop,flip\)'"),
            ({"views": 0}, r"views: expected 'none', found '3 \(crop,flip\)'"),
            ({"augment": "color"}, r"views: expected '3 \(color\)', found '3 \(crop,flip\)'"),
        ],
    )
    def test_other_views_are_another_setting(self, options, words, photos, tmp_path):
        source, path = photos(LAYOUT), tmp_path / "pixels.h5"
        extract(source, path, PIXELS)
        with pytest.raises(ArtifactMismatch, match=words):
            extract(source, path, ExtractOptions(**options))
        new = ExtractOptions(**{"views": 3, **options}, overwrite=True, backbone="tiny")
        assert extract(source, path, new).num_images == 13

    def test_views_are_not_added_to_a_file_without(self, photos, tmp_path):
        source, path = photos(LAYOUT), tmp_path / "f.h5"
        first = extract(source, path, replace(VECTORS, views=0))
        with pytest.raises(ArtifactMismatch, match=r"views: expected '2 .*', found 'none'"):
            extract(source, path, VECTORS)
        second = extract(source, tmp_path / "views.h5", VECTORS)
        assert first.spec.fingerprint == second.spec.fingerprint

    def test_an_unfinished_run_with_other_views_is_named(self, photos, tmp_path):
        source, path = photos(LAYOUT), tmp_path / "f.h5"
        assert interrupt(source, path, replace(VECTORS, batch_size=6), after=1)
        with pytest.raises(ArtifactMismatch, match=r"keeps 2 images.*views: expected '5"):
            extract(source, path, replace(VECTORS, views=5))
        assert extract(source, path, replace(VECTORS, views=5, restart=True)).num_images == 13


def test_images_without_files_have_views_too(tmp_path):
    path = tmp_path / "digits.h5"
    options = replace(PIXELS, views=1, image_size=8, resize=8, batch_size=64)
    report = extract("digits:", path, options)
    stored = columns(path)
    assert len(stored["views"]) == report.num_viewed == report.split_sizes["train"]
    assert (stored["views"][:, 0] != stored["features"][open_features(path).rows("train")]).any()
    assert extract("digits:", path, options).is_unchanged


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"views": -1}, "views"),
        ({"views": 1001}, "views must be 1 to 1000; got 1001"),
        ({"views": 2, "augment": "blur"}, "augment takes each of crop, flip, color.*blur"),
        ({"views": 2, "augment": "flip,flip"}, "augment takes each"),
        ({"augment": "flip"}, "augment=… needs views=…"),
        ({"views": 0, "augment": "flip"}, "augment=… needs views=…"),
    ],
)
def test_options_of_views_are_checked(options, words, photos, tmp_path):
    with pytest.raises(ConfigError, match=words):
        extract(photos(), tmp_path / "f.h5", ExtractOptions(backbone="tiny", **options))


def test_a_file_with_views_is_checked_whole(photos, tmp_path):
    path = tmp_path / "maps.h5"
    extract(photos(LAYOUT), path, MAPS)
    assert check(path).is_fresh
    with h5py.File(path, "r+") as file:
        file["views"][0, 0] = file["views"][1, 1]
    with pytest.raises(ArtifactInvalid, match="sha256"):
        check(path)
