"""Tags and numbers through the stages: what is trained is what is stored, scored and shown."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from caches import write_labels

from featx.errors import ArtifactInvalid, ArtifactMismatch, ConfigError, SourceError
from featx.features.file import FeatureFile, open_features
from featx.heads.head import apply_layers, open_head, save_head
from featx.heads.samples.selection import FewShot
from featx.heads.solvers.mlp import MLPOptions
from featx.heads.tasks import TASKS
from featx.heads.tasks.multi_label import EVEN, given_tags, measure_tags
from featx.heads.tasks.regression import measure_values
from featx.heads.tasks.scores import MultiLabelMetrics, RegressionMetrics
from featx.stages.report import ReportOptions, write_report
from featx.stages.train import train_head
from featx.training.options import TrainOptions

WriteLabels = Callable[..., Path]
MLP = MLPOptions(hidden=(16,), max_epochs=20, learning_rate=1e-2, batch_size=16)


@pytest.fixture
def write(tmp_path: Path) -> WriteLabels:
    """Return a function that caches features with labels as they stand in a manifest."""
    return lambda features, labels, splits, name="f.h5": write_labels(
        tmp_path / name, features, labels, splits
    )


def samples(count: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, two scores that depend on them, and splits."""
    random = np.random.default_rng(seed)
    features = random.normal(2, 3, (count, 8)).astype(np.float32)
    scores = features @ np.random.default_rng(7).normal(size=(8, 2))
    scores = (scores - scores.mean(0)) / scores.std(0) + 0.2 * random.normal(size=(count, 2))
    return features, scores, random.choice(3, count, p=[0.6, 0.2, 0.2])


@pytest.fixture
def tags(write: WriteLabels) -> Path:
    """Samples with the tags hot and wet, both, none ("|"), or unlabelled."""
    features, scores, splits = samples()
    texts = [
        " | ".join(name for name, there in zip(("wet", "hot"), row > 0.3, strict=True) if there)
        or "|"
        for row in scores
    ]
    texts[5] = texts[70] = ""
    return write(features, texts, splits)


@pytest.fixture
def numbers(write: WriteLabels) -> Path:
    features, scores, splits = samples()
    texts = [f"{1000 * a + 5000:.3f}|{b / 1000:.6f}" for a, b in scores]
    texts[5] = ""
    return write(features, texts, splits)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "h.safetensors"


def names_of(cache: FeatureFile, rows: np.ndarray) -> list[str]:
    return [cache.classes[label] for label in cache.labels[rows]]


