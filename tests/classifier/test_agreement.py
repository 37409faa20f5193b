"""What outputs decide, and when two decide the same: for classes, tags and numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.classifier.agreement import typical_size
from featx.heads.tasks import TASKS, task_of

CLASSES: dict[str, object] = {}
TAGS = {"task": "multi-label", "thresholds": [0.5, 0.2]}
NUMBERS = {"task": "regression", "unit": {"mean": [5.0, 1000.0], "scale": [2.0, 10.0]}}


def test_only_numbers_are_standardised():
    outputs = np.array([[7.0, 990.0]], np.float32)
    assert task_of(NUMBERS).comparable(outputs, NUMBERS).tolist() == [[1.0, -1.0]]
    assert task_of(NUMBERS).comparable(outputs, NUMBERS).dtype == np.float32
    for details in (CLASSES, TAGS):
        assert task_of(details).comparable(outputs, details) is outputs


@given(st.integers(0, 2**32), st.floats(0.001, 2))
def test_what_is_within_the_bound_is_settled(seed, bound):
    random = np.random.default_rng(seed)
    expected = random.normal(size=(20, 2))
    found = expected + random.uniform(-bound / 2, bound / 2, expected.shape)
    for details in (CLASSES, TAGS, NUMBERS):
        assert task_of(details).settled(found, expected, bound, details).all()
        assert task_of(details).settled(expected, expected, 0.0, details).all()
        assert (task_of(details).agree(expected, expected, details) == 1).all()


def test_another_class_or_tag_is_not_settled():
    expected = np.array([[2.0, -3.0], [0.0, -1.4]])
    found = np.array([[2.0, 3.0], [-0.1, -1.3]])
    assert task_of(CLASSES).settled(found, expected, 1.0, CLASSES).tolist() == [False, True]
    assert task_of(TAGS).settled(found, expected, 1.0, TAGS).tolist() == [
        False,
        True,
    ]  # the second: at thresholds
    assert task_of(TAGS).settled(found, expected, 0.01, TAGS).tolist() == [False, False]
    assert task_of(TAGS).agree(found, expected, TAGS).tolist() == [0, 0]
    assert task_of(CLASSES).agree(found, expected, CLASSES).tolist() == [0, 1]
    assert task_of(NUMBERS).settled(found, expected, 1.0, NUMBERS).tolist() == [False, True]


def test_numbers_agree_by_the_variance_they_share():
    expected = np.array([[1.0, -1.0], [0.0, 0.0]])
    found = np.array([[1.5, -1.5], [9.0, 0.0]])
    assert task_of(NUMBERS).agree(found, expected, NUMBERS).tolist() == [0.75, 0.0]


def test_share_right_is_the_measure_of_the_task():
    outputs = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    assert task_of(CLASSES).accuracy(outputs, np.array([0, 1, 0]), CLASSES) == pytest.approx(2 / 3)
    tags = np.array([[1, 1], [1, 0], [1, 1]])
    assert task_of(TAGS).accuracy(outputs, tags, TAGS) == pytest.approx(2 / 3)
    true = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    error = 1 - np.square(outputs[:, 0] - true[:, 0]).mean() / true[:, 0].var()
    assert task_of(NUMBERS).accuracy(outputs, true, NUMBERS) == pytest.approx(
        error
    )  # the other does not vary


# --- how large outputs are ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rows", "size"),
    [
        ("single-label", [[3, -2], [-1, 4], [9, -2]], 5),
        ("single-label", [[0.1, 0.2], [0.2, 0.1]], 1),  # never below 1
        ("single-label", [[3, -2], [-1, 4], [2000, -2]], 5),  # an absurd image
        ("single-label", [[3, -2, -900], [-1, 4, -900], [2, -2, -900]], 5),  # an absurd class
        ("multi-label", [[3, -2], [-1, 4], [2, -2]], 6),
        ("multi-label", [[3, -2, -900], [-1, 4, -900], [2, -2, -900]], 6),
        ("regression", [[0.5], [1.5], [3]], 3),
        ("regression", [[0.5], [1.5], [1e9]], 3),
    ],
)
def test_no_absurd_output_widens_what_bounds_are_a_share_of(task, rows, size):
    expected = np.array(rows, np.float32)
    every = np.ones(expected.shape[1], bool)
    assert typical_size(TASKS[task], expected, every) == pytest.approx(size)
    untrained = np.hstack([expected, np.full((len(expected), 2), -1e4, np.float32)])
    assert typical_size(TASKS[task], untrained, np.append(every, [False, False])) == pytest.approx(
        size
    )


def test_outputs_are_trained_where_rows_tell_them_apart():
    assert TASKS["single-label"].trained_outputs(np.array([0, 2, 2]), 4).tolist() == [1, 0, 1, 0]
    tags = np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    assert TASKS["multi-label"].trained_outputs(tags, 3).tolist() == [1, 0, 0]
    assert TASKS["regression"].trained_outputs(tags * 0.5, 3).tolist() == [1, 0, 0]
    assert TASKS["single-label"].trained_outputs(np.zeros(0, np.int64), 2).all()
