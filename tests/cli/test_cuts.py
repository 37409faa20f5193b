"""Cuts and views on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import featx_cli

from featx.cli.options import features_path


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (None, "features.h5"),
        ("penultimate", "features.h5"),
        ("layer4", "features-layer4.h5"),
        ("features.6", "features-features.6.h5"),
        ("input", "features-input.h5"),
        ("../a b/ß", "features-.._a_b__.h5"),
        (300 * "x", f"features-{100 * 'x'}.h5"),
    ],
)
def test_each_cut_has_a_default_file_of_its_own(cut, name):
    assert features_path(cut) == Path("artifacts") / name


def test_extraction_says_shape_size_and_views_and_info_too(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = photos({"train/ants": 4, "train/bees": 5, "val/ants": 2, "val/bees": 2})
    result = featx_cli(
        *("extract", source, "-b", "tiny", "--cut", "stage3", "--views", 2, "--augment", "flip")
    )
    assert result.exit_code == 0, result.output
    lines = dict(line.split(None, 1) for line in result.stdout.splitlines())
    assert lines["features"] == "13 × 128×8×8 float16, 2 views  (9 train, 4 val)"
    assert lines["backbone"] == "tiny, cut stage3"
    assert lines["views"] == "2 views of each training image (random flip; generator 1): 9 images"
    assert lines["written"] == "artifacts/features-stage3.h5"
    size = "16.4 kB an image, 3 versions of 9 images and 4 others: 508 kB"
    assert f"At stage3: 128×8×8 float16, {size}." in result.stderr.replace("\n", " ")

    again = featx_cli("extract", "-o", "artifacts/features-stage3.h5")
    assert "up to date" in again.stdout

    info = featx_cli("info", "artifacts/features-stage3.h5").stdout
    lines = dict(line.split(None, 1) for line in info.splitlines())
    assert lines["features"] == "13 × 128×8×8 float16"
    assert lines["views"] == "2 views of each training image (random flip; generator 1)"
    assert lines["cut"] == "stage3"
    assert lines["backbone"] == "tiny, layer flatten, fp32"
    assert featx_cli("check", "artifacts/features-stage3.h5", "--cut", "stage3").exit_code == 0
    other = featx_cli("check", "artifacts/features-stage3.h5", "--cut", "stage2")
    assert (other.exit_code, "cut" in other.stdout) == (1, True)


def test_info_says_that_a_cache_has_no_views(photos, tmp_path):
    path = tmp_path / "f.h5"
    assert featx_cli("extract", photos(), "-b", "tiny", "-o", path).exit_code == 0
    lines = dict(line.split(None, 1) for line in featx_cli("info", path).stdout.splitlines())
    assert (lines["features"], lines["views"]) == ("12 × 192", "none")
    assert featx_cli("check", path, "--cut", "penultimate").exit_code == 0


def test_pixels_need_no_network(photos, tmp_path):
    path = tmp_path / "f.h5"
    result = featx_cli("extract", photos(), "-b", "tiny", "--cut", "input", "-o", path)
    assert "12 × 32×32×3 uint8" in result.stdout
    assert "images/s, no network)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--cut", "stage33"), "Did you mean stage3"),
        (("--cut", "stage3", "--layer", "stage2"), "--cut and --layer exclude each other"),
        (("--cut", "input", "--dtype", "float16"), "Leave out --dtype"),
        (("--cut", "stage3", "--pool", "max"), "Leave out --pool, or choose an earlier layer"),
        (("--augment", "flip"), "--augment needs --views"),
        (("--views", "2", "--augment", "blur"), "got 'blur'"),
    ],
)
def test_mistakes_are_sentences(arguments, words, photos, tmp_path):
    result = featx_cli("extract", photos(), "-b", "tiny", "-o", tmp_path / "f.h5", *arguments)
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