class TestTags:
    def test_labels_with_a_separator_are_tags(self, tags, output):
        report = train_head(tags, output)
        head = open_head(output)
        assert head.task == "multi-label"
        assert head.classes == ("hot", "wet")
        assert len(head.thresholds) == 2
        assert all(0 < threshold < 1 for threshold in head.thresholds)
        scores = report.metrics["test"]
        assert isinstance(scores, MultiLabelMetrics)
        assert scores.mean_average_precision is not None
        assert scores.mean_average_precision > 0.9
        stored = head.header.details["metrics"]["test"]
        assert TASKS[head.task].scores_from_dict(stored) == scores

    def test_the_scores_are_those_of_the_stored_head(self, tags, output):
        report = train_head(tags, output)
        cache, head = open_features(tags), open_head(output)
        rows = cache.rows("val")
        rows = rows[cache.labels[rows] >= 0]
        truth = np.array([[tag in name for tag in head.classes] for name in names_of(cache, rows)])
        logits = apply_layers(head.layers, cache.features[rows])
        assert report.metrics["val"] == measure_tags(logits, truth, head.thresholds)

    def test_validation_and_test_labels_train_nothing(self, write, tmp_path):
        features, scores, splits = samples()
        heads = []
        for name, shift in (("a", 0), ("b", 1)):
            texts = ["hot|wet" if row > 0 else "hot" if row > -1 else "|" for row in scores[:, 0]]
            kept = np.flatnonzero(splits > 0)
            for row, other in zip(kept, np.roll(kept, shift), strict=True):
                texts[row] = texts[other]
            path = write(features, texts, splits, f"{name}.h5")
            heads.append(train_head(path, tmp_path / name).head)
        assert heads[0].thresholds == heads[1].thresholds
        assert all(
            np.array_equal(a, b)
            for one, other in zip(heads[0].layers, heads[1].layers, strict=True)
            for a, b in zip(one, other, strict=True)
        )

    def test_unlabelled_samples_are_left_out_and_counted(self, tags, output, caplog):
        cache = open_features(tags)
        missing = int((cache.labels[cache.rows("train")] < 0).sum())
        with caplog.at_level(logging.WARNING, logger="featx"):
            report = train_head(tags, output)
        assert f"{missing} training images have no label: left out." in caplog.text
        assert report.metrics["train"].num_samples == len(cache.rows("train")) - missing

    @pytest.mark.parametrize("head", ["linear", "mlp"])
    def test_tags_that_never_or_always_occur(self, write, output, caplog, head):
        features, scores, splits = samples()
        texts = ["all|" + ("hot" if score > 0 else "") for score in scores[:, 0]]
        texts[int(np.flatnonzero(splits == 2)[0])] = "late|all"
        texts[int(np.flatnonzero(splits == 0)[0])] = "all|hot|once"
        path = write(features, texts, splits)
        options = TrainOptions(head=head, mlp=MLP)  # type: ignore[arg-type]
        with caplog.at_level(logging.WARNING, logger="featx"):
            train_head(path, output, options)
        assert "No training images have 'late': never predicted." in caplog.text
        assert "All training images have 'all': always predicted." in caplog.text
        assert "One training image alone has 'once': learned, but never held out." in caplog.text
        found = open_head(output)
        assert found.classes == ("all", "hot", "late", "once")
        assert found.thresholds[0] == found.thresholds[2] == EVEN
        logits = found.logits(features)
        count = int((splits == 0).sum())
        assert np.allclose(logits[:, 0], np.log(count + 1))
        assert np.allclose(logits[:, 2], -np.log(count + 1))

    @pytest.mark.parametrize("texts", [["a|b", "a|b"], ["|", "|"], ["a", "a|"]])
    def test_nothing_to_tell_apart(self, write, output, texts):
        features = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
        path = write(features, 5 * texts, np.zeros(10))
        with pytest.raises(SourceError, match="no tag that some training images have"):
            train_head(path, output, TrainOptions(task="multi-label"))
        assert not output.exists()

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_a_handful_of_samples(self, write, output, count):
        features = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
        texts = ["a|b", "|", "b", "a", "b"][:count]
        path = write(features, texts, np.zeros(count))
        for head in ("linear", "mlp"):
            options = TrainOptions(head=head, mlp=MLP, overwrite=True)  # type: ignore[arg-type]
            report = train_head(path, output, options)
            assert np.isfinite(report.metrics["train"].log_loss)

    def test_single_tags_are_tags_when_asked(self, write, output):
        features, scores, splits = samples()
        path = write(features, ["hot" if s > 0 else "cold" for s in scores[:, 0]], splits)
        assert train_head(path, output).head.task == "single-label"
        options = TrainOptions(task="multi-label", overwrite=True)
        assert train_head(path, output, options).head.task == "multi-label"

    def test_tags_can_be_read_as_one_class_when_asked(self, tags, output):
        head = train_head(tags, output, TrainOptions(task="single-label")).head
        assert head.classes == open_features(tags).classes
        assert head.task == "single-label"

    def test_calibration_is_folded_in_and_can_be_left_out(self, tags, output):
        calibrated = train_head(tags, output)
        plain = train_head(tags, output, TrainOptions(calibrate=False, overwrite=True))
        assert calibrated.calibration is not None
        assert plain.calibration is None
        temperature = calibrated.calibration.temperature
        assert np.allclose(
            calibrated.head.layers[0][0] * temperature, plain.head.layers[0][0], rtol=1e-5
        )
        assert plain.head.thresholds != (EVEN, EVEN)


