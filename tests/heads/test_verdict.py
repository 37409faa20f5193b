"""Sentences about scores, where one is due."""

import dataclasses

import numpy as np
import pytest

from featx.heads.tasks import REGRESSION, SINGLE_LABEL
from featx.heads.verdict import baselines, compare_verdict, verdict

CLASSES = ("ants", "bees")


def scores(right: int, count: int, *, bees: int):
    """Scores of ``count`` samples: the last ``bees`` are bees, the first ``right`` right."""
    labels = (np.arange(count) >= count - bees).astype(np.int64)
    predicted = np.where(np.arange(count) < right, labels, 1 - labels)
    logits = np.where(predicted[:, None] == np.arange(2), 2.0, 0.0)
    return SINGLE_LABEL.measure(logits, labels)


def test_the_baseline_is_the_commonest_class_of_training_in_each_split():
    metrics = {"train": scores(10, 10, bees=6), "val": scores(4, 4, bees=1)}
    assert baselines(metrics) == {"train": 0.6, "val": 0.25}


@pytest.mark.parametrize(
    ("right", "count", "said"),
    [
        (50, 100, "No better than always answering 'bees'."),
        (60, 100, "No better than always answering 'bees'."),
        (65, 100, "Not clearly better than always answering 'bees': 100 images cannot show it."),
        (90, 100, ""),
    ],
)
def test_a_head_that_a_constant_answer_equals_is_called_so(right, count, said):
    metrics = {"train": scores(100, 100, bees=60), "val": scores(right, count, bees=60)}
    assert verdict(metrics, CLASSES) == said


def test_few_validation_images_leave_it_to_cross_validation():
    metrics = {"train": scores(100, 100, bees=60), "val": scores(6, 10, bees=6)}
    assert verdict(metrics, CLASSES).startswith("No better")
    assert verdict(metrics, CLASSES, scores(95, 100, bees=60)) == ""


def test_one_class_has_no_verdict():
    metrics = {"train": scores(5, 5, bees=0), "val": scores(5, 5, bees=0)}
    assert verdict(metrics, ("ants",)) == ""


@pytest.mark.parametrize(("noise", "said"), [(0.01, ""), (9.0, "No better than always")])
def test_numbers_are_compared_with_the_mean(noise, said):
    generator = np.random.default_rng(0)
    targets = generator.normal(size=(80, 1))
    outputs = targets + noise * generator.normal(size=(80, 1))
    own = REGRESSION.measure(outputs, targets)
    assert verdict({"train": own, "val": own}, ("weight",)).startswith(said)
    assert bool(said) == bool(verdict({"train": own, "val": own}, ("weight",)))


def test_scores_that_the_images_cannot_tell_apart():
    best, near, far = (scores(right, 58, bees=29) for right in (50, 48, 30))
    assert compare_verdict([best, near]) == "These differ by less than 58 images can show."
    assert compare_verdict([best, near, far]).startswith("The first 2 differ by less than 58")
    assert compare_verdict([best, far]) == ""
    many = dataclasses.replace(best, top1_low=0.861, top1_high=0.863)
    assert compare_verdict([many, dataclasses.replace(many, top1=0.85)]) == ""
