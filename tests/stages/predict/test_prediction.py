"""The best classes of each image."""

from __future__ import annotations

import numpy as np
import pytest

from featx.stages.predict.prediction import Prediction, best_classes, given_tags


def test_best_classes_are_sorted_and_ties_go_to_the_first() -> None:
    probabilities = np.array([[0.1, 0.4, 0.4, 0.1], [0.7, 0.1, 0.0, 0.2]])
    first, second = best_classes(probabilities, "abcd", top_k=3)
    assert [label for label, _ in first] == ["b", "c", "a"]
    assert second == (("a", 0.7), ("d", 0.2), ("b", 0.1))


def test_there_are_no_more_than_all_classes() -> None:
    (best,) = best_classes(np.array([[0.25, 0.75]]), "ab", top_k=9)
    assert best == (("b", 0.75), ("a", 0.25))


@pytest.mark.parametrize("top", [(), (("a", 0.5), ("b", 0.25))])
def test_label_and_probability_are_those_of_the_best(top: tuple[tuple[str, float], ...]) -> None:
    prediction = Prediction("x.jpg", top)
    assert (prediction.label, prediction.probability) == (top[0] if top else (None, None))


def test_a_tag_is_given_from_its_threshold_on() -> None:
    tops = [(("b", 0.5), ("a", 0.25)), (("b", 0.49), ("a", 0.2))]
    assert given_tags(tops, {"a": 0.25, "b": 0.5}) == [("a", "b"), ()]
