"""Labels of several tags or numbers, and warnings about odd classes."""

from __future__ import annotations

import logging
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.images.sources import (
    Sample,
    warn_of_odd_classes,
    warn_of_split_groups,
    warn_of_two_labels,
)
from featx.images.sources.labels import (
    SEPARATOR,
    has_tags,
    look_like_numbers,
    odd_classes,
    parse_numbers,
    split_tags,
)

TAGS = st.lists(st.text("abc é", min_size=1).filter(str.strip), max_size=5)


def samples(*found: tuple[int, str]) -> list[Sample]:
    """Return a sample for each label and split."""
    return [Sample(f"{n}.jpg", label, split) for n, (label, split) in enumerate(found)]


BOTH = samples((0, "train"), (1, "train"), (0, "val"), (1, "test"))


def test_nothing_is_said_of_classes_that_are_right():
    assert list(odd_classes(["ants", "bees"], BOTH)) == []


@pytest.mark.parametrize("classes", [[], ["ants"], ["ants", "Ants"]])
def test_nothing_is_said_where_nothing_has_a_label(classes):
    assert list(odd_classes(classes, samples((-1, "train"), (-1, "test")))) == []
    assert list(odd_classes(classes, [])) == []


def test_classes_without_images_are_named():
    (text,) = odd_classes(["ants", "bees", "wasps"], BOTH)
    assert text == "1 class has no images: 'wasps'. Kept, but it can never be learned."
    (text,) = odd_classes(["ants", "bees", *(f"c{i}" for i in range(9))], BOTH)
    assert "9 classes have no images: 'c0', 'c1', 'c2', 'c3', 'c4' and 4 more." in text


def test_classes_without_training_images_are_named():
    (text,) = odd_classes(["a", "b", "c"], samples((0, "train"), (1, "val"), (2, "test")))
    assert text.startswith("2 classes have images for validation or test but none for training")
    assert "'b', 'c'." in text


def test_nothing_is_said_of_training_where_there_is_none():
    assert list(odd_classes(["a", "b"], samples((0, "test"), (1, "test")))) == []


def test_a_single_class_has_nothing_to_be_told_from():
    (text,) = odd_classes(["ants"], samples((0, "train"), (0, "val"), (-1, "train")))
    assert text.startswith("all labelled images are of one class, 'ants': ")
    assert "one folder, or label, per class" in text


@pytest.mark.parametrize(
    "names",
    [
        ["Ants", "ants"],
        ["STRASSE", "straße"],
        [unicodedata.normalize(form, "grün") for form in ("NFD", "NFC")],
        ["cat", "cat "],
        ["cat", " cat"],
        ["cat", "cat\u00a0"],
        ["dog", "d\u200bog"],
        ["dog", "dog\ufeff"],
        ["dog", "\u202adog"],
        ["сat", "cat"],
        ["Аnt", "Ant"],
        ["BEE", "ВЕЕ"],
        ["οwl", "owl"],
        ["fire truck", "fire_truck"],
        ["fire-truck", "fire\u2010truck"],
        ["fire  truck", "fire truck"],
        ["ﬁsh", "fish"],
        ["ｃａｔ", "cat"],
        ["cat\ufe0f", "cat"],
    ],
)
def test_classes_that_readers_take_for_one_are_named(names):
    (text,) = odd_classes(names, BOTH)
    assert text.startswith("2 classes look alike: ")
    assert all(repr(name) in text for name in names)
    one, other = (text.index(ascii(name)[1:-1]) for name in names)
    assert one != other  # told apart by what is printed, even in letters alike


@pytest.mark.parametrize(
    "names",
    [
        *(["1", "-1"], ["a", "b"], ["cat", "cats"], ["кот", "кит"], ["ant", "änt"], ["1.5", "15"]),
        *(["C", "C++"], ["caf\udce9", "caf"], ["O", "0"], ["l", "1"]),
    ],
)
def test_different_names_do_not_look_alike(names):
    assert list(odd_classes(names, BOTH)) == []


def test_a_bar_in_the_name_of_a_folder_is_said():
    (text,) = odd_classes(["Tomato|healthy", "Tomato"], BOTH)
    assert text.startswith("'|' in 'Tomato|healthy' is a part of the name")
    assert not list(odd_classes(["red|big", "red"], BOTH, has_tags=True))


def test_names_cannot_write_to_the_terminal():
    (text,) = odd_classes(["a", "b", "\x1b[31m\n\udce9"], BOTH)
    assert text.isprintable()
    text.encode()


