"""Predicting: one answer for every way to give an image."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from featx.cli import main
from featx.errors import ArtifactMissing, ConfigError, ImageError
from featx.images.decode import MAX_PIXELS
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


def test_every_bad_image_has_its_line(predictor: Predictor, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    Image.new("RGB", (90, 90)).save(folder / "good.jpg")
    (folder / "cut.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-30])
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "empty.jpg").touch()
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    names = [*find_images([folder]), "x" * 300 + ".jpg", "a\0.jpg", str(tmp_path / "gone.jpg")]
    answers = list(predictor.predict_each(names))
    assert [answer.image for answer in answers] == [str(name) for name in names]
    reasons = {Path(answer.image).name: answer.error for answer in answers}
    assert reasons.pop("good.jpg") is None
    assert len(reasons) == 9
    assert "truncated" in str(reasons["cut.jpg"])
    assert reasons["dangling.jpg"] == "cannot be read: No such file or directory."
    assert reasons["empty.jpg"] == "the file is empty."
    assert "Too many levels" in str(reasons["loop.jpg"])
    assert reasons["pipe.jpg"] == reasons["zero.jpg"] == "not a regular file."
    assert "File name too long" in str(reasons["x" * 300 + ".jpg"])


def test_paths_that_cannot_be_looked_up_are_bad_images_not_crashes() -> None:
    names = ["x" * 300, "a\0b", "no/such.jpg"]
    assert find_images(names) == [Path(name) for name in names]


def test_larger_images_can_be_refused(model: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    images = [pixels, Image.fromarray(pixels), buffer.getvalue()]
    for answer in Predictor(model, max_pixels=599).predict_each(images):
        assert answer.error == "30×20 pixels is more than the 599 allowed."
    for answer in Predictor(model, max_pixels=600).predict_each(images):
        assert answer.error is None
    with pytest.raises(ConfigError, match="max pixels must be 1 to"):
        Predictor(model, max_pixels=0)


def test_pixels_need_not_lie_in_order(predictor: Predictor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    views = [pixels[::-1, :, ::-1], pixels.transpose(1, 0, 2), pixels[::2, 1:]]
    for answer, copied in zip(
        predictor.predict(views), predictor.predict([view.copy() for view in views]), strict=True
    ):
        assert answer.top == copied.top


class TestCommand:
    def test_bad_images_have_a_line_each_and_fail_at_the_end(
        self, model: Path, tmp_path: Path
    ) -> None:
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"broken")
        command = ["predict", str(model), str(tmp_path), "--format", "csv", "-k", "1"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [bool(row["error"]) for row in rows] == [False, True]
        assert "1 of 2 images could not be used" in result.stderr
        result = CliRunner().invoke(main, [*command, "--max-pixels", "80"])
        assert "9×9 pixels is more than the 80 allowed." in result.stdout

    def test_a_name_that_is_not_utf8_comes_out_as_its_bytes(
        self, model: Path, tmp_path: Path
    ) -> None:
        Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
        odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
        os.rename(tmp_path / "a.png", odd)  # noqa: PTH104 a Path has no bytes
        result = CliRunner().invoke(main, ["predict", str(model), str(tmp_path), "--format", "csv"])
        assert result.exit_code == 0
        assert odd in result.stdout_bytes

    def test_the_limit_shown_is_the_librarys(self) -> None:
        for command in ("predict", "evaluate"):
            shown = CliRunner().invoke(main, [command, "--help"]).stdout
            assert f"[default: {MAX_PIXELS}]" in " ".join(shown.split())


class TestManyImages:
    @pytest.fixture
    def images(self, photos: Callable[..., Path]) -> list[Path]:
        """Images of many sizes, and runs of one size."""
        folder = photos({"ants": 9, "bees": 8})
        same = sorted((folder / "bees").iterdir())
        for path in same:
            with Image.open(path) as image:
                image.resize((40, 30)).save(path)
        return sorted((folder / "ants").iterdir()) + same

    def test_a_list_and_a_generator_answer_alike(
        self, predictor: Predictor, images: list[Path]
    ) -> None:
        at_once = list(predictor.predict_each(images))
        one_by_one = list(predictor.predict_each(path for path in images))
        assert [p.image for p in at_once] == list(map(str, images))
        for a, b in zip(at_once, one_by_one, strict=True):
            assert [label for label, _ in a.top] == [label for label, _ in b.top]
            assert np.allclose([p for _, p in a.top], [p for _, p in b.top], atol=1e-5)

    def test_neighbours_of_one_size_are_run_together(
        self, predictor: Predictor, images: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sizes = []
        run = predictor._classifier.run

        def count(batch: np.ndarray) -> object:
            sizes.append(len(batch))
            return run(batch)

        monkeypatch.setattr(predictor._classifier, "run", count)
        predictor.predict(images)
        assert sizes[-1] == 8
        assert sum(sizes) == len(images)

    def test_a_bad_image_among_them_keeps_its_place(
        self, predictor: Predictor, images: list[Path]
    ) -> None:
        images[12].write_bytes(b"no image")
        answers = list(predictor.predict_each(images))
        assert [i for i, answer in enumerate(answers) if answer.error] == [12]
        assert [answer.image for answer in answers] == list(map(str, images))

    def test_a_batch_holds_a_bounded_number_of_bytes(
        self, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("featx.stages.predict._MAX_BATCH_BYTES", 3 * 50 * 50 * 3)
        sizes, run = [], predictor._classifier.run
        monkeypatch.setattr(
            predictor._classifier, "run", lambda batch: sizes.append(len(batch)) or run(batch)
        )
        predictor.predict([np.zeros((50, 50, 3), np.uint8)] * 10)
        assert sizes == [3, 3, 3, 1]
