"""Answers as tables, copies in folders, unknown images, and images that trained the model."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import featx_cli
from PIL import Image

import featx
from featx.classifier.prediction import (
    answer_cells,
    answer_columns,
    choose_unknown_below,
    class_cells,
)
from featx.cli.predict import copy_into_class, folder_name, with_unknown
from featx.errors import SourceError
from featx.heads.tasks import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from featx.stages.predict import Prediction


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two classes, the images that trained it, and others in ``new/``."""
    root = tmp_path_factory.mktemp("answers")
    generator = np.random.default_rng(0)
    for number in range(48):
        name = ("=ants", "bees")[number % 2]
        folder = root / ("photos" if number < 32 else "new") / name
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (32, 32, 3)) + 100 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    out = root / "artifacts"
    featx.extract(root / "photos", out / "f.h5", featx.ExtractOptions(backbone="tiny"))
    featx.train_head(out / "f.h5", out / "head.safetensors")
    assert featx_cli("export", out / "head.safetensors", "--onnx", out / "m.onnx").exit_code == 0
    return root


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_evaluate_writes_a_row_for_each_image(home, tmp_path):
    done = featx_cli(
        "evaluate", home / "artifacts" / "m.onnx", home / "new", "--csv", tmp_path / "e"
    )
    assert done.exit_code == 0, done.output
    table = rows(tmp_path / "e")
    assert len(table) == 16
    assert list(table[0]) == [
        *("image", "split", "label", "prediction", "probability", "margin", "next_best")
    ]
    assert {row["label"] for row in table} == {"'=ants", "bees"}  # no formula to a spreadsheet
    assert {row["split"] for row in table} == {"all"}  # other images than those of training
    for row in table:
        assert float(row["margin"]) == pytest.approx(2 * float(row["probability"]) - 1, abs=2e-6)


def test_predict_writes_the_same_answers_and_the_errors(home, tmp_path):
    shutil.copytree(home / "new", tmp_path / "new")
    (tmp_path / "new" / "bad.png").write_bytes(b"")
    model = home / "artifacts" / "m.onnx"
    done = featx_cli("predict", model, tmp_path / "new", "-k", "1", "--csv", tmp_path / "p")
    assert done.exit_code == 1
    assert "2nd" not in done.stdout  # -k 1 stays, though the table has the next best
    table = rows(tmp_path / "p")
    assert len(table) == 17
    (bad,) = [row for row in table if row["error"]]
    assert bad["image"].endswith("bad.png")
    assert bad["prediction"] == ""
    featx_cli("evaluate", model, home / "new", "--csv", tmp_path / "e")
    scored = sorted((row["prediction"], row["probability"]) for row in rows(tmp_path / "e"))
    assert scored == sorted(
        (row["prediction"], row["probability"]) for row in table if not row["error"]
    )


def test_images_are_copied_into_folders_of_classes_once(home, tmp_path):
    command = ("predict", home / "artifacts" / "m.onnx", home / "new", "--copy-to", tmp_path / "s")
    for _ in range(2):
        assert featx_cli(*command).exit_code == 0
    copied = sorted(path.relative_to(tmp_path / "s") for path in (tmp_path / "s").rglob("*.png"))
    assert len(copied) == 16
    assert {path.parent.name for path in copied} <= {"=ants", "bees"}


def test_images_below_a_probability_are_unknown(home, tmp_path):
    command = ("predict", home / "artifacts" / "m.onnx", home / "new", "--unknown-below", "1")
    done = featx_cli(*command, "--csv", tmp_path / "p", "--copy-to", tmp_path / "s")
    assert done.exit_code == 0, done.output
    assert {row["prediction"] for row in rows(tmp_path / "p")} == {"unknown"}
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["unknown"]
    assert done.stdout.count("unknown ") == 16


def test_evaluate_knows_whether_images_trained_the_model(home, tmp_path):
    model = home / "artifacts" / "m.onnx"
    assert featx_cli("evaluate", model, home / "new").stderr == ""
    shutil.copytree(home / "new", tmp_path / "mixed")
    for path in sorted((home / "photos" / "bees").iterdir())[:4]:
        shutil.copy(path, tmp_path / "mixed" / "bees" / f"again-{path.name}")
    assert "trained the model" in featx_cli("evaluate", model, tmp_path / "mixed").stderr
    alone = shutil.copy(model, tmp_path / "m.onnx")  # without head and features, it is not known
    assert "may be among these" in featx_cli("evaluate", alone, home / "new").stderr
    (features,) = (home / "artifacts").glob("*.h5")
    shutil.copy(features, tmp_path / "any.h5")  # as where another head replaced its own
    assert featx_cli("evaluate", alone, home / "new").stderr == ""
    assert "3 images trained the model" in featx_cli("evaluate", alone, tmp_path / "mixed").stderr