def test_each_is_a_warning_of_the_source(caplog):
    with caplog.at_level(logging.INFO, logger="featx"):
        warn_of_odd_classes(
            "/photos", ["A", "a", "b"], samples((0, "train"), (1, "val")), has_tags=False
        )
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert all(record.getMessage().startswith("'/photos': ") for record in caplog.records)


def test_of_several_tags_each_tag_is_looked_at():
    classes = ["big|red", "blue", "red", "|"]
    found = samples((0, "train"), (2, "val"), (1, "train"), (3, "val"))
    assert (
        list(odd_classes(classes, found, has_tags=True)) == []
    )  # "red" alone has no training image
    (text,) = odd_classes(classes, samples((0, "train"), (1, "val"), (3, "train")), has_tags=True)
    assert text.startswith("1 tag has images for validation or test but none for training: 'blue'")
    (text,) = odd_classes(["a|Red", "red"], samples((0, "train"), (1, "train")), has_tags=True)
    assert text.startswith("2 tags look alike")


def test_a_single_tag_can_be_told_from_none():
    assert list(odd_classes(["red", "|"], samples((0, "train"), (1, "train")), has_tags=True)) == []


def test_measured_numbers_are_no_classes():
    classes = [f"{n / 7:.3f}" for n in range(40)]
    assert list(odd_classes(classes, samples(*((n, "val") for n in range(40))))) == []


def test_groups_in_several_splits_are_named_once(caplog):
    caplog.set_level(logging.WARNING)
    splits = {"pat 1": "train", "pat 2": "train test", "": "train val", "pat 3": "val test train"}
    found = [
        Sample(f"{group}-{split}.jpg", 0, split, group)
        for group, several in splits.items()
        for split in several.split()
    ]
    warn_of_split_groups("/photos", found[:1] + found[3:5])
    assert not caplog.records
    warn_of_split_groups("/photos", found)
    (record,) = caplog.records
    assert "'/photos': 2 groups have images in several splits: 'pat 2', 'pat 3'." in (
        record.getMessage()
    )


def said_of_labels(contents: list[int], labels: list[int]) -> list[str]:
    """Return the warnings about images of these contents, 0 if not known, named by their number."""
    digests = np.zeros((len(contents), 16), np.uint8)
    digests[:, 15], digests[:, 0] = np.array(contents) % 3, np.array(contents) // 3
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("featx.images.sources.labels")
    log.addHandler(handler)
    try:
        names = [str(number) for number in range(len(contents))]
        warn_of_two_labels(names, np.array(labels, np.int64), digests, ("ant", "bee", "wasp"))
    finally:
        log.removeHandler(handler)
    return found


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 2)), max_size=12))
def test_every_content_with_several_labels_is_counted(images):
    contents, labels = [each[0] for each in images], [each[1] for each in images]
    several = sum(
        len({label for own, label in images if own == content and label >= 0}) > 1
        for content in set(contents) - {0}
    )
    warnings = said_of_labels(contents, labels)
    assert len(warnings) == min(several, 1)
    if several:
        count = "1 image has" if several == 1 else f"{several} images have"
        assert warnings[0].startswith(f"{count} several labels: ")


def test_the_first_two_of_one_content_are_named():
    assert said_of_labels([1, 2, 3, 2, 3], [0, 1, 2, 1, 0]) == [
        "1 image has several labels: '2' (wasp) and '4' (ant) have the same content. Keep the "
        "right one."
    ]


@given(TAGS)
def test_tags_come_back_once_each_without_blanks(tags):
    found = split_tags(f" {SEPARATOR} ".join(tags))
    assert found == tuple(sorted({tag.strip() for tag in tags}))


@pytest.mark.parametrize("label", ["|", " | ", "||", ""])
def test_no_tag_at_all(label):
    assert split_tags(label) == ()


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=4))
def test_numbers_come_back(numbers):
    assert parse_numbers("|".join(map(repr, numbers))) == tuple(numbers)


@pytest.mark.parametrize(
    "label", ["ant", "nan", "inf", "-Infinity", "1e31", "3,5", "1_000", "", "1|", "|", "1|x"]
)
def test_what_is_no_number(label):
    assert parse_numbers(label) is None


def test_what_has_tags():
    assert has_tags(["a", "b|c"])
    assert not has_tags(["a", "b"])
    assert not has_tags([])


def test_what_looks_measured():
    assert look_like_numbers([str(n / 7) for n in range(30)], 30)
    assert look_like_numbers([f"{n}|{n * 2}" for n in range(30)], 60)
    assert not look_like_numbers([str(n) for n in range(100)], 5000)  # ids of classes
    assert not look_like_numbers([str(n) for n in range(10)], 10)
    assert not look_like_numbers([*map(str, range(50)), "ant"], 51)
