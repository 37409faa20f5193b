"""The transformer of images: inputs, names of features, cache, and copies."""

from __future__ import annotations

import copy
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline

from featx.errors import BackboneError, BadImages, ConfigError
from featx.estimators import FeatureExtractor
from featx.estimators.inputs import images_of
from featx.extraction import by_content


def num_cached(cache):
    return sum(path.stat().st_size for path in cache.glob("*/keys")) // 20


@pytest.fixture
def engines(monkeypatch):
    """How many images each call computed."""
    computed = []
    plain = by_content.FeaturesByContent._compute

    def compute(self, images, places, store):
        computed.append(len(places))
        plain(self, images, places, store)

    monkeypatch.setattr(by_content.FeaturesByContent, "_compute", compute)
    return computed


def test_every_way_to_give_images_gives_the_same_features(labelled, cache):
    pd = pytest.importorskip("pandas")
    paths = labelled[0][:4]
    pixels = [np.asarray(Image.open(path)) for path in paths]
    extractor = FeatureExtractor("tiny", cache=cache).fit(paths)
    expected = extractor.transform(paths)
    assert expected.shape == (4, 192)
    assert expected.dtype == np.float32
    for images in (
        list(map(Path, paths)),
        np.array(paths),
        np.array(paths, object)[:, None],
        pd.Series(paths),
        pd.DataFrame({"path": paths}),
        [Path(path).read_bytes() for path in paths],
        [Image.open(path) for path in paths],
        pixels,
        np.stack(pixels),
    ):
        np.testing.assert_array_equal(extractor.transform(images), expected)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("a.jpg", "put a single one in brackets"),
        (Image.new("RGB", (4, 4)), "put a single one in brackets"),
        (np.zeros((5, 7)), r"got an array \(5, 7\) of float64"),
        (np.zeros((9, 9, 3), np.uint8), r"got an array \(9, 9, 3\)"),
        (np.array([["a", "b"]]), "expected one column of images; got 2"),
        ([], "0 sample"),
        (["a.jpg", None], "image 1: expected a path, bytes, PIL image or array; got NoneType"),
        (7, "got int"),
    ],
)
def test_what_is_no_list_of_images_is_one_sentence(images, said):
    with pytest.raises(ConfigError, match=said):
        images_of(images)


