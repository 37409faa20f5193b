"""WebDataset shards: keys, labels, names of shards, and what is missing."""

from __future__ import annotations

import contextlib
import random
import re
from pathlib import Path

import numpy as np
import pytest
from archives import archive_of, mutated

from featx.errors import ImageError, SourceError
from featx.images.sources import ImageSource, open_source
from featx.images.sources.archive import expand_braces
from featx.images.sources.labels import split_tags
from featx.images.sources.shards import split_key


def labelled(source: ImageSource) -> dict[str, str | None]:
    names = (*source.classes, None)
    return {sample.sample_id: names[sample.label] for sample in source.samples}


def shard_of(folder: Path, contents: dict[str, str], name: str = "s-0.tar") -> Path:
    return archive_of(folder / name, {path: text.encode() for path, text in contents.items()})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-{000..003}.tar", ["a-000.tar", "a-001.tar", "a-002.tar", "a-003.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]),
        ("a{x}.tar", ["a{x}.tar"]),
    ],
)
def test_names_in_braces(text, expected):
    assert list(expand_braces(text)) == expected


@pytest.mark.parametrize("text", ["a-{3..1}.tar", "a-{0..999999999}.tar"])
def test_ranges_that_go_down_or_on_for_ever_are_refused(text):
    with pytest.raises(SourceError, match="the numbers in braces go up"):
        open_source(text)


def test_ids_are_shard_and_key_in_the_order_of_the_shards(tmp_path):
    for number in (1, 0, 2):
        shard_of(tmp_path, {"b.jpg": f"{number}", "b.cls": "x", "a.png": "-"}, f"s-{number:02}.tar")
    source = open_source(f"{tmp_path}/s-{{00..02}}.tar")
    ids = [f"s-{number:02}.tar/{key}" for number in range(3) for key in "ba"]
    assert [sample.sample_id for sample in source.samples] == ids
    assert [source.read(i) for i in (0, 2, 4)] == [b"0", b"1", b"2"]
    assert len({source.stamp(i) for i in range(6)}) == 6
    assert open_source(source.uri).samples == source.samples


@pytest.mark.parametrize("missing", [0, 2, 3])
def test_a_missing_shard_is_named(tmp_path, missing):
    for number in {0, 1, 2, 3} - {missing}:
        shard_of(tmp_path, {"b.jpg": "", "b.cls": "x"}, f"s-{number:03}.tar")
    message = f"s-{missing:03}.tar' does not exist.*stands for 4 shards; 3 are there"
    with pytest.raises(SourceError, match=message):
        open_source(f"{tmp_path}/s-{{000..003}}.tar")


def test_shards_named_for_several_splits_have_them(tmp_path):
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        shard_of(tmp_path / folder, {"1.jpg": "", "1.cls": "x"}, "0.tar")
        shard_of(tmp_path, {"1.jpg": "", "1.cls": "x"}, f"my-{folder}-0.tar")
    for pattern in ("{train,val}/0.tar", "my-{train,val}-{0..0}.tar"):
        samples = open_source(f"{tmp_path}/{pattern}").samples
        assert [sample.split for sample in samples] == ["train", "val"]
        assert len({sample.sample_id for sample in samples}) == 2
    assert open_source(f"{tmp_path}/my-val-{{0..0}}.tar").samples[0].split == "train"


def test_keys_are_those_of_webdataset():
    def theirs(path: str) -> tuple[str, str] | None:
        found = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", path)  # webdataset.tariterators
        return (found[1], found[2].lower()) if found else None

    for path in ("train.v1/0001.jpg", "a/22.05.png", "x.seg.png", "IMG.JPG", "a.b/c", "a/b/c.CLS"):
        assert split_key(path) == theirs(path)
    for path in ("a/.hidden.jpg", "._1.jpg", ".git/1.jpg", "__MACOSX/1.jpg", "noext"):
        assert split_key(path) is None


def test_dots_in_names_are_said(tmp_path, caplog):
    contents = {"train.v1/0001.jpg": "1", "train.v1/0001.cls": "x", "IMG.JPG": "2", "IMG.cls": "y"}
    contents |= {"a/22.05.png": "3", "x.seg.png": "4", "a/22.05.cls": "z"}
    source = open_source(str(shard_of(tmp_path, contents)))
    assert labelled(source) == {"s-0.tar/train.v1/0001": "x", "s-0.tar/IMG": "y"}
    assert source.ignored == {"with a dot in the name": 2, ".cls": 1}
    assert "2 images with dots" in caplog.text
    assert "05.png of the key 22" in caplog.text


