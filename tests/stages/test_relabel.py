"""Corrected labels: a manifest of the same images, which runs no backbone and decodes nothing."""

from __future__ import annotations

import csv
import shutil

import numpy as np
import pytest
from caches import far_apart, write_cache, write_labels
from commands import featx_cli
from PIL import Image

from featx.artifact.cells import from_cell, table_rows, to_cell
from featx.errors import ArtifactExists, ConfigError, SourceError
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.features.marks import content_of
from featx.images.sources import open_source
from featx.stages.extract import extract
from featx.stages.relabel import relabel

COLUMNS = ("sample_id", "kind", "other", "given", "drop", "different", "corrected", "content")


def write_table(path, cache, corrected, **cells):
    """Write a table of findings with a right label for some sample ids."""
    rows = {name: row for row, name in enumerate(cache.sample_ids)}
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for name, label in corrected:
            row = rows[name]
            given = cache.classes[cache.labels[row]] if cache.labels[row] >= 0 else ""
            made = {"sample_id": name, "kind": "label", "given": given, "corrected": label}
            made |= {"content": content_of(cache, row)} | cells
            writer.writerow([to_cell(made.get(column, "")) for column in COLUMNS])
    return path


@pytest.fixture
def photos(tmp_path):
    """Twelve noisy pictures of two colours, in class folders, and their feature file."""
    random = np.random.default_rng(0)
    for number in range(12):
        name = ("blue", "red")[number % 2]
        folder = tmp_path / "photos" / name
        folder.mkdir(exist_ok=True, parents=True)
        pixels = random.integers(0, 255, (40, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    path = tmp_path / "out" / "features.h5"
    extract(str(tmp_path / "photos"), path, ExtractOptions(backbone="tiny"))
    return path


def never(*_, **__):
    raise AssertionError("an image was decoded, or a backbone run")


def test_corrected_labels_reach_the_features_without_decoding_an_image(
    photos, tmp_path, monkeypatch
):
    before = open_features(photos)
    features = before.features
    table = write_table(tmp_path / "audit.csv", before, [("red/1.png", "blue")])
    report = relabel(photos, table, tmp_path / "out" / "relabelled.csv")
    assert [tuple(each) for each in report.corrections] == [("red/1.png", "red", "blue")]
    for name in ("extraction.pipeline.run_backbone", "images.decode.Image.open"):
        monkeypatch.setattr(f"featx.{name}", never)
    assert extract(report.path, photos).num_new == 0
    after = open_features(photos)
    assert after.sample_ids == before.sample_ids
    assert np.array_equal(after.features, features)
    assert np.array_equal(after.splits, before.splits)
    changed = np.flatnonzero(after.labels != before.labels)
    assert [after.sample_ids[row] for row in changed] == ["red/1.png"]
    assert extract(None, photos).is_unchanged  # the manifest is the source from now on


def test_a_second_correction_of_the_same_images_is_taken_too(photos, tmp_path):
    table = tmp_path / "audit.csv"
    for number, (name, label) in enumerate([("red/1.png", "blue"), ("blue/2.png", "red")]):
        cache = open_features(photos)
        write_table(table, cache, [(name, label)])
        report = relabel(photos, table, tmp_path / f"relabelled{number}.csv")
        assert extract(report.path, photos).num_new == 0
    cache = open_features(photos)
    found = dict(zip(cache.sample_ids, cache.labels.tolist(), strict=True))
    assert [cache.classes[found[name]] for name in ("red/1.png", "blue/2.png")] == ["blue", "red"]
    assert "/photos" in (tmp_path / "relabelled1.csv").read_text().splitlines()[1]


def test_the_folder_itself_does_not_undo_corrections_unasked(photos, tmp_path):
    table = write_table(tmp_path / "audit.csv", open_features(photos), [("red/1.png", "blue")])
    extract(relabel(photos, table, tmp_path / "r.csv").path, photos)
    result = featx_cli("extract", tmp_path / "photos", "-o", photos, "-q")
    assert result.exit_code == 1
    assert "source" in result.output


def test_groups_and_splits_are_kept(tmp_path):
    made = far_apart(30)
    groups = tuple("abc"[row // 4] if row < 12 else "" for row in range(30))
    path = write_cache(tmp_path / "f.h5", **made, groups=groups)
    cache = open_features(path)
    table = write_table(tmp_path / "audit.csv", cache, [("0005.jpg", "ant")])
    relabel(path, table, tmp_path / "r.csv")
    _, rows = table_rows((tmp_path / "r.csv").read_text())
    rows = list(rows)
    assert [row["split"] for row in rows] == [cache.split_names[s] for s in cache.splits]
    expected = ["group 1"] * 4 + ["group 2"] * 4 + ["group 3"] * 4
    assert [row["group"] for row in rows] == expected + [""] * 18
    assert rows[5]["label"] == "ant"
    assert {row["featx_source"] for row in rows} == {"/photos"}


def test_tables_of_other_images_or_an_earlier_state_are_refused(photos, tmp_path):
    cache, table, output = open_features(photos), tmp_path / "audit.csv", tmp_path / "r.csv"
    write_table(table, cache, [("red/1.png", "blue")], sample_id="cat.jpg")
    with pytest.raises(ConfigError, match=r"another feature file: its image 'cat.jpg'"):
        relabel(photos, table, output)
    write_table(table, cache, [("red/1.png", "blue")], content="sha256:" + 32 * "1")
    with pytest.raises(ConfigError, match=r"'red/1.png' has another content"):
        relabel(photos, table, output)
    write_table(table, cache, [("red/1.png", "blue")], given="green")
    with pytest.raises(ConfigError, match="earlier state"):
        relabel(photos, table, output)
    write_table(table, cache, [("red/1.png", "")])
    with pytest.raises(ConfigError, match="corrects no label"):
        relabel(photos, table, output)
    write_table(table, cache, [("red/1.png", "blue"), ("red/1.png", "pink")])
    with pytest.raises(ConfigError, match="to blue, pink"):
        relabel(photos, table, output)
    table.write_text("path,label\na.jpg,cat\n")
    with pytest.raises(ConfigError, match="not a table of findings"):
        relabel(photos, table, output)
    assert not output.exists()


def test_nothing_else_is_overwritten(photos, tmp_path):
    table = write_table(tmp_path / "audit.csv", open_features(photos), [("red/1.png", "blue")])
    before = table.read_bytes()
    for output in (table, photos):
        with pytest.raises((ConfigError, ArtifactExists)):
            relabel(photos, table, output)
        with pytest.raises(ConfigError):
            relabel(photos, table, output, overwrite=True)
    assert table.read_bytes() == before
    relabel(photos, table, tmp_path / "r.csv")
    with pytest.raises(ArtifactExists):
        relabel(photos, table, tmp_path / "r.csv")
    relabel(photos, table, tmp_path / "r.csv", overwrite=True)


def test_tags_are_added_and_taken_row_by_row(tmp_path):
    labels = ["red|big", "red", "|", "blue|big"] * 5
    path = write_labels(tmp_path / "f.h5", np.eye(20, 4, dtype=np.float32), labels, np.zeros(20))
    cache = open_features(path)
    wanted = [("0000.jpg", "big"), ("0000.jpg", "big|blue|red"), ("0001.jpg", "|")]
    wanted.append(("0002.jpg", "red"))
    report = relabel(path, write_table(tmp_path / "a.csv", cache, wanted), tmp_path / "r.csv")
    assert [each.after for each in report.corrections] == ["big|blue", "|", "red"]


@pytest.mark.parametrize(
    "name",
    [
        "=1+1.jpg",
        "＝1",
        "+a",
        "＋a",
        "-b",
        "@c",
        "'d'",
        "a,b",
        'a"b',
        "a\nb",
        "\ta",
        "a\r\nb",
        "\udcff",
    ],
)
def test_any_name_reads_back_from_a_manifest_and_none_is_a_formula(tmp_path, name):
    from featx.images.sources.relabelled import open_relabelled, relabelled_table

    path = tmp_path / "r.csv"
    path.write_bytes(relabelled_table([(name, name, "val", "")], "digits:"))
    assert from_cell(to_cell(name)) == name
    assert not to_cell(name).startswith((*"=+-@＝＋－＠", "\t", "\r"))
    source = open_relabelled(path, open_source("digits:"))
    assert source.classes == (name,)
    assert [(each.sample_id, each.split) for each in source.samples] == [(name, "val")]


def test_a_manifest_of_images_that_have_gone_says_which(photos, tmp_path):
    table = write_table(tmp_path / "audit.csv", open_features(photos), [("red/1.png", "blue")])
    manifest = relabel(photos, table, tmp_path / "r.csv").path
    (tmp_path / "photos" / "red" / "1.png").unlink()
    source = open_source(str(manifest))
    index = [each.sample_id for each in source.samples].index("red/1.png")
    with pytest.raises(SourceError, match=r"red/1.png.*not in"):
        source.read(index)


def test_the_command_says_what_to_do_next(photos, tmp_path):
    table = write_table(tmp_path / "audit.csv", open_features(photos), [("red/1.png", "green")])
    result = featx_cli("relabel", table, "--features", photos)
    assert result.exit_code == 0, result.output
    assert "red" in result.output
    assert "not in" in result.output  # green is new
    assert f"featx extract {photos.parent / 'relabelled.csv'} -o {photos}" in result.output
    again = featx_cli("relabel", table, "--features", photos)
    assert again.exit_code == 1
    assert "--overwrite" in again.output


@pytest.mark.parametrize("kind", ["zip", "table", "digits"])
def test_images_of_any_source_are_relabelled(photos, tmp_path, kind, monkeypatch):
    folder, source = tmp_path / "photos", "digits:"
    if kind == "zip":
        source = shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    elif kind == "table":
        rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in folder.rglob("*.png")]
        (tmp_path / "t.csv").write_text("\n".join(["file,breed", *sorted(rows)]))
        source = f"{tmp_path / 't.csv'}?label_column=breed&root={folder}"
    path = tmp_path / "f.h5"
    extract(source, path, ExtractOptions(backbone="tiny"))
    cache = open_features(path)
    features, name = cache.features, cache.sample_ids[0]
    table = write_table(tmp_path / "audit.csv", cache, [(name, cache.classes[1])])
    report = relabel(path, table, tmp_path / "r.csv")
    monkeypatch.setattr("featx.extraction.pipeline.run_backbone", never)
    assert extract(report.path, path).num_new == 0
    after = open_features(path)
    assert np.array_equal(after.features, features)
    assert after.classes == cache.classes
    assert after.labels[0] == 1
    assert np.array_equal(after.splits, cache.splits)
