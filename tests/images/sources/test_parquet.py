"""Parquet files: images of any type of column, labels by name, and what is refused."""

from __future__ import annotations

import base64
import json
import random
import time
from pathlib import Path

import pytest
from archives import mutated

from featx.errors import ImageError, SourceError
from featx.images.sources import ImageSource, open_source, with_options

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

VALUES = [bytes([i]) * 1000 for i in range(50)]


def write(path: Path, columns, *, names=None, is_image=True, **options) -> Path:
    """Write columns as Parquet, with class names as Hugging Face writes them."""
    features = {"image": {"_type": "Image"}} if is_image else {}
    if names:
        features["label"] = {"_type": "ClassLabel", "names": names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=options.pop("row_group_size", 20), **options)
    return path


def labels(source: ImageSource) -> list[str]:
    return [source.classes[s.label] if s.label >= 0 else "" for s in source.samples]


def problem(source: ImageSource, index: int) -> str:
    with pytest.raises(ImageError) as err:
        source.read(index)
    return err.value.reason


@pytest.mark.parametrize(
    "make",
    [
        lambda: pa.array(VALUES),
        lambda: pa.array(VALUES, pa.large_binary()),
        lambda: pa.array(VALUES, pa.binary_view()),
        lambda: pa.array(VALUES, pa.binary(1000)),
        lambda: pa.array(VALUES).dictionary_encode(),
        lambda: pa.array([list(value) for value in VALUES], pa.list_(pa.uint8())),
        lambda: pa.array([list(value) for value in VALUES], pa.list_(pa.uint8(), 1000)),
        lambda: pa.array([{"bytes": v, "path": "same.jpg"} for v in VALUES]),
        lambda: pa.array([base64.b64encode(v).decode() for v in VALUES]),
    ],
)
def test_images_of_any_type_are_read_in_any_order(tmp_path, make):
    path = write(tmp_path / "a.parquet", {"image": make(), "label": [0, 1] * 25}, names=["b", "a"])
    source = open_source(str(path))
    assert [source.read(i) for i in range(50)] == VALUES
    assert [source.read(i) for i in (49, 3, 22, 0)] == [VALUES[i] for i in (49, 3, 22, 0)]
    assert [s.sample_id for s in source.samples[:2]] == ["a.parquet/0", "a.parquet/1"]
    assert labels(source) == ["b", "a"] * 25
    assert len({source.stamp(i) for i in range(50)}) == 50


def test_texts_are_base64_where_they_are_long_or_say_so(tmp_path):
    encoded = [base64.b64encode(value).decode() for value in (VALUES[0], b"short")]
    images = [encoded[0], f"data:image/png;base64,{encoded[1]}", "data:image/png;base64,!", "1.png"]
    (tmp_path / "1.png").write_bytes(b"beside")
    path = write(tmp_path / "a.parquet", {"image": images}, is_image=False)
    source = open_source(str(path))
    assert [source.read(i) for i in (0, 1, 3)] == [VALUES[0], b"short", b"beside"]
    assert "neither a path nor base64" in problem(source, 2)


@pytest.mark.parametrize("kind", [pa.list_(pa.struct({"bytes": pa.binary()})), pa.float32()])
def test_another_type_is_named(tmp_path, kind):
    path = write(tmp_path / "a.parquet", {"image": pa.array([None], kind)})
    with pytest.raises(SourceError, match="is of type"):
        open_source(str(path))


def test_files_are_joined_by_class_name_and_split(tmp_path):
    two = {"image": VALUES[:2], "label": [0, 1]}
    write(tmp_path / "train-00000-of-00001.parquet", two, names=["ant", "bee"])
    write(tmp_path / "validation-00000-of-00001.parquet", two, names=["bee", "ant"])
    write(
        tmp_path / "test-00000-of-00001.parquet",
        {"image": VALUES[:2], "label": [-1, None]},
        names=["bee", "ant"],
    )
    source = open_source(str(tmp_path))
    assert source.classes == ("ant", "bee")
    found = dict(zip((s.sample_id for s in source.samples), labels(source), strict=True))
    assert found["train-00000-of-00001.parquet/0"] == "ant"
    assert found["validation-00000-of-00001.parquet/0"] == "bee"
    assert [s.label for s in source.samples if s.split == "test"] == [-1, -1]
    assert {s.split for s in source.samples} == {"train", "val", "test"}
    braces = open_source(f"{tmp_path}/{{train,validation}}-00000-of-00001.parquet")
    assert [s.split for s in braces.samples] == ["train", "train", "val", "val"]


