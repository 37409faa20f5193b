"""Copies by their pixels: groups, chains, splits, sequences, and pairs that were seen to differ."""

from __future__ import annotations

import csv
import io
import shutil

import numpy as np
import pytest
from commands import featx_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.heads.samples.data import no_step
from featx.images.alike import compare_pictures, small_grey
from featx.stages.audit import audit, pictures, write_findings, write_groups
from featx.stages.audit.copies import group_links
from featx.stages.audit.pictures import Link, Pictures
from featx.stages.extract import extract


def picture(seed, size=(64, 64)):
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def save(image, folder, name, quality=90):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of two classes, with copies that were saved again and mirrored."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        split, name = ("train", "val")[number % 4 == 3], ("ant", "bee")[number % 2]
        save(picture(number), folder, f"{split}/{name}/{number:02d}x.jpg")
    save(picture(0), folder, "val/ant/again.jpg", quality=50)  # of train/ant/00x.jpg
    flipped = picture(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    save(flipped, folder, "train/bee/mirrored.jpg")  # of train/ant/02x.jpg
    path = folder.parent / f"{folder.name}.h5"
    extract(str(folder), path, ExtractOptions(backbone="tiny"))
    return path


def copies(report):
    return {
        (each.kind, each.sample_id, each.other)
        for each in report.findings
        if each.kind in ("leak", "conflict", "copy")
    }


def test_copies_that_are_other_files_are_leaks_and_conflicts(photos):
    report = audit(photos)
    assert copies(report) == {
        ("leak", "val/ant/again.jpg", "train/ant/00x.jpg"),
        ("conflict", "train/bee/mirrored.jpg", "train/ant/02x.jpg"),
    }
    (leak,), (conflict,) = report.of_kind("leak"), report.of_kind("conflict")
    assert 0.9 < leak.score < 1
    assert conflict.note == "flipped"
    assert {leak.group, conflict.group} == {1, 2}
    assert report.leaks[0].num_leaked == 1


def test_a_pair_that_was_marked_as_different_stays_away(photos, tmp_path):
    table = tmp_path / "audit.csv"
    write_findings(audit(photos), table)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["different"] = "true" if row["kind"] == "leak" else ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for _ in range(2):  # the mark is in the next table, too
        report = audit(photos, marks=table)
        assert not report.of_kind("leak")
        assert report.of_kind("conflict")
        write_findings(report, table, overwrite=True)
    other = tmp_path / "other"
    save(picture(1), other, "ant/1.jpg")
    save(picture(2), other, "bee/2.jpg")
    extract(str(other), tmp_path / "o.h5", ExtractOptions(backbone="tiny"))
    result = featx_cli("audit", tmp_path / "o.h5", "--marks", table, "--no-html")
    assert result.exit_code == 1
    assert "another feature file" in result.output


def test_images_that_changed_or_have_gone_are_compared_by_content_alone(photos, tmp_path):
    report = audit(photos, source=None)
    assert not report.notes
    (tmp_path / "empty").mkdir()
    save(picture(99), tmp_path / "empty", "train/ant/00x.jpg")  # another content
    save(picture(0), tmp_path / "empty", "val/ant/again.jpg", quality=50)
    found = audit(photos, source=str(tmp_path / "empty"))
    assert not copies(found)
    assert any("not there as extracted" in note for note in found.notes)


def test_pictures_are_the_same_from_processes_as_from_threads(photos, tmp_path, monkeypatch):
    other = tmp_path / "photos"
    shutil.copytree(open_features(photos).header.details["source"], other)
    (other / "train/ant/04x.jpg").write_bytes(b"no image")
    (other / "train/bee/05x.jpg").unlink()
    cache, found = open_features(photos), []
    monkeypatch.setattr(pictures, "num_cores", lambda: 2)
    for limit in (10**6, 1):
        monkeypatch.setattr(pictures, "_PROCESSES_FROM", limit)
        found.append(Pictures.of(cache, str(other), no_step))
    assert (~found[0].read).sum() == 2
    for name in ("read", "small", "quality"):
        first, second = (getattr(each, name) for each in found)
        assert np.array_equal(first, second, equal_nan=name == "quality")


def frames(folder, count, name, step):
    """Save pictures of a camera that moves by ``step`` pixels, split at random."""
    scene = picture(name, (400, 200))
    for number in range(count):
        left = (number * step) % 300
        split = ("train", "val")[number % 5 == 2]
        frame = scene.crop((left, 20, left + 96, 116))
        save(frame, folder, f"{split}/ant/a_{number:04d}.jpg")


def test_frames_in_several_splits_are_one_leak_and_numbered_photos_are_none(tmp_path):
    folder = tmp_path / "photos"
    frames(folder, 40, 7, step=2)
    for number in range(40):
        split = ("train", "val")[number % 4 == 3]
        save(picture(100 + number), folder, f"{split}/bee/b_{number:04d}.jpg")
    extract(str(folder), tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    report = audit(tmp_path / "f.h5")
    (found,) = report.of_kind("sequence")
    assert found.note == "sequence a: 40 images, 32 train, 8 val"
    assert (found.sample_id, found.other) == ("train/ant/a_0000.jpg", "train/ant/a_0039.jpg")
    assert not copies(report)
    (sequence,) = report.sequences
    assert len(sequence.sample_ids) == 40
    result = featx_cli("audit", tmp_path / "f.h5", "--no-html", "-q", "--fail-on", "leaks")
    assert result.exit_code == 1


def test_groups_keep_sequences_and_copies_in_one_split_and_one_fold(tmp_path):
    folder, path, grouped = tmp_path / "photos", tmp_path / "f.h5", tmp_path / "grouped.csv"
    scene = picture(7, (400, 200))
    for number in range(20):
        left = 2 * number
        save(scene.crop((left, 20, left + 96, 116)), folder, f"ant/a_{number:04d}.jpg")
    for number in range(40):
        save(picture(100 + number), folder, f"{('ant', 'bee')[number % 2]}/{number:02d}x.jpg")
    save(picture(100), folder, "ant/again.jpg", quality=50)
    extract(str(folder), path, ExtractOptions(backbone="tiny"))
    report = audit(path)
    assert report.of_kind("sequence")  # the rule divides them
    made = write_groups(report, grouped)
    assert (made.num_groups, made.num_images, made.num_moved) == (2, 22, 0)
    after = extract(str(grouped), path, ExtractOptions(backbone="tiny"))
    assert after.num_new == 0
    cache = open_features(path)
    frames_of = [row for row, name in enumerate(cache.sample_ids) if "a_" in name]
    copies_of = [row for row, name in enumerate(cache.sample_ids) if name in COPIES]
    for rows in (frames_of, copies_of):
        assert len(set(cache.groups[rows].tolist())) == 1
        assert cache.groups[rows][0] >= 0
        assert len(set(cache.splits[rows].tolist())) == 1
    assert (cache.splits == 1).any()
    again = audit(path)
    assert not again.of_kind("sequence")
    assert not again.of_kind("leak")
    write_groups(again, grouped, overwrite=True)  # groups of the file stay
    assert extract(str(grouped), path, ExtractOptions(backbone="tiny")).is_unchanged


COPIES = ("ant/00x.jpg", "ant/again.jpg")


def test_a_sequence_in_splits_of_the_source_goes_where_most_of_it_is(tmp_path):
    folder, table = tmp_path / "photos", tmp_path / "audit.csv"
    frames(folder, 40, 7, step=2)
    for number in range(40):
        save(
            picture(100 + number), folder, f"{('train', 'val')[number % 4 == 3]}/bee/{number}x.jpg"
        )
    extract(str(folder), tmp_path / "f.h5", ExtractOptions(backbone="tiny"))
    result = featx_cli(
        *("audit", tmp_path / "f.h5", "--no-html", "--groups", tmp_path / "g.csv"),
        *("--csv", table),
    )
    assert "1 group of 40 images; 8 images in another split" in " ".join(result.output.split())
    with (tmp_path / "g.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["split"], row["group"]) for row in rows if "a_" in row["path"]} == {
        ("train", "group 1")
    }
    others = [row for row in rows if "a_" not in row["path"]]
    assert {row["split"] for row in others} == {"train", "val"}
    assert all(row["split"] in row["path"] and not row["group"] for row in others)
    with table.open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["kind"] for row in found].count("sequence") == 1
    for row in found:
        row["different"] = "true" if row["kind"] == "sequence" else ""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0])
        writer.writeheader()
        writer.writerows(found)
    report = audit(tmp_path / "f.h5", marks=table)
    assert not report.of_kind("sequence")
    assert write_groups(report, tmp_path / "none.csv").num_groups == 0


