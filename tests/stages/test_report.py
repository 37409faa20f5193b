"""featx report: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from caches import write_labels
from commands import featx_cli
from PIL import Image

import featx
from featx.errors import ArtifactExists, ArtifactMissing, ConfigError, SourceError
from featx.heads.tasks import TASKS
from featx.heads.tasks.single_label import NUM_BINS, expected_calibration_error
from featx.reporting.summary import (
    ClassPredictions,
    confused_pairs,
    map_features,
    predict_classes,
    reliability,
)
from featx.stages.report import ReportOptions, write_report
from featx.training.out_of_fold import out_of_fold


@pytest.fixture
def source(photos: Callable[..., Path]) -> Path:
    """Images of two classes whose colours are alike, so that some are mistaken."""
    return photos({"ants": 12, "wasps & <b>bees</b>": 12}, seed=3)


@pytest.fixture
def made(source: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A feature file and a head that was trained on shuffled labels: it makes mistakes."""
    table = tmp_path / "images.csv"
    names = sorted(str(path.relative_to(tmp_path)) for path in source.rglob("*.*"))
    rng = np.random.default_rng(0)
    labels = rng.choice(["ants", "wasps & <b>bees</b>"], len(names))
    splits = rng.choice(["train", "val"], len(names))
    rows = [f"{n},{a},{b}" for n, a, b in zip(names, labels, splits, strict=True)]
    table.write_text("\n".join(["path,label,split", *rows]))
    features, head = tmp_path / "f.h5", tmp_path / "h.safetensors"
    featx.extract(table, features, featx.ExtractOptions(backbone="tiny"))
    featx.train_head(features, head)
    return features, head


def predictions(head, cache, rows):
    return predict_classes(head.logits(cache.features[rows]), cache.labels[rows], rows)


