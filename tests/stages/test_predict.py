"""Predicting: one answer for every way to give an image."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featx.errors import ArtifactMissing, ConfigError, ImageError
from featx.stages.export import export_onnx
from featx.stages.extract import ExtractOptions, extract
from featx.stages.predict import Prediction, Predictor, find_images
from featx.stages.train import train_head


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of the ten digits."""
    out = tmp_path_factory.mktemp("model")
    extract("digits:", out / "f.h5", ExtractOptions(backbone="tiny"))
    train_head(out / "f.h5", out / "h.safetensors")
    export_onnx(out / "h.safetensors", out / "m.onnx")
    return out / "m.onnx"


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor(model)


def test_every_way_to_give_an_image_gives_the_same_answer(
    predictor: Predictor, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        answers = predictor.predict([path, str(path), path.read_bytes(), image, pixels])
    assert len({answer.top for answer in answers}) == 1
    assert [answer.image for answer in answers] == [
        *(str(path), str(path), "image 2", "image 3", "image 4")
    ]


def test_probabilities_are_sorted_and_sum_to_one(predictor: Predictor) -> None:
    pixels = np.full((9, 9, 3), 128, np.uint8)
    (prediction,) = predictor.predict([pixels], top_k=100)
    probabilities = [p for _, p in prediction.top]
    assert len(probabilities) == 10
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert prediction.label == prediction.top[0][0]
    assert prediction.probability == probabilities[0]


def test_top_k_limits_the_classes(predictor: Predictor) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    (prediction,) = predictor.predict([pixels], top_k=2)
    assert len(prediction.top) == 2
    with pytest.raises(ConfigError, match="top_k must be at least 1"):
        predictor.predict([pixels], top_k=0)


def test_exif_rotation_is_applied(predictor: Predictor) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 36, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(turned, "PNG", exif=exif)
    a, b = predictor.predict([pixels, turned.getvalue()], top_k=10)
    assert a.top == b.top


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (b"not an image", ImageError, "image 0.*not an image"),
        ("missing.jpg", ImageError, "missing.jpg.*cannot be read"),
        (np.zeros((5, 5), np.uint8), ConfigError, r"\(height, width, 3\) uint8"),
        (np.zeros((5, 5, 3), np.float32), ConfigError, "float32"),
        (np.zeros((0, 5, 3), np.uint8), ConfigError, "image 0"),
        (np.zeros((2, 500, 3), np.uint8), ImageError, "too narrow"),
        (12, ConfigError, "expected a path"),
    ],
)
def test_what_is_no_image(
    predictor: Predictor, image: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        predictor.predict([image])  # type: ignore[list-item]


def test_one_image_without_brackets_is_explained(predictor: Predictor) -> None:
    with pytest.raises(ConfigError, match="brackets"):
        predictor.predict("holiday.jpg")


def test_predict_each_goes_on_after_a_bad_image(predictor: Predictor) -> None:
    good = np.zeros((8, 8, 3), np.uint8)
    answers = list(predictor.predict_each([good, b"bad", good]))
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert answers[1] == Prediction("image 1", (), answers[1].error)
    assert answers[1].label is None
    assert answers[1].probability is None


def test_predict_each_reads_images_one_by_one(predictor: Predictor) -> None:
    asked: list[int] = []

    def images() -> object:
        for i in range(3):
            asked.append(i)
            yield np.zeros((8, 8, 3), np.uint8)

    stream = predictor.predict_each(images())  # type: ignore[arg-type]
    next(stream)
    assert asked == [0]


def test_a_missing_model_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match="featx export --onnx"):
        Predictor(tmp_path / "model.onnx")


def test_folders_stand_for_their_images(photos: Callable[..., Path]) -> None:
    root = photos({"ants": 2, "bees": 1})
    (root / "notes.txt").write_text("no image")
    found = find_images([root, root / "bees" / "000.jpg"])
    assert [path.relative_to(root).as_posix() for path in found] == [
        *("ants/000.jpg", "ants/001.jpg", "bees/000.jpg", "bees/000.jpg")
    ]
    assert find_images([root / "none.jpg"]) == [
        root / "none.jpg"
    ]  # reading it says that it is gone
