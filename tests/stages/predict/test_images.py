"""What is an image, and the images that paths and folders stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from archives import pack
from PIL import Image

from featx.errors import SourceError
from featx.images.given import find_given, name_of
from featx.images.sources.folder import find_images
from featx.stages.predict import num_bytes_of


def test_folders_stand_for_their_images(photos):
    root = photos({"ants": 2, "bees": 1})
    (root / "notes.txt").write_text("no image")
    found = find_images([root, root / "bees" / "000.jpg"])
    assert [path.relative_to(root).as_posix() for path in found] == [
        *("ants/000.jpg", "ants/001.jpg", "bees/000.jpg", "bees/000.jpg")
    ]
    assert find_images([root / "none.jpg"]) == [
        root / "none.jpg"
    ]  # reading it says that it is gone


def test_splits_and_classes_mean_nothing(photos):
    root = photos({"test": 1, "train/ants": 1, "holiday": 2, "@eaDir/x.jpg": 1, ".thumbs": 1})
    names = [path.relative_to(root).as_posix() for path in find_images([root])]
    assert names == ["holiday/000.jpg", "holiday/001.jpg", "test/000.jpg", "train/ants/000.jpg"]


def test_what_is_skipped_is_said(photos, caplog):
    (photos({"ants": 1}) / "x.txt").touch()
    caplog.set_level("INFO", logger="featx")
    find_images([photos({"ants": 1})])
    assert "skipped 1 other file: 1 .txt." in caplog.text


def test_paths_that_cannot_be_looked_up_are_bad_images_not_crashes():
    names = ["x" * 300, "a\0b", "no/such.jpg"]
    assert find_images(names) == [Path(name) for name in names]


def test_an_empty_folder_says_what_was_expected(tmp_path):
    with pytest.raises(SourceError, match="holds no images"):
        find_images([tmp_path])


def test_an_image_without_a_path_goes_by_its_position():
    assert name_of(Path("a/b.jpg"), 3) == name_of("a/b.jpg", 4) == "a/b.jpg"
    assert name_of(b"", 3) == "image 3"


def test_what_an_image_takes_before_it_is_decoded():
    assert num_bytes_of(np.zeros((4, 5, 3), np.uint8)) == 60
    assert num_bytes_of(b"12345") == 5
    assert num_bytes_of(Image.new("L", (4, 5))) >= 20
    assert num_bytes_of("photo.jpg") == num_bytes_of(Path("photo.jpg")) == 0


def test_a_source_stands_for_all_its_images_by_their_ids_whatever_its_folders_mean(
    photos, predictor, tmp_path
):
    root = photos({"test": 1, "train/ants": 1, "holiday": 2})
    (root / "holiday" / "001.jpg").write_bytes(b"no image")
    names = [path.relative_to(root).as_posix() for path in find_images([root])]
    for ending in (".zip", ".tar"):
        found = find_given([str(pack(root, tmp_path / f"p{ending}"))])
        assert [name_of(image, 0) for image in found] == names
        local = list(predictor.predict_each(find_images([root])))
        packed = list(predictor.predict_each(found))
        assert [own.image for own in packed] == names
        assert [own.top for own in packed] == [own.top for own in local]
        assert [bool(own.error) for own in packed] == [name == "holiday/001.jpg" for name in names]
    odd = ["x" * 300 + ".jpg", "a\0.jpg", "~nobody/1.jpg", "a?b.jpg", ""]
    assert find_given([str(root), *odd]) == find_images([root, *odd])
    with pytest.raises(SourceError, match="does not exist"):
        find_given([f"{tmp_path}/gone.zip"])
