"""Tasks: read from headers, and labels and scores by each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featx.errors import SourceError
from featx.heads.tasks import SINGLE_LABEL, TASKS, Labels, task_of
from featx.heads.tasks.multi_label import thresholds_of
from featx.heads.tasks.regression import unit_of

CLASSES: dict[str, object] = {}
TAGS = {"task": "multi-label", "thresholds": [0.5, 0.2]}
NUMBERS = {"task": "regression", "unit": {"mean": [5.0, 1000.0], "scale": [2.0, 10.0]}}


def test_heads_made_before_there_were_tasks_have_one_label():
    assert task_of({}) is SINGLE_LABEL
    assert SINGLE_LABEL.thresholds_of({}, 3) == ()


@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_read(task):
    assert task_of({"task": task}).name == task


@pytest.mark.parametrize("task", ["", None, 3, "tags", ["single-label"]])
def test_another_task_is_refused(task):
    with pytest.raises(ValueError, match="its task is"):
        task_of({"task": task})


@pytest.mark.parametrize("found", [None, [], [0.5], [0.5, 1.0], [0.5, "0.5"], [0.0, 0.5], "ab"])
def test_thresholds_that_do_not_fit_are_refused(found):
    with pytest.raises(ValueError, match="no 2 thresholds"):
        thresholds_of({"task": "multi-label", "thresholds": found}, 2)


def test_thresholds_are_read():
    assert thresholds_of({"task": "multi-label", "thresholds": [0.25, 0.5]}, 2) == (0.25, 0.5)


@pytest.mark.parametrize(
    "unit",
    [
        None,
        [],
        {"mean": [0]},
        {"mean": [0, 1], "scale": [1, 0]},
        {"mean": [0, 1], "scale": [1]},
        {"mean": [0, float("nan")], "scale": [1, 1]},
        {"mean": ["a", 1], "scale": [1, 1]},
    ],
)
def test_a_regression_without_its_unit_is_refused(unit):
    with pytest.raises(ValueError, match="unit"):
        unit_of({"task": "regression", "unit": unit}, 2)


def test_a_unit_is_read():
    details = {"task": "regression", "unit": {"mean": [0, 5], "scale": [1, 2]}}
    mean, scale = unit_of(details, 2)
    assert (mean.tolist(), scale.tolist()) == ([0, 5], [1, 2])


# --- labels and targets ----------------------------------------------------------------------


def labels(*found: str) -> Labels:
    """Labels as a manifest has them; empty ones are unlabelled."""
    classes = sorted(set(found) - {""})
    index = np.array([classes.index(label) if label else -1 for label in found])
    return Labels(classes, index, [f"{n}.jpg" for n in range(len(found))], "/f.h5")


def test_classes_are_the_labels():
    targets = TASKS["single-label"].read(labels("bee", "", "ant|x"))
    assert targets.names == ("ant|x", "bee")
    assert targets.values.tolist() == [1, -1, 0]
    assert targets.labelled.tolist() == [True, False, True]


@given(
    st.lists(
        st.none() | st.lists(st.sampled_from("abcd"), max_size=4, unique=True), min_size=1
    ).filter(lambda rows: any(row for row in rows))
)
def test_every_tag_is_where_its_label_has_it(rows):
    found = labels(*("" if row is None else " | ".join(row) or "|" for row in rows))
    targets = TASKS["multi-label"].read(found)
    assert targets.names == tuple(sorted({tag for row in rows if row for tag in row}))
    assert targets.values.shape == (len(rows), len(targets.names))
    for row, has, labelled in zip(rows, targets.values, targets.labelled, strict=True):
        assert labelled == (row is not None)
        assert {n for n, there in zip(targets.names, has, strict=True) if there} == set(row or ())


def test_numbers_and_who_has_none():
    targets = TASKS["regression"].read(labels("1.5|-2", "", "3|1e3"))
    assert targets.names == ("value_1", "value_2")
    assert np.array_equal(targets.values, [[1.5, -2], [np.nan, np.nan], [3, 1000]], equal_nan=True)
    assert targets.labelled.tolist() == [True, False, True]
    assert TASKS["regression"].read(labels("7", "8")).names == ("value",)


@pytest.mark.parametrize("bad", ["tall", "nan", "inf", "3,5", "1e99"])
def test_a_label_that_is_no_number_is_named_with_its_sample(bad):
    with pytest.raises(SourceError, match=f"'/f.h5': the label '{bad}' of '2.jpg' is not a number"):
        TASKS["regression"].read(labels("1", "2", bad, "3", bad))


def test_labels_of_different_length_are_named():
    with pytest.raises(SourceError, match=r"'1' of '1.jpg' has 1 numbers, expected 2 as others"):
        TASKS["regression"].read(labels("1|2", "1", "3|4"))
    with pytest.raises(SourceError, match=r"'1\|2' of '0.jpg' has 2 numbers, expected 1 as the mo"):
        TASKS["regression"].read(labels("1|2"), names=["value"])


def test_bad_labels_that_no_sample_has_do_not_matter():
    found = Labels(["1", "2", "tall"], np.array([0, 1]), ["a", "b"], "/f.h5")
    assert TASKS["regression"].read(found).values.tolist() == [[1], [2]]


def test_a_head_that_is_there_joins_by_name():
    assert TASKS["single-label"].read(labels("b", ""), names="abc").values.tolist() == [1, -1]
    found = TASKS["multi-label"].read(labels("c|a", "|"), names="abc")
    assert found.values.tolist() == [[1, 0, 1], [0, 0, 0]]


def test_what_a_head_does_not_know_is_named():
    with pytest.raises(SourceError, match="has tags that the model does not know: red"):
        TASKS["multi-label"].read(labels("a|red", "b"), names="ab")
    with pytest.raises(SourceError, match="has classes that the model does not know: c"):
        TASKS["single-label"].read(labels("a", "c"), names="ab")


def test_no_samples_at_all():
    empty = Labels([], np.zeros(0, np.int64), [], "/f.h5")
    assert TASKS["regression"].read(empty).values.shape == (0, 1)
    assert TASKS["multi-label"].read(empty).values.shape == (0, 0)


def test_the_names_of_outputs_are_those_that_labels_give():
    assert TASKS["single-label"].names_of(("a|b", "c")) == ("a|b", "c")
    assert TASKS["multi-label"].names_of(("a|b", "c")) == ("a", "b", "c")
    assert TASKS["regression"].names_of(("1|2", "3|4")) == ("value_1", "value_2")
    assert TASKS["regression"].names_of(("1", "3")) == ("value",)


# --- scores ----------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_what_is_measured_can_be_stored_and_read(task):
    random = np.random.default_rng(0)
    outputs = random.normal(size=(20, 3))
    targets = {
        "single-label": random.integers(0, 3, 20),
        "multi-label": random.integers(0, 2, (20, 3)),
        "regression": random.normal(size=(20, 3)),
    }[task]
    scores = TASKS[task].measure(outputs, targets, thresholds=(0.5, 0.4, 0.3))
    assert scores is not None
    assert scores.task == task
    assert TASKS[task].scores_from_dict(scores.to_dict()) == scores


@pytest.mark.parametrize("task", TASKS)
def test_without_samples_there_are_no_scores(task):
    targets = np.zeros(0, np.int64) if task == "single-label" else np.zeros((0, 2))
    assert TASKS[task].measure(np.zeros((0, 2)), targets, thresholds=(0.5, 0.5)) is None


@pytest.mark.parametrize("task", TASKS)
def test_better_scores_rank_first(task):
    targets = np.array([0, 1, 1]) if task == "single-label" else np.array([[0, 1], [1, 0], [1, 0]])
    right = np.array([[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]])
    right = right if task == "single-label" else -right
    good, bad = (
        TASKS[task].measure(outputs, targets, thresholds=(0.5, 0.5)) for outputs in (right, -right)
    )
    assert TASKS[task].rank(good) < TASKS[task].rank(bad)


def test_a_score_is_shown_as_a_number_an_interval_or_a_dash():
    scores = TASKS["regression"].measure(np.array([[1.0], [3.0]]), np.array([[2.0], [2.0]]))
    shown = [column.text(scores) for column in TASKS["regression"].columns]
    assert shown == ["2", "1", "1–1", "1", "–", "–"]


# --- targets as a solver takes them ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("single-label", np.array([0, 2, 2, 1])),
        ("multi-label", np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 1]], np.uint8)),
        ("regression", np.array([[5.0, 1e3], [7.0, 1e3], [12.0, 3e3]])),
    ],
)
def test_a_decoded_layer_gives_decoded_outputs(task, targets):
    num_outputs = 3 if targets.ndim == 1 else targets.shape[1]
    encoding = TASKS[task].encode(targets, num_outputs)
    random = np.random.default_rng(0)
    features = random.normal(size=(len(targets), 5))
    weight = random.normal(size=(encoding.num_outputs, 5))
    bias = random.normal(size=encoding.num_outputs)
    outputs, decoded = encoding.decode(features @ weight.T + bias, encoding.values)
    assert np.allclose(decoded, targets)
    all_weights, all_biases = encoding.decode_layer(weight, bias)
    assert all_weights.shape == (num_outputs, 5)
    assert np.allclose(features @ all_weights.T + all_biases, outputs, rtol=1e-5, atol=1e-5)


# --- outputs that are compared ------------------------------------------------------------------


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
    assert TASKS[task].typical_size(expected, every) == pytest.approx(size)
    untrained = np.hstack([expected, np.full((len(expected), 2), -1e4, np.float32)])
    assert TASKS[task].typical_size(untrained, np.append(every, [False, False])) == pytest.approx(
        size
    )


def test_outputs_are_trained_where_rows_tell_them_apart():
    assert TASKS["single-label"].trained_outputs(np.array([0, 2, 2]), 4).tolist() == [1, 0, 1, 0]
    tags = np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    assert TASKS["multi-label"].trained_outputs(tags, 3).tolist() == [1, 0, 0]
    assert TASKS["regression"].trained_outputs(tags * 0.5, 3).tolist() == [1, 0, 0]
    assert TASKS["single-label"].trained_outputs(np.zeros(0, np.int64), 2).all()


def test_untrained_outputs_decide_the_same_where_they_win_in_both_or_are_near():
    others = np.array([1])
    found, expected = np.array([[0.0, 5.0], [0.0, 5.0], [5.0, 0.0]]), np.zeros((3, 2))
    expected[0, 1] = 9.0
    same = TASKS["single-label"].same_untrained(found, expected, others, 0.1, CLASSES)
    assert same.tolist() == [True, False, True]
    found, expected = np.array([[9.0, 21.9], [0.0, 22.1]]), np.array([[0.0, 20.0], [0.0, 20.0]])
    same = TASKS["multi-label"].same_untrained(found, expected, others, 0.1, TAGS)
    assert same.tolist() == [True, False]
    found, expected = np.array([[9.0, 9.9], [0.0, 10.1]]), np.zeros((2, 2))
    same = TASKS["regression"].same_untrained(found, expected, others, 0.1, NUMBERS)
    assert same.tolist() == [True, False]  # by the mean of the target, 100 deviations


@pytest.mark.parametrize("details", [TAGS, NUMBERS])
def test_one_untrained_output_that_differs_is_enough(details):
    found, expected = np.array([[0.0, 99.0]]), np.zeros((1, 2))
    same = task_of(details).same_untrained(found, expected, np.array([0, 1]), 0.1, details)
    assert same.tolist() == [False]
