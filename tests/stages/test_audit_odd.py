"""Odd pictures: whatever the network, those that look like no other come first."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from caches import far_apart, write_cache
from commands import featx_cli
from PIL import Image, ImageDraw, ImageFilter

from featx.extraction.options import ExtractOptions
from featx.stages.audit import audit, write_findings
from featx.stages.extract import extract


def photo(seed, size=(160, 140)):
    random = np.random.default_rng(seed)
    picture = Image.new("RGB", size)
    for cells, weight in ((4, 0.6), (12, 0.5), (60, 0.4)):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        picture = Image.blend(picture, layer, weight)
    return picture


def page():
    made = Image.new("RGB", (160, 140), "white")
    for top in range(8, 130, 12):
        ImageDraw.Draw(made).text((6, top), "lines of a text that goes on", fill="black")
    return made


def noise():
    pixels = np.random.default_rng(0).integers(0, 256, (140, 160, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def bordered():
    made = Image.new("RGB", (160, 140))
    made.paste(photo(998, (40, 35)), (30, 30))
    return made


def specked():
    made = Image.new("RGB", (160, 140), "white")
    ImageDraw.Draw(made).point((50, 50), fill="black")
    return made


ODD = {
    "outlier": {"page.png": page, "noise.png": noise, "border.png": bordered},
    "constant": {"plain.png": lambda: Image.new("RGB", (160, 140), (20, 90, 30))},
    "empty": {"speck.png": specked},
    "tiny": {"icon.png": lambda: photo(997, (12, 12))},
    "blurred": {"soft.png": lambda: photo(996).filter(ImageFilter.GaussianBlur(12))},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A feature file of sixty pictures of two classes, and one odd picture of each kind."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(60):
        name = folder / ("ant", "bee")[number % 2] / f"{number:02d}x.jpg"
        name.parent.mkdir(exist_ok=True)
        photo(number).save(name, quality=90)
    for made in ODD.values():
        for name, make in made.items():
            make().save(folder / "ant" / name)
    path = folder.parent / f"{folder.name}.h5"
    extract(str(folder), path, ExtractOptions(backbone="tiny", val_fraction=0))
    return path


def test_each_odd_picture_is_found_for_what_it_is_and_no_other_one(photos):
    report = audit(photos)
    for kind, made in ODD.items():
        found = {each.sample_id for each in report.of_kind(kind)}
        assert {f"ant/{name}" for name in made} <= found
        assert all("x.jpg" not in name for name in found)
    outliers = report.of_kind("outlier")
    assert [each.score for each in outliers] == sorted((e.score for e in outliers), reverse=True)
    assert all(each.score > each.limit == 4 for each in outliers)
    names = [each.sample_id for each in outliers]
    assert len(names) == len(set(names))


def test_odd_pictures_are_told_with_their_measure_and_limit(photos, tmp_path):
    result = featx_cli("audit", photos, "--no-html", "-q", "--csv", tmp_path / "a.csv")
    assert "Far from all other images" in result.output
    assert " deviations, limit 4)" in result.output
    assert "(shorter side 12, limit 32)" in result.output
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = {row["sample_id"]: row for row in csv.DictReader(file) if row["kind"] == "tiny"}
    assert (rows["ant/icon.png"]["score"], rows["ant/icon.png"]["limit"]) == ("12.0000", "32")


def test_an_odd_picture_that_is_kept_is_not_asked_about_again(photos, tmp_path):
    table = tmp_path / "audit.csv"
    write_findings(audit(photos), table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["kind"] == "outlier":  # earlier versions named the nearest image
            row |= {"drop": "false", "other": "ant/00x.jpg", "note": ""}
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    report = audit(photos, marks=table)
    assert not report.of_kind("outlier")
    assert report.of_kind("constant")


def test_features_alone_tell_who_is_far_away_even_where_several_are(tmp_path):
    made = far_apart()
    made["features"] = made["features"] + 20
    odd = [10, 20, 31]
    made["features"][odd] *= np.array([1, 1, 1, 1, 1, -1, -1, -1], np.float32)
    report = audit(write_cache(tmp_path / "f.h5", **made))
    found = report.of_kind("outlier")
    assert {each.sample_id for each in found} == {f"{row:04d}.jpg" for row in odd}
    few = {name: values[:40] for name, values in made.items()}
    assert not audit(write_cache(tmp_path / "few.h5", **few)).of_kind("outlier")