def test_bare_numbers_are_texts_and_are_not_mixed_with_names(tmp_path):
    two = {"image": VALUES[:2], "label": [3, -1]}
    source = open_source(str(write(tmp_path / "train.parquet", two, is_image=False)))
    assert labels(source) == ["3", ""]
    write(tmp_path / "test.parquet", {"image": VALUES[:1], "label": [0]}, names=["ant"])
    with pytest.raises(SourceError, match="numbers without names"):
        open_source(str(tmp_path))


def test_a_number_of_no_class_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": VALUES[:1], "label": [2]}, names=["a", "b"])
    with pytest.raises(SourceError, match="row 0: label is 2"):
        open_source(str(path))


def test_columns_are_asked_for_where_several_fit_and_can_be_said(tmp_path):
    columns = {"image": VALUES[:1], "mask": VALUES[1:2], "label": ["a"], "class": ["b"]}
    path = write(tmp_path / "a.parquet", columns, is_image=False)
    with pytest.raises(SourceError, match="label_column='label'"):
        open_source(str(path))
    options = {"label_column": "class", "path_column": "mask"}
    source = open_source(open_source(with_options(str(path), options)).uri)
    assert (source.read(0), labels(source)) == (VALUES[1], ["b"])


def test_only_relative_paths_beside_the_file_are_opened(tmp_path):
    outside = tmp_path / "secret.jpg"
    outside.write_bytes(b"secret")
    folder = tmp_path / "in"
    paths = [str(outside), "../secret.jpg", "link.jpg", "https://e.org/1.jpg", "1.jpg", "2.jpg"]
    images = pa.array([*({"bytes": None, "path": each} for each in paths), None])
    path = write(folder / "a.parquet", {"image": images})
    (folder / "link.jpg").symlink_to(outside)
    (folder / "1.jpg").write_bytes(b"one")
    source = open_source(str(path))
    assert all("not in the file" in problem(source, i) for i in (0, 1, 2, 3, 5))
    assert source.read(4) == b"one"
    assert "null" in problem(source, 6)
    before = source.stamp(4)
    (folder / "1.jpg").write_bytes(b"other")
    assert source.stamp(4) != before


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": VALUES})
    source = open_source(str(path))
    source.read(0)
    time.sleep(0.01)
    write(path, {"image": VALUES[::-1]})
    assert "was changed" in problem(source, 45)


def test_a_flipped_bit_is_an_error_of_the_images_behind_it(tmp_path):
    rng = random.Random(0)
    values = [rng.randbytes(1000) for _ in range(50)]
    path = write(tmp_path / "a.parquet", {"image": values}, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(values[25]) + 500] ^= 1
    path.write_bytes(content)
    source = open_source(str(path))
    assert source.read(3) == values[3]
    assert "checksum" in problem(source, 25).lower()
    assert source.read(45) == values[45]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"garbage" * 100])
def test_what_is_no_parquet_file_is_refused(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(SourceError):
        open_source(f"{tmp_path}/a.parquet")


def test_mutated_files_are_refused_or_give_errors_of_images(tmp_path):
    rng = random.Random(7)
    images = [{"bytes": value, "path": None} for value in VALUES]
    path = write(tmp_path / "a.parquet", {"image": images, "label": [0, 1] * 25}, names=["a", "b"])
    original, path = path.read_bytes(), tmp_path / "m.parquet"
    for _ in range(50):
        path.write_bytes(mutated(original, rng))
        try:
            source = open_source(str(path))
        except SourceError:
            continue
        for index in range(min(len(source.samples), 60)):
            try:
                source.read(index)
            except ImageError:
                continue


@pytest.mark.slow
def test_a_row_group_of_more_than_two_gigabytes_is_read_in_batches(tmp_path):
    path, size = tmp_path / "a.parquet", 2**27
    two = [pa.array([bytes([value]) * size]) for value in (1, 2)]
    columns = {"image": pa.chunked_array(two * 10), "label": [1, 2] * 10}
    pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)
    (group,) = open_source(str(path)).files[0].groups
    assert group.size > 2.5e9
    source = open_source(str(path))
    for row in (0, 17, 19, 2):
        content = source.read(row)
        assert (len(content), content[0], content[-1]) == (size, row % 2 + 1, row % 2 + 1)


def test_folders_that_are_no_splits_are_refused_and_odd_files_left_out(tmp_path, caplog):
    for name in ("a/train.parquet", "b/train.parquet"):
        write(tmp_path / "x" / name, {"image": VALUES[:1]})
    with pytest.raises(SourceError, match="several folders"):
        open_source(f"{tmp_path}/x")
    for name in ("train/0000", "test/0000", "extra/0000"):
        write(tmp_path / "y/default" / f"{name}.parquet", {"image": VALUES[:1]})
    source = open_source(f"{tmp_path}/y")
    assert sorted(s.split for s in source.samples) == ["test", "train"]
    assert "default/extra/0000.parquet" in caplog.text