class Page(HTMLParser):
    """What a browser would make of a page: tags, the addresses it would load, its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[bytes] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value:
                self.addresses.append(value)
        assert tag not in ("script", "link", "iframe")
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class TestPage:
    def test_it_is_whole_and_loads_nothing(self, made, tmp_path):
        path = write_report(made[1], tmp_path / "r.html").path
        page = Page(path)
        assert all(a.startswith(("data:", "#")) for a in page.addresses), page.addresses
        assert "url(http" not in path.read_text()
        assert path.read_text().count("<figure>") == 4

    def test_names_are_text_not_tags(self, made, tmp_path):
        path = write_report(made[1], tmp_path / "r.html").path
        assert "<b>bees</b>" not in path.read_text()
        assert "wasps & <b>bees</b>" in Page(path).text

    def test_its_scores_are_the_heads(self, made, tmp_path):
        features, head = made
        page = Page(write_report(head, tmp_path / "r.html").path)
        scores = featx.open_head(head).header.details["metrics"]["val"]
        for name in ("top1", "log_loss", "ece", "balanced_accuracy"):
            assert f"{scores[name]:.4f}" in page.text
        assert f"{len(featx.open_features(features).rows('val')):,} images of the val" in page.text

    def test_mistakes_come_with_the_picture_of_their_image(self, made, tmp_path):
        features, head = made
        page = Page(write_report(head, tmp_path / "r.html").path)
        cache, trained = featx.open_features(features), featx.open_head(head)
        seen = predictions(trained, cache, cache.rows("val"))
        wrong = np.flatnonzero(seen.labels != seen.predicted)
        assert len(wrong)
        pictures = [a for a in page.addresses if a.startswith("data:image/jpeg;base64,")]
        assert len(pictures) >= len(wrong)  # those of training images follow
        surest = wrong[seen.confidence[wrong].argmax()]
        shown = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
        name = cache.sample_ids[seen.rows[surest]]
        with Image.open(tmp_path / name) as original:
            expected = np.asarray(original.convert("RGB")).mean(axis=(0, 1))
        assert np.abs(np.asarray(shown).mean(axis=(0, 1)) - expected).max() < 6
        assert f"expected {cache.classes[seen.labels[surest]]}" in page.text

    def test_the_same_head_gives_the_same_page(self, made, tmp_path):
        pages = [write_report(made[1], tmp_path / f"{i}.html").path.read_bytes() for i in range(2)]
        assert pages[0] == pages[1]

    def test_the_same_again_is_up_to_date(self, made, tmp_path):
        features, head = made
        page = tmp_path / "r.html"
        assert not write_report(head, page).is_unchanged
        before = page.read_bytes(), page.stat().st_mtime_ns
        again = write_report(head, page)
        assert (again.is_unchanged, again.replaced) == (True, "")
        assert (page.read_bytes(), page.stat().st_mtime_ns) == before
        other = write_report(head, page, ReportOptions(map="none"))
        assert (other.is_unchanged, other.replaced) == (False, "an earlier report")
        featx.train_head(features, head, featx.TrainOptions(strengths=(0.5,)))
        assert not write_report(head, page, ReportOptions(map="none")).is_unchanged
        page.write_bytes(page.read_bytes()[:-1])
        assert not write_report(head, page, ReportOptions(map="none")).is_unchanged

    def test_a_page_with_pictures_missing_is_made_again(self, made, tmp_path):
        table, page = tmp_path / "images.csv", tmp_path / "r.html"
        table.rename(tmp_path / "away")
        write_report(made[1], page)
        (tmp_path / "away").rename(table)
        assert not write_report(made[1], page).is_unchanged
        assert write_report(made[1], page).is_unchanged


class TestOptions:
    def test_split_map_and_number(self, made, tmp_path):
        options = ReportOptions(split="train", map="none", num_mistakes=0)
        page = Page(write_report(made[1], tmp_path / "r.html", options).path)
        assert "train split" in page.text
        assert not [a for a in page.addresses if "jpeg" in a]

    def test_tsne(self, made, tmp_path):
        assert (
            "t-SNE"
            in Page(write_report(made[1], tmp_path / "r.html", ReportOptions(map="tsne")).path).text
        )

    def test_a_split_without_images(self, made, tmp_path):
        with pytest.raises(SourceError, match="test split"):
            write_report(made[1], tmp_path / "r.html", ReportOptions(split="test"))

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"split": "all"}, "split must be one of"),
            ({"map": "umap"}, "map must be one of"),
            ({"num_mistakes": -1}, "at least 0"),
        ],
    )
    def test_out_of_range(self, settings, match):
        with pytest.raises(ConfigError, match=match):
            ReportOptions(**settings)  # type: ignore[arg-type]

    def test_an_output_that_exists(self, made, tmp_path):
        (tmp_path / "r.html").write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(ArtifactExists, match=r"is not a report that featx wrote.*r-2.html"):
                write_report(made[1], tmp_path / "r.html", ReportOptions(overwrite=overwrite))
        assert (tmp_path / "r.html").read_text() == "mine"

    def test_features_that_are_gone(self, made, tmp_path):
        made[0].rename(tmp_path / "moved.h5")
        with pytest.raises(ArtifactMissing, match="features=…"):
            write_report(made[1], tmp_path / "r.html")
        write_report(made[1], tmp_path / "r.html", ReportOptions(features=tmp_path / "moved.h5"))


def test_a_page_has_no_folders(made, tmp_path):
    page = write_report(made[1], tmp_path / "r.html").path.read_text()
    assert ">images.csv, 32×32 pixels<" in page
    assert str(tmp_path) not in page


class TestWithoutImages:
    def test_a_source_that_is_gone_costs_the_pictures_only(self, made, tmp_path, caplog):
        (tmp_path / "images.csv").unlink()
        page = Page(write_report(made[1], tmp_path / "r.html").path)
        assert "not shown: its source is not there" in page.text
        assert "source=…" in caplog.text

    def test_images_that_changed_or_vanished_are_not_shown(self, made, source, tmp_path):
        for path in source.rglob("*.*"):
            Image.new("RGB", (9, 9)).save(path)
        page = Page(write_report(made[1], tmp_path / "r.html").path)
        assert "changed since it was extracted" in page.text
        shutil.rmtree(source)
        page = Page(write_report(made[1], tmp_path / "r2.html").path)
        assert "cannot be read" in page.text


class TestTrainingImages:
    def test_their_mistakes_are_those_of_heads_that_did_not_see_them(self, made, tmp_path):
        features, head = made
        cache, trained = featx.open_features(features), featx.open_head(head)
        found = out_of_fold(cache, TASKS["single-label"])
        wrong = found.rows[found.outputs.argmax(axis=1) != cache.labels[found.rows]]
        wrong = {cache.sample_ids[row] for row in wrong[cache.splits[wrong] == 0].tolist()}
        assert len(wrong) > 2
        page = Page(write_report(head, tmp_path / "r.html").path)
        assert "Training images" in page.text
        assert "were not trained on them" in page.text
        shown = page.text.partition("Training images")[2]
        assert {name for name in cache.sample_ids if name in shown} == wrong
        options = ReportOptions(split="train")
        of_train = Page(write_report(head, tmp_path / "t.html", options).path).text
        assert "each by a head that was not trained on it" in of_train
        assert "every image of the split is recognised" not in of_train
        assert {name for name in cache.sample_ids if name in of_train} == wrong
        assert f"{trained.header.details['metrics']['train']['top1']:.4f}" in of_train

    @pytest.mark.parametrize("labels", [["red|big", "red", "|", "big"], ["1.5", "2.25", "3", "0"]])
    def test_tags_and_numbers_have_theirs(self, tmp_path, labels):
        random = np.random.default_rng(0)
        features, names = random.normal(size=(80, 4)).astype(np.float32), labels * 20
        path = write_labels(tmp_path / "f.h5", features, names, np.arange(80) % 4 // 3)
        task = "multi-label" if "|" in labels else "regression"
        head = tmp_path / "h.safetensors"
        featx.train_head(path, head, featx.TrainOptions(task=task))
        for options in (ReportOptions(), ReportOptions(split="train")):
            page = Page(write_report(head, tmp_path / "r.html", options).path)
            assert ("Training images" in page.text) == (options.split is None)
            assert ("not trained on it" in page.text) == (options.split == "train")


def make_view(confidence: np.ndarray, right: np.ndarray) -> ClassPredictions:
    labels = np.zeros(len(right), dtype=np.int64)
    predicted = np.where(right, 0, 1)
    confusion = np.array([[right.sum(), (~right).sum()], [0, 0]])
    rows = np.arange(len(right))
    return ClassPredictions(rows, labels, predicted, confidence, confidence, confusion)


def test_reliability_adds_up_to_the_calibration_error():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, 2))
    labels = rng.integers(0, 2, 500)
    confidence = 1 / (1 + np.exp(-np.abs(logits[:, 0] - logits[:, 1])))
    seen = make_view(confidence, logits.argmax(axis=1) == labels)
    bins = reliability(seen.confidence, seen.labels == seen.predicted)
    assert bins.counts.sum() == 500
    assert len(bins.counts) == NUM_BINS
    filled = bins.counts > 0
    assert np.isnan(bins.accuracy[~filled]).all()
    gaps = np.abs(bins.accuracy - bins.confidence)[filled] * bins.counts[filled]
    assert gaps.sum() / 500 == pytest.approx(expected_calibration_error(logits, labels))


def test_the_commonest_confusions_come_first():
    seen = make_view(np.ones(4), np.ones(4, dtype=bool))
    confusion = np.array([[5, 3, 0], [1, 9, 0], [0, 4, 6]])
    seen = ClassPredictions(**{**seen.__dict__, "confusion": confusion})
    pairs = confused_pairs(seen, ("a", "b", "c"))
    assert [(p.label, p.predicted, p.count) for p in pairs] == [
        ("c", "b", 4),
        ("a", "b", 3),
        ("b", "a", 1),
    ]
    assert pairs[0].share == pytest.approx(0.4)


def test_a_map_of_few_and_of_many_samples(made):
    features, head = made
    cache = featx.open_features(features)
    seen = predictions(featx.open_head(head), cache, cache.rows("val"))
    plane = map_features(cache, seen.rows, kind="pca")
    assert plane is not None
    assert plane.points.shape == (len(seen.rows), 2)
    assert 0 < (plane.explained or 0) <= 1
    centred = cache.features[seen.rows] - cache.features[seen.rows].mean(axis=0)
    spread = np.linalg.norm(centred, axis=1)
    assert (np.linalg.norm(plane.points, axis=1) <= spread * 1.001).all()  # a projection
    assert map_features(cache, seen.rows[:2], kind="pca") is None


def test_the_command(made, tmp_path):
    result = featx_cli("report", made[1], "-o", tmp_path / "out" / "r.html")
    assert result.exit_code == 0, result.output
    assert re.match(r"size +\d.* kB\nwritten +.*r\.html\n", result.output)
    assert (tmp_path / "out" / "r.html").read_text().startswith("<!doctype html>")


def test_without_matplotlib_it_says_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'featx\[report\]'"):
        write_report(made[1], tmp_path / "r.html")
