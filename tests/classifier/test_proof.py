from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from featx.artifact import Header
from featx.classifier.graph import build_classifier, with_header
from featx.classifier.proof import (
    NUM_IMAGES,
    EdgeCase,
    measure_accuracy,
    prove,
    require_accuracy,
    require_same_outputs,
)
from featx.classifier.session import Classifier, load_classifier
from featx.errors import ExportError, ParityError
from featx.heads.head import Layer, apply_layers
from featx.heads.tasks import Task, task_of
from featx.images.preprocess import PreprocessSpec, preprocess


class Answers:
    """Stands in for a classifier: the first pixel of an image says which answer it gets.

    Args:
        logits: One row for each raw image.
        resized: One row for each image that has been resized before; as ``logits`` by default.
        drift: Added to every logit in a batch of more than one.
    """

    preprocess = PreprocessSpec(image_size=50, resize=50, mean=(0, 0, 0), std=(1, 1, 1))
    header = Header("classifier", {}, ("ants", "bees"))

    def __init__(self, logits: Any, *, resized: Any = None, drift: float = 0) -> None:
        self.answers = np.array(logits, np.float32)
        self.resized = self.answers if resized is None else np.array(resized, np.float32)
        self.drift = drift
        self.batches: list[int] = []

    @property
    def task(self) -> Task:
        return task_of(self.header.details)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        return pixels

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.batches.append(len(images))
        ready = min(images.shape[1:3]) == self.preprocess.resize
        logits = (self.resized if ready else self.answers)[images[:, 0, 0, 0]]
        if len(images) > 1:
            logits = logits + np.float32(self.drift)
        return logits


def _prove(
    found: Any, expected: Any, *, bound: float = 0.1, drift: float = 0, resized: Any = None
) -> Any:
    images = [np.full((4 + i, 9 - i, 3), i, np.uint8) for i in range(len(expected))]
    names = [f"image {i}" for i in range(len(expected))]
    answers: Any = Answers(found, resized=expected if resized is None else resized, drift=drift)
    return prove(answers, images, names, np.array(expected, np.float32), bound=bound)


RIGHT = [[2.0, 1.0], [0.0, 3.0], [5.0, -5.0], [1.0, 1.5]]


def test_equal_answers_are_proven():
    proof = _prove(RIGHT, RIGHT)
    assert proof.num_images == 4
    assert proof.max_difference == 0
    assert proof.bound == 0.1
    assert proof.top1_agreement == 1
    assert proof.max_batch_difference == 0


def test_resized_images_must_agree_to_rounding_though_raw_ones_need_not():
    raw = np.array(RIGHT) + 0.05
    proof = _prove(raw, RIGHT, resized=np.array(RIGHT) + 1e-3)
    assert proof.max_difference == pytest.approx(0.05, abs=1e-5)
    assert proof.max_resized_difference == pytest.approx(1e-3, abs=1e-5)
    with pytest.raises(ParityError, match="once the image is resized") as caught:
        _prove(raw, RIGHT, resized=raw)
    assert caught.value.bound == pytest.approx(3e-3)  # 0.1 % of the spread of nine in ten


@pytest.mark.parametrize("bound", [0.1, None])
@pytest.mark.parametrize(("coarse", "allowed"), [(False, 3e-3), (True, 6e-2)])
def test_batches_may_differ_by_a_tenth_of_a_percent_or_two_percent_where_steps_are_coarse(
    coarse, allowed, bound
):
    images = [np.full((4, 9, 3), i, np.uint8) for i in range(len(RIGHT))]
    expected = np.array(RIGHT, np.float32)  # nine in ten have a spread of at most 3

    def proven(drift: float) -> Any:
        answers: Any = Answers(RIGHT, drift=drift)
        return prove(answers, images, ["x"] * 4, expected, bound=bound, coarse=coarse)

    assert proven(0.98 * allowed).max_batch_difference == pytest.approx(0.98 * allowed, rel=1e-3)
    with pytest.raises(ParityError, match="in a batch of 3") as caught:
        proven(1.02 * allowed)
    assert caught.value.bound == pytest.approx(allowed)


@pytest.mark.parametrize(
    ("coarse", "halved", "allowed"),
    [(False, False, 3e-3), (False, True, 1.5e-2), (True, False, 6e-2), (True, True, 6e-2)],
)
def test_resized_images_may_differ_more_where_steps_are_coarse(coarse, halved, allowed):
    images = [np.full((4, 9, 3), i, np.uint8) for i in range(len(RIGHT))]
    expected = np.array(RIGHT, np.float32)

    def proven(offset: float) -> Any:
        answers: Any = Answers(RIGHT, resized=np.array(RIGHT) + offset)
        names = ["x"] * 4
        return prove(answers, images, names, expected, bound=0.1, coarse=coarse, halved=halved)

    assert proven(0.98 * allowed).max_resized_difference > 0.97 * allowed
    with pytest.raises(ParityError, match="once the image is resized"):
        proven(1.02 * allowed)


