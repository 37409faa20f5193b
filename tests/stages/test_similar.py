"""New images by a file's network: the file's own features, and the nearest of its images."""

from __future__ import annotations

import json

import numpy as np
import pytest
from caches import write_cache
from commands import featx_cli
from PIL import Image

from featx.errors import ConfigError, ImageError
from featx.extraction.options import ExtractOptions
from featx.features.file import open_features
from featx.stages.extract import extract
from featx.stages.similar import Neighbour, embed, similar, write_similar_page


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight noisy pictures of two colours, in class folders."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(8):
        name = ("blue", "red")[number % 2]
        colour = {"blue": (40, 40, 200), "red": (200, 40, 40)}[name]
        pixels = np.clip(colour + random.normal(0, 40, (40, 48, 3)), 0, 255).astype(np.uint8)
        (folder / name).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def features(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.h5"
    extract(str(photos), path, ExtractOptions(backbone="tiny"))
    return path


@pytest.fixture(scope="module")
def at_cut(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("cut") / "c.h5"
    extract(str(photos), path, ExtractOptions(backbone="tiny", cut="stage3"))
    return path


def test_embedded_images_have_the_features_of_the_file(photos, features):
    cache = open_features(features)
    found = embed([photos / name for name in cache.sample_ids], cache=features)
    assert np.array_equal(found, cache.features)


def test_paths_bytes_pictures_and_arrays_have_the_same_features(photos, features):
    path = photos / "red" / "1.png"
    picture = Image.open(path)
    found = embed([path, path.read_bytes(), picture, np.asarray(picture)], cache=features)
    assert (found == found[0]).all()
    assert embed([], cache=features).shape == (0, 192)


def test_an_image_of_the_file_is_nearest_to_itself(photos, features, at_cut):
    for path in (features, at_cut):
        for name in ("red/1.png", "blue/4.png"):
            (near,) = similar(path, [photos / name], k=3)
            assert near[0].sample_id == name
            assert near[0].label == name.partition("/")[0]
            assert near[0].similarity == pytest.approx(1, abs=2e-3)
            assert len(near) == 3


def test_a_backbone_gives_the_features_that_extraction_gives(photos, features):
    cache = open_features(features)
    found = embed([photos / name for name in cache.sample_ids], backbone="tiny")
    assert np.array_equal(found, cache.features)


@pytest.mark.parametrize("given", [{}, {"cache": "f.h5", "backbone": "tiny"}])
def test_exactly_one_network_is_given(given):
    with pytest.raises(ConfigError, match=r"cache='features.h5'.*backbone=.*got (neither|both)"):
        embed([], **given)


def test_the_page_has_both_sides_and_says_where_pictures_have_gone(photos, features, tmp_path):
    path, page = photos / "red" / "1.png", tmp_path / "similar.html"
    result = featx_cli("similar", path, "--features", features, "-k", 3, "--html", page)
    assert result.exit_code == 0, result.output
    text = page.read_text()
    assert text.count("data:image/jpeg") == 4
    assert "red/1.png · " in text
    assert "http" not in text
    again = featx_cli("similar", path, "--features", features, "--html", photos / "red" / "1.png")
    assert again.exit_code == 1
    gone = write_cache(
        tmp_path / "f.h5", np.eye(4, dtype=np.float32), np.arange(4) % 2, np.zeros(4, np.uint8)
    )
    near = [(Neighbour("0001.jpg", "bee", "train", 0.5),)]
    write_similar_page(gone, [path], near, page)
    assert "no pictures of them" in page.read_text()


def test_what_is_no_image_is_named(photos, features, tmp_path):
    with pytest.raises(ConfigError, match="list of images"):
        embed(photos / "red" / "1.png", cache=features)
    with pytest.raises(ConfigError, match="k must be"):
        similar(features, [photos / "red" / "1.png"], k=0)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        embed([broken], cache=features)


def test_the_command_prints_a_table_or_json(photos, features):
    path = photos / "red" / "1.png"
    result = featx_cli("similar", path, "--features", features, "-k", 2)
    assert result.exit_code == 0
    assert "red/1.png" in result.output.splitlines()[2]
    values = json.loads(featx_cli("similar", path, "--features", features, "--json").stdout)
    assert values[str(path)][0]["sample_id"] == "red/1.png"
    assert featx_cli("similar", photos / "none.jpg", "--features", features).exit_code == 1
