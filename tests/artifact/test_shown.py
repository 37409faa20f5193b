"""How objects show themselves: few lines, bounded and escaped HTML, frames."""

from __future__ import annotations

import pickle
import shutil
import time

import numpy as np
import pytest
from feature_files import make_columns, write_features
from headers import complete_header
from PIL import Image

import featx
from featx.artifact.shown import Framed, Picture, Shown
from featx.classifier.prediction import Prediction, Predictions
from featx.features.file import FeatureFile, open_features

EVIL = "<img src=x onerror=alert(1)>\x1b[2J"


class Everything(Framed):
    def _lines(self):
        return [f"Everything: {EVIL}", *["x" * 300] * 20]

    def _columns(self):
        return {EVIL: [EVIL] * 500, "score": [None, 0.123456, *[1] * 498]}

    def _pictures(self):
        return [Picture(EVIL, EVIL, None)]


def test_a_repr_has_at_most_six_lines_of_80_columns():
    lines = repr(Everything()).split("\n")
    assert len(lines) == 6
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in lines[0]
    assert repr(Shown()) == "Shown"


def test_names_stay_text_in_html():
    html = Everything()._repr_html_()
    assert "<img" not in html
    assert "\x1b" not in html
    assert html.count("&lt;img") > 20
    assert "no picture" in html


def test_tables_in_html_are_cut():
    assert Everything()._repr_html_().count("<tr>") == 21


def test_columns_without_content_are_left_out_of_html():
    class Scores(Shown):
        def _cells(self):
            return ["split", "top-1", "top-5", "note"], [
                ["val", "0.9", "–", ""],
                ["", "–", "–", ""],
            ]

    html = Scores()._repr_html_()
    assert html.count("<th>") == 2
    assert html.count("<td>") == 4


def test_frames_have_all_rows():
    pytest.importorskip("pandas")
    frame = Everything().to_frame()
    assert frame.shape == (500, 2)
    assert frame["score"][1] == 0.123456


# --- feature files ----------------------------------------------------------------------------


def test_a_cache_of_a_million_images_is_shown_in_little_time_and_space():
    count, names = 1_000_000, tuple(f"{EVIL}{i}" for i in range(1000))
    spec = {"num_features": 512}
    file = FeatureFile(
        path="features.h5",
        header=complete_header("features", spec, names, {"source": "/gone"}, {"python": "3"}),
        sample_ids=tuple(map(str, range(count))),
        **{
            "labels": np.arange(count) % 1001 - 1,
            "splits": (np.arange(count) % 3).astype(np.uint8),
            "digests": np.zeros((count, 16), np.uint8),
            "stamps": np.zeros((count, 3), np.int64),
            "groups": np.full(count, -1),
        },
    )
    start = time.process_time()
    html = file._repr_html_()
    assert time.process_time() - start < 2  # a tenth of a second, on a machine at rest
    assert len(html) < 300_000
    assert "<img" not in html
    assert html.count("no picture") == 12
    assert len(repr(file).split("\n")) <= 6


def test_a_cache_shows_thumbnails_of_images_that_are_as_they_were(photos, tmp_path):
    root = photos({"ants": 3, "bees": 3})
    featx.extract(root, tmp_path / "f.h5", featx.ExtractOptions(backbone="tiny"))
    (root / "ants" / "000.jpg").unlink()
    Image.new("RGB", (20, 20)).save(root / "bees" / "000.jpg")
    cache = open_features(tmp_path / "f.h5")
    html = cache._repr_html_()
    assert html.count('<img src="data:image/jpeg;base64,') == 4
    assert html.count("no picture") == 2
    assert "6 images of 2 classes: ants, bees" in repr(cache)
    assert len(repr(cache)) < 500


def test_a_split_is_features_and_names_of_labelled_images(published):
    cache = open_features(published)
    features, labels = cache.split("train")
    rows = [row for row in cache.rows("train") if cache.labels[row] >= 0]
    np.testing.assert_array_equal(features, cache.features[rows])
    assert labels.tolist() == [cache.classes[cache.labels[row]] for row in rows]
    assert len(cache.split()[1]) == (cache.labels >= 0).sum()
    with pytest.raises(featx.errors.ConfigError, match="split must be one of train, val, test"):
        cache.split("valid")


def test_a_frame_of_a_cache_has_a_row_for_each_image(published):
    pytest.importorskip("pandas")
    cache = open_features(published)
    frame = cache.to_frame()
    assert frame["image"].tolist() == list(cache.sample_ids)
    assert frame["label"].isna().sum() == (cache.labels < 0).sum()
    assert set(frame["split"]) <= {"train", "val", "test"}


def test_a_cache_without_classes_is_shown(tmp_path):
    columns = make_columns(5) | {"labels": np.full(5, -1)}
    header = complete_header("features", {"num_features": 3}, (), {}, {"python": "3"})
    write_features(tmp_path / "f.h5", np.ones((5, 3), np.float32), header=header, **columns)
    cache = open_features(tmp_path / "f.h5")
    assert "5 images of 0 classes: no labels" in repr(cache)
    assert "(no label)" in cache._repr_html_()