class TestNumbers:
    OPTIONS = TrainOptions(task="regression")

    @pytest.mark.parametrize("head", ["linear", "mlp"])
    def test_values_come_in_the_unit_of_the_labels(self, numbers, output, head):
        options = TrainOptions(task="regression", head=head, mlp=MLP)  # type: ignore[arg-type]
        report = train_head(numbers, output, options)
        found, cache = open_head(output), open_features(numbers)
        assert found.task == "regression"
        assert found.classes == ("value_1", "value_2")
        scores = report.metrics["test"]
        assert isinstance(scores, RegressionMetrics)
        assert scores.r2 is not None
        assert scores.r2 > 0.8
        rows = cache.rows("test")
        rows = rows[cache.labels[rows] >= 0]
        truth = np.array(
            [list(map(float, cache.classes[cache.labels[r]].split("|"))) for r in rows]
        )
        values = found.logits(cache.features[rows])
        assert scores == measure_values(values, truth)
        assert np.abs(values.mean(axis=0) / truth.mean(axis=0))[0] == pytest.approx(1, abs=0.1)

    def test_ridge_is_the_default_and_exact(self, numbers, output):
        from sklearn.linear_model import Ridge

        options = TrainOptions(task="regression", strengths=(0.1,))
        report = train_head(numbers, output, options)
        assert report.choice["solver"] == "ridge"
        cache = open_features(numbers)
        rows = cache.rows("train")
        rows = rows[cache.labels[rows] >= 0]
        x = cache.features[rows]
        usual = np.sort(x.std(0))[(x.shape[1] - 1) // 2]  # of five more samples
        x = (x - x.mean(0)) / np.sqrt((len(x) * x.var(0) + 5 * usual**2) / (len(x) + 5))
        truth = np.array(
            [list(map(float, cache.classes[cache.labels[r]].split("|"))) for r in rows]
        )
        expected = Ridge(alpha=10).fit(x, truth).predict(x)
        found = report.head.logits(cache.features[rows])
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max(0))

    @pytest.mark.parametrize("factor", [1e-6, 1e6])
    def test_the_unit_of_a_target_does_not_matter(self, write, tmp_path, factor):
        features, scores, splits = samples()
        heads = []
        for name, unit in (("a", 1.0), ("b", factor)):
            texts = [f"{unit * score!r}" for score in scores[:, 0].tolist()]
            path = write(features, texts, splits, f"{name}.h5")
            heads.append(train_head(path, tmp_path / name, self.OPTIONS))
        assert heads[0].choice["strength"] == heads[1].choice["strength"]
        a, b = (report.head.logits(features) for report in heads)
        assert np.allclose(b, factor * a, rtol=1e-3, atol=1e-3 * factor)

    @pytest.mark.parametrize(("offset", "says"), [(1e4, False), (1e9, True)])
    def test_numbers_too_close_for_float32_are_noticed(self, write, output, caplog, offset, says):
        features, scores, splits = samples(20)
        texts = [repr(offset + score) for score in scores[:, 0].tolist()]
        train_head(write(features, texts, splits), output, self.OPTIONS)
        assert says == ("'value': predictions are float32, which at such" in caplog.text)
        assert says == ("in steps of 64." in caplog.text)

    def test_a_label_that_is_no_number(self, write, output):
        features, scores, splits = samples(20)
        texts = [f"{score:.3f}" for score in scores[:, 0]]
        texts[13] = "n/a"
        path = write(features, texts, splits)
        with pytest.raises(SourceError, match=r"the label 'n/a' of '0013.jpg' is not a number"):
            train_head(path, output, self.OPTIONS)
        assert not output.exists()

    def test_targets_that_do_not_vary(self, write, output, caplog):
        features, scores, splits = samples()
        path = write(features, ["7"] * len(features), splits)
        with pytest.raises(SourceError, match="all training images have the same numbers"):
            train_head(path, output, self.OPTIONS)
        texts = [f"7|{score:.3f}" for score in scores[:, 0]]
        path = write(features, texts, splits, "two.h5")
        with caplog.at_level(logging.WARNING, logger="featx"):
            report = train_head(path, output, self.OPTIONS)
        assert "All training images have the same 'value_1': always predicted." in caplog.text
        assert np.allclose(report.head.logits(features)[:, 0], 7)
        scores_ = report.metrics["val"]
        assert isinstance(scores_, RegressionMetrics)
        assert scores_.per_target[0].r2 is None

    def test_measured_labels_are_noticed(self, write, output, caplog):
        features, scores, _ = samples(60)
        path = write(features, [f"{score:.4f}" for score in scores[:, 0]], np.zeros(60))
        with caplog.at_level(logging.WARNING, logger="featx"):
            train_head(path, output, TrainOptions(solver="centroid"))
        assert "task='regression'" in caplog.text


