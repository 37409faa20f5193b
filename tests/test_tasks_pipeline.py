"""The whole way with tags and with numbers: a manifest of digits, and what is true of them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.datasets import load_digits

import featx
from featx.cli import main
from featx.heads.tasks.losses import sigmoid
from featx.heads.tasks.multi_label import EVEN

COUNT = 240


def tags_of(digit: int) -> str:
    tags = {"even": digit % 2 == 0, "big": digit >= 5, "round": digit in (0, 6, 8, 9)}
    return "|".join(name for name, there in tags.items() if there) or "|"


class Way:
    """All files of one task, made once."""

    def __init__(self, root: Path, task: str, label: Callable[[int, np.ndarray], str]) -> None:
        self.task, self.root = task, root
        digits = load_digits()
        rows = np.random.default_rng(0).permutation(len(digits.target))[:COUNT]
        self.table = root / "images.csv"
        lines = ["path,label,split"]
        for number, row in enumerate(rows):
            pixels = (digits.images[row] * 255 / 16).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(root / f"{number}.png")
            text = "" if number == 3 else label(int(digits.target[row]), digits.images[row])
            lines.append(f"{number}.png,{text},{('train', 'train', 'val')[number % 3]}")
        self.table.write_text("\n".join(lines))
        self.features, self.head = root / "f.h5", root / "h.safetensors"
        self.model, self.card = root / "m.onnx", root / "card.md"
        featx.extract(self.table, self.features, featx.ExtractOptions(backbone="tiny"))
        options = featx.TrainOptions(task=task)  # type: ignore[arg-type]
        self.trained = featx.train_head(self.features, self.head, options)
        self.exported = featx.export_onnx(
            self.head, self.model, featx.ExportOptions(card=self.card)
        )
        self.images = [root / f"{number}.png" for number in range(2, COUNT, 21)]

    def run(self, *arguments: object) -> str:
        result = CliRunner().invoke(main, [*map(str, arguments)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    def outputs(self) -> np.ndarray:
        """What the head says of the images, from cached features."""
        cache = featx.open_features(self.features)
        rows = [cache.sample_ids.index(path.name) for path in self.images]
        return featx.open_head(self.head).logits(cache.features[rows]).astype(np.float64)


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return Way(tmp_path_factory.mktemp("tags"), "multi-label", lambda digit, _: tags_of(digit))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Way:
    return Way(
        tmp_path_factory.mktemp("numbers"),
        "regression",
        lambda digit, image: f"{digit}|{1000 * image.mean():.2f}",
    )


@pytest.fixture(params=["tagged", "measured"])
def way(request: pytest.FixtureRequest) -> Way:
    way: Way = request.getfixturevalue(request.param)
    return way


def test_extraction_is_quiet_about_tags_and_numbers(way, tmp_path, caplog):
    featx.extract(way.table, tmp_path / "f.h5", featx.ExtractOptions(backbone="tiny"))
    assert "class" not in caplog.text


def test_evaluate_repeats_the_heads_scores(way):
    report = featx.evaluate(way.model, way.table)
    for split, scores in way.trained.metrics.items():
        found = report.metrics[split].to_dict()
        for name, value in scores.to_dict().items():
            if isinstance(value, float) and name not in ("ece",):
                assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
        assert found["num_samples"] == scores.num_samples
    assert sum(scores.num_samples for scores in report.metrics.values()) == COUNT - 1
    assert report.classes == featx.open_head(way.head).classes


def test_the_proof_is_of_the_task(way):
    proof = way.exported.header.details["proof"]
    assert proof["task"] == way.task
    assert proof["top1_agreement"] == pytest.approx(1, abs=1e-6)
    assert 0 <= proof["max_difference"] < proof["bound"]
    accuracy = proof["accuracy"]
    assert accuracy["file"] == pytest.approx(accuracy["head"], abs=1e-3)
    scores = way.trained.metrics["val"].to_dict()
    expected = scores["exact"] if way.task == "multi-label" else scores["r2"]
    assert accuracy["head"] == pytest.approx(expected, abs=1e-5)


def test_a_reader_without_featx_finds_what_it_needs(way):
    session = onnxruntime.InferenceSession(way.model, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    names, expected = json.loads(metadata["classes"]), way.outputs()
    assert metadata["task"] == way.task
    pixels = [np.asarray(Image.open(path).convert("RGB"))[None] for path in way.images]
    if way.task == "regression":
        assert [output.name for output in session.get_outputs()] == ["values"]
        assert "in the unit of the labels" in metadata["contract"]
        assert names == ["value_1", "value_2"]
        found = np.concatenate([session.run(None, {"image": image})[0] for image in pixels])
        assert np.allclose(found, expected, rtol=1e-2)
        return
    assert [output.name for output in session.get_outputs()] == ["logits", "probabilities"]
    assert "sigmoid of the logits" in metadata["contract"]
    assert json.loads(metadata["thresholds"]) == list(featx.open_head(way.head).thresholds)
    found = np.concatenate([session.run(None, {"image": image})[1] for image in pixels])
    assert np.allclose(found, sigmoid(expected), atol=1e-3)
    assert names == ["big", "even", "round"]


def test_no_softmax_is_left(way):
    operators = [node.op_type for node in onnx.load(way.model).graph.node]
    assert "Softmax" not in operators
    assert operators.count("Sigmoid") == (way.task == "multi-label")


def test_predictions_of_tags_are_those_above_their_threshold(tagged):
    head, expected = featx.open_head(tagged.head), sigmoid(tagged.outputs())
    predictor = featx.Predictor(tagged.model)
    assert predictor.task == "multi-label"
    for top_k in (1, 3):
        for row, prediction in zip(
            expected, predictor.predict(tagged.images, top_k=top_k), strict=True
        ):
            each = zip(head.classes, row, head.thresholds, strict=True)
            given = [name for name, p, threshold in each if p >= threshold]
            assert list(prediction.tags or ()) == given
            assert prediction.label == ("|".join(given) or "|")
            assert prediction.probability is None
            assert [p for _, p in prediction.top] == pytest.approx(
                sorted(row, reverse=True)[:top_k], abs=1e-3
            )


def test_predictions_of_numbers_are_the_heads(measured):
    expected = measured.outputs()
    predictor = featx.Predictor(measured.model)
    for row, prediction in zip(expected, predictor.predict(measured.images), strict=True):
        assert [name for name, _ in prediction.values] == ["value_1", "value_2"]
        assert [value for _, value in prediction.values] == pytest.approx(row, rel=1e-3)
        assert (prediction.top, prediction.tags, prediction.label) == ((), None, None)


def test_predict_prints_what_the_task_has(way):
    images = way.images[:3]
    expected = featx.Predictor(way.model).predict(images, top_k=3)
    table = way.run("predict", way.model, *images)
    lines = way.run("predict", way.model, *images, "--format", "csv").splitlines()
    rows = list(csv.DictReader(lines))
    found: list[dict[str, Any]] = json.loads(
        way.run("predict", way.model, *images, "--format", "json")
    )
    for row, values, prediction in zip(rows, found, expected, strict=True):
        assert row["image"] == values["image"] == prediction.image
        assert (row["error"], values["error"]) == ("", None)
        if way.task == "multi-label":
            assert values["tags"] == list(prediction.tags or ())
            assert row["label"] == values["label"] == prediction.label
            assert {name: float(row[f"p({name})"]) for name, _ in prediction.top} == {
                name: pytest.approx(p, abs=1e-6) for name, p in prediction.top
            }
        else:
            assert values["values"] == dict(prediction.values)
            for name, value in prediction.values:
                assert float(row[name]) == pytest.approx(value)
    assert ("tags" if way.task == "multi-label" else "value_1") in table.splitlines()[0]


def test_check_info_card_and_report_speak_of_the_task(way):
    is_tags = way.task == "multi-label"
    text = way.run("check", way.model, way.table)
    assert "holds: same tags" in text if is_tags else "holds: same values" in text
    text = way.run("info", way.model)
    assert ("tags  " if is_tags else "targets  ") in text
    assert ("mAP" if is_tags else "RMSE") in text
    card = way.card.read_text()
    assert ("3 tags that do not exclude each other" if is_tags else "2 numbers") in card
    assert ("mAP" if is_tags else "MAE") in card
    page = way.root / "report.html"
    featx.write_report(way.head, page, featx.ReportOptions(num_mistakes=3, overwrite=True))
    html = page.read_text()
    assert ("Most confident mistakes" if is_tags else "Largest errors") in html
    assert html.count("<figure>") == (2 if is_tags else 3)
    assert html.count("data:image/jpeg") == 6  # of the split, and of training images
    for unwanted in ("taken for", "nan<", "Confusion"):
        assert unwanted not in html


def test_compare_ranks_by_the_task(way, tmp_path):
    other = tmp_path / "small.h5"
    shutil.copy(way.features, other)
    text = way.run("compare", way.features, other, "--task", way.task)
    assert ("mAP" if way.task == "multi-label" else "MAE") in text


@pytest.mark.parametrize("outputs", ["probabilities", "top-2", "features,logits"])
def test_tags_with_other_outputs(tagged, tmp_path, outputs):
    model = tmp_path / "m.onnx"
    options = featx.ExportOptions(outputs=[outputs], verify=outputs == "probabilities")
    featx.export_onnx(tagged.head, model, options)
    found = featx.Predictor(model).predict(tagged.images[:4], top_k=2)
    whole = featx.Predictor(tagged.model).predict(tagged.images[:4], top_k=2)
    for one, other in zip(found, whole, strict=True):
        assert [tag for tag, _ in one.top] == [tag for tag, _ in other.top]
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-5)
        if outputs != "top-2":
            assert one.tags == other.tags
    if outputs == "probabilities":  # which give the logits, too
        found_, whole_ = (featx.evaluate(path, tagged.table) for path in (model, tagged.model))
        for split, scores in whole_.metrics.items():
            assert found_.metrics[split].log_loss == pytest.approx(scores.log_loss, abs=1e-3)
            assert found_.metrics[split].exact == scores.exact


def test_outputs_that_a_task_does_not_have(way, tmp_path):
    outputs = "values" if way.task == "multi-label" else "top-1"
    with pytest.raises(featx.errors.ConfigError, match=f"{way.task} has no output '{outputs}'"):
        featx.export_onnx(way.head, tmp_path / "m", featx.ExportOptions(outputs=[outputs]))
    assert not (tmp_path / "m").exists()


def test_labels_that_the_model_does_not_know(way, tmp_path):
    table = tmp_path / "images.csv"
    label = "even|red" if way.task == "multi-label" else "tall"
    table.write_text(f"path,label\n{way.images[0]},{label}\n")
    with pytest.raises(featx.errors.SourceError, match=r"red|tall"):
        featx.evaluate(way.model, table)


def test_a_threshold_that_is_not_even_is_used(tagged):
    assert any(threshold != EVEN for threshold in featx.open_head(tagged.head).thresholds)
