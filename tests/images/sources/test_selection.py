"""Some samples of a source, sent elsewhere, are read as they are in the source."""

from __future__ import annotations

import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import put_folder

from featx.errors import ImageError, SourceError
from featx.images.sources import ImageSource, members, open_source
from featx.images.sources.relabelled import relabelled_table
from featx.images.sources.selection import select

CHOSEN = (3, 0, 7, 4)


def sent(source: ImageSource, positions: Any = CHOSEN) -> ImageSource:
    own: ImageSource = pickle.loads(pickle.dumps(select(source, positions)))
    return own


def require_same(source: ImageSource, positions: Any = CHOSEN) -> None:
    own = sent(source, positions)
    assert own.uri == source.uri
    assert list(own.samples) == [source.samples[position] for position in positions]
    for number, position in enumerate(positions):
        assert own.stamp(number) == source.stamp(position)
        content, expected = own.read(number), source.read(position)
        assert type(content) is type(expected)
        assert np.array_equal(np.frombuffer(content, "u1"), np.frombuffer(expected, "u1"))


@pytest.fixture
def packed(photos, tmp_path) -> Any:
    """Return a function that gives the address of the same photos as a kind of source."""
    folder = photos({"ants": 5, "bees": 5})
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))

    def make(kind: str) -> str:
        path: Path = tmp_path / f"own{kind}"
        if kind == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                for name in files:
                    archive.write(folder / name, name)
        elif kind == ".tar":
            with tarfile.open(path, "w") as archive:
                for name in files:
                    archive.add(folder / name, name)
        elif kind == ".csv":
            lines = [f"{folder / name},{name.parent},train" for name in files]
            path.write_text("\n".join(["path,label,split", *lines]))
        elif kind == "relabelled":
            source = open_source(str(folder))
            rows = [(each.sample_id, "wasps", "train", "") for each in source.samples]
            rows[4] = ("gone.jpg", "wasps", "train", "")
            path = tmp_path / "relabelled.csv"
            path.write_bytes(relabelled_table(rows, str(folder)))
        else:
            return str(folder)
        return str(path)

    return make


@pytest.mark.parametrize("kind", ["folder", ".zip", ".tar", ".csv"])
def test_images_are_those_of_the_source(packed, kind):
    require_same(open_source(packed(kind)))


def test_images_with_new_labels_are_those_of_the_origin(packed):
    source = open_source(packed("relabelled"))
    require_same(source, (3, 0, 7))
    own = sent(source)
    with pytest.raises(ImageError, match=r"not in .* any more"):
        own.read(CHOSEN.index(4))
    assert own.stamp(3) == source.stamp(4)


def test_images_in_memory_are_opened_there():
    source = open_source("digits:")
    own = sent(source)
    assert len(pickle.dumps(select(source, CHOSEN))) < 2000  # no pixels
    for number, position in enumerate(CHOSEN):
        assert np.array_equal(own.read(number), source.read(position))


def test_another_list_of_images_is_refused(photos, monkeypatch):
    own = select(open_source("digits:"), (0,))
    monkeypatch.setattr(
        "featx.images.sources.selection.open_source", lambda _: open_source(str(photos()))
    )
    from featx.images.sources import selection

    selection._open.cache_clear()
    with pytest.raises(SourceError, match="has other images on this machine"):
        own.read(0)


def test_an_archive_has_other_numbers_on_another_machine(packed, monkeypatch):
    own = sent(open_source(packed(".zip")))
    plain = members._identity
    monkeypatch.setattr(members, "_identity", lambda status: (77, 88, *plain(status)[2:]))
    assert own.read(0)


def test_an_archive_that_is_another_there_is_refused(packed, tmp_path):
    own = sent(open_source(packed(".zip")))
    with zipfile.ZipFile(tmp_path / "own.zip", "a") as archive:
        archive.writestr("more.txt", "more")
    with pytest.raises(ImageError, match="was changed since its files were listed"):
        own.read(0)


def test_objects_of_a_store_are_read_from_the_store(bucket, photos):
    put_folder(bucket, photos({"ants": 5, "bees": 5}), "set/")
    source = open_source("s3://photos/set/")
    require_same(source)
    own = sent(source)
    for number in range(4):
        bucket.delete_object(Bucket="photos", Key=f"set/{own.samples[number].sample_id}")
        with pytest.raises(ImageError):  # of each image, and not of the source
            own.read(number)


def test_what_is_sent_of_an_image_is_small(photos):
    folder = photos({"ants": 1})
    for number in range(200):
        shutil.copy(folder / "ants/000.jpg", folder / f"ants/{number:03d}-{'x' * 60}.jpg")
    source = open_source(str(folder))
    size = len(pickle.dumps(select(source, range(64))))
    assert size < 64 * 200