CHANGES = {
    "saved": lambda image: image,
    "flipped": ImageOps.mirror,
    "cropped": lambda image: image.crop((3, 2, image.width - 3, image.height - 2)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "larger": lambda image: image.resize((image.width * 3 // 2, image.height * 3 // 2)),
}


def saved(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Image.open(buffer)


@pytest.mark.real_data
def test_by_the_default_small_photos_that_were_changed_a_little_are_one_and_others_are_not(data):
    photos = []
    for path in sorted((data / "hymenoptera_data/val").glob("*/*.jpg"))[::4]:
        with Image.open(path) as image:
            photos.append(image.convert("RGB").resize((64, 48)))
    own = np.stack([small_grey(photo) for photo in photos])
    for change in CHANGES.values():
        made = np.stack([small_grey(saved(change(photo))) for photo in photos])
        assert (compare_pictures(own, made).scores >= pictures.ALIKE).mean() >= 0.9
    first, second = np.triu_indices(len(own), 1)
    assert compare_pictures(own[first], own[second]).scores.max() < pictures.ALIKE - 0.2


links = st.dictionaries(
    st.tuples(st.integers(0, 15), st.integers(16, 31)),
    st.floats(0.5, 1).map(lambda score: Link(score, flipped=False)),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(links)
def test_an_image_is_in_one_group_and_only_if_it_is_linked(found):
    both_ways = found | {(b, a): link for (a, b), link in found.items()}
    groups = group_links(both_ways)
    members = [row for group in groups for row in group.rows]
    assert sorted(members) == sorted({row for pair in found for row in pair})
    for group in groups:
        inside = {pair: link for pair, link in found.items() if pair[0] in group.rows}
        assert group.weakest >= min(link.score for link in inside.values())
        pairs = len(group.rows) * (len(group.rows) - 1) // 2
        assert group.is_chain == (len(inside) < pairs)
    sizes = [len(group.rows) for group in groups]
    assert sizes == sorted(sizes)


def test_a_chain_has_the_value_of_its_weakest_link():
    some = {(0, 1): Link(0.95, False), (1, 2): Link(0.91, False)}
    (group,) = group_links(some | {(b, a): link for (a, b), link in some.items()})
    assert (group.rows, group.weakest, group.is_chain) == ((0, 1, 2), 0.91, True)
