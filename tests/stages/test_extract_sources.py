"""Extraction from archives and tables: the rows of the folder, and the source found again."""

from __future__ import annotations

import io
import os
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from archives import archive_of, pack
from click.testing import CliRunner
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from featx.cli.main import main
from featx.errors import BadImages
from featx.extraction.options import ExtractOptions
from featx.features.file import FeatureFile, open_features
from featx.images.sources import members
from featx.stages.check import check
from featx.stages.extract import extract

TINY = ExtractOptions(backbone="tiny", engine="torch", workers=2)


@pytest.fixture
def few_photos(data: Path, tmp_path: Path) -> Path:
    """Return a folder with some of the photos of ants and bees, in splits and classes."""
    for split in ("train", "val"):
        for name in ("ants", "bees"):
            source = data / "hymenoptera_data" / split / name
            (tmp_path / "few" / split / name).mkdir(parents=True)
            for image in sorted(source.glob("*.jpg"))[:4]:
                shutil.copy(image, tmp_path / "few" / split / name)
    return tmp_path / "few"


def rows(file: FeatureFile) -> tuple[object, ...]:
    columns = (file.features, file.labels, file.splits, file.digests)
    return file.sample_ids, file.classes, *(np.asarray(column).tobytes() for column in columns)


@pytest.mark.real_data
def test_a_folder_a_zip_and_a_tar_give_the_same_rows_to_the_bit(few_photos, tmp_path):
    sources = [few_photos, *(pack(few_photos, tmp_path / f"few{e}") for e in (".zip", ".tar"))]
    found = []
    for number, source in enumerate(sources):
        extract(str(source), tmp_path / f"{number}.h5", TINY)
        found.append(rows(open_features(tmp_path / f"{number}.h5")))
    assert found[0] == found[1] == found[2]
    assert len(found[0][0]) == 16


@pytest.mark.real_data
def test_shards_give_the_same_rows_under_other_ids(few_photos, tmp_path):
    for split in ("train", "val"):
        contents = {}
        for image in (few_photos / split).rglob("*.jpg"):
            contents[f"{image.stem}.jpg"] = image.read_bytes()
            contents[f"{image.stem}.cls"] = image.parent.name.encode()
        archive_of(tmp_path / f"{split}-0.tar", dict(sorted(contents.items())))
    shards, output = f"{tmp_path}/{{train,val}}-{{0..0}}.tar", tmp_path / "shards.h5"
    extract(shards, output, TINY)
    extract(str(few_photos), tmp_path / "f.h5", TINY)
    found, expected = open_features(output), open_features(tmp_path / "f.h5")
    order = [
        np.flatnonzero((expected.digests == digest).all(axis=1))[0] for digest in found.digests
    ]
    assert sorted(order) == list(range(16))
    assert np.array_equal(found.features, expected.features[order])
    assert found.labels.tolist() == expected.labels[order].tolist()
    assert found.splits.tolist() == expected.splits[order].tolist()
    assert extract(shards, output, TINY).is_unchanged


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_a_second_run_opens_no_image(photos, tmp_path, monkeypatch, ending):
    folder = photos({"ants": 4, "bees": 4})
    shutil.copy(folder / "ants" / "000.jpg", folder / "bees" / "000.jpg")  # twice the same size
    path, output = pack(folder, tmp_path / f"p{ending}"), tmp_path / "f.h5"
    extract(str(path), output, TINY)
    before = output.read_bytes()
    monkeypatch.setattr(members, "read_member", None)
    assert extract(str(path), output, TINY).is_unchanged
    assert extract(None, output, TINY).is_unchanged
    assert output.read_bytes() == before


@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_a_changed_archive_is_compared_by_content(photos, tmp_path, ending):
    folder = photos({"ants": 4, "bees": 4})
    path, output = pack(folder, tmp_path / f"p{ending}"), tmp_path / "f.h5"
    extract(str(path), output, TINY)
    time.sleep(0.02)
    os.utime(path)
    report = extract(str(path), output, TINY)
    assert (report.num_extracted, report.num_images) == (0, 8)
    shutil.copy(folder / "ants" / "001.jpg", folder / "bees" / "009.jpg")
    shutil.copy(folder / "ants" / "003.jpg", folder / "bees" / "000.jpg")
    pack(photos({"cats": 2}), path)  # and the first eight as they were
    report = extract(str(path), output, TINY)
    assert report.num_images == 11
    assert report.num_extracted == 2
    pack(folder, tmp_path / f"q{ending}")
    extract(str(tmp_path / f"q{ending}"), tmp_path / "g.h5", TINY)
    assert set(rows(open_features(output))[0]) == set(rows(open_features(tmp_path / "g.h5"))[0])