def test_images_that_cannot_be_used_are_all_named(labelled, cache, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    paths = [labelled[0][0], str(broken), str(tmp_path / "gone.jpg")]
    extractor = FeatureExtractor("tiny", cache=cache).fit(paths)
    with pytest.raises(BadImages, match=r"gone\.jpg") as raised:
        extractor.transform(paths)
    assert "--" not in str(raised.value)
    with pytest.raises(BadImages, match=r"broken\.jpg"):
        extractor.transform(paths[:2])


def test_a_frame_keeps_its_index_and_names_features_by_backbone_and_layer(labelled, cache):
    pd = pytest.importorskip("pandas")
    paths = pd.Series(labelled[0][:3], index=[7, 5, 3])
    extractor = FeatureExtractor("tiny", cache=cache).set_output(transform="pandas")
    frame = extractor.fit_transform(paths)
    assert list(frame.index) == [7, 5, 3]
    assert list(frame.columns[:2]) == ["tiny_penultimate_0", "tiny_penultimate_1"]
    assert frame.shape == (3, extractor.n_features_out_)


def test_parameters_are_kept_as_given_and_nothing_is_opened_before_fit(monkeypatch):
    monkeypatch.setattr(by_content, "LazyBackbone", None)
    given = {"backbone": "no such", "layer": "x", "weights": Path("w.pth"), "cache": Path("c")}
    extractor = FeatureExtractor(**given)
    assert all(extractor.get_params()[name] is value for name, value in given.items())
    assert clone(extractor).get_params() == extractor.get_params()


def test_parameters_that_are_set_after_a_fit_take_effect_at_the_next(labelled, cache):
    extractor = FeatureExtractor("tiny", cache=cache).fit(labelled[0])
    extractor.set_params(backbone="no such backbone")
    assert extractor.transform(labelled[0][:1]).shape == (1, 192)
    with pytest.raises(BackboneError, match="no such backbone"):
        extractor.fit(labelled[0])


def test_copies_and_what_is_unpickled_give_the_same_features(labelled, cache):
    extractor = FeatureExtractor("tiny", cache=cache).fit(labelled[0])
    expected = extractor.transform(labelled[0])
    saved = pickle.dumps(extractor)
    assert len(saved) < 5000
    for other in (pickle.loads(saved), copy.deepcopy(extractor)):
        np.testing.assert_array_equal(other.transform(labelled[0]), expected)


def test_other_weights_than_those_of_fit_are_refused(labelled, cache):
    saved = pickle.dumps(FeatureExtractor("tiny", cache=cache).fit(labelled[0]))
    other = pickle.loads(saved)
    other.spec_ = replace(other.spec_, weights_sha256="0" * 64)
    with pytest.raises(BackboneError, match="Fit again"):
        other.transform(labelled[0])


# --- the cache --------------------------------------------------------------------------------


def test_features_are_computed_once_for_each_content(labelled, cache, engines, tmp_path):
    twin = tmp_path / "twin.png"
    twin.write_bytes(Path(labelled[0][0]).read_bytes())
    paths = [*labelled[0], str(twin)]
    first = FeatureExtractor("tiny", cache=cache).fit_transform(paths)
    second = FeatureExtractor("tiny", cache=cache).fit_transform(paths[::-1])
    np.testing.assert_array_equal(first, second[::-1])
    assert engines == [24]
    assert num_cached(cache) == 24


def test_without_a_cache_nothing_is_written_or_kept(labelled, tmp_path, monkeypatch, engines):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    extractor = FeatureExtractor("tiny", cache=False)
    extractor.fit_transform(labelled[0])
    extractor.transform(labelled[0])
    assert engines == [24, 24]
    assert not list(tmp_path.rglob("vectors"))
    FeatureExtractor("tiny").fit_transform(labelled[0])
    assert len(list(tmp_path.glob("user/featx/vectors/tiny-*/keys"))) == 1


def test_a_cache_that_is_always_damaged_is_no_endless_loop(labelled, cache, engines, monkeypatch):
    monkeypatch.setattr(by_content.VectorStore, "_stored", lambda self, digests: ())
    monkeypatch.setattr(by_content.VectorStore, "missing", lambda self, digests: list(digests))
    features = FeatureExtractor("tiny", cache=cache).fit_transform(labelled[0])
    assert features.shape == (24, 192)
    assert len(engines) == by_content._ATTEMPTS + 1


def test_a_changed_image_gets_new_features(cache, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9), (250, 0, 0)).save(path)
    extractor = FeatureExtractor("tiny", cache=cache).fit([path])
    before = extractor.transform([path])
    Image.new("RGB", (9, 9), (0, 0, 250)).save(path)
    os.utime(path, ns=(1, 1))
    assert not np.array_equal(extractor.transform([path]), before)


def test_a_pipeline_scores_as_plain_features_do_whatever_the_order(labelled, cache, engines):
    paths, labels = map(np.array, labelled)
    features = FeatureExtractor("tiny", cache=False).fit_transform(paths)
    order = np.random.default_rng(1).permutation(len(paths))
    pipeline = make_pipeline(FeatureExtractor("tiny", cache=cache), LogisticRegression())
    engines.clear()
    for chosen in (np.arange(len(paths)), order):
        np.testing.assert_array_equal(
            cross_val_score(pipeline, paths[chosen], labels[chosen], cv=3),
            cross_val_score(LogisticRegression(), features[chosen], labels[chosen], cv=3),
        )
    assert sum(engines) == num_cached(cache) == len(paths)


def test_threads_share_a_cache_without_writing_twice(labelled, cache):
    paths = labelled[0]
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda _: FeatureExtractor("tiny", cache=cache).fit_transform(paths), range(4))
        )
    assert num_cached(cache) == len(paths)
    for each in made[1:]:
        np.testing.assert_array_equal(each, made[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:A worker stopped")
def test_a_grid_search_in_processes_computes_each_image_once(labelled, cache):
    paths, labels = map(np.array, labelled)
    search = GridSearchCV(
        make_pipeline(FeatureExtractor("tiny", cache=cache), LogisticRegression()),
        {"logisticregression__C": [0.1, 1.0, 10.0]},
        n_jobs=2,
        error_score="raise",
    ).fit(paths, labels)
    assert num_cached(cache) == len(paths)
    assert search.best_estimator_.score(paths, labels) > 0.9