def test_image_and_label_of_a_key_belong_together_whatever_lies_between(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"k{i:03}.{end}" for i in range(50) for end in ("jpg", "cls")]
    names += ["noext", "folder/README", "k007.npy", "._k001.jpg", "other.cls"]
    contents = {names[i]: names[i][:4] for i in rng.permutation(len(names)).tolist()}
    source = open_source(str(shard_of(tmp_path, contents)))
    assert len(source.samples) == 50
    for index, sample in enumerate(source.samples):
        key = source.read(index).decode()
        assert (sample.sample_id, source.classes[sample.label]) == (f"s-0.tar/{key}", key)
    assert source.ignored == {"without a key": 2, ".npy": 1, "hidden": 1, ".cls": 1}


def test_labels_of_each_kind(tmp_path, caplog):
    files = {
        "digit.cls": "3\n", "zeros.cls": "003", "word.cls": " cat\r\n", "none.cls": "",
        "bytes.cls": "a\nb", "text.txt": "dog", "first.cls": "a", "first.txt": "b",
        "json.json": '{"label": 7}', "named.json": '{"Class": "x", "class": "cat", "id": 1}',
        "broken.json": '{"label": ', "two.json": '{"label": 1, "class": "cat"}',
        "same.json": '{"label": "cat", "class": "cat"}', "empty.json": "{}", "null.json": "null",
        "deep.json": "[" * 5000 + "]" * 5000, "object.json": '{"label": {"a": 1}}',
        "caption.json": '{"width": 3}', "caption.txt": "bird", "float.json": '{"target": 0.5}',
    }  # fmt: skip
    keys = {name.partition(".")[0] for name in files} | {"bare"}
    contents = files | {f"{key}.jpg": key for key in keys}
    source = open_source(str(shard_of(tmp_path, contents)))
    found = {name.partition("/")[2]: label for name, label in labelled(source).items()}
    assert {key: label for key, label in found.items() if label is not None} == {
        "digit": "3", "zeros": "003", "word": "cat", "text": "dog", "first": "a", "json": "7",
        "named": "cat", "same": "cat", "caption": "bird", "float": "0.5",
    }  # fmt: skip
    assert not source.has_tags
    assert "9 samples have no label" in caplog.text.replace("\n", " ")
    for index, key in enumerate(s.sample_id.partition("/")[2] for s in source.samples):
        assert source.read(index) == key.encode()


def test_a_list_in_json_is_several_tags(tmp_path):
    contents = {"1.jpg": "", "1.json": '{"label": ["red", "big"]}', "2.jpg": "", "2.json": "[3, 4]"}
    shard_of(tmp_path, contents)
    source = open_source(f"{tmp_path}/s-{{0..0}}.tar")
    assert source.has_tags
    assert [split_tags(label or "") for label in labelled(source).values()] == [
        ("big", "red"),
        ("3", "4"),
    ]


def test_images_alone_have_no_label_and_no_warning(tmp_path, caplog):
    shard_of(tmp_path, {"1.jpg": "", "2.webp": ""})
    source = open_source(f"{tmp_path}/s-{{0..0}}.tar")
    assert (source.classes, len(source.samples)) == ((), 2)
    assert not caplog.records


def test_a_tar_without_cls_is_no_shard(tmp_path):
    path = shard_of(tmp_path, {"ants/1.jpg": "", "ants/1.txt": "a caption", "bees/1.jpg": ""})
    assert open_source(str(path)).classes == ("ants", "bees")


def test_two_images_of_one_key_are_refused(tmp_path):
    path = shard_of(tmp_path, {"1.jpg": "", "1.png": "", "1.cls": "a"})
    with pytest.raises(SourceError, match=r"several images of the key '1': 1\.jpg, 1\.png"):
        open_source(str(path))


def test_shards_without_images_are_refused(tmp_path):
    shard_of(tmp_path, {"1.cls": "a", "2.npy": ""})
    with pytest.raises(SourceError, match=r"holds no images \(2 other files: 1 .cls, 1 .npy\)"):
        open_source(f"{tmp_path}/s-{{0..0}}.tar")


def test_a_damaged_shard_is_named(tmp_path):
    for number in (0, 1):
        shard_of(tmp_path, {"1.jpg": "", "1.cls": "a"}, f"s-{number}.tar")
    content = (tmp_path / "s-1.tar").read_bytes()
    (tmp_path / "s-1.tar").write_bytes(content[:1500])
    with pytest.raises(SourceError, match=r"s-1\.tar' is not a whole tar archive"):
        open_source(f"{tmp_path}/s-{{0..1}}.tar")


def test_mutated_shards_give_sentences(tmp_path):
    rng, contents = random.Random(0), {}
    for number in range(4):
        contents |= {f"{number}.jpg": "x" * 300, f"{number}.cls": "3", f"{number}.json": "{}"}
    path = shard_of(tmp_path, contents)
    original = path.read_bytes()
    for _ in range(300):
        path.write_bytes(mutated(original, rng))
        try:
            source = open_source(str(path))
        except SourceError as err:
            assert str(path) in str(err)  # noqa: PT017 it need not come
        else:
            for index in range(len(source.samples)):
                with contextlib.suppress(ImageError):
                    source.read(index)
