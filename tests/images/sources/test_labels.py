"""Labels that say more than a class."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.images.sources.labels import (
    SEPARATOR,
    has_tags,
    look_like_numbers,
    parse_numbers,
    split_tags,
)

TAGS = st.lists(st.text("abc é", min_size=1).filter(str.strip), max_size=5)


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