# --- predictions ------------------------------------------------------------------------------

SINGLE = Prediction("a.jpg", (("ant", 0.75), ("bee", 0.25)))


def test_predictions_are_a_list_with_a_frame_and_pictures():
    pytest.importorskip("pandas")
    failed = Prediction("b.jpg", (), "cannot be read.")
    made = Predictions([SINGLE, failed], [np.zeros((9, 9, 3), np.uint8), "gone.jpg"])
    assert made == [SINGLE, failed]
    assert repr(made).split("\n") == [
        "Prediction: a.jpg: ant 0.750, bee 0.250",
        "Prediction: b.jpg: cannot be read.",
    ]
    far = repr(Prediction("/a/long/way/" * 9 + "photo.jpg", SINGLE.top))
    assert far.endswith("photo.jpg: ant 0.750, bee 0.250")
    assert len(far) <= 80
    html = made._repr_html_()
    assert (html.count("<img"), html.count("no picture")) == (1, 1)
    frame = made.to_frame()
    assert frame["label"].tolist()[0] == "ant"
    assert frame["probability"][0] == 0.75
    assert frame["error"][1] == "cannot be read."
    assert repr(Predictions([SINGLE] * 1000)).endswith("… and 995 more")


def test_tags_and_values_are_shown_and_framed():
    pytest.importorskip("pandas")
    tags = Prediction("a.jpg", (("big", 0.9), ("red", 0.2)), tags=("big",))
    assert repr(tags) == "Prediction: a.jpg: big: big 0.900, red 0.200"
    assert Predictions([tags]).to_frame()["label"].tolist() == ["big"]
    value = Prediction("a.jpg", (), values=(("age", 3.25),))
    assert repr(value) == "Prediction: a.jpg: age 3.25"
    assert Predictions([value]).to_frame()["age"].tolist() == [3.25]


# --- all the others ---------------------------------------------------------------------------


def test_reports_are_shown_in_a_few_lines_and_in_notebooks(photos, tmp_path):
    pd = pytest.importorskip("pandas")
    features, head, model = (tmp_path / name for name in ("f.h5", "h.safetensors", "m.onnx"))
    root = photos({"train/ants": 6, "train/bees": 6, "val/ants": 2, "val/bees": 2})
    shown = [featx.extract(root, features, featx.ExtractOptions(backbone="tiny"))]
    shown.append(featx.train_head(features, head))
    shown += [shown[-1].head, featx.export_onnx(head, model)]
    shown += [featx.evaluate(model, root), featx.check(features, root), featx.status(tmp_path)]
    copies = shutil.copy(features, tmp_path / "g.h5"), shutil.copy(head, tmp_path / "g.safetensors")
    shown += [featx.audit(features), featx.Predictor(model)]
    shown += [featx.compare([features, copies[0]]), featx.compare_heads([head, copies[1]])]
    for each in shown:
        lines = repr(each).split("\n")
        assert 2 <= len(lines) <= 6, each
        assert lines[0].startswith(type(each).__name__)
        assert max(map(len, lines)) <= 80
        assert each._repr_html_().startswith("<div><div><b>")
    copied = pickle.loads(pickle.dumps(featx.Predictor(model)))
    shown_path = repr(copied).removeprefix("Predictor: ").removesuffix("…")
    assert str(model).startswith(shown_path)  # which opens nothing
    framed = [each for each in shown if isinstance(each, Framed)]
    assert len(framed) == 5
    for each in framed:
        assert isinstance(each.to_frame(), pd.DataFrame)
    scores = shown[1].to_frame().set_index("split")
    assert scores.loc["val", "top1"] == shown[1].metrics["val"].top1


def test_backbones_are_listed_by_size_and_accuracy():
    pytest.importorskip("pandas")
    small = featx.list_backbones("resnet", max_params=30_000_000, sort="top1")
    assert small
    assert all(row.num_parameters <= 30_000_000 for row in small)
    accuracies = [row.top1 or 0 for row in small]
    assert accuracies == sorted(accuracies, reverse=True)
    assert small.to_frame().loc[0, "backbone"]
    assert len(repr(featx.list_backbones())) <= 80
    assert not featx.list_backbones("no such thing")
    with pytest.raises(featx.errors.ConfigError, match="sort must be one of"):
        featx.list_backbones(sort="speed")


# --- reports ----------------------------------------------------------------------------------


def test_an_audit_shows_the_images_of_its_findings(photos, tmp_path):
    root = photos({EVIL.replace("/", "")[:9]: 8, "bees": 8})
    shutil.copy(root / "bees" / "000.jpg", root / "bees" / "copy.jpg")
    featx.extract(root, tmp_path / "f.h5", backbone="tiny")
    report = featx.audit(tmp_path / "f.h5")
    html = report._repr_html_()
    assert html.count('<img src="data:image/jpeg;base64,') >= 1
    assert "<img src=x" not in html
    assert len(html) < 300_000
    shutil.rmtree(root)
    html = report._repr_html_()
    assert "data:image" not in html
    assert "no picture" in html
    (tmp_path / "f.h5").unlink()
    assert "AuditReport" in report._repr_html_()