def test_unknown_keeps_the_best_class_as_the_next_one():
    sure = Prediction("a.png", (("ants", 0.9), ("bees", 0.1)))
    assert with_unknown(sure, 0.9) is sure
    assert with_unknown(sure, None) is sure
    unsure = with_unknown(sure, 0.95)
    assert unsure.label == "unknown"
    assert unsure.top == (("unknown", 0.9), ("ants", 0.9), ("bees", 0.1))
    assert with_unknown(Prediction("b.png", (), error="empty"), 0.5).label is None


def test_copies_of_one_name_get_numbers_and_nothing_is_replaced(tmp_path):
    for folder, content in (("a", b"one"), ("b", b"two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(content)
    first, second, again = (
        copy_into_class(str(tmp_path / folder / "1.jpg"), "x", tmp_path / "out") for folder in "aba"
    )
    assert (first.name, second.name, again) == ("1.jpg", "1-2.jpg", first)
    assert second.read_bytes() == b"two"
    with pytest.raises(SourceError, match="not a file of its own"):
        copy_into_class("photos.zip/1.jpg", "x", tmp_path / "out")


@pytest.mark.parametrize(
    "label", ["..", ".", "a/b", "../../etc", "\\\\host\\x", "", "\x00", "...", "a."]
)
def test_a_class_is_one_folder_below_the_target(label, tmp_path):
    name = folder_name(label)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    (tmp_path / name).mkdir()


def test_cells_of_every_task_match_the_columns():
    logits = np.array([[2.0, -1.0, 0.5], [-3.0, -3.0, -3.0]])
    for task in (SINGLE_LABEL, MULTI_LABEL, REGRESSION):
        columns = answer_columns(task, ("a", "b", "c"))
        assert {len(row) for row in answer_cells(task, ("a", "b", "c"), logits)} == {len(columns)}
    tags = answer_cells(MULTI_LABEL, ("a", "b", "c"), logits, (0.5, 0.5, 0.7))
    assert [row[0] for row in tags] == ["a", "|"]
    assert answer_cells(REGRESSION, ("a", "b", "c"), logits)[1] == ["-3"] * 3
    assert class_cells([("only", 1.0)]) == ["only", "1.000000", "", ""]


def test_the_limit_keeps_19_in_20_right_answers_whatever_the_wrong_ones():
    top = np.linspace(0.6, 0.99, 100)
    logits = np.log(np.stack([top, 1 - top], axis=1))
    labels = np.zeros(100, np.int64)
    chosen = choose_unknown_below(logits, labels)
    assert chosen is not None
    assert (top >= chosen).mean() == pytest.approx(0.95, abs=0.011)
    wrong = np.concatenate([labels, np.ones(50, np.int64)])
    assert choose_unknown_below(np.concatenate([logits, logits[:50]]), wrong) == chosen
    assert choose_unknown_below(logits[:19], labels[:19]) is None


def test_auto_takes_the_limit_that_export_kept(home, tmp_path):
    command = ("predict", home / "artifacts" / "m.onnx", home / "new", "--unknown-below", "auto")
    refused = featx_cli(*command)
    assert refused.exit_code == 2
    assert "fewer than 20 held-out images" in refused.stderr  # there are 6
    assert featx_cli(*command[:-1], "2").exit_code == 2
    shutil.copytree(home / "photos", tmp_path / "photos" / "train")
    for image in (home / "photos").rglob("*.png"):
        pixels = np.asarray(Image.open(image)).copy()
        pixels[0, 0] ^= 1  # another content, the same answer
        target = tmp_path / "photos" / "val" / image.parent.name / image.name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    features, head, model = (tmp_path / name for name in ("f.h5", "h.safetensors", "m.onnx"))
    featx.extract(tmp_path / "photos", features, featx.ExtractOptions(backbone="tiny"))
    featx.train_head(features, head)
    assert featx_cli("export", head, "--onnx", model).exit_code == 0
    chosen = featx.Predictor(model).unknown_below
    assert chosen is not None
    assert 0.5 < chosen <= 1
    done = featx_cli("predict", model, home / "new", "--unknown-below", "auto", "--format", "jsonl")
    assert done.exit_code == 0, done.output
    for line in done.stdout.splitlines():
        best, *_ = json.loads(line)["top"]
        assert (best["label"] == "unknown") == (best["probability"] < chosen)
