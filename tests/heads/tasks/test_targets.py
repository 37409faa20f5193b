"""Labels become what a head is trained on, or the message says which one cannot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.artifact import Header
from featx.errors import SourceError
from featx.heads.tasks.targets import Labels, header_as_read, read_targets, tag_names, value_names


def labels(*found: str) -> Labels:
    """Labels as a manifest has them; empty ones are unlabelled."""
    classes = sorted(set(found) - {""})
    index = np.array([classes.index(label) if label else -1 for label in found])
    return Labels(classes, index, [f"{n}.jpg" for n in range(len(found))], "/f.h5")


def test_classes_are_the_labels() -> None:
    targets = read_targets("single-label", labels("bee", "", "ant|x"))
    assert targets.names == ("ant|x", "bee")
    assert targets.values.tolist() == [1, -1, 0]
    assert targets.labelled.tolist() == [True, False, True]


@given(
    st.lists(
        st.none() | st.lists(st.sampled_from("abcd"), max_size=4, unique=True), min_size=1
    ).filter(lambda rows: any(row for row in rows))
)
def test_every_tag_is_where_its_label_has_it(rows: list[Sequence[str] | None]) -> None:
    found = labels(*("" if row is None else " | ".join(row) or "|" for row in rows))
    targets = read_targets("multi-label", found)
    assert targets.names == tuple(sorted({tag for row in rows if row for tag in row}))
    assert targets.values.shape == (len(rows), len(targets.names))
    for row, has, labelled in zip(rows, targets.values, targets.labelled, strict=True):
        assert labelled == (row is not None)
        assert {n for n, there in zip(targets.names, has, strict=True) if there} == set(row or ())


def test_numbers_and_who_has_none() -> None:
    targets = read_targets("regression", labels("1.5|-2", "", "3|1e3"))
    assert targets.names == ("value_1", "value_2")
    assert np.array_equal(targets.values, [[1.5, -2], [np.nan, np.nan], [3, 1000]], equal_nan=True)
    assert targets.labelled.tolist() == [True, False, True]
    assert read_targets("regression", labels("7", "8")).names == ("value",)


@pytest.mark.parametrize("bad", ["tall", "nan", "inf", "3,5", "1e99"])
def test_a_label_that_is_no_number_is_named_with_its_sample(bad: str) -> None:
    with pytest.raises(SourceError, match=f"'/f.h5': the label '{bad}' of '2.jpg' is no number"):
        read_targets("regression", labels("1", "2", bad, "3", bad))


def test_labels_of_different_length_are_named() -> None:
    with pytest.raises(SourceError, match=r"'1' of '1.jpg' has 1 numbers, expected 2 as others"):
        read_targets("regression", labels("1|2", "1", "3|4"))
    with pytest.raises(SourceError, match=r"'1\|2' of '0.jpg' has 2 numbers, expected 1 as the mo"):
        read_targets("regression", labels("1|2"), names=["value"])


def test_bad_labels_that_no_sample_has_do_not_matter() -> None:
    found = Labels(["1", "2", "tall"], np.array([0, 1]), ["a", "b"], "/f.h5")
    assert read_targets("regression", found).values.tolist() == [[1], [2]]


def test_a_head_that_is_there_joins_by_name() -> None:
    assert read_targets("single-label", labels("b", ""), names="abc").values.tolist() == [1, -1]
    found = read_targets("multi-label", labels("c|a", "|"), names="abc")
    assert found.values.tolist() == [[1, 0, 1], [0, 0, 0]]


def test_what_a_head_does_not_know_is_named() -> None:
    with pytest.raises(SourceError, match="has tags that the model does not know: red"):
        read_targets("multi-label", labels("a|red", "b"), names="ab")
    with pytest.raises(SourceError, match="has classes that the model does not know: c"):
        read_targets("single-label", labels("a", "c"), names="ab")


def test_no_samples_at_all() -> None:
    empty = Labels([], np.zeros(0, np.int64), [], "/f.h5")
    assert read_targets("regression", empty).values.shape == (0, 1)
    assert read_targets("multi-label", empty).values.shape == (0, 0)


def test_a_header_is_read_as_the_task_reads_labels() -> None:
    header = Header("features", {}, ("a|b", "c"))
    assert header_as_read("single-label", header).classes == header.classes
    assert header_as_read("multi-label", header).classes == tag_names(header.classes)
    numbers = Header("features", {}, ("1|2", "3|4"))
    assert header_as_read("regression", numbers).classes == value_names(2)