def test_one_damaged_member_is_one_bad_image(photos, tmp_path):
    path = pack(photos({"ants": 4, "bees": 4}), tmp_path / "p.zip")
    with zipfile.ZipFile(path) as file:
        info = file.infolist()[2]
    content = bytearray(path.read_bytes())
    content[info.header_offset + 60 + len(info.filename)] ^= 1
    path.write_bytes(content)
    options = ExtractOptions(backbone="tiny", engine="torch", on_error="skip")
    report = extract(str(path), tmp_path / "f.h5", options)
    assert [name for name, _ in report.skipped] == [info.filename]
    assert "cannot be read from its archive" in report.skipped[0][1]


def test_how_a_table_is_read_is_kept_for_all_that_reads_it_again(photos, tmp_path):
    folder, output = photos({"ants": 6, "bees": 6}), tmp_path / "f.h5"
    ids = [f"{name}/{number:03d}" for name in ("ants", "bees") for number in (0, 1, 3, 4)]
    rows = "".join(f"{i.replace('/', chr(92))},x,{i[:4]}\n" for i in ids)
    (tmp_path / "t.csv").write_text(f"image_id,label,kind\n{rows}")
    command = ["extract", str(tmp_path / "t.csv"), "-o", str(output), "-b", "tiny", "-q"]
    given = ["--label-column", "kind", "--root", str(folder), "--suffix", ".jpg"]
    assert CliRunner().invoke(main, command + given).exit_code == 0
    file = open_features(output)
    assert (file.classes, list(file.sample_ids)) == (("ants", "bees"), [f"{i}.jpg" for i in ids])
    assert extract(None, output, TINY).is_unchanged
    assert check(output).is_fresh
    result = CliRunner().invoke(main, command + given)
    assert "up to date" in result.output
    result = CliRunner().invoke(main, ["extract", "-o", str(output), "--suffix", ".png"])
    assert "--suffix needs SOURCE" in result.output
    result = CliRunner().invoke(main, ["extract", str(folder), "-o", str(output), *given])
    assert "is a folder: --label-column kind is for a table" in result.output.replace("\n", " ")


def test_parquet_gives_the_rows_of_the_folder_and_is_read_once(photos, tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = photos({"ants": 6, "bees": 6})
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    columns = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "label": [path.parent.name for path in paths],
    }
    pq.write_table(pa.table(columns), tmp_path / "p.parquet", row_group_size=5)
    extract(str(folder), tmp_path / "f.h5", TINY)
    extract(str(tmp_path / "p.parquet"), tmp_path / "p.h5", TINY)
    one, other = open_features(tmp_path / "f.h5"), open_features(tmp_path / "p.h5")
    assert np.array_equal(one.features, other.features)
    assert (one.classes, one.labels.tolist()) == (other.classes, other.labels.tolist())
    assert np.array_equal(one.digests, other.digests)
    monkeypatch.setattr("featx.images.sources.parquet_rows.RowReader.read", None)
    assert extract(None, tmp_path / "p.h5", TINY).is_unchanged


def test_broken_images_in_parquet_are_named_and_broken_metadata_is_no_matter(photos, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [path.read_bytes() for path in sorted(photos({"ants": 12}).rglob("*.jpg"))]
    images[1] = images[1][: len(images[1]) // 2]
    with Image.open(io.BytesIO(images[2])) as image:
        exif = image.getexif()
        exif[0x011A] = IFDRational(1, 0)  # a resolution with a denominator of zero
        exif[0x010E] = b"\xff\xfe\xc3\x28"  # a description that is not UTF-8
        file = io.BytesIO()
        image.save(file, "JPEG", exif=exif, xmp=b"<x:xmpmeta>\xff\xfe</x:xmpmeta>")
        images[2] = file.getvalue()
    columns = {"image": [*images, None], "label": ["a", "b"] * 4 + ["a"]}
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    options = ExtractOptions(backbone="tiny", engine="torch", on_error="skip")
    report = extract(str(tmp_path / "p.parquet"), tmp_path / "p.h5", options)
    assert [name for name, _ in report.skipped] == ["p.parquet/1", "p.parquet/8"]
    assert "p.parquet/2" in open_features(tmp_path / "p.h5").sample_ids
    with pytest.raises(BadImages, match=r"p\.parquet/1"):
        extract(str(tmp_path / "p.parquet"), tmp_path / "q.h5", TINY)