class TestOptions:
    @pytest.mark.parametrize("task", ["multi-label", "regression"])
    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"solver": "centroid"}, "solver 'centroid' has no meaning for"),
            ({"solver": "sklearn"}, "solver 'sklearn' has no meaning for"),
            ({"solver": "sgd"}, "solver 'sgd' has no meaning for"),
            ({"class_weight": "balanced"}, "class weights have no meaning for"),
            ({"few_shot": FewShot(2)}, "few-shot draws have no meaning for"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, tags, output, task, change, match):
        with pytest.raises(ConfigError, match=match):
            train_head(tags, output, TrainOptions(task=task, **change))  # type: ignore[arg-type]

    def test_ridge_is_for_numbers_and_lbfgs_for_tags(self, tags, output):
        with pytest.raises(ConfigError, match="solver 'ridge' has no meaning for multi-label"):
            train_head(tags, output, TrainOptions(solver="ridge"))
        with pytest.raises(ConfigError, match="solver 'lbfgs' has no meaning for regression"):
            train_head(tags, output, TrainOptions(solver="lbfgs", task="regression"))

    def test_an_unknown_task(self):
        with pytest.raises(ConfigError, match="task must be one of auto, single-label"):
            TrainOptions(task="ranking")  # type: ignore[arg-type]


class TestFiles:
    def test_a_head_without_its_thresholds_is_refused(self, tags, output):
        head = train_head(tags, output).head
        for change in ({"thresholds": [0.5]}, {"task": "ranking"}):
            details = dict(head.header.details) | change
            bad = replace(head, header=replace(head.header, details=details))
            save_head(output, bad, overwrite=True)
            with pytest.raises(ArtifactInvalid, match=r"thresholds|details\.task is"):
                open_head(output)


@pytest.mark.parametrize(
    ("kind", "task", "texts"),
    [("tags", "auto", ("hot|cold", "'cold'")), ("numbers", "regression", ("1|2|3", "'value_3'"))],
)
def test_report_refuses_features_of_other_labels(request, write, output, kind, task, texts):
    train_head(request.getfixturevalue(kind), output, TrainOptions(task=task))  # type: ignore[arg-type]
    features, _, splits = samples()
    other = write(features, [texts[0]] * len(features), splits, "other.h5")
    with pytest.raises(ArtifactMismatch, match=f"unexpected {texts[1]}"):
        write_report(output, output.with_suffix(".html"), ReportOptions(features=other))


def test_thresholds_are_chosen_on_calibrated_logits(write, tmp_path):
    """Calibration moves logits and thresholds alike: which tags are given stays as it is."""
    random = np.random.default_rng(3)
    features = random.normal(size=(120, 30)).astype(np.float32)
    scores = features[:, :3] + 1.5 * random.normal(size=(120, 3)) - [1.0, 0.0, -1.0]
    names = np.array(["a", "b", "c"])
    labels = ["|".join(names[row > 0]) or "|" for row in scores]
    path = write(features, labels, np.zeros(120, int))
    given = {}
    for calibrate in (True, False):
        options = TrainOptions(strengths=(10.0,), calibrate=calibrate, overwrite=True)
        head = train_head(path, tmp_path / "h.safetensors", options).head
        thresholds = head.header.details["thresholds"]
        assert any(abs(threshold - EVEN) > 0.02 for threshold in thresholds)
        given[calibrate] = given_tags(apply_layers(head.layers, features), thresholds)
        assert (head.header.details["temperature"] > 1.5) == calibrate
    assert (given[True] == given[False]).mean() > 0.98