FAR = [[*row, far] for row, far in zip(RIGHT, (-190, -200, -180, -210), strict=True)]
"""With a class that was not trained."""


def _prove_of_three(found: Any, expected: Any = FAR, **settings: Any) -> Any:
    images = [np.full((4 + i, 9 - i, 3), i, np.uint8) for i in range(len(expected))]
    answers: Any = Answers(found, resized=settings.pop("resized", expected))
    trained = np.array([True, True, False])
    names = [f"image {i}" for i in range(len(expected))]
    expected = np.array(expected, np.float32)
    return prove(answers, images, names, expected, trained=trained, **settings)


def test_a_class_that_was_not_trained_counts_in_no_difference_and_widens_no_bound():
    found = np.array(FAR)
    found[:, 2] += 3
    proof = _prove_of_three(found, bound=0.1, resized=found)
    assert proof.max_difference == proof.max_resized_difference == 0
    assert proof.untrained == (2,)
    assert proof.to_dict()["untrained"] == [2]
    with pytest.raises(ParityError, match="once the image is resized") as caught:
        _prove_of_three(FAR, bound=0.1, resized=np.array(FAR) + 0.01)
    assert caught.value.bound == pytest.approx(3e-3)


@pytest.mark.parametrize("bound", [1e9, None])
@pytest.mark.parametrize("logit", [9.0, np.nan, np.inf])
def test_a_class_that_was_not_trained_is_never_predicted(bound, logit):
    found = np.array(FAR)
    found[1, 2] = logit
    with pytest.raises(ParityError, match=r"'image 1' another answer.*not trained"):
        _prove_of_three(found, bound=bound)


@pytest.mark.parametrize(
    ("task", "details"),
    [
        ("multi-label", {"thresholds": [0.5, 0.5]}),
        ("regression", {"unit": {"mean": [0, 1e6], "scale": [1, 1]}}),
    ],
)
def test_a_tag_or_target_that_was_constant_stays_what_it_is(task, details):
    details = {"task": task} | details
    expected = np.array([[1.0, 7.0], [0.5, 7.0]], np.float32)
    if task == "regression":
        expected[:, 1] = 1e6
    answers: Any = Answers(expected)
    answers.header = Header("classifier", {}, ("a", "b"), details)
    images = [np.full((5, 5, 3), i, np.uint8) for i in range(2)]
    known = task_of(details).comparable(expected, details)
    trained = np.array([True, False])
    proof = prove(answers, images, ["x", "y"], known, bound=0.1, trained=trained)
    assert proof.untrained == (1,)
    answers.answers[1, 1] *= 1.01
    with pytest.raises(ParityError, match="'y' another answer"):
        prove(answers, images, ["x", "y"], known, bound=0.1, trained=trained)


def test_the_proof_is_recorded_as_json():
    values = _prove(np.array(RIGHT) + 0.05, RIGHT).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["max_difference"] == pytest.approx(0.05, abs=1e-6)
    assert values["num_images"] == 4
    assert values["batch_sizes"] == [1, 3, 8]
    assert values["bound"] == 0.1


def test_a_proof_takes_at_least_64_images():
    assert NUM_IMAGES >= 64


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("image", [0, 1, 3])
def test_one_logit_of_one_image_is_enough_to_fail(sign, image):
    found = np.array(RIGHT)
    found[image, 1] += sign * 0.2
    with pytest.raises(ParityError, match=rf"'image {image}'.*Nothing was written") as caught:
        _prove(found, RIGHT)
    assert caught.value.difference == pytest.approx(0.2, abs=1e-5)
    assert caught.value.bound == 0.1
    assert "0.2" in str(caught.value)
    assert "atol=…" in str(caught.value)
    assert isinstance(caught.value, ExportError)


def test_the_worst_image_is_the_one_that_is_named():
    found = np.array(RIGHT)
    found[0, 0] += 0.2
    found[2, 0] += 0.3
    with pytest.raises(ParityError, match="'image 2'"):
        _prove(found, RIGHT)


@pytest.mark.parametrize(("offset", "passes"), [(0.5, True), (np.nextafter(0.5, 1), False)])
def test_the_bound_itself_is_allowed(offset, passes):
    expected = [[0.0, 0.0]]
    found = np.array([[offset, 0.0]])
    if passes:
        assert _prove(found, expected, bound=0.5).max_difference == 0.5
    else:
        with pytest.raises(ParityError):
            _prove(found.astype(np.float64) + 1e-6, expected, bound=0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["found", "expected"])
