"""Training images that are left out by name: for training, scores and staleness they are gone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from caches import separable, write_cache

from featx.classifier.staleness import staleness_of
from featx.errors import ConfigError
from featx.features.file import open_features
from featx.heads.head import open_head
from featx.stages.train import train_head
from featx.training.options import TrainOptions
from featx.training.samples import read_excluded

OPTIONS = TrainOptions(strengths=(0.01,))


def training_ids(path) -> list[str]:
    cache = open_features(path)
    return [cache.sample_ids[row] for row in cache.rows("train")]


def test_a_head_is_that_of_the_other_images(tmp_path):
    made = separable()
    cache = write_cache(tmp_path / "all.h5", **made)
    first = training_ids(cache)[:7]
    rows = open_features(cache).rows("train")[:7]
    labels = made["labels"].copy()
    labels[rows] = -1
    others = write_cache(tmp_path / "others.h5", **made | {"labels": labels})
    excluding = replace(OPTIONS, exclude=tuple(first))
    left_out = train_head(cache, tmp_path / "a", excluding)
    unlabelled = train_head(others, tmp_path / "b", OPTIONS)
    np.testing.assert_array_equal(left_out.head.layers[0][0], unlabelled.head.layers[0][0])
    assert left_out.metrics["train"] == unlabelled.metrics["train"]
    assert train_head(cache, tmp_path / "a", excluding).is_unchanged
    assert train_head(cache, tmp_path / "a", OPTIONS).replaced


def test_a_head_is_stale_when_other_rows_change_and_only_then(tmp_path):
    made, path = separable(), tmp_path / "features.h5"
    options = replace(OPTIONS, exclude=tuple(training_ids(write_cache(path, **made))[:7]))
    train_head(path, tmp_path / "head", options)
    head = open_head(tmp_path / "head")
    assert not staleness_of(head, open_features(path)).is_stale
    labels = made["labels"].copy()
    labels[made["splits"] == 2] = 0  # only the scores of test
    write_cache(path, **made | {"labels": labels}, overwrite=True)
    found = staleness_of(head, open_features(path))
    assert (found.is_stale, found.outdated) == (False, ("test",))
    more = {name: np.concatenate([own, own[:1]]) for name, own in made.items()}
    write_cache(path, **more, overwrite=True)
    assert staleness_of(head, open_features(path)).changes.new == 1


def test_images_of_other_splits_stay_and_unknown_ones_are_named(tmp_path, caplog):
    cache = write_cache(tmp_path / "features.h5", **separable())
    opened = open_features(cache)
    held_out = opened.sample_ids[opened.rows("val")[0]]
    caplog.set_level("INFO")
    options = replace(OPTIONS, exclude=(held_out, training_ids(cache)[0]))
    report = train_head(cache, tmp_path / "head", options)
    assert "1 image is left out of training as asked; 1 other of validation or test" in caplog.text
    assert report.metrics["val"].num_samples == len(opened.rows("val"))
    with pytest.raises(ConfigError, match=r"1 excluded image is not in '.*', 'cat.jpg' first"):
        train_head(cache, tmp_path / "head", replace(OPTIONS, exclude=("cat.jpg",)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/1.jpg\n\nb, c.jpg\r\na/1.jpg\n", ("a/1.jpg", "b, c.jpg")),
        ("path,score\na.jpg,1\n", ("a.jpg",)),
        (
            "rank,sample_id,drop\n1,a.jpg,true\n2,b.jpg,\n3,c.jpg,FALSE\n4,d.jpg,1\n",
            ("a.jpg", "d.jpg"),
        ),
    ],
)
def test_names_are_read_from_text_and_from_columns(tmp_path, text, expected):
    path = tmp_path / "exclude.txt"
    path.write_bytes(text.encode())
    assert read_excluded(path) == expected


def test_a_table_without_names_or_with_other_words_is_refused(tmp_path):
    path = tmp_path / "exclude.csv"
    path.write_text("image,drop\na.jpg,true\n")
    with pytest.raises(ConfigError, match="expected path or sample_id"):
        read_excluded(path)
    path.write_text("path,drop\na.jpg,maybe\n")
    with pytest.raises(ConfigError, match="must be true or false; got 'maybe'"):
        read_excluded(path)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_excluded(tmp_path / "none.txt")


def test_held_out_scores_are_of_all_images_and_also_without_those_named(tmp_path, caplog):
    cache = write_cache(tmp_path / "features.h5", **separable())
    opened = open_features(cache)
    caplog.set_level("INFO")
    plain = train_head(cache, tmp_path / "plain", OPTIONS)
    wrong = opened.rows("val")
    logits = plain.head.logits(opened.features[wrong])
    wrong = wrong[logits.argmax(axis=1) != opened.labels[wrong]]
    assert len(wrong)
    names = tuple(opened.sample_ids[row] for row in wrong.tolist())
    report = train_head(cache, tmp_path / "head", replace(OPTIONS, exclude=names))
    assert report.metrics["val"] == plain.metrics["val"]  # and nothing else was chosen
    assert np.array_equal(report.head.layers[0][0], plain.head.layers[0][0])
    count, top1 = len(opened.rows("val")), plain.metrics["val"].top1
    assert f"val top-1: {top1:.4f} on all {count} images, 1.0000 without the {len(wrong)}" in (
        caplog.text
    )
    assert "test top-1" not in caplog.text