def test_what_is_not_finite_never_passes(value, where):
    broken = np.array(RIGHT)
    broken[1, 0] = value
    pair = (broken, RIGHT) if where == "found" else (RIGHT, broken)
    with pytest.raises(ParityError, match="'image 1'"):
        _prove(*pair, bound=1e9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_even_where_both_are_broken_alike(value):
    broken = np.array(RIGHT)
    broken[1, 0] = value
    with pytest.raises(ParityError), np.errstate(invalid="ignore"):
        _prove(broken, broken, bound=1e9)


def test_a_tie_within_the_bound_may_fall_either_way():
    proof = _prove([[1.0, 1.04]], [[1.02, 1.0]])
    assert proof.max_difference == pytest.approx(0.04, abs=1e-6)


def test_a_class_beyond_a_tie_is_refused_though_each_logit_is_within_the_bound():
    with pytest.raises(ParityError, match="'image 0' another class"):
        _prove([[1.0, 1.01]], [[1.09, 0.94]])


def test_a_batch_that_answers_differently_is_refused():
    with pytest.raises(ParityError, match="in a batch of 3") as caught:
        _prove(RIGHT, RIGHT, drift=0.01)
    assert caught.value.difference == pytest.approx(0.01, abs=1e-5)


def test_rounding_in_a_batch_is_recorded_not_refused():
    proof = _prove(RIGHT, RIGHT, drift=2e-4)
    assert proof.max_batch_difference == pytest.approx(2e-4, rel=0.01)


def test_a_nan_in_a_batch_is_refused():
    with pytest.raises(ParityError, match="in a batch of 3"):
        _prove(RIGHT, RIGHT, drift=np.nan)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_both_batch_sizes_are_run_however_few_the_images(count):
    answers: Any = Answers(RIGHT + RIGHT)
    images = [np.full((5, 5, 3), i, np.uint8) for i in range(count)]
    expected = np.array((RIGHT + RIGHT)[:count], np.float32)
    proof = prove(answers, images, ["x"] * count, expected, bound=0.1)
    assert set(answers.batches) == {1, 3, 8}
    assert proof.num_images == count


# With a real graph


def _load(model: onnx.ModelProto, header: Header) -> Classifier:
    return load_classifier(with_header(model, header), path=Path("model.onnx"), threads=1)


@pytest.fixture
def evidence(layer: Layer, spec: PreprocessSpec) -> tuple[list[np.ndarray], np.ndarray]:
    """Images of several sizes, and the logits of the head on their features."""
    rng = np.random.default_rng(4)
    sizes = [(10, 10), (20, 33), (33, 20), (9, 9), (64, 64)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    features = np.stack([preprocess(image, spec).reshape(-1) for image in images])
    return images, apply_layers([layer], features.astype(np.float32))


def test_a_faithful_file_is_proven(classifier, evidence):
    images, expected = evidence
    proof = prove(classifier, images, ["x"] * 5, expected, bound=0.1)
    assert 0 < proof.max_difference <= 0.1
    assert proof.max_batch_difference <= 1e-4


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_file_with_another_head_is_not(part, flat, layer, spec, header, evidence):
    weight, bias = layer[0].copy(), layer[1].copy()
    if part == "weight":
        weight[1, 100] += 0.01  # of pixels up to 255
    else:
        bias[0] += 0.2
    other = _load(build_classifier(flat(8), [(weight, bias)], spec), header)
    images, expected = evidence
    with pytest.raises(ParityError):
        prove(other, images, ["x"] * 5, expected, bound=0.1)


def test_a_file_with_other_preprocessing_is_not(flat, layer, spec, header, evidence):
    squeezed = PreprocessSpec(image_size=8, resize=8, mean=spec.mean, std=spec.std, crop="none")
    other = _load(build_classifier(flat(8), [layer], squeezed), header)
    images, expected = evidence
    with pytest.raises(ParityError):
        prove(other, images, ["x"] * 5, expected, bound=0.1)


def test_classes_in_another_order_are_noticed(flat, layer, spec, header, evidence):
    swapped = (np.ascontiguousarray(layer[0][::-1]), np.ascontiguousarray(layer[1][::-1]))
    other = _load(build_classifier(flat(8), [swapped], spec), header)
    images, expected = evidence
    with pytest.raises(ParityError):
        prove(other, images, ["x"] * 5, expected, bound=0.1)


@pytest.mark.real_data
def test_a_real_backbone_is_proven_on_photos_of_many_sizes(export, photos_of_insects):
    exported = export(("tiny", "default", None, None))
    images = [image for image, _ in photos_of_insects]
    assert len({image.shape for image in images}) > 3
    names = [str(i) for i in range(len(images))]
    proof = prove(exported.classifier, images, names, exported.logits(images), bound=0.01)
    assert proof.num_images == len(images)
    assert proof.max_difference <= 0.01


# Edge cases, other precisions, accuracy


def _edge_case(kind: str, image: int, logits: list[float]) -> EdgeCase:
    pixels = np.full((6, 6, 3), image, np.uint8)
    return EdgeCase(kind, f"image {image}", pixels, np.array(logits, np.float32))


def test_hard_images_are_held_to_five_times_the_bound():
    images = [np.full((5, 5, 3), i, np.uint8) for i in range(4)]
    names = [str(i) for i in range(4)]
    expected = np.array(RIGHT, np.float32)
    cases = [
        _edge_case("tiny", 0, [2.05, 1.0]),
        _edge_case("grey", 1, [0, 3]),
        _edge_case("grey", 2, [5, -5.02]),
    ]
    proof = prove(Answers(RIGHT), images, names, expected, bound=0.1, edge_cases=cases)  # type: ignore[arg-type]
    assert proof.hard == {
        "tiny": pytest.approx(0.05, abs=1e-6),
        "grey": pytest.approx(0.02, abs=1e-6),
    }
    cases[2] = _edge_case("grey", 2, [5, -5.52])
    with pytest.raises(ParityError, match=r"'image 2'.*for its grey version"):
        prove(Answers(RIGHT), images, names, expected, bound=0.1, edge_cases=cases)  # type: ignore[arg-type]


def test_without_a_bound_anything_finite_passes_and_is_recorded():
    far = np.array(RIGHT)[:, ::-1]
    proof = _prove(far, RIGHT, bound=None, resized=far)  # type: ignore[arg-type]
    assert proof.bound is None
    assert proof.top1_agreement == 0
    assert proof.max_difference == 10
    with pytest.raises(ParityError):
        _prove(far * np.nan, RIGHT, bound=None)  # type: ignore[arg-type]


LABELS = np.array([0, 1, 0, 1])


def test_accuracy_is_measured_next_to_the_heads():
    found = np.array(RIGHT)
    found[0] = [1, 2]
    accuracy = measure_accuracy(found, np.array(RIGHT), LABELS, num_available=9, details={})
    assert (accuracy.file, accuracy.head, accuracy.agreement) == (0.75, 1.0, 0.75)
    assert accuracy.drop == 25
    assert (accuracy.num_images, accuracy.num_available) == (4, 9)


@pytest.mark.parametrize(("max_drop", "passes"), [(25, True), (24.9, False), (0, False)])
def test_a_drop_beyond_what_is_allowed_is_refused(max_drop, passes):
    found = np.array(RIGHT)[[1, 1, 2, 3]]
    accuracy = measure_accuracy(found, np.array(RIGHT), LABELS, num_available=4, details={})
    proof = replace(_prove(RIGHT, RIGHT), accuracy=accuracy)
    if passes:
        require_accuracy(proof, max_drop=max_drop)
    else:
        with pytest.raises(ParityError, match=r"75\.00% of 4 .* the head 100\.00%.*max_drop"):
            require_accuracy(proof, max_drop=max_drop)


def test_a_file_that_is_better_than_its_head_passes():
    accuracy = measure_accuracy(
        np.array(RIGHT), np.array(RIGHT)[::-1], LABELS, num_available=4, details={}
    )
    require_accuracy(replace(_prove(RIGHT, RIGHT), accuracy=accuracy), max_drop=0)


def test_without_labels_other_classes_stand_for_a_drop():
    found = np.array(RIGHT)[[1, 1, 2, 3]]
    with pytest.raises(ParityError, match=r"gives 25\.00 % of 4 images another answer"):
        require_accuracy(_prove(found, RIGHT, bound=None), max_drop=1)  # type: ignore[arg-type]
    require_accuracy(_prove(RIGHT, RIGHT), max_drop=0)


def test_outputs_that_differ_from_those_that_were_proven(plain, header, classifier):
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    require_same_outputs(classifier, classifier, [image])
    other = onnx.ModelProto()
    other.CopyFrom(plain)
    bias = next(t for t in other.graph.initializer if t.name == "featx_head_0_bias")
    bias.raw_data = np.array([9, -9], np.float32).tobytes()
    with pytest.raises(ParityError, match=r"logits differ by .* from those that were proven"):
        require_same_outputs(_load(other, header), classifier, [image])
